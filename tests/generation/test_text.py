"""Tokens to text: whole characters, and nothing from a stop string on."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from letters import PIECES, Detokenizer

from hasten.generation.text import TextStream

tokens_of = st.lists(st.integers(0, len(PIECES) - 1), max_size=25)
stops = st.lists(st.text("abEND é", min_size=1, max_size=5), max_size=3).map(tuple)


def stream(tokens, stop=()):
    """The pieces of text of a run, and the stop string that ended it."""
    text = TextStream(Detokenizer(), tuple(stop))
    pieces = []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped is not None:
            return pieces, text.stopped
    return [*pieces, text.finish()], text.stopped


def whole(tokens):
    detokenizer = Detokenizer()
    return "".join(map(detokenizer.push, tokens)) + detokenizer.flush()


def cut(text, stop):
    """The text before the first place where a stop string ends, or all of it."""
    ends = [(text.find(s) + len(s), -len(s)) for s in stop if s in text]
    if not ends:
        return text
    end = min(ends)[0]
    return text[: min(text.find(s) for s in stop if s in text[:end])]


@given(tokens_of)
def test_text_is_that_of_all_tokens(tokens):
    pieces, stopped = stream(tokens)
    assert "".join(pieces) == whole(tokens)
    assert stopped is None


@settings(deadline=None, max_examples=400)
@given(tokens_of, stops)
def test_nothing_from_a_stop_string_on(tokens, stop):
    pieces, stopped = stream(tokens, stop)
    text = "".join(pieces)
    assert whole(tokens).startswith(text)
    assert (stopped is not None) == any(s in whole(tokens) for s in stop)
    assert stopped is None or stopped in stop
    assert not any(s in text for s in stop)


@settings(deadline=None, max_examples=400)
@given(st.text("abEND ", max_size=25), stops, st.data())
def test_the_split_into_tokens_does_not_matter(text, stop, data):
    class Given:
        """A detokenizer of tokens that are texts."""

        def push(self, token):
            return token

        def flush(self):
            return ""

    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(cuts)]

    def run(tokens):
        stream = TextStream(Given(), stop)
        out = ""
        for token in tokens:
            out += stream.push(token)
            if stream.stopped:
                return out
        return out + stream.finish()

    assert run(pieces) == run(list(text)) == cut(text, stop)


def test_a_stop_string_across_tokens():
    assert stream([0, 10, 0, 5], ["END"]) == (["a", "", "ENa", ""], "END")
    # "EN" is held back; "Na" shows that it begins no stop string.
    assert stream([10, 1], ["END"]) == (["", "ENb", ""], None)


def test_the_earliest_stop_string_wins():
    pieces, stopped = stream([2, 2, 5], ["END", "ba"])
    assert ("".join(pieces), stopped) == ("a", "ba")


def test_characters_of_several_tokens():
    assert stream([6, 7])[0] == ["", "é", ""]
    assert stream([8, 9])[0] == ["", "😀", ""]
    assert "".join(stream([8])[0]) == "\ufffd"


def test_a_stop_string_may_be_a_character_of_several_tokens():
    assert stream([0, 6, 7, 0], ["é"]) == (["a", "", ""], "é")


def test_without_a_tokenizer_there_is_no_text():
    text = TextStream(None, ())
    assert (text.push(3), text.finish()) == ("", "")
