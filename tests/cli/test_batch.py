"""The command over a real engine of a tiny model."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hasten.cli.batch import _duration

ENGINE = ("--threads", "1", "--max-context", "64", "--max-sequences", "4")


def line(name, prompt, url="/v1/completions", model="gpt-4o-mini", **body):
    asked = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0} | body
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": asked})


def words(number):
    return "".join(" abcdefghij"[int(digit)] for digit in str(number + 100))


def write(path, count):
    path.write_text("".join(f"{line(f'line-{i}', words(i))}\n" for i in range(count)))
    return path


def rows(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def texts(path):
    """The answers by name; each name once."""
    found = rows(path)
    answers = {row["custom_id"]: row["response"]["body"]["choices"][0]["text"] for row in found}
    assert len(answers) == len(found)
    return answers


def start(model, source, output, *options):
    command = [sys.executable, "-m", "hasten", "batch", str(model), str(source), str(output)]
    return subprocess.Popen(
        [*command, *ENGINE, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HASTEN_CACHE": "off"},
    )


def wait_for_lines(output, count):
    end = time.monotonic() + 60
    while not output.exists() or output.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(tiny_model, tmp_path_factory):
    """An input and the answers of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    source = write(folder / "in.jsonl", 600)
    child = start(tiny_model, source, folder / "out.jsonl")
    printed, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert "lines/s" in printed
    assert "600 lines name another model (gpt-4o-mini); tiny answered them" in errors
    return source, texts(folder / "out.jsonl")


def test_every_line_is_answered(whole):
    _, answers = whole
    assert set(answers) == {f"line-{i}" for i in range(600)}
    assert len(set(answers.values())) > 100


def test_killed_and_interrupted_and_resumed(tiny_model, whole, tmp_path):
    source, answers = whole
    output = tmp_path / "out.jsonl"
    drawn = random.Random(1)
    for count in (1, 250):
        child = start(tiny_model, source, output)
        wait_for_lines(output, count)
        time.sleep(drawn.random() * 0.05)
        child.kill()
        child.communicate()
    child = start(tiny_model, source, output)
    wait_for_lines(output, 400)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    kept = len(rows(output))
    assert f"interrupted: {kept} of 600 lines are answered; the same command goes on" in errors
    assert "Traceback" not in errors
    child = start(tiny_model, source, output, "--json", "-")
    printed, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    report = json.loads(printed)
    assert report["lines"] == 600
    assert report["answered_before"] == kept
    assert report["failed"] == 0
    assert texts(output) == answers


def test_a_killed_engine_fails_no_line(tiny_model, whole, tmp_path):
    source, answers = whole
    output = tmp_path / "out.jsonl"
    child = start(tiny_model, source, output)
    wait_for_lines(output, 200)
    (engine,) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    os.kill(int(engine), signal.SIGKILL)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    assert texts(output) == answers


def test_failed_lines_are_told(hasten, tiny_model, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        "\n".join(
            [
                line("good", "abc"),
                line("hot", "abc", temperature=-3),
                line("long", "a" * 100),
                line("vectors", "abc", url="/v1/embeddings", input="abc"),
                "nonsense",
            ]
        )
    )
    result = hasten("batch", str(tiny_model), str(source), str(output), *ENGINE, "--strict")
    assert result.status == 1
    assert "4 lines failed" in result.err
    found = {row["custom_id"]: row for row in rows(output)}
    status = {name: (row["response"] or {}).get("status_code") for name, row in found.items()}
    assert status == {"good": 200, "hot": 400, "long": 400, "vectors": 400, None: None}
    assert "temperature" in found["hot"]["response"]["body"]["error"]["message"]
    assert "embeddings" in found["vectors"]["response"]["body"]["error"]["message"]
    again = hasten("batch", str(tiny_model), str(source), str(output), *ENGINE)
    assert again.status == 0  # nothing to do, and failures alone are no failure
    assert "answered before" in again.out


def test_the_model_of_lines_can_be_checked(hasten, tiny_model, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(f"{line('a', 'abc')}\n{line('b', 'abc', model='mine')}\n")
    model = f"mine={tiny_model}"
    result = hasten("batch", model, str(source), str(output), *ENGINE, "--check-model")
    assert result.status == 0
    found = {row["custom_id"]: row for row in rows(output)}
    assert found["a"]["error"]["code"] == "mismatched_model"
    assert found["b"]["response"]["body"]["model"] == "mine"
    changed = hasten("batch", model, str(source), str(output), *ENGINE, "--weights", "f32")
    assert changed.status == 2
    assert "another model" in changed.err
    assert "--overwrite" in changed.err


def test_wrong_calls_are_refused_before_the_model_is_read(hasten, tmp_path):
    source = tmp_path / "in.jsonl"
    source.touch()
    for arguments in (("-", "out.jsonl"), (str(source), "-")):
        result = hasten("batch", "no-model", *arguments)
        assert (result.status, "a pipe cannot" in result.err) == (2, True)


def test_input_and_output_are_two_files(hasten, tiny_model, tmp_path):
    source = write(tmp_path / "in.jsonl", 3)
    before = source.read_bytes()
    for name in ("in.jsonl", "link.jsonl"):
        if name == "link.jsonl":
            (tmp_path / name).hardlink_to(source)
        result = hasten("batch", str(tiny_model), str(source), str(tmp_path / name), "--overwrite")
        assert result.status == 2
        assert "one file" in result.err
    assert source.read_bytes() == before


def test_an_empty_input_is_done_at_once(hasten, tiny_model, tmp_path):
    (tmp_path / "in.jsonl").touch()
    result = hasten("batch", str(tiny_model), str(tmp_path / "in.jsonl"), str(tmp_path / "o.jsonl"))
    assert result.status == 0
    assert "0" in result.out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (90, "2 min"), (3600 * 3 + 301, "3 h 5 min")]
)
def test_durations_read_well(seconds, text):
    assert _duration(seconds) == text


@pytest.mark.model
def test_texts_become_vectors(hasten, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        line(str(i), "", url="/v1/embeddings", input=f"text {i}", encoding_format="float")
        for i in range(20)
    ]
    source.write_text("\n".join(lines))
    result = hasten("batch", "minilm", str(source), str(output), "--threads", "1")
    assert result.status == 0, result.err
    vectors = [row["response"]["body"]["data"][0]["embedding"] for row in rows(output)]
    assert {len(vector) for vector in vectors} == {384}
    assert len(vectors) == 20
