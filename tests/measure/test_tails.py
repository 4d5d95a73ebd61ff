"""What samples show of slow requests, and what blocks show of one more block."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from hasten.errors import UsageError
from hasten.measure.blocks import predict_block, students_t
from hasten.measure.statistics import allowed_late, minimum_samples
from hasten.measure.tails import percentile_bound, share_bound


def test_so_many_requests_show_a_percentile_with_95_percent_confidence():
    assert [minimum_samples(0.99, late, 0.95) for late in range(3)] == [299, 473, 628]
    assert [minimum_samples(0.95, late, 0.95) for late in range(3)] == [59, 93, 124]
    assert percentile_bound(range(298), 0.99, 0.95) is None
    assert percentile_bound(range(299), 0.99, 0.95) == 298
    assert percentile_bound(range(473), 0.99, 0.95) == 471


def test_the_share_of_late_requests_is_bounded_where_the_percentile_is():
    for n in (1, 10, 59, 298, 299, 473, 700):
        for late in range(min(n, 8) + 1):
            for percentile in (0.5, 0.9, 0.95, 0.99):
                allowed = allowed_late(n, percentile, 0.95)
                kept = allowed is not None and late <= allowed
                assert (share_bound(late, n, 0.95) <= 1 - percentile) == kept


def test_shares_by_exact_arithmetic():
    assert share_bound(0, 120, 0.95) == pytest.approx(1 - 0.05 ** (1 / 120))
    assert share_bound(7, 7, 0.95) == 1
    assert share_bound(2, 3, 0.95) == pytest.approx(0.95 ** (1 / 3))
    for late, n in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(UsageError):
            share_bound(late, n, 0.95)


def test_a_percentile_is_under_its_bound_in_95_of_100_samples():
    draws = np.random.default_rng(0).exponential(size=(1000, 299))
    true = -math.log(0.01)
    covered = np.mean([percentile_bound(draw, 0.99, 0.95) >= true for draw in draws])
    assert 0.93 <= covered <= 0.97


def test_students_t_as_in_tables():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042}
    for freedom, value in table.items():
        assert students_t(0.95, freedom) == pytest.approx(value, abs=5e-4)
    assert students_t(0.99, 5) == pytest.approx(4.032, abs=5e-4)
    assert students_t(0.95, 4000) == pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-3)
    with pytest.raises(UsageError):
        students_t(0.95, 0)


def test_one_more_block_falls_into_the_interval_of_the_others_19_times_of_20():
    draws = np.random.default_rng(1).normal(size=(2000, 7))
    found = [predict_block(draw[:6]) for draw in draws]
    inside = [one.low <= new <= one.high for one, new in zip(found, draws[:, 6], strict=True)]
    assert 0.935 <= np.mean(inside) <= 0.965
    with pytest.raises(UsageError, match="1 blocks"):
        predict_block([1.0])
