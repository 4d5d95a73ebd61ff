"""Log probabilities, against float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.generation.logprobs import PromptLogprobs, token_logprobs


def log_softmax(logits):
    values = np.asarray(logits, np.float64)
    values = values - values.max()
    return values - math.log(np.exp(values).sum())


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=60),
    top=st.integers(0, 20),
    data=st.data(),
)
def test_they_are_the_log_of_the_softmax(logits, top, data):
    token = data.draw(st.integers(0, len(logits) - 1))
    got = token_logprobs(np.array(logits, np.float32), token, top)
    want = log_softmax(logits)
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert got.token == token
    assert got.logprob == pytest.approx(want[token], abs=2e-6, rel=1e-6)
    assert got.rank == ranked.index(token) + 1
    assert [i for i, _ in got.top] == ranked[:top]
    np.testing.assert_allclose([p for _, p in got.top], want[ranked[:top]], atol=2e-6, rtol=1e-6)


def test_a_whole_vocabulary():
    logits = np.random.default_rng(0).normal(0, 3, 151936).astype(np.float32)
    got = token_logprobs(logits, 77, 20)
    want = log_softmax(logits)
    assert got.logprob == pytest.approx(want[77], abs=1e-6)
    assert [i for i, _ in got.top] == np.argsort(-logits, kind="stable")[:20].tolist()


def test_a_prompt_is_read_in_pieces():
    logits = np.random.default_rng(1).normal(0, 1, (5, 9)).astype(np.float32)
    prompt = [3, 1, 8, 8, 0]
    for pieces in ([(0, 5)], [(0, 1), (1, 2), (2, 5)], [(0, 3), (3, 5)]):
        reader = PromptLogprobs(prompt, 2)
        for begin, end in pieces:
            reader.read(logits[reader.wanted(begin, end)])
        assert [entry.token for entry in reader.entries] == prompt
        assert (reader.entries[0].logprob, reader.entries[0].rank) == (None, None)
        for position in range(1, 5):
            want = token_logprobs(logits[position - 1], prompt[position], 2)
            assert reader.entries[position] == want
        # Read again after a preemption, it asks for nothing.
        assert not reader.wanted(0, 9)
