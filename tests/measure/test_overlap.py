"""The proof never sees what the search has seen."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.overlap import RUN, check_apart, shared_runs

LENGTHS = st.integers(1, 3 * RUN)


def text(seed, length, vocabulary=40_000):
    return np.random.default_rng(seed).integers(0, vocabulary, length).tolist()


@given(seeds=st.lists(st.integers(0, 2**32), min_size=2, max_size=8, unique=True), length=LENGTHS)
def test_texts_of_their_own_share_nothing(seeds, length):
    texts = [text(seed, length + 3) for seed in seeds]
    assert shared_runs(texts[:1], texts[1:]) == []
    check_apart(texts[:1], texts[1:], ("a", "b"))


@given(before=st.integers(0, 80), after=st.integers(0, 80), at=st.integers(0, 100), length=LENGTHS)
def test_a_run_is_found_wherever_it_stands(before, after, at, length):
    seen = text(1, 300)
    run = seen[at : at + RUN + length]
    hidden = [text(2, 90), [*text(3, before), *run, *text(4, after)], text(5, 90)]
    assert shared_runs([seen], hidden) == [1]
    shorter = [text(2, 90), [*text(3, 60), *run[: RUN - 1], *text(4, 60)]]
    assert shared_runs([seen], shorter) == []


def test_a_short_item_counts_as_a_whole():
    assert shared_runs([[1, 2, 3]], [[4, 5], [1, 2, 3]]) == [1]
    assert shared_runs([[1, 2, 3]], [[1, 2], [3, 2, 1], [1, 2, 3, 4]]) == []


def test_what_every_prompt_begins_with_does_not_count():
    opening = text(0, 120)
    seen = [[*opening, *text(at, 80)] for at in range(1, 20)]
    proof = [[*opening, *text(at, 80)] for at in range(30, 50)]
    assert shared_runs(seen, proof) == []
    assert shared_runs(seen, [*proof, seen[3]]) == [20]


def test_the_error_says_which():
    with pytest.raises(UsageError, match=r"1 texts of proof\.jsonl are in the calibration text"):
        check_apart(
            [text(0, 99)], [text(1, 99), text(0, 99)], ("the calibration text", "proof.jsonl")
        )


def test_nothing_shares_nothing():
    assert shared_runs([], [[1]]) == []
    assert shared_runs([[1]], []) == []
    assert shared_runs([[]], [[], [1]]) == []
