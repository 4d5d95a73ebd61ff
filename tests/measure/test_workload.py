from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.corpus import Corpus
from hasten.measure.synthetic import Lengths, Pieces, Shape, synthetic
from hasten.measure.workload import Item, Session


class Words:
    """One token a word, numbered by its place, so that tokens tell where they come from."""

    def encode(self, text, *, add_special=True, parse_special=True):
        assert not add_special
        assert not parse_special
        return list(range(len(text.split())))

    def decode(self, ids):
        return " ".join(map(str, ids))


SHAPE = {"input", "output", "prefix", "prefixes", "turns", "pause"}
CORPUS = Corpus("made up", "word " * 1000)


def make(**changes):
    shape = {"input": Lengths(20, 20), "output": Lengths(5, 5)}
    shape |= {name: changes.pop(name) for name in list(changes) if name in SHAPE}
    wanted = {"requests": 8, "warmup": 2, "seed": 1} | changes
    return synthetic(Words(), CORPUS, Shape(**shape), **wanted)


@given(st.integers(1, 3000), st.integers(1, 50), st.integers(0, 5), st.integers(0, 2**64 - 1))
def test_lengths_are_exact_and_beginnings_differ(length, requests, warmup, seed):
    workload = make(input=Lengths(length, length), requests=requests, warmup=warmup, seed=seed)
    items = [*workload.warmup, *workload.items]
    assert (len(workload.warmup), len(workload.items)) == (warmup, requests)
    assert {len(item.prompt) for item in items} == {length}
    assert len({item.prompt[0] for item in items}) == len(items)
    for item in items:  # running text, repeated where it ends
        assert item.prompt == tuple((item.prompt[0] + i) % 1000 for i in range(length))


def test_the_seed_decides():
    assert make() == make()
    assert make() != make(seed=2)


def test_too_short_a_text_is_refused():
    with pytest.raises(UsageError, match="1000 tokens, too few for 1003"):
        make(requests=1000, warmup=3)


def test_description():
    described = make().as_dict()
    assert described["input_tokens"] == {"min": 20, "mean": 20.0, "max": 20}
    assert (described["requests"], described["warmup"], described["seed"]) == (8, 2, 1)


def test_lengths_between_bounds():
    workload = make(input=Lengths(3, 6), output=Lengths(1, 4), requests=200)
    assert {len(item.prompt) for item in workload.items} == {3, 4, 5, 6}
    assert {item.output_tokens for item in workload.items} == {1, 2, 3, 4}


def test_prefixes_are_shared_in_turns():
    items = make(prefix=7, prefixes=2, requests=6, warmup=0).items
    beginnings = [item.prompt[:7] for item in items]
    assert beginnings == [beginnings[0], beginnings[1]] * 3
    assert beginnings[0] != beginnings[1]
    assert {len(item.prompt) for item in items} == {27}
    assert len({item.prompt[7:] for item in items}) == 6


def test_conversations():
    workload = make(turns=3, pause=0.5, requests=4, warmup=1, prefix=2)
    assert len(workload.warmup) == 1
    assert all(isinstance(one, Session) for one in workload.items)
    said = [[len(turn.text.split()) for turn in one.turns] for one in workload.items]
    assert said == [[22, 20, 20]] * 4
    assert workload.items[0].turns[1].pause == 0.5


def test_prompts_as_text():
    item = make(as_text=True).items[0]
    assert item == Item(item.prompt, 5)
    assert len(item.prompt.split()) == 20


@given(st.text())
def test_pieces_join_to_the_text(text):
    pieces = Pieces()
    assert pieces.decode(pieces.encode(text)) == text


def test_pieces_are_about_as_long_as_tokens():
    from hasten.measure.corpus import default_corpus

    text = default_corpus().text[:100_000]
    assert 3.5 < len(text) / len(Pieces().encode(text)) < 5.5


@pytest.mark.parametrize(("text", "wanted"), [("128", (128, 128)), ("64:512", (64, 512))])
def test_lengths_are_read(text, wanted):
    assert Lengths.parse(text) == Lengths(*wanted)


@pytest.mark.parametrize("text", ["", "a", "-1", "0", "5:4", "1:2:3", "1.5", "9" * 12])
def test_lengths_that_are_none(text):
    with pytest.raises(UsageError):
        Lengths.parse(text)


@pytest.mark.parametrize("wrong", [{"prefix": -1}, {"prefixes": 0}, {"turns": 0}, {"pause": -0.1}])
def test_shapes_that_are_none(wrong):
    with pytest.raises(UsageError):
        make(**wrong)
