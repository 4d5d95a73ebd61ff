"""Texts become windows: nothing lost, nothing twice, bad files refused with one clear line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.corpus import (
    LEAST_SCORED,
    Corpus,
    cut_windows,
    default_corpus,
    leading_tokens,
    read_corpus,
)


class CharacterTokenizer:
    """A token a character, between fixed special tokens."""

    def __init__(self, before=(), after=()):
        self.before = list(before)
        self.after = list(after)

    def encode(self, text, *, add_special=True, parse_special=True):
        ids = [ord(character) for character in text]
        return [*self.before, *ids, *self.after] if add_special else ids


PLAIN = CharacterTokenizer()


@given(
    length=st.integers(150, 3000),
    tokens=st.integers(150, 4000),
    context=st.integers(4, 600),
    prefix=st.sampled_from([(), (1,), (1, 2)]),
)
def test_windows_hold_the_text_once_and_in_order(length, tokens, context, prefix):
    text = "".join(chr(97 + i % 26) for i in range(length))
    tokenizer = CharacterTokenizer(prefix)
    taken, step = min(length, tokens), context - len(prefix)
    # Every token of a window is scored but the first, be it text or prefix.
    scored = taken + (len(prefix) - 1) * -(-taken // step)
    if scored < LEAST_SCORED:
        with pytest.raises(UsageError, match=f"gives {scored} tokens"):
            cut_windows(Corpus("t", text), tokenizer, tokens=tokens, context=context)
        return
    windows = cut_windows(Corpus("t", text), tokenizer, tokens=tokens, context=context)
    assert all(len(window) <= context and window[: len(prefix)] == prefix for window in windows.ids)
    joined = [token for window in windows.ids for token in window[len(prefix) :]]
    wanted = PLAIN.encode(text)[:tokens]
    # A last window of a single token has nothing to score and is left out.
    assert joined in (wanted, wanted[:-1])
    assert windows.scored == sum(len(window) - 1 for window in windows.ids)


def test_too_short_a_text_says_how_much_there_is():
    with pytest.raises(UsageError, match=r"gives 99 tokens to score.*at least 128"):
        cut_windows(Corpus("note", "x" * 100), PLAIN, tokens=4096, context=512)


def test_a_context_filled_by_special_tokens_is_refused():
    with pytest.raises(UsageError, match="leaves no text"):
        cut_windows(Corpus("t", "x" * 500), CharacterTokenizer([1]), tokens=400, context=2)


def test_the_halves_are_apart_and_whole():
    corpus = default_corpus()
    first, second = corpus.halves()
    assert first.text + second.text == corpus.text
    assert 0.4 < len(first.text) / len(corpus.text) < 0.6
    assert first.digest != second.digest
    assert first.name != second.name


def test_the_digest_is_of_the_tokens():
    text = Corpus("t", "abc" * 200)
    one = cut_windows(text, PLAIN, tokens=300, context=64)
    assert cut_windows(text, PLAIN, tokens=300, context=64).digest == one.digest
    assert cut_windows(text, PLAIN, tokens=301, context=64).digest != one.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"abc\xff", "not UTF-8")],
)
def test_bad_text_files_are_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_corpus(path)


def test_a_missing_text_and_a_directory_are_refused(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_corpus(tmp_path / "none.txt")
    with pytest.raises(UsageError, match="directory"):
        read_corpus(tmp_path)


@pytest.mark.parametrize(("before", "after"), [((), ()), ((1,), ()), ((1, 2), (3,)), ((), (3,))])
def test_leading_tokens_are_those_before_the_text(before, after):
    assert leading_tokens(CharacterTokenizer(before, after)) == before
