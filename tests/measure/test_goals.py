import sys
from pathlib import Path

import pytest

from hasten.errors import UsageError
from hasten.measure.goals import GOALS, check, goodput, parse_bounds

sys.path.insert(0, str(Path(__file__).parent))
from made_reports import made_records, made_report


def test_goodput_counts_requests_that_met_all_bounds():
    records = made_records([0.1, 0.5, 0.1, 0.1], [0.01, 0.01, 0.5, 0.01], failed=1)
    goal = parse_bounds("ttft=400,tpot=40")
    assert [goal.meets(one) for one in records] == [False, False, False, True]
    assert goodput(records, goal, 2.0) == 0.5
    assert goodput(records, goal, 0.0) is None


def test_a_request_of_one_token_meets_a_bound_that_it_does_not_define():
    (record,) = made_records([0.1], [0.01], tokens=1)
    assert parse_bounds("tpot=1").meets(record)


def test_99_of_100_requests_are_to_meet_a_bound():
    goal = parse_bounds("ttft=400")
    good, late = [0.1] * 99, [0.5]
    assert [c.met for c in check(made_records(good + late, [0.01] * 100), goal, 0)] == [True]
    late *= 2
    assert [c.met for c in check(made_records(good + late, [0.01] * 101), goal, 0)] == [False]
    records = made_records([*good, 0.1, 0.1], [0.01] * 101, failed=2)
    assert [c.met for c in check(records, goal, 0)] == [False]


def test_memory_is_bounded():
    found = check(made_records([0.1], [0.01]), GOALS["edge"], 2 << 30)
    assert [(one.what, one.met) for one in found] == [
        ("ttft", True),
        ("tpot", True),
        ("memory", False),
    ]


def test_a_report_shows_them():
    records = made_records([0.1] * 10, [0.01] * 10)
    document = made_report(records, goal=GOALS["chat"]).as_dict()
    assert document["goal"]["name"] == "chat"
    assert [one["met"] for one in document["checks"]] == [True, True]
    rates = document["throughput"]
    assert rates["goodput_requests_per_s"] == rates["requests_per_s"]


def test_bounds_are_read():
    assert parse_bounds("ttft=450, e2e=1.5").bounds == {"ttft": 450, "e2e": 1.5}


@pytest.mark.parametrize(
    "text", ["", "chatt", "ttft", "ttft=0", "ttft=-1", "ttft=1,ttft=2", "p99=1"]
)
def test_bounds_that_are_none(text):
    with pytest.raises(UsageError, match="objective"):
        parse_bounds(text)
