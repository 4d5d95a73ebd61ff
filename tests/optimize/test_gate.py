"""The gate decides by the upper end of the interval; broken models never pass it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import accuracy

from hasten.measure.accuracy import compare_logits, summarize, summarize_excess
from hasten.measure.paired import score_interval
from hasten.measure.statistics import Interval
from hasten.measure.tasks.compare import TaskAccuracy
from hasten.optimize.gate import Budget, Measured, proof_confidence


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


def items(lost, gained, count=1000):
    """What comes of items of which so many were lost and gained."""
    return TaskAccuracy(
        items=count,
        reference_score=0.8,
        score=0.8 - (lost - gained) / count,
        loss=score_interval(lost, gained, count),
        lost=lost,
        gained=gained,
        mcnemar_p=None,
    )


TASKS_ALONE = Budget(perplexity_percent=None, kl=None, top1_percent=None, task_points=1.0)


@given(lost=st.integers(0, 60), gained=st.integers(0, 60))
def test_lost_answers_are_admitted_by_the_upper_end(lost, gained):
    found = items(lost, gained)
    inside = found.loss.high * 100 <= 1.0
    assert TASKS_ALONE.admits(found) == inside
    assert (TASKS_ALONE.why_refused(found) is None) == inside
    assert (TASKS_ALONE.why_hopeless(found) is None) == (found.loss.low * 100 <= 1.0)
    assert TASKS_ALONE.expects(found) == (found.loss.estimate * 100 <= 0.8)


def test_a_small_sample_without_a_flip_is_doubtful_and_a_large_one_passes():
    few, many = items(0, 0, 50), items(0, 0, 5000)
    assert not TASKS_ALONE.admits(few)
    assert TASKS_ALONE.why_hopeless(few) is None
    assert "right answers lost 0.00 points (-7.13 to 7.13), budget 1" in TASKS_ALONE.why_refused(
        few
    )
    assert TASKS_ALONE.admits(many)


def test_both_kinds_of_evidence_have_to_be_inside():
    budget = Budget(task_points=1.0)
    text, tasks = accuracy(), items(0, 0, 5000)
    assert budget.admits(Measured(text, tasks))
    assert not budget.admits(Measured(accuracy(kl=0.5), tasks))
    assert not budget.admits(Measured(text, items(100, 0, 5000)))
    assert "right answers lost" in budget.why_refused(Measured(text, items(100, 0, 5000)))


def test_what_was_not_measured_is_not_admitted_but_no_reason_to_stop():
    budget = Budget(task_points=1.0)
    for partial in (accuracy(), Measured(text=accuracy())):
        assert budget.why_refused(partial) == "right answers lost not measured, budget 1 points"
        assert budget.expects(partial)
        assert budget.why_hopeless(partial) is None
    assert not Budget().admits(items(0, 0))
    assert not Budget().admits(Measured())


def test_several_finalists_have_wider_intervals():
    assert proof_confidence(1) == proof_confidence(0) == 0.95
    assert proof_confidence(5) == pytest.approx(0.99)
    rng = np.random.default_rng(0)
    reference = logits(rng)
    noise = rng.normal(size=reference.shape).astype(np.float32) * 0.1
    samples = compare_logits(reference, reference + noise, rng.integers(0, 200, 1024))
    one = summarize(samples, seed=0, confidence=proof_confidence(1))
    five = summarize(samples, seed=0, confidence=proof_confidence(5))
    assert five.kl.low < one.kl.low < one.kl.high < five.kl.high
    assert five.kl.confidence == pytest.approx(0.99)


@pytest.mark.parametrize("seed", range(10))
def test_the_excess_over_the_same_formats_tells_small_damage_from_rounding(seed):
    """Damage of a twentieth of the budget, that the budget for KL lets pass."""
    rng = np.random.default_rng(seed)
    reference = logits(rng)
    targets = rng.integers(0, 200, len(reference))

    def rounded(values):
        noise = rng.normal(size=values.shape).astype(np.float32) * 0.08
        return compare_logits(reference, values + noise, targets)

    damage = rng.normal(size=reference.shape).astype(np.float32) * 0.05
    unchanged, harmless, damaged = (
        rounded(reference),
        rounded(reference),
        rounded(reference + damage),
    )
    judge = Budget.of_excess()
    assert judge.admits(summarize_excess(harmless, unchanged, seed=seed))
    assert not judge.admits(summarize_excess(damaged, unchanged, seed=seed))
    assert Budget(perplexity_percent=None, top1_percent=None).admits(summarize(damaged, seed=seed))


def test_exactness_bears_rounding_and_nothing_else():
    rng = np.random.default_rng(0)
    reference = logits(rng)
    noise = rng.normal(size=reference.shape).astype(np.float32)
    assert Budget.of_exactness().admits(measure(reference, reference + noise * 1e-4))
    refused = Budget.of_exactness().why_refused(measure(reference, reference + noise * 0.02))
    assert "budget 1e-07" in refused
    assert "e-04" in refused


def test_an_interval_outside_says_its_figures():
    found = items(100, 20)
    assert isinstance(found.loss, Interval)
    assert TASKS_ALONE.why_hopeless(found).startswith("right answers lost 8.00 points (")
