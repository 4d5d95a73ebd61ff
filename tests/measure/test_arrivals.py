import itertools

import numpy as np
import pytest

from hasten.errors import UsageError
from hasten.measure.arrivals import ClosedLoop, constant, gamma, poisson, ramp, replay


def times(pattern, count):
    return np.array(list(itertools.islice(pattern.offsets(), count)))


def test_a_constant_rate():
    assert times(constant(4), 4) == pytest.approx([0, 0.25, 0.5, 0.75])


def test_distances_of_poisson_arrivals_are_exponential():
    gaps = np.diff(times(poisson(50, seed=3), 20_001))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(1, rel=0.1)
    assert np.mean(gaps > 2 / 50) == pytest.approx(np.exp(-2), rel=0.1)


@pytest.mark.parametrize("burstiness", [0.25, 1, 4])
def test_burstiness_is_the_squared_variation_of_the_distances(burstiness):
    gaps = np.diff(times(gamma(50, burstiness, seed=3), 40_001))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(burstiness, rel=0.15)


@pytest.mark.parametrize("pattern", [poisson(5, seed=1), gamma(5, 2, seed=1)])
def test_the_same_seed_gives_the_same_times(pattern):
    assert times(pattern, 100) == pytest.approx(times(pattern, 100))


@pytest.mark.parametrize(("first", "last"), [(10, 100), (100, 10), (50, 50)])
def test_a_ramp_changes_the_rate_evenly(first, last):
    at = times(ramp(first, last, 10), 2000)
    assert (np.diff(at) > 0).all()
    for second in range(10):
        rate = first + (last - first) * (second + 0.5) / 10
        assert np.sum((at >= second) & (at < second + 1)) == pytest.approx(rate, abs=1.5)
    late = at[at > 10.5]
    assert np.diff(late) == pytest.approx(1 / last)


def test_a_trace_is_replayed_from_its_first_request():
    assert times(replay([5, 6, 6, 9]), 9) == pytest.approx([0, 1, 1, 4])
    assert times(replay([5, 6, 6, 9], speed=2), 9) == pytest.approx([0, 0.5, 0.5, 2])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClosedLoop(0),
        lambda: constant(0),
        lambda: poisson(-1),
        lambda: constant(float("nan")),
        lambda: gamma(1, 0),
        lambda: gamma(1, float("inf")),
        lambda: ramp(1, 0, 1),
        lambda: ramp(1, 2, 0),
        lambda: replay([]),
        lambda: replay([2, 1]),
        lambda: replay([1, 2], speed=0),
    ],
)
def test_what_is_out_of_range(make):
    with pytest.raises(UsageError):
        make()
