"""Penalties and filters against transformers' own."""

import numpy as np
import pytest

from hasten.generation.candidates import candidates
from hasten.generation.penalties import Penalties
from hasten.types import SamplingParams

pytestmark = pytest.mark.parity

VOCABULARY = 5000


def random_logits(seed):
    return np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)


def probabilities(logits, params):
    """What `candidates` leaves, spread over the vocabulary."""
    ids, weights, _ = candidates(logits, params)
    spread = np.zeros(VOCABULARY)
    spread[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    return spread


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"top_k": 40},
        {"top_p": 0.9},
        {"top_p": 0.3},
        {"min_p": 0.05},
        {"top_k": 200, "top_p": 0.95},
        {"top_k": 100, "top_p": 0.8, "min_p": 0.02},
    ],
)
def test_filters(temperature, changes):
    import torch
    from transformers.generation import logits_process as theirs

    params = SamplingParams(temperature=temperature, **changes)
    warpers = [theirs.TemperatureLogitsWarper(temperature)]
    if params.top_k:
        warpers.append(theirs.TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(theirs.TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(theirs.MinPLogitsWarper(params.min_p))
    for seed in range(5):
        logits = random_logits(seed)
        scores = torch.from_numpy(logits)[None].clone()
        for warper in warpers:
            scores = warper(torch.zeros((1, 1), dtype=torch.long), scores)
        want = torch.softmax(scores.double(), -1)[0].numpy()
        got = probabilities(logits, params)
        np.testing.assert_array_equal(got > 0, want > 0)
        np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty(penalty):
    import torch
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    rng = np.random.default_rng(1)
    prompt, output = rng.integers(0, VOCABULARY, 300), rng.integers(0, VOCABULARY, 50)
    penalties = Penalties(SamplingParams(repetition_penalty=penalty), prompt.tolist())
    for token in output.tolist():
        penalties.add(token)
    logits = random_logits(2)
    tokens = torch.from_numpy(np.concatenate([prompt, output]))[None]
    want = RepetitionPenaltyLogitsProcessor(penalty)(tokens, torch.from_numpy(logits)[None].clone())
    penalties.apply(logits)
    np.testing.assert_array_equal(logits, want[0].numpy())


def test_logit_bias():
    import torch
    from transformers.generation.logits_process import SequenceBiasLogitsProcessor

    bias = {3: 2.5, 4000: -7.0, 17: 0.1}
    theirs = SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    logits = random_logits(3)
    want = theirs(torch.zeros((1, 1), dtype=torch.long), torch.from_numpy(logits)[None].clone())
    Penalties(SamplingParams(logit_bias=bias), []).apply(logits)
    np.testing.assert_array_equal(logits, want[0].numpy())
