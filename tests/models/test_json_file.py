"""JSON files that are not trusted."""

import os
import tracemalloc

import pytest

from hasten.errors import ModelFileError
from hasten.models import json_file
from hasten.models.json_file import read_json_object


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.json"


def test_reads_an_object(file):
    file.write_text('{"a": [1, {"b": "ü"}]}', encoding="utf-8")
    assert read_json_object(file) == {"a": [1, {"b": "ü"}]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"\xff\xfe",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": ' + b"[" * 100_000,
        b'{"a": ' + b"1" * 10_000 + b"}",
        b'{"a": 1} trailing',
    ],
)
def test_refuses_anything_else(file, content):
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"config\.json: (not valid JSON|holds)") as caught:
        read_json_object(file)
    assert "\n" not in str(caught.value)


def test_a_large_file_is_refused_and_a_small_one_takes_little_memory(file, monkeypatch):
    """Found by fuzzing: a read of at most 64 MiB allocated all of them at once."""
    file.write_text("{}")
    tracemalloc.start()
    try:
        read_json_object(file)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(json_file, "_MAX_BYTES", 1)
    with pytest.raises(ModelFileError, match="at most 1 bytes"):
        read_json_object(file)


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelFileError):
            read_json_object(path)
