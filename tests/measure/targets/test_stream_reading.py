"""Lines and server-sent events, wherever packets cut them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packets import cut, cuts

from hasten.measure.targets import streams
from hasten.measure.targets.streams import EventStream, LineStream
from hasten.measure.targets.target import TargetError

TEXT = 'data: {"a": "ä🎉"}\r\n\r\n'.encode() + b": ping\ndata: two\ndata:lines\n\nid: 3\n\ndata\n\n"
EVENTS = ['{"a": "ä🎉"}'.encode(), b"two\nlines", b""]


def read(stream, packets):
    return [one for packet in packets for one in stream.feed(packet)]


@given(cuts)
def test_events(where):
    assert read(EventStream(), cut(TEXT, where)) == EVENTS


def test_events_byte_by_byte():
    assert read(EventStream(), cut(TEXT, range(len(TEXT)))) == EVENTS


@given(st.lists(st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\r\n", b"data: "]), max_size=20))
def test_lines_are_those_of_the_whole(packets):
    """A CR that nothing follows is held, for an LF may follow."""
    whole = b"".join(packets)
    lines = read(LineStream(), packets)
    assert lines == read(LineStream(), [whole])
    rest = whole.splitlines()[len(lines) :]
    assert len(rest) <= 1
    assert lines == whole.splitlines()[: len(lines)]
    assert not (rest and whole.endswith(b"\n"))


@given(st.binary(max_size=300), cuts)
def test_any_bytes(data, where):
    assert read(EventStream(), cut(data, where)) == read(EventStream(), [data])


def test_an_event_that_has_not_ended_is_none():
    assert read(EventStream(), [b"data: one\n"]) == []


@pytest.mark.parametrize("stream", [LineStream, EventStream])
def test_lines_without_end(stream, monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE", 1000)
    with pytest.raises(TargetError, match="1000 bytes"):
        read(stream(), [b"a" * 300] * 4)


def test_events_without_end(monkeypatch):
    monkeypatch.setattr(streams, "MAX_LINE", 1000)
    with pytest.raises(TargetError, match="1000 bytes"):
        read(EventStream(), [b"data: aaaaaaaa\n"] * 200)


def test_a_long_line_in_many_pieces():
    (line,) = read(LineStream(), [b"a" * 1000] * 10_000 + [b"\n"])
    assert len(line) == 10_000_000
