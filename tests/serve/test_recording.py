"""What a recording keeps of requests, and what it does not."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.traffic import describe
from hasten.measure.workload_file import read_workload
from hasten.models import load_model
from hasten.serve.recording import BLOCK, Disguise, Recorder

ORDINARY = np.arange(10, 1000, dtype=np.uint32)
tokens = st.lists(st.integers(0, 2**31), max_size=100)


@given(tokens, tokens, tokens)
def test_prompts_that_begin_alike_still_do(beginning, one, other):
    disguise = Disguise(ORDINARY, b"key")
    first, second = disguise([*beginning, *one]), disguise([*beginning, *other])
    assert (len(first), len(second)) == (len(beginning) + len(one), len(beginning) + len(other))
    whole = len(beginning) // BLOCK * BLOCK
    assert first[:whole] == second[:whole]
    assert set(first) | set(second) <= set(ORDINARY.tolist())


def test_what_follows_another_beginning_is_another():
    disguise = Disguise(ORDINARY, b"key")
    block = list(range(BLOCK))
    first, second = disguise([*block, *block]), disguise([*block[::-1], *block])
    assert first[BLOCK:] != second[BLOCK:]
    assert first[:BLOCK] != first[BLOCK:]


def test_nobody_without_the_key_can_tell_what_a_text_becomes():
    text = list(range(64))
    assert Disguise(ORDINARY)(text) != Disguise(ORDINARY)(text)
    assert Disguise(ORDINARY, b"a")(text) == Disguise(ORDINARY, b"a")(text)


@pytest.fixture
def tokenizer(tiny_model):
    return load_model(str(tiny_model)).tokenizer


@pytest.mark.parametrize("content", [True, False])
def test_a_recording_is_a_workload(tmp_path, tokenizer, content):
    path = tmp_path / "traffic.jsonl"
    recorder = Recorder(path, content=content)
    now = time.monotonic()
    prompt = list(range(5, 45))
    recorder.add("m", tokenizer, prompt, 7, now + 2)
    recorder.add("m", tokenizer, prompt, 9, now + 1)  # ended later, came earlier
    recorder.add("m", tokenizer, prompt, 0, now + 3)
    workload = read_workload(path, output_tokens=1, warmup=0)
    assert [item.output_tokens for item in workload.items] == [9, 7]
    assert workload.times[1] - workload.times[0] == pytest.approx(1, abs=0.01)
    assert [list(item.prompt) == prompt for item in workload.items] == [content] * 2
    assert describe(workload).repeated == 0.5
    assert path.stat().st_mode & 0o777 == 0o600
    recorder.close()
    recorder.add("m", tokenizer, prompt, 7, now)
    assert len(path.read_text().splitlines()) == 2


def test_a_disguise_is_text(tokenizer):
    found = Disguise.of(tokenizer)(range(1000))
    assert not tokenizer.special_ids & set(found)
    assert max(found) < tokenizer.vocab_size


def test_a_file_is_never_written_over(tmp_path):
    path = tmp_path / "traffic.jsonl"
    path.write_text("old")
    with pytest.raises(UsageError, match="exists"):
        Recorder(path, content=False)
    with pytest.raises(UsageError, match="cannot record"):
        Recorder(tmp_path / "no" / "where", content=False)
    assert path.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_recording_alone(tmp_path, tokenizer, caplog):
    recorder = Recorder(tmp_path / "traffic.jsonl", content=False)
    recorder._file.close()
    recorder._file = open("/dev/full", "w", buffering=1)  # noqa: PTH123, SIM115
    for _ in range(2):
        recorder.add("m", tokenizer, [5, 6], 7, time.monotonic())
    assert caplog.text.count("recording ended") == 1
