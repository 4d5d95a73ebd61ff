import sys
from pathlib import Path

import pytest

from hasten.errors import UsageError
from hasten.measure.sweep import doubling, find_saturation, step_dict, sweep

sys.path.insert(0, str(Path(__file__).parent))
from made_reports import made_records, made_report


def report_at(rate, *, failed=False):
    records = made_records([0.1] * 10, [0.01] * 10, gap=1 / rate, failed=10 if failed else 0)
    return made_report(records)


def test_it_ends_where_more_clients_bring_nothing():
    capacity = {1: 10, 2: 20, 4: 30, 8: 31, 16: 30.5, 32: 30}
    steps = sweep(lambda n: report_at(capacity[n]), doubling(), until_saturated=True)
    assert [clients for clients, _ in steps] == [1, 2, 4, 8, 16]
    found = find_saturation(steps)
    assert (found.clients, found.reached) == (4, True)
    assert step_dict(steps[0][1])["throughput"]["requests_per_s"] > 0


def test_one_flat_step_is_not_enough():
    """A disturbance may have held one up."""
    capacity = {1: 10, 2: 10, 4: 30, 8: 60, 16: 61, 32: 61, 64: 61}
    steps = sweep(lambda n: report_at(capacity[n]), doubling(), until_saturated=True)
    assert find_saturation(steps).clients == 8


def test_all_loads_that_were_asked_for():
    steps = sweep(report_at, iter([1, 5, 9]), until_saturated=False)
    found = find_saturation(steps)
    assert (found.clients, found.reached) == (9, False)


def test_it_ends_where_nothing_completes():
    steps = sweep(lambda n: report_at(n, failed=True), doubling(), until_saturated=True)
    assert len(steps) == 1
    with pytest.raises(UsageError):
        find_saturation(steps)
