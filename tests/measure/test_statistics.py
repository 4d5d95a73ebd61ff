from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.statistics import (
    PERCENTILES,
    allowed_late,
    bootstrap_mean,
    bootstrap_ratio_of_medians,
    early_stopping_estimate,
    interleave,
    minimum_samples,
    summarize,
)

finite = st.floats(-1e9, 1e9)


@pytest.mark.parametrize(
    ("percentile", "counts"),
    [
        (0.99, [459, 662, 838, 1001, 1157]),
        (0.90, [44, 64, 81, 97]),
        (0.97, [152, 219, 277]),
    ],
)
def test_minimum_samples_are_those_of_mlperf(percentile, counts):
    assert [minimum_samples(percentile, late) for late in range(len(counts))] == counts


def test_minimum_samples_by_exact_arithmetic():
    """With 0 late the bound is p ** n <= 1 %; one sample fewer must not reach it."""
    for percentile in (0.5, 0.9, 0.95, 0.97, 0.99):
        n = minimum_samples(percentile)
        assert percentile**n <= 0.01 < percentile ** (n - 1)


@pytest.mark.parametrize("bad", [(0.0, 0), (1.0, 0), (0.9, -1)])
def test_minimum_samples_refuses_what_is_out_of_range(bad):
    with pytest.raises(ValueError, match="out of range"):
        minimum_samples(*bad)


@given(st.integers(0, 3000), st.sampled_from([0.5, 0.9, 0.95, 0.97, 0.99]))
def test_allowed_late_is_the_inverse(n, percentile):
    late = allowed_late(n, percentile)
    if late is None:
        assert n < minimum_samples(percentile)
    else:
        assert minimum_samples(percentile, late) <= n < minimum_samples(percentile, late + 1)


def test_early_stopping_estimate_is_one_of_the_largest():
    """662 values may have one late: the largest bounds the p99; 838 two: the second largest."""
    assert early_stopping_estimate(range(661), 0.99) is None
    assert early_stopping_estimate(range(662), 0.99) == 661
    assert early_stopping_estimate(range(837), 0.99) == 836
    assert early_stopping_estimate(range(838), 0.99) == 836
    assert early_stopping_estimate(list(reversed(range(97))), 0.9) == 94


@pytest.mark.parametrize("percent", PERCENTILES)
def test_a_percentile_appears_exactly_when_the_sample_supports_it(percent):
    n = minimum_samples(percent / 100)
    assert summarize(np.arange(n - 1), "ms").percentiles[percent] is None
    assert summarize(np.arange(n), "ms").percentiles[percent] is not None


def test_summary_of_a_known_sample():
    summary = summarize(range(1, 1001), "ms")
    assert (summary.n, summary.mean, summary.min, summary.max) == (1000, 500.5, 1, 1000)
    assert summary.std == pytest.approx(math.sqrt(1000 * 1001 / 12))
    assert summary.percentiles[50] == 500.5
    assert summary.percentiles[99] == pytest.approx(990.01)
    assert list(summary.as_dict()) == [
        *("unit", "n", "mean", "std", "min", "p50", "p90", "p95", "p99", "max")
    ]


def test_empty_and_single_samples_have_no_invented_figures():
    empty = summarize([], "ms").as_dict()
    assert empty.pop("unit") == "ms"
    assert empty.pop("n") == 0
    assert set(empty.values()) == {None}
    assert summarize([3.0], "ms").std is None


def test_a_sample_with_nan_is_refused():
    with pytest.raises(ValueError, match="finite"):
        summarize([1.0, math.nan], "ms")


@given(st.lists(finite, min_size=1, max_size=30), st.integers(459, 480))
def test_percentiles_are_ordered(values, n):
    summary = summarize(np.resize(values, n), "ms")
    found = [summary.min, *(summary.percentiles[p] for p in PERCENTILES), summary.max]
    assert found == sorted(found)


def test_bootstrap_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        interval = bootstrap_mean(generator.normal(5, 2, 60), resamples=400, seed=trial)
        covered += interval.low <= 5 <= interval.high
    assert 0.88 <= covered / 200 <= 0.99


def test_bootstrap_mean_is_repeatable_and_narrows():
    values = np.random.default_rng(0).normal(size=4000)
    wide, narrow = bootstrap_mean(values[:100]), bootstrap_mean(values)
    assert bootstrap_mean(values[:100]) == wide
    assert narrow.high - narrow.low < wide.high - wide.low
    assert narrow.low < narrow.estimate < narrow.high


def test_blocks_widen_the_interval_of_dependent_values():
    repeated = np.repeat(np.random.default_rng(0).normal(size=50), 40)
    single, block = bootstrap_mean(repeated), bootstrap_mean(repeated, block=40)
    assert block.high - block.low > 3 * (single.high - single.low)
    assert block.estimate == single.estimate


def test_a_last_short_block_keeps_its_weight():
    assert bootstrap_mean([1.0, 1.0, 1.0, 1.0, 1.0], block=2).low == 1.0


def test_a_large_sample_is_drawn_in_parts():
    interval = bootstrap_mean(np.ones(3_000_000), resamples=5)
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_ratio_of_medians_paired_is_tighter_when_rounds_share_their_noise():
    generator = np.random.default_rng(0)
    noise = generator.uniform(0.5, 2.0, 200)
    slow, fast = 2.0 * noise, noise
    paired = bootstrap_ratio_of_medians(slow, fast, paired=True)
    unpaired = bootstrap_ratio_of_medians(slow, fast, paired=False)
    assert paired.low == paired.high == pytest.approx(2.0)
    assert unpaired.low < 2.0 < unpaired.high


def test_bootstrap_refuses_what_it_cannot_answer():
    with pytest.raises(UsageError, match="at least one"):
        bootstrap_mean([])
    with pytest.raises(UsageError, match="block"):
        bootstrap_mean([1.0], block=0)
    with pytest.raises(UsageError, match="paired"):
        bootstrap_ratio_of_medians([1.0], [1.0, 2.0], paired=True)
    with pytest.raises(UsageError, match="positive"):
        bootstrap_ratio_of_medians([1.0], [0.0], paired=False)


def test_interleave_runs_each_once_a_round_in_changing_order():
    calls: list[str] = []
    candidates = {name: (lambda name=name: calls.append(name) or len(calls)) for name in "abc"}
    results = interleave(candidates, rounds=20, seed=3)
    assert {name: len(values) for name, values in results.items()} == {"a": 20, "b": 20, "c": 20}
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1
    for name, values in results.items():
        assert [calls[at - 1] for at in values] == [name] * 20
