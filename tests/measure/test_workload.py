from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.corpus import Corpus
from hasten.measure.workload import read_prompts, synthetic


class Words:
    """One token a word, numbered by its place, so that tokens tell where they come from."""

    def encode(self, text, *, add_special=True, parse_special=True):
        assert not add_special
        assert not parse_special
        return list(range(len(text.split())))


CORPUS = Corpus("made up", "word " * 1000)


def make(**changes):
    wanted = {
        "input_tokens": 20,
        "output_tokens": 5,
        "requests": 8,
        "warmup": 2,
        "seed": 1,
    } | changes
    return synthetic(Words(), CORPUS, **wanted)


@given(st.integers(1, 3000), st.integers(1, 50), st.integers(0, 5), st.integers(0, 2**64 - 1))
def test_lengths_are_exact_and_beginnings_differ(length, requests, warmup, seed):
    workload = make(input_tokens=length, requests=requests, warmup=warmup, seed=seed)
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


def read(path, lines, **changes):
    path.write_text("\n".join(lines))
    wanted = {"output_tokens": 7, "warmup": 0, "limit": None} | changes
    return read_prompts(path, lambda text: [ord(letter) for letter in text], **wanted)


def test_prompts_from_a_file(tmp_path):
    lines = ['{"prompt": "ab"}', "", '{"prompt": "c", "max_tokens": 3}', '{"prompt": "d"}']
    workload = read(tmp_path / "p.jsonl", lines, warmup=1)
    assert [(item.prompt, item.output_tokens) for item in workload.items] == [
        ((97, 98), 7),
        ((99,), 3),
    ]
    assert [item.prompt for item in workload.warmup] == [(100,)]
    assert len(read(tmp_path / "p.jsonl", lines, limit=1).items) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ("[1]", "no text under 'prompt'"),
        ('{"prompt": 5}', "no text under 'prompt'"),
        ('{"prompt": "a", "max_token": 3}', "unknown key 'max_token'"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens 0"),
        ('{"prompt": "a", "max_tokens": true}', "max_tokens True"),
        ('{"prompt": "a", "max_tokens": 1e99}', "max_tokens 1e"),
        ('{"prompt": ""}', "without tokens"),
        ("", "holds 0 prompts"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "p.jsonl", [line])


def test_bad_files(tmp_path):
    with pytest.raises(UsageError, match="cannot read prompts"):
        read_prompts(tmp_path / "none", str.split, output_tokens=1, warmup=0, limit=None)
    (tmp_path / "latin").write_bytes(b'{"prompt": "\xe9"}')
    with pytest.raises(UsageError, match="not UTF-8"):
        read_prompts(tmp_path / "latin", str.split, output_tokens=1, warmup=0, limit=None)
    with pytest.raises(UsageError, match="warm-up takes 1"):
        read(tmp_path / "one", [json.dumps({"prompt": "a"})], warmup=1)
