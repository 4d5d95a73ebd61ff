"""Where the time of requests to a server went, from what it counted or answered."""

import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.measure.html import render_html
from hasten.measure.metrics import e2e
from hasten.measure.server_times import COUNTERS, find_server_times, named_parts

sys.path.insert(0, str(Path(__file__).parent))
from made_reports import made_document, made_records

OURS = [f"hasten_{part}_seconds" for part in ("e2e", "queue", "prefill", "decode")]
VLLM = ["vllm:e2e_request_latency_seconds"]
VLLM += [f"vllm:request_{part}_time_seconds" for part in ("queue", "prefill", "decode")]
SECONDS = (8.0, 1.0, 2.0, 4.0)
RECORDS = made_records([0.5] * 4, [0.5] * 4)  # of 2.5 s each


def page(names, seconds=SECONDS, count=4):
    pairs = zip(names, seconds, strict=True)
    return {
        name: value
        for one, sum_ in pairs
        for name, value in ((f"{one}_sum", sum_), (f"{one}_count", float(count)))
    }


def add(before, after):
    return {name: before.get(name, 0.0) + value for name, value in after.items()}


@pytest.mark.parametrize("names", [OURS, VLLM])
@pytest.mark.parametrize("before", [{}, page(OURS, (1, 2, 3, 4), 7) | page(VLLM, (5, 1, 0, 2), 9)])
def test_what_counters_grew_by(names, before):
    assert set(page(names)) <= COUNTERS
    times, note = find_server_times(RECORDS, (before, before | add(before, page(names))))
    assert note is None
    assert times.as_dict() == {
        "queue_ms": 250.0,
        "prefill_ms": 500.0,
        "decode_ms": 1000.0,
        "rest_ms": 250.0,
        "network_ms": pytest.approx(500.0),
        "requests": 4,
    }


def test_a_part_that_is_not_told_is_within_the_rest():
    times, _ = find_server_times(RECORDS, ({}, page(OURS[:2], SECONDS[:2])))
    assert (times.queue, times.prefill, times.decode, times.rest) == (250.0, None, None, 1750.0)
    assert [name for name, _ in named_parts(times.as_dict())] == [
        *("queue", "rest of the server", "network and HTTP")
    ]


@pytest.mark.parametrize("count", [3, 5, -4])
def test_another_number_of_requests_gives_no_figure(count):
    before = page(VLLM, count=10)
    times, note = find_server_times(RECORDS, (before, add(before, page(VLLM, count=count))))
    assert times is None
    assert f"counted {count} requests, 4 were sent" in note


def test_each_histogram_has_to_count_the_same():
    """One of ours counts texts that became vectors, and the others do not."""
    after = page(OURS) | page(OURS[1:2], SECONDS[1:2], 3)
    times, note = find_server_times(RECORDS, ({}, after))
    assert times is None
    assert "counted 3 requests, 4 were sent; others used it" in note


@pytest.mark.parametrize("status", ["failed", "truncated"])
def test_requests_that_did_not_complete_give_no_figure(status):
    records = (replace(RECORDS[0], status=status), *RECORDS[1:])
    times, note = find_server_times(records, ({}, page(OURS)))
    assert times is None
    assert "failed or were truncated" in note


@pytest.mark.parametrize("counters", [None, ({}, {}), (page(OURS), page(OURS))])
@pytest.mark.parametrize("records", [RECORDS, ()])
def test_a_server_that_tells_nothing_of_them(counters, records):
    assert find_server_times(records, counters) == (None, None)


def test_what_answers_tell():
    told = {"total": 2.0, "load": 0.25, "prefill": 0.5, "decode": 1.0}
    records = [replace(record, parts=told) for record in RECORDS]
    records[0] = replace(records[0], parts={"total": 2.0, "decode": 1.0})  # no prompt was read
    records.append(replace(RECORDS[0], status="failed"))
    others = ({}, page(OURS, count=5))
    for counters in (None, others):
        times, note = find_server_times(records, counters)
        assert note is None
        assert times.as_dict() == {
            "queue_ms": None,
            "prefill_ms": 375.0,
            "decode_ms": 1000.0,
            "rest_ms": 625.0,
            "network_ms": pytest.approx(500.0),
            "requests": 4,
        }


seconds = st.floats(0, 1e5)


@given(st.lists(st.tuples(*[seconds] * 6), min_size=1, max_size=20))
def test_parts_add_up_to_what_the_client_saw(rows):
    records = made_records([row[0] for row in rows], [row[1] for row in rows])
    sums = [sum(row[2 + part] for row in rows) for part in range(4)]
    times, _ = find_server_times(records, ({}, page(VLLM, sums, len(rows))))
    parts = [mean for _, mean in named_parts(times.as_dict())]
    assert len(parts) == 5
    spent = 1000 * fmean(e2e(record) for record in records)
    assert sum(parts) == pytest.approx(spent, rel=1e-9, abs=1e-6 * (1 + sum(sums)))


def test_the_page_has_the_table():
    document = made_document()
    assert "network and HTTP" not in render_html({"a": document}, "t")
    times, _ = find_server_times(RECORDS, ({}, page(OURS)))
    document = document | {"server_times": times.as_dict()}
    assert "network and HTTP" in render_html({"a": document}, "t")
