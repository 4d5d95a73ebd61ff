"""Sampling, against a straightforward reference."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.generation.sampler import check_sampling, make_generator, probabilities, sample
from hasten.types import SamplingParams


def reference(logits, params):
    """Candidates and probabilities, token by token."""
    scaled = [float(x) / max(params.temperature, 1e-6) for x in logits]
    ranked = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if params.top_k:
        ranked = ranked[: params.top_k]
    weights = [math.exp(scaled[i] - scaled[ranked[0]]) for i in ranked]
    total = math.fsum(weights)
    weights = [w / total for w in weights]
    if params.top_p < 1:
        reached, keep = 0.0, 0
        while keep < len(weights) and reached < params.top_p:
            reached += weights[keep]
            keep += 1
        ranked, weights = ranked[:keep], weights[:keep]
    kept = [n for n, w in enumerate(weights) if w >= params.min_p * weights[0]]
    total = math.fsum(weights[n] for n in kept)
    return [ranked[n] for n in kept], [weights[n] / total for n in kept]


logit = st.floats(-20, 20, width=32)
params = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 1e-9, 0.999]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 0.99]),
)


@settings(deadline=None)
@given(logits=st.lists(logit, min_size=1, max_size=12), params=params)
def test_candidates_match_the_reference(logits, params):
    tokens, weights = probabilities(np.array(logits, np.float32), params)
    want_tokens, want_weights = reference(np.array(logits, np.float32), params)
    if len(tokens) == len(want_tokens):
        assert tokens.tolist() == want_tokens
        np.testing.assert_allclose(weights, want_weights, rtol=1e-9)
    else:
        # Sums that meet the threshold within rounding may keep one candidate more or less.
        assert abs(len(tokens) - len(want_tokens)) == 1
        shorter = min(len(tokens), len(want_tokens))
        assert tokens[:shorter].tolist() == want_tokens[:shorter]
    assert weights.sum() == pytest.approx(1, abs=1e-12)


@given(logits=st.lists(logit, min_size=1, max_size=30))
def test_greedy_takes_the_largest_and_the_first_of_equals(logits):
    values = np.array(logits, np.float32)
    token = sample(values, SamplingParams(), make_generator(SamplingParams()))
    assert values[token] == values.max()
    assert (values[:token] < values[token]).all()


@given(logits=st.lists(logit, min_size=1, max_size=30), seed=st.integers(0, 2**64 - 1))
def test_one_candidate_is_greedy(logits, seed):
    values = np.array(logits, np.float32)
    greedy = sample(values, SamplingParams(), make_generator(SamplingParams()))
    for narrow in ({"top_k": 1}, {"top_p": 1e-12}):
        params = SamplingParams(temperature=1, seed=seed, **narrow)
        assert sample(values, params, make_generator(params)) == greedy


def test_frequencies_are_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    params = SamplingParams(temperature=1, seed=3)
    generator = make_generator(params)
    drawn = np.bincount([sample(logits, params, generator) for _ in range(20000)], minlength=4)
    np.testing.assert_allclose(drawn / 20000, [0.5, 0.3, 0.15, 0.05], atol=0.012)


def test_top_p_keeps_the_token_that_crosses():
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    tokens, weights = probabilities(logits, SamplingParams(temperature=1, top_p=0.5))
    assert tokens.tolist() == [3, 2]
    np.testing.assert_allclose(weights, [4 / 7, 3 / 7], rtol=1e-6)


def test_min_p_is_a_share_of_the_likeliest():
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    tokens, _ = probabilities(logits, SamplingParams(temperature=1, min_p=0.6))
    assert tokens.tolist() == [3, 2]


def test_equal_logits_rank_by_id():
    tokens, _ = probabilities(np.zeros(9, np.float32), SamplingParams(temperature=1, top_k=4))
    assert tokens.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("temperature", [1e-300, 1e-7, 1e-3, 100])
def test_extreme_temperatures_stay_finite(temperature):
    logits = np.array([3e38, -3e38, 0], np.float32)
    tokens, weights = probabilities(logits, SamplingParams(temperature=temperature))
    assert tokens[0] == 0
    assert np.isfinite(weights).all()


def test_a_seed_repeats_and_seeds_differ():
    logits = np.zeros(1000, np.float32)

    def draw(seed):
        params = SamplingParams(temperature=1, seed=seed)
        generator = make_generator(params)
        return [sample(logits, params, generator) for _ in range(8)]

    assert draw(1) == draw(1)
    assert len({tuple(draw(seed)) for seed in (0, 1, 2, 2**64 - 1)}) == 4
    assert draw(None) != draw(None)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": 1}, "min_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ("",)}, "stop"),
    ],
)
def test_values_out_of_range(changes, name):
    with pytest.raises(UsageError, match=name):
        check_sampling(SamplingParams(**changes))


def test_values_in_range():
    check_sampling(SamplingParams())
    check_sampling(SamplingParams(1, 100, 10**9, 1.0, 0.999, 2**64 - 1, ("a",), True))
