"""Logit bias and penalties, from their definitions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.generation.penalties import Penalties
from hasten.generation.sampler import TokenSampler
from hasten.types import SamplingParams

VOCABULARY = 12
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=40)


def by_definition(logits, params, prompt, output):
    values = [float(x) for x in logits]
    for token, bias in params.logit_bias.items():
        values[token] += bias
    for token in set(prompt) | set(output):
        value = values[token]
        penalty = params.repetition_penalty
        values[token] = value / penalty if value > 0 else value * penalty
    for token in set(output):
        values[token] -= params.frequency_penalty * output.count(token)
        values[token] -= params.presence_penalty
    return values


@settings(deadline=None)
@given(
    prompt=tokens,
    output=tokens,
    params=st.builds(
        SamplingParams,
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
        presence_penalty=st.sampled_from([0.0, 1.5, -1.0]),
        frequency_penalty=st.sampled_from([0.0, 0.5, -2.0]),
        logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100)),
    ),
    seed=st.integers(0, 99),
)
def test_penalties_match_the_definitions(prompt, output, params, seed):
    logits = np.random.default_rng(seed).normal(0, 4, VOCABULARY).astype(np.float32)
    penalties = Penalties(params, prompt)
    for token in output:
        penalties.add(token)
    values = logits.copy()
    penalties.apply(values)
    want = by_definition(logits, params, prompt, output)
    np.testing.assert_allclose(values, want, rtol=1e-5, atol=1e-5)
    if not Penalties.wanted(params):
        np.testing.assert_array_equal(values, logits)


def test_more_tokens_than_there_was_room_for():
    penalties = Penalties(SamplingParams(frequency_penalty=1), [])
    for token in (*range(200), 7):
        penalties.add(token)
    values = np.zeros(300, np.float32)
    penalties.apply(values)
    assert values[7] == -2
    assert (values[:200] <= -1).all()
    assert not values[200:].any()


def chosen(logits, steps=4, prompt=(), **changes):
    sampler = TokenSampler(SamplingParams(**changes), prompt)
    values = np.array(logits, np.float32)
    taken = [sampler.choose(values)[0] for _ in range(steps)]
    np.testing.assert_array_equal(values, np.array(logits, np.float32))  # not the sampler's own
    return taken


def test_penalties_change_what_greedy_takes():
    logits = [2.0, 1.5, 1.2, -1.0]
    assert chosen(logits) == [0, 0, 0, 0]
    assert chosen(logits, presence_penalty=0.6) == [0, 1, 0, 0]
    assert chosen(logits, frequency_penalty=0.6) == [0, 1, 0, 2]
    assert chosen(logits, repetition_penalty=2.0, prompt=[0]) == [1, 2, 0, 0]
    assert chosen(logits, repetition_penalty=2.0, prompt=[3, 3]) == [0, 1, 2, 0]
    assert chosen(logits, logit_bias={3: 100, 0: -100}) == [3, 3, 3, 3]


def test_a_banned_token_stays_banned():
    penalties = Penalties(SamplingParams(repetition_penalty=0.5, presence_penalty=-2), [0])
    penalties.add(0)
    values = np.array([-np.inf, 1], np.float32)
    penalties.apply(values)
    assert values.tolist() == [-np.inf, 1]
