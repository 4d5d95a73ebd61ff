"""Taking up what an earlier run left, and refusing what is none of it."""

import os

import pytest
from batch_fakes import line, read_output, run_batch, write_input

from hasten.errors import OverloadError, UsageError
from hasten.serve.batch.journal import Journal, state_path


@pytest.fixture
def done(tmp_path):
    """An input of 30 lines and its complete output."""
    source = write_input(tmp_path / "in.jsonl", 30)
    output = tmp_path / "out.jsonl"
    run_batch(source, output)
    return source, output


def names(output):
    return sorted(answer["custom_id"] for answer in read_output(output))


def test_a_complete_output_is_left_alone(done):
    source, output = done
    before = output.read_bytes()

    async def never(call):
        raise AssertionError(call)

    tally, _ = run_batch(source, output, never)
    assert tally.answered == 30
    assert output.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_a_torn_last_line_is_answered_again(done, cut):
    source, output = done
    before = names(output)
    kept = output.read_bytes()[:-cut]
    output.write_bytes(kept)
    tally, _ = run_batch(source, output)
    assert names(output) == before
    assert output.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert (tally.answered, tally.prompt_tokens) == (30, 90)


def test_any_cut_is_taken_up(done):
    source, output = done
    whole = output.read_bytes()
    before = names(output)
    for size in range(1, len(whole), len(whole) // 17):
        output.write_bytes(whole[:size])
        run_batch(source, output)
        assert names(output) == before


def test_zeros_of_a_power_cut_are_cut_off(done):
    source, output = done
    before = names(output)
    whole = output.read_bytes()
    at = whole.find(b"\n", len(whole) // 2)
    output.write_bytes(whole[: at - 20] + bytes(4096) + whole[at:])
    run_batch(source, output)
    assert names(output) == before


def test_another_input_is_refused(done, tmp_path):
    source, output = done
    before = output.read_bytes()
    source.write_text(source.read_text() + line("more") + "\n")
    with pytest.raises(UsageError, match=r"another input.*--overwrite"):
        run_batch(source, output)
    assert output.read_bytes() == before
    run_batch(source, output, overwrite=True)
    assert len(names(output)) == 31


def test_another_model_is_refused(done):
    source, output = done
    with pytest.raises(UsageError, match=r"another model \(model-1\), and this is model-2"):
        run_batch(source, output, digest="model-2")


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: state_path(out).unlink(),
        lambda out: state_path(out).write_text("{"),
        lambda out: state_path(out).write_bytes(b'{"schema": "\xff"}'),
        lambda out: state_path(out).write_text(state_path(out).read_text().replace("/1", "/9")),
        lambda out: out.write_text("my thesis\n" + out.read_text()),
        lambda out: out.write_text(out.read_text() * 2),
        lambda out: out.write_text(out.read_text().replace("batch_req_", "batch_req_0", 1)),
    ],
    ids=[
        "no state",
        "torn state",
        "state that is no text",
        "other version",
        "foreign line",
        "twice",
        "other run",
    ],
)
def test_what_is_no_output_of_this_batch_is_left_alone(done, damage):
    source, output = done
    damage(output)
    before = output.read_bytes()
    with pytest.raises(UsageError, match="--overwrite"):
        run_batch(source, output)
    assert output.read_bytes() == before


def test_an_empty_output_belongs_to_nobody(done, tmp_path):
    source, output = done
    output.write_bytes(b"")  # its state is that of the old input
    source.write_text(line("other") + "\n")
    run_batch(source, output)
    assert names(output) == ["other"]


def test_one_run_at_a_time(done, tmp_path):
    _, output = done
    with Journal(output), pytest.raises(UsageError, match="another run is writing"):
        Journal(output)
    Journal(output).close()


def test_an_output_that_was_removed_meanwhile_is_no_success(tmp_path):
    journal = Journal(tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(UsageError, match="removed or replaced"):
        journal.close()
    journal.close()


def test_what_cannot_be_written_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none" / "out.jsonl"):
        with pytest.raises(UsageError):
            Journal(path)


def test_a_full_disk_keeps_whole_lines(tmp_path, monkeypatch):
    source = write_input(tmp_path / "in.jsonl", 50)
    output = tmp_path / "out.jsonl"
    write = os.write
    room = 3000

    def write_a_little(descriptor, data):
        nonlocal room
        if room == 0:
            raise OSError(28, "No space left on device")
        part = data[: min(room, 100)]
        room -= len(part)
        return write(descriptor, part)

    monkeypatch.setattr("hasten.serve.batch.journal.os.write", write_a_little)
    with pytest.raises(OverloadError, match="No space left"):
        run_batch(source, output)
    monkeypatch.undo()
    assert output.read_bytes().endswith(b"\n")
    assert 0 < len(read_output(output)) < 50
    run_batch(source, output)
    assert len(set(names(output))) == len(names(output)) == 50
