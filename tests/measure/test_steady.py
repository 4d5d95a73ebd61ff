from __future__ import annotations

import numpy as np
import pytest

from hasten.measure.steady import LEAST_VALUES, SteadyState, find_steady_state


def noise(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(10, 1, n)


def found(shape: np.ndarray, trials: int = 50) -> list[SteadyState]:
    return [find_steady_state(noise(shape.size, seed) * shape) for seed in range(trials)]


def test_a_steady_run_loses_nothing():
    states = found(np.ones(300), trials=100)
    assert sum(state.warmup > 0 for state in states) <= 3
    assert sum(not state.settled for state in states) <= 3
    assert SteadyState(300, 0, settled=True) in states


def test_a_step_is_found_where_it_is():
    shape = np.where(np.arange(300) < 60, 1.3, 1.0)
    states = found(shape)
    assert all(state.settled for state in states)
    assert np.median([state.warmup for state in states]) == 60
    assert min(state.warmup for state in states) >= 50


def test_a_decay_is_dropped_as_far_as_it_matters():
    shape = 1 + 0.5 * np.exp(-np.arange(1000) / 40)  # 5 % above the end at 92
    warmups = [state.warmup for state in found(shape)]
    assert 60 <= np.median(warmups) <= 200


def test_without_noise_the_end_is_exact():
    assert find_steady_state([2.0] * 20 + [1.0] * 180) == SteadyState(200, 20, settled=True)
    assert find_steady_state([1.0] * 200) == SteadyState(200, 0, settled=True)


@pytest.mark.parametrize("place", [0, 30, 150, 299])
def test_one_late_request_is_no_warmup(place):
    states = []
    for seed in range(30):
        values = noise(300, seed)
        values[place] *= 50
        states.append(find_steady_state(values))
    assert sum(state.warmup > 0 or not state.settled for state in states) <= 2


def test_what_still_changes_is_not_settled():
    trend = found(np.linspace(1, 2, 400))
    late_step = found(np.where(np.arange(400) > 320, 1.3, 1.0))
    for states in (trend, late_step):
        assert sum(state.settled is False for state in states) >= 45
    assert "measure longer" in next(s for s in trend if not s.settled).describe()


def test_few_values_tell_nothing():
    state = find_steady_state(noise(LEAST_VALUES - 1, 0))
    assert state == SteadyState(LEAST_VALUES - 1, 0, None)
    assert "too few" in state.describe()
    assert find_steady_state([]).n == 0


def test_the_sentence_says_how_many():
    assert "first 20 of 200" in SteadyState(200, 20, settled=True).describe()
    assert "steady from the first" in SteadyState(200, 0, settled=True).describe()
    assert SteadyState(200, 20, settled=True).as_dict() == {"n": 200, "warmup": 20, "settled": True}
