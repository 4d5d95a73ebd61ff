from __future__ import annotations

import json

import pytest

from hasten.machine import Rates

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """A machine whose limits are known."""
    made = Rates(threads=2, isa="scalar", bandwidth=28e9, int8=1e12, fp32=2e11)
    monkeypatch.setattr("hasten.machine.measure_rates", lambda threads: made)


def test_smollm2(hasten):
    result = hasten("info", "smollm2")
    assert result.status == 0
    for words in (
        "llama: 30 layers, hidden 576, feed-forward 1536, 9 heads and 3 KV heads of 64",
        "134.5 M: embedding 28.3 M",
        "8192 positions",
        "Q4_1",
        "int4:32+min",
        "49152 tokens, with chat template",
        "Memory for weights and 8192 positions",
        "decode at 256 positions = 1 / max(",
        "prefill of 512 tokens = 1 / (",
    ):
        assert words in result.out


def test_json(hasten):
    document = json.loads(hasten("info", "smollm2", "--json", "-", "--context", "1").out)
    assert document["schema"] == "hasten.info/1"
    assert document["architecture"]["num_kv_heads"] == 3
    footprint = document["footprint"]
    assert footprint["total_parameters"] == 134_515_008
    assert footprint["encodings"]["Q4_1"]["tensors"] == 210
    assert footprint["kv_bytes_per_token"] == {"f32": 46080, "bf16": 23040, "int8": 12240}
    assert document["matrices"]["model.embed_tokens.weight"] == {
        "encoding": "Q8_0",
        "format": "int8:32",
        "exact": True,
    }
    assert document["tokenizer"]["chat_template"] is True
    limits = {one["weights"]: one for one in document["limits"]["expected"]}
    # 28 GB/s over the bytes of 134.5 M weights at 4 bytes
    assert limits["f32"]["decode_tokens_per_s"] == pytest.approx(52, abs=1)
    assert set(document["formulas"]) >= {"decode_tokens_per_s", "prefill_tokens_per_s"}


def test_without_a_probe_there_are_no_limits(hasten):
    assert "limits" not in hasten("info", "smollm2", "--no-probe").out
    assert "limits" not in json.loads(hasten("info", "smollm2", "--no-probe", "--json", "-").out)
