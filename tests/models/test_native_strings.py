"""The native reader of a file's strings: never past the end, never bytes that are no text."""

import struct

import numpy as np
import pytest

from hasten import _native

WORDS = ["", "a", "zwölf", "日本", "x" * 300]


def stored(words):
    return b"".join(struct.pack("<Q", len(word)) + word for word in words)


def read(data, begin=0, count=5):
    return _native.read_strings(np.frombuffer(data, np.uint8), begin, count)


def test_strings_come_with_the_place_where_they_end():
    data = stored([word.encode() for word in WORDS])
    assert read(data + b"more") == (WORDS, len(data))
    assert read(b"before" + data, begin=6) == (WORDS, 6 + len(data))
    assert read(data, count=2) == (WORDS[:2], 17)


def test_a_file_cut_anywhere_gives_the_whole_strings_before_the_cut():
    data = stored([word.encode() for word in WORDS])
    ends = [len(stored([word.encode() for word in WORDS[:n]])) for n in range(len(WORDS) + 1)]
    for cut in range(1, len(data)):
        whole = max(n for n, end in enumerate(ends) if end <= cut)
        assert read(data[:cut]) == (WORDS[:whole], ends[whole])


@pytest.mark.parametrize("length", [6, 2**32, 2**63, 2**64 - 8, 2**64 - 1])
def test_a_length_past_the_end_is_no_string(length):
    assert read(struct.pack("<Q", length) + b"short", count=1) == ([], 0)


def test_a_start_past_the_end_is_no_string():
    assert read(stored([b"a"]), begin=100, count=1) == ([], 100)


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(UnicodeDecodeError):
        read(stored([b"fine", b"\xff\xfe"]), count=2)
