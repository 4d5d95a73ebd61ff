"""Every figure against a target whose delays are known, in made-up time, so that it is exact."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_target import Plan, QueueTarget, SyntheticTarget

from hasten.measure.arrivals import ClosedLoop, constant, poisson
from hasten.measure.load import run_load
from hasten.measure.metrics import (
    decode_rate,
    e2e,
    latencies,
    peak_output_rate,
    prefill_rate,
    samples,
    throughput,
    tokens_per_event,
    tpot,
    ttft,
)
from hasten.measure.records import Event, Record
from hasten.measure.statistics import PERCENTILES
from hasten.measure.workload import Item, Workload


def workload(requests: int, tokens: int = 4) -> Workload:
    return Workload("made up", 0, (), tuple(Item((n,) * 5, tokens) for n in range(requests)))


PLANS = [
    Plan(0.08, ((0.01, 1),) * 3),
    Plan(0.05, ((0.03, 2), (0.05, 1)), tail=0.02),  # several tokens in an event; an empty last one
    Plan(0.20, ((0.002, 1), (0.1, 2))),
    Plan(0.01, ((0.004, 3),)),
]


@pytest.mark.parametrize("pattern", [ClosedLoop(1), ClosedLoop(3), constant(40), poisson(40, 3)])
def test_every_metric_is_the_truth(virtual_clock, pattern):
    target = SyntheticTarget(lambda number: PLANS[number % len(PLANS)])
    result = run_load(target, workload(60), pattern, clock=virtual_clock)
    assert len(result.records) == 60
    by_plan = sorted(result.records, key=lambda record: record.sent)
    for number, record in enumerate(by_plan):
        plan = PLANS[number % len(PLANS)]
        assert record.status == "completed"
        assert ttft(record) == pytest.approx(plan.first, abs=1e-6)
        assert tpot(record) == pytest.approx(plan.span / (plan.tokens - 1), abs=1e-6)
        total = plan.first + plan.span + (plan.tail or 0)
        assert e2e(record) == pytest.approx(total, abs=1e-6)
    gaps = [1000 * gap for n in range(60) for gap, _ in PLANS[n % 4].events]
    assert sorted(samples(by_plan)["itl"]) == pytest.approx(sorted(gaps), abs=1e-3)
    assert prefill_rate(by_plan) == pytest.approx(4 * 5 / sum(plan.first for plan in PLANS))
    assert decode_rate(by_plan) == pytest.approx(4 * 3 / sum(plan.span for plan in PLANS))
    assert tokens_per_event(by_plan) == pytest.approx(16 / 12)


def test_throughput_is_the_truth(virtual_clock):
    """Three clients of requests that take 0.1 s: 30 a second."""
    target = SyntheticTarget(lambda number: Plan(0.07, ((0.03, 3),)))
    result = run_load(target, workload(90), ClosedLoop(3), clock=virtual_clock)
    rates = throughput(result.records, result.window)
    assert result.window == pytest.approx(3.0, abs=1e-6)
    assert rates.requests_per_s == pytest.approx(30)
    assert rates.output_tokens_per_s == pytest.approx(120)
    assert rates.total_tokens_per_s == pytest.approx(270)


def test_failures_count_as_time_alone(virtual_clock):
    """Every third request breaks off after two events."""
    good, bad = Plan(), Plan(0.001, ((0.001, 1),) * 3, fails_after=2)
    target = SyntheticTarget(lambda number: bad if number % 3 == 2 else good)
    result = run_load(target, workload(30), clock=virtual_clock)
    failed = [record for record in result.records if record.status == "failed"]
    assert [record.reason for record in failed] == ["broke after 2 events"] * 10
    assert {record.output_tokens for record in failed} == {2}
    summary = latencies(result.records)
    assert summary["ttft"].n == summary["e2e"].n == 20
    assert summary["ttft"].min == pytest.approx(50, abs=1e-3)
    assert result.window == pytest.approx(20 * 0.08 + 10 * 0.002, abs=1e-6)
    rates = throughput(result.records, result.window)
    assert rates.requests_per_s == pytest.approx(20 / result.window)


def stalled() -> QueueTarget:
    """1 ms a request, and a stall of 200 ms at every 500th."""
    return QueueTarget(service=0.001, stall=0.2, every=500)


def test_an_open_loop_shows_a_stall(virtual_clock):
    result = run_load(stalled(), workload(3000), constant(450), clock=virtual_clock)
    e2e_ms = latencies(result.records)["e2e"].percentiles
    assert e2e_ms[50] == pytest.approx(1, abs=0.01)
    assert e2e_ms[99] == pytest.approx(195, abs=8)


def test_a_closed_loop_hides_the_same_stall(virtual_clock):
    result = run_load(stalled(), workload(3000), ClosedLoop(1), clock=virtual_clock)
    e2e_ms = latencies(result.records)["e2e"]
    assert e2e_ms.percentiles[99] == pytest.approx(1, abs=0.01)
    assert e2e_ms.max == pytest.approx(201, abs=0.01)


def test_what_waits_in_the_client_counts(virtual_clock):
    """With few connections the requests behind a stall wait in the client: the same figures."""
    pattern = dataclasses.replace(constant(450), max_in_flight=4)
    result = run_load(stalled(), workload(3000), pattern, clock=virtual_clock)
    assert latencies(result.records)["e2e"].percentiles[99] == pytest.approx(195, abs=8)
    assert max(record.sent - record.intended_send for record in result.records) > 0.15


@st.composite
def any_record(draw):
    """As a load makes them: what completed has at least one token."""
    intended = draw(st.floats(0, 1000))
    sent = intended + draw(st.floats(0, 1))
    time, events = sent, []
    for gap, tokens in draw(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 5)), max_size=12)):
        time += gap
        events.append(Event(time, tokens))
    tokens = sum(event.tokens for event in events)
    statuses = ["failed", "truncated", *(["completed"] if tokens else [])]
    return Record(
        request_id="r",
        prompt_tokens=draw(st.none() | st.integers(1, 100)),
        intended_send=intended,
        sent=sent,
        end=time,
        events=tuple(events),
        output_tokens=tokens,
        status=draw(st.sampled_from(statuses)),
    )


any_records = st.lists(any_record(), max_size=10)


@given(any_record())
def test_ttft_is_never_missing_nor_negative(record):
    first = ttft(record)
    if record.status == "completed":
        assert first is not None
    if first is not None:
        assert 0 <= first <= e2e(record)


@settings(max_examples=60)
@given(any_records)
def test_percentiles_rise_and_bound_the_mean(records):
    """Repeated until the sample is large enough for all of them."""
    for summary in latencies(records * 60).values():
        found = [summary.percentiles[percent] for percent in PERCENTILES]
        known = [value for value in found if value is not None]
        assert known == sorted(known)
        if summary.n:
            slack = 1e-9 * (1 + abs(summary.max))
            assert summary.min - slack <= summary.mean <= summary.max + slack
            assert all(summary.min <= value <= summary.max for value in known)


@settings(max_examples=60)
@given(any_records)
def test_failures_are_never_among_successes(records):
    completed = [record for record in records if record.status == "completed"]
    window = max((r.end for r in records), default=0) - min(
        (r.intended_send for r in records), default=0
    )
    rates = throughput(records, window)
    if window > 0:
        assert rates.requests_per_s * window == pytest.approx(len(completed))
        tokens = sum(record.output_tokens for record in completed)
        assert rates.output_tokens_per_s * window == pytest.approx(tokens)
    assert all(summary.n >= 0 for summary in latencies(records).values())
    assert latencies(records)["ttft"].n == len(completed)


@settings(max_examples=60)
@given(any_records)
def test_the_peak_is_at_least_the_mean(records):
    peak = peak_output_rate(records)
    window = max((r.end for r in records), default=0) - min(
        (r.intended_send for r in records), default=0
    )
    if window > 0:
        mean = throughput(records, window).output_tokens_per_s
        assert peak >= mean * (1 - 1e-9)
    else:
        assert peak is None


def test_the_peak_counts_tokens_not_events(virtual_clock):
    """40 tokens in four events, then 4 tokens a second: four parts of 1.05 s."""
    plans = [
        Plan(0.2, ((0.2, 10), (0.2, 10), (0.2, 19))),
        *[Plan(seconds, ((0.0, 3),)) for seconds in (1.0, 1.0, 1.4)],
    ]
    target = SyntheticTarget(lambda number: plans[number])
    items = tuple(Item((1,), plan.tokens) for plan in plans)
    result = run_load(target, Workload("made up", 0, (), items), clock=virtual_clock)
    assert result.window == pytest.approx(4.2)
    assert peak_output_rate(result.records) == pytest.approx(40 / 1.05)
