"""Reading the input."""

import os

import pytest
from batch_fakes import line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.serve.batch.source import Source

LIMIT = 40


def reference(content: bytes):
    """The lines of a file, the obvious way."""
    texts = [text.rstrip(b"\r") for text in content.split(b"\n")]
    texts[0] = texts[0].removeprefix(b"\xef\xbb\xbf")
    return [(number, text) for number, text in enumerate(texts, 1) if text.strip()]


PIECES = st.sampled_from(
    [b"", b" ", b"\n", b"\r\n", b"a", b"x" * LIMIT, b"y" * 30, b"\xef\xbb\xbf"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(PIECES).map(b"".join))
def test_lines_are_those_of_the_obvious_way(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("lines") / "in.jsonl"
    path.write_bytes(content)
    with Source(path, LIMIT) as source:
        got = [(one.number, one.text) for one in source.lines()]
        again = [(one.number, one.text) for one in source.lines()]
    wanted = [(n, text if len(text) <= LIMIT else None) for n, text in reference(content)]
    assert got == again == wanted


def test_a_scan_finds_what_is_repeated(tmp_path):
    path = tmp_path / "in.jsonl"
    names = ["a", "b", None, "a", "c", None, "b", "a", "d"]
    path.write_text("\n".join(["", *(line(name) for name in names), "nonsense", '{"a": 1}']))
    with Source(path, 1000) as source:
        scan = source.scan()
    assert scan.lines == len(names) + 2
    assert scan.size == path.stat().st_size
    repeated = [number for number in range(20) if number in scan.repeated]
    assert repeated == [5, 8, 9]
    path.write_text("\n" + path.read_text())
    with Source(path, 1000) as source:
        assert source.scan().digest != scan.digest


def test_a_scan_of_many_lines_finds_every_repeated_one(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"custom_id": "{i % 9000}"}}\n' for i in range(10_000)))
    with Source(path, 1000) as source:
        scan = source.scan()
    assert [n for n in range(10_002) if n in scan.repeated] == list(range(9001, 10_001))


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "in.jsonl").touch()
    with Source(tmp_path / "in.jsonl", 1000) as source:
        assert source.scan().lines == 0


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing", "."):
        with pytest.raises(UsageError):
            Source(tmp_path / name, 1000)


def test_long_lines_are_not_kept(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"short\n" + b"x" * (8 << 20) + b"\nshort\n" + b"y" * (3 << 20))
    with Source(path, 1000) as source:
        assert [(one.number, one.text, one.size) for one in source.lines()] == [
            (1, b"short", 5),
            (2, None, (8 << 20) + 1),
            (3, b"short", 5),
            (4, None, 3 << 20),
        ]
