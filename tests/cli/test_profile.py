from __future__ import annotations

import json

import pytest

from hasten.cli import profile
from hasten.machine import Rates
from hasten.measure.profile.sweep import SWEEPS


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """A machine whose limits are known."""
    made = Rates(threads=2, isa="scalar", bandwidth=28e9, int8=1e12, fp32=2e11)
    monkeypatch.setattr("hasten.machine.measure_rates", lambda threads, isa: made)


@pytest.fixture
def small(tiny_model):
    lengths = ("--input-len", "16", "--output-len", "4", "--rounds", "2")
    return lambda *more: ("profile", str(tiny_model), *lengths, *more)


def test_the_tables(hasten, small):
    result = hasten(*small("--batch", "2", "--layers"))
    assert result.status == 0
    for words in (
        "2 at once, 16 tokens in, 4 out, 2 rounds",
        "prefill: ",
        "decode: ",
        "q_proj + k_proj + v_proj",
        "time/floor",
        "around the ops",
        "layer",
        "detokenising",
        "network",
    ):
        assert words in result.out
    assert "decode: ops and measured parts account for" in result.err


def test_the_report(hasten, small, tmp_path):
    path = tmp_path / "profile.json"
    result = hasten(*small("--json", str(path), "--sweep", "fuse", "--sweep-seconds", "0.01"))
    assert result.status == 0
    assert "Sweep over fuse" in result.out
    assert "op by op" in result.out
    report = json.loads(path.read_text())
    assert report["schema"] == "hasten.profile/1"
    assert report["workload"]["input_tokens"] == 16
    decode = report["phases"]["decode"]
    assert decode["steps"] == 2 * 3
    assert decode["rates"]["bandwidth_bytes_per_s"] == 28e9
    linear = next(one for one in decode["by_kind"] if one["kind"] == "linear")
    assert linear["floor_s_per_step"] == pytest.approx(
        max(linear["bytes_per_step"] / 28e9, linear["operations_per_step"] / 1e12), rel=0.01
    )
    assert linear["time_over_floor"] == pytest.approx(
        linear["seconds_per_step"] / linear["floor_s_per_step"]
    )
    assert {one["name"] for one in report["factors"]} >= {"tokenizer", "queue", "network"}
    assert report["sweeps"][0]["setting"] == "fuse"
    assert set(report["formulas"]) >= {"bytes", "operations", "floor", "rate"}


def test_json_on_stdout_is_json_alone(hasten, small):
    report = json.loads(hasten(*small("--json", "-", "--executor", "reference")).out)
    assert report["target"]["executor"] == "reference"
    assert any("--executor native" in one["sentence"] for one in report["findings"])


def test_lengths_beyond_the_context_are_refused_before_the_run(hasten, small):
    result = hasten(*small("--max-context", "19"))
    assert (result.status, result.out) == (1, "")
    assert "16 input and 4 output tokens do not fit the context of 19" in result.err


def test_an_unknown_sweep_is_wrong_use(hasten, small):
    result = hasten(*small("--sweep", "batch,moon"))
    assert (result.status, result.out) == (2, "")
    assert "'moon' is no setting to sweep" in result.err


def test_the_command_knows_all_sweeps():
    assert profile.SWEEPS == SWEEPS
