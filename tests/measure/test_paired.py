"""Intervals of lost right answers hold their level, and do not collapse without flips."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.paired import loss_of_scores, mcnemar, score_interval


def likeliest_share(lost, gained, items, loss):
    """Share of gained items that is likeliest under a supposed loss, by search."""
    shares = np.linspace(max(0, -loss), (1 - loss) / 2, 200_001)[1:-1]
    rest = 1 - loss - 2 * shares
    with np.errstate(divide="ignore"):
        chances = (
            lost * np.log(shares + loss)
            + gained * np.log(shares)
            + (items - lost - gained) * np.log(rest)
        )
    return shares[np.argmax(chances)]


@pytest.mark.parametrize("counts", [(1, 0, 44), (7, 2, 60), (2, 9, 35), (30, 25, 400)])
def test_ends_are_where_the_score_statistic_is_critical(counts):
    """The definition, with the likeliest share found by search instead of the closed form."""
    lost, gained, items = counts
    found = score_interval(*counts)
    for end in (found.low, found.high):
        share = likeliest_share(*counts, end)
        variance = items * (2 * share + end * (1 - end))
        assert abs(lost - gained - items * end) / variance**0.5 == pytest.approx(1.96, abs=2e-3)


@given(items=st.integers(1, 10_000))
def test_without_a_flip_the_interval_is_that_of_no_event(items):
    found = score_interval(0, 0, items)
    z2 = 1.959964**2
    assert found.estimate == 0
    assert found.high == pytest.approx(z2 / (items + z2), rel=1e-5)
    assert found.low == pytest.approx(-found.high, rel=1e-6)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), st.data())
def test_the_interval_holds_the_estimate_and_mirrors(sizes, data):
    items, lost = sizes
    gained = data.draw(st.integers(0, items - lost))
    found, mirrored = score_interval(lost, gained, items), score_interval(gained, lost, items)
    assert -1 <= found.low <= found.estimate <= found.high <= 1
    assert found.low == pytest.approx(-mirrored.high, abs=1e-9)
    wider = score_interval(lost, gained, items, 0.99)
    assert wider.low <= found.low
    assert found.high <= wider.high


@pytest.mark.parametrize(
    ("items", "chances"), [(50, (0.02, 0.02)), (100, (0.05, 0.01)), (300, (0.01, 0.0))]
)
def test_the_upper_end_leaves_out_the_truth_as_often_as_it_says(items, chances):
    rng = np.random.default_rng(0)
    draws = rng.multinomial(items, [*chances, 1 - sum(chances)], size=2000)
    truth = chances[0] - chances[1]
    below = np.mean([score_interval(a, b, items).high < truth for a, b, _ in draws.tolist()])
    assert below <= 0.04  # 0.025 and what so few counts and draws leave open


def test_mcnemar_is_the_exact_binomial():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 5) == 1
    assert mcnemar(10, 0) == pytest.approx(2 / 2**10)
    assert mcnemar(8, 2) == mcnemar(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert 0 < mcnemar(3000, 0) < 1e-300 or mcnemar(3000, 0) == 0


def test_scores_between_wrong_and_right_have_a_paired_bootstrap():
    rng = np.random.default_rng(0)
    before = rng.uniform(0.4, 1, 400)
    found = loss_of_scores(before, before - 0.1 - rng.uniform(-0.1, 0.1, 400))
    assert found.low < 0.1 < found.high
    assert found.high - found.low < 0.03


def test_few_differences_of_scores_do_not_collapse():
    before = np.full(50, 0.5)
    same = loss_of_scores(before, before)
    assert same.high == score_interval(0, 0, 50).high > 0.05
    after = before.copy()
    after[:3] -= 0.1
    some = loss_of_scores(before, after)
    assert some.estimate == pytest.approx(0.006)
    assert some.high == score_interval(3, 0, 50).high


def test_counts_that_do_not_fit_are_refused():
    for counts in ((-1, 0, 5), (3, 3, 5), (0, 0, 0)):
        with pytest.raises(UsageError):
            score_interval(*counts)
    with pytest.raises(UsageError, match="2 scores before and 1 after"):
        loss_of_scores([1, 0], [1])
    assert math.isfinite(score_interval(1, 0, 1).high)
