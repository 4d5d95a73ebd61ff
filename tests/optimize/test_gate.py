"""The gate decides by the upper end of the interval; broken models never pass it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import accuracy

from hasten.measure.accuracy import compare_logits, summarize
from hasten.optimize.gate import Budget


def measure(reference, candidate, seed=0):
    targets = np.random.default_rng(1).integers(0, reference.shape[1], len(reference))
    return summarize(compare_logits(reference, candidate, targets), seed=seed)


def logits(rng, rows=1024, vocab=200):
    return (rng.normal(size=(rows, vocab)) * 3).astype(np.float32)


@given(
    kl=st.floats(0, 1),
    rise=st.floats(-50, 200),
    disagreement=st.floats(0, 100),
    half=st.floats(0, 0.99),
)
def test_admitted_exactly_when_every_upper_end_is_inside(kl, rise, disagreement, half):
    budget = Budget()
    found = accuracy(kl=kl, rise=rise, disagreement=disagreement, half=half)
    inside = (
        found.kl.high <= 0.02
        and (found.perplexity_ratio.high - 1) * 100 <= budget.perplexity_percent
        and (1 - found.top1_agreement.low) * 100 <= budget.top1_percent
    )
    assert budget.admits(found) == inside
    assert (budget.why_refused(found) is None) == inside
    if inside:
        assert budget.why_hopeless(found) is None


def test_a_doubtful_loss_is_refused_but_not_hopeless():
    doubtful = accuracy(kl=0.019, half=0.5)
    assert not Budget().admits(doubtful)
    assert Budget().why_hopeless(doubtful) is None
    assert "KL divergence 0.0190 (0.0095 to 0.0285), budget 0.02" in Budget().why_refused(doubtful)
    assert Budget().why_hopeless(accuracy(kl=0.1, half=0.5)) is not None


def test_criteria_without_a_limit_are_not_checked():
    poor = accuracy(kl=0.5, rise=0.1, disagreement=40)
    assert Budget(perplexity_percent=1.0, kl=None, top1_percent=None).admits(poor)
    assert not Budget(perplexity_percent=None, kl=None, top1_percent=10.0).admits(poor)


@pytest.mark.parametrize("seed", range(20))
def test_a_scrambled_model_never_passes(seed):
    rng = np.random.default_rng(seed)
    reference = logits(rng)
    assert not Budget().admits(measure(reference, reference[:, rng.permutation(200)], seed))
    assert not Budget().admits(measure(reference, reference[rng.permutation(1024)], seed))
    assert not Budget().admits(measure(reference, logits(rng), seed))


def test_a_model_that_gives_no_numbers_never_passes():
    reference = logits(np.random.default_rng(0))
    for poison in (np.nan, np.inf):
        broken = reference.copy()
        broken[-1, -1] = poison
        assert not Budget().admits(measure(reference, broken))
        assert Budget().why_refused(measure(reference, broken))


@pytest.mark.parametrize("seed", range(20))
def test_a_harmless_change_passes(seed):
    rng = np.random.default_rng(seed)
    reference = logits(rng)
    noise = rng.normal(size=reference.shape).astype(np.float32) * 0.01
    assert Budget().admits(measure(reference, reference + noise, seed))
