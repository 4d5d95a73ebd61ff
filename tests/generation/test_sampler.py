"""Choosing one sequence's tokens: distributions, seeds, and what the request may change."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten import _native
from hasten.generation.candidates import Candidates, candidates, draw, largest, plain_candidates
from hasten.generation.sampler import TokenSampler, make_generator
from hasten.generation.softmax import native_softmax
from hasten.kernels.softmax import SUM_BLOCK, softmax_weights
from hasten.types import SamplingParams

# Far enough from each other for weights in float32 to tell them apart.
logit = st.integers(-160, 160).map(lambda eighths: eighths / 8)
filters = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 12),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 1e-9, 0.999]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 0.99]),
)


def best_softmax():
    """The native one; made anew each time, for the extension counts what is left at its end."""
    return native_softmax(_native.isas()[0])


SOFTMAXES = pytest.mark.parametrize(
    "new_softmax", [lambda: softmax_weights, best_softmax], ids=["numpy", "native"]
)


def kept(logits, params, softmax=softmax_weights):
    """Ids of `candidates`, spelled out where it keeps all, and their weights."""
    ids, weights, _ = candidates(logits, params, softmax)
    return (np.arange(len(logits)) if ids is None else ids), weights


def assert_like_plain(logits, params, softmax=softmax_weights):
    ids, weights = kept(logits, params, softmax)
    want_ids, want_weights = plain_candidates(logits, params, softmax)
    np.testing.assert_array_equal(ids, want_ids, str(params))
    np.testing.assert_array_equal(weights, want_weights)


def by_definition(logits, params):
    """Candidates token by token, in float64, from the definitions alone."""
    scaled = [float(x) / params.temperature for x in logits]
    ranked = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if params.top_k:
        ranked = ranked[: params.top_k]
    weights = [math.exp(scaled[i] - scaled[ranked[0]]) for i in ranked]
    total = math.fsum(weights)
    if params.top_p < 1:
        reached, keep = 0.0, 0
        while keep < len(weights) and reached < params.top_p * total:
            reached += weights[keep]
            keep += 1
        ranked, weights = ranked[:keep], weights[:keep]
    return {i: w for i, w in zip(ranked, weights, strict=True) if w >= params.min_p}


@settings(deadline=None)
@given(logits=st.lists(logit, min_size=1, max_size=12), params=filters)
def test_candidates_match_the_definitions(logits, params):
    values = np.array(logits, np.float32)
    ids, weights = kept(values, params)
    want = by_definition(values, params)
    # Sums and weights that meet a bound within rounding may keep one candidate more or less.
    assert len(set(ids.tolist()) ^ set(want)) <= 1
    both = [n for n, i in enumerate(ids) if int(i) in want]
    np.testing.assert_allclose(
        weights[both], [want[int(ids[n])] for n in both], rtol=1e-4, atol=1e-37
    )


@settings(deadline=None)
@given(logits=st.lists(logit, min_size=1, max_size=40), params=filters)
def test_fast_candidates_are_the_plain_ones(logits, params):
    assert_like_plain(np.array(logits, np.float32), params)
    assert_like_plain(np.array(logits, np.float32), params, best_softmax())


@pytest.mark.parametrize("vocabulary", [1000, 49152, 50257])
@pytest.mark.parametrize("spread", [0.01, 1, 8])
def test_fast_candidates_are_the_plain_ones_in_large_vocabularies(vocabulary, spread):
    rng = np.random.default_rng(vocabulary)
    logits = rng.normal(0, spread, vocabulary).astype(np.float32)
    logits[rng.integers(0, vocabulary, 30)] = logits[:30]  # ties
    logits[rng.integers(0, vocabulary, 300)] = -np.inf  # not allowed
    for changes in (
        {},
        *({"top_k": k} for k in (1, 2, 50, 700, vocabulary - 1, vocabulary)),
        *({"top_p": p} for p in (1e-6, 0.1, 0.5, 0.95, 0.9999)),
        *({"min_p": p} for p in (1e-4, 0.05, 0.9)),
        {"top_k": 100, "top_p": 0.9, "min_p": 0.02},
        {"top_p": 0.99, "min_p": 0.01},
    ):
        for softmax in (softmax_weights, best_softmax()):
            assert_like_plain(logits, SamplingParams(temperature=0.7, **changes), softmax)


@given(
    values=st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=300),
    data=st.data(),
)
def test_largest_ranks_by_value_and_then_by_id(values, data):
    count = data.draw(st.integers(1, len(values)))
    array = np.array(values, np.float32)
    want = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert largest(array, count).tolist() == want


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 0.25, 1.0]), min_size=1, max_size=1200),
    uniform=st.floats(0, 1, exclude_max=True),
    blocks=st.booleans(),
)
def test_a_draw_falls_where_its_number_does(weights, uniform, blocks):
    array = np.array([*weights, 0.5, 0.0], np.float32)
    starts = np.arange(0, len(array), SUM_BLOCK)
    sums = np.add.reduceat(array, starts).astype(np.float64) if blocks else None
    index = draw(Candidates(None, array, sums), uniform)
    assert array[index] > 0
    target = uniform * array.sum(dtype=np.float64)
    assert array[:index].sum(dtype=np.float64) <= target + 1e-3
    assert array[: index + 1].sum(dtype=np.float64) >= target - 1e-3


@given(logits=st.lists(logit, min_size=1, max_size=30))
def test_greedy_takes_the_largest_and_the_first_of_equals(logits):
    values = np.array(logits, np.float32)
    token, logprobs = TokenSampler(SamplingParams(), [1]).choose(values)
    assert logprobs is None
    assert values[token] == values.max()
    assert (values[:token] < values[token]).all()


@given(logits=st.lists(logit, min_size=1, max_size=30), seed=st.integers(0, 2**64 - 1))
def test_one_candidate_is_greedy(logits, seed):
    values = np.array(logits, np.float32)
    for narrow in ({"top_k": 1}, {"top_p": 1e-12}):
        params = SamplingParams(temperature=1, seed=seed, **narrow)
        assert TokenSampler(params, [1]).choose(values)[0] == values.argmax()


# Upper 0.1 % points of the chi-square distribution by degrees of freedom.
CHI_SQUARE = {3: 16.27, 7: 24.32, 49: 85.35}


def chi_square(counts, probabilities):
    expected = np.asarray(probabilities) * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("changes", "kept_tokens"),
    [({}, 50), ({"top_k": 8}, 8), ({"top_p": 0.8}, 8), ({"min_p": 0.36}, 4)],
)
@SOFTMAXES
def test_frequencies_are_the_probabilities(changes, kept_tokens, new_softmax):
    """A vocabulary of several blocks, of which 50 tokens are likely; a fixed seed."""
    rng = np.random.default_rng(7)
    logits = np.full(2000, -200, np.float32)
    likely = np.sort(rng.choice(2000, 50, replace=False))
    # The 8 likeliest hold 0.8 of the whole, the last of them a share that crosses it.
    share = np.concatenate(
        [[0.2, 0.16, 0.12, 0.1, 0.07, 0.065, 0.06, 0.03], np.full(42, 0.195 / 42)]
    )
    logits[likely] = np.log(share)
    params = SamplingParams(temperature=1, seed=3, **changes)
    sampler = TokenSampler(params, [1], softmax=new_softmax())
    drawn = np.bincount([sampler.choose(logits)[0] for _ in range(6000)], minlength=2000)[likely]
    want = share[:kept_tokens] / share[:kept_tokens].sum()
    assert drawn.sum() == 6000
    assert drawn[kept_tokens:].sum() == 0
    assert chi_square(drawn[:kept_tokens], want) < CHI_SQUARE[kept_tokens - 1]


def test_temperature_flattens_and_sharpens():
    share = np.array([0.5, 0.3, 0.15, 0.05])
    for temperature in (0.5, 2.0):
        params = SamplingParams(temperature=temperature, seed=11)
        sampler = TokenSampler(params, [1])
        logits = np.log(share).astype(np.float32)
        drawn = np.bincount([sampler.choose(logits)[0] for _ in range(6000)], minlength=4)
        want = share ** (1 / temperature)
        assert chi_square(drawn, want / want.sum()) < CHI_SQUARE[3]


def test_top_p_keeps_the_token_that_crosses():
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    ids, weights = kept(logits, SamplingParams(temperature=1, top_p=0.5))
    assert ids.tolist() == [2, 3]
    np.testing.assert_allclose(weights, [3 / 4, 1], rtol=1e-6)


def test_min_p_is_a_share_of_the_likeliest():
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    assert kept(logits, SamplingParams(temperature=1, min_p=0.6))[0].tolist() == [2, 3]


def test_equal_logits_rank_by_id():
    ids, _ = kept(np.zeros(9, np.float32), SamplingParams(temperature=1, top_k=4))
    assert ids.tolist() == [0, 1, 2, 3]
    ids, _ = kept(np.zeros(9, np.float32), SamplingParams(temperature=1, top_p=0.3))
    assert ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("temperature", [1e-300, 1e-7, 1e-3, 100])
@pytest.mark.parametrize("changes", [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 2}])
@SOFTMAXES
def test_extreme_temperatures_stay_finite(temperature, changes, new_softmax):
    logits = np.array([-3e38, 3e38, 0], np.float32)
    params = SamplingParams(temperature=temperature, seed=0, **changes)
    assert np.isfinite(candidates(logits, params, new_softmax()).weights).all()
    if temperature < 100:
        assert TokenSampler(params, [1], softmax=new_softmax()).choose(logits)[0] == 1


def draws(seed, index=0, **changes):
    params = SamplingParams(temperature=1, seed=seed, **changes)
    sampler = TokenSampler(params, [1], index)
    return [sampler.choose(np.zeros(1000, np.float32))[0] for _ in range(8)]


def test_a_seed_repeats_and_seeds_differ():
    assert draws(1) == draws(1)
    assert len({tuple(draws(seed)) for seed in (0, 1, 2, 2**64 - 1)}) == 4
    assert draws(None) != draws(None)


def test_each_output_has_a_stream_of_its_own():
    streams = {tuple(draws(5, index)) for index in range(6)}
    assert len(streams) == 6
    assert draws(5, 3) == draws(5, 3)
    assert draws(None, 1) != draws(None, 1)
    # A seed alone is what NumPy makes of it, so an output can be repeated outside.
    uniform = np.random.Generator(np.random.Philox(5)).random()
    assert make_generator(5).random() == uniform
