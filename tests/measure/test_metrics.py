from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.measure.metrics import (
    decode_rate,
    e2e,
    itl,
    latencies,
    model_latency,
    prefill_rate,
    throughput,
    tokens_per_event,
    tpot,
    ttft,
)
from hasten.measure.records import Event, Record


def record(*events: tuple[float, int], sent: float = 0.0, status: str = "completed") -> Record:
    made = tuple(Event(time, tokens, 0.5) for time, tokens in events)
    end = made[-1].time if made else sent
    tokens = sum(tokens for _, tokens in events)
    reason = None if status == "completed" else "why"
    return Record("r", 10, sent, sent, end, made, tokens, status, reason)


def test_definitions_on_a_worked_example():
    one = record((3.0, 1), (4.0, 1), (6.0, 2), sent=1.0)
    assert ttft(one) == 2.0
    assert itl(one) == [1.0, 2.0]
    assert tpot(one) == pytest.approx(3.0 / 3)
    assert e2e(one) == 5.0
    assert model_latency(one) == 1.5
    assert tokens_per_event([one]) == pytest.approx(4 / 3)


def test_an_event_without_tokens_is_neither_first_token_nor_gap():
    one = record((2.0, 0), (3.0, 1), (4.0, 1), (9.0, 0))
    assert ttft(one) == 3.0
    assert itl(one) == [1.0]
    assert tpot(one) == 1.0
    assert e2e(one) == 9.0


def test_tpot_of_one_token_is_undefined_and_not_zero():
    assert tpot(record((2.0, 1))) is None
    summary = latencies([record((2.0, 1)), record((1.0, 1), (3.0, 1))])["tpot"]
    assert (summary.n, summary.mean) == (1, 2000.0)


def test_tpot_of_tokens_that_came_at_once_is_undefined():
    one = record((2.0, 5), (2.5, 0))
    assert tpot(one) is None
    assert decode_rate([one]) is None


def test_a_prompt_of_unknown_length():
    one = dataclasses.replace(record((2.0, 1)), prompt_tokens=None)
    assert throughput([one], 4.0).total_tokens_per_s is None
    assert throughput([one], 4.0).output_tokens_per_s == 0.25
    assert prefill_rate([one]) is None


def test_nothing_arrived():
    nothing = record(status="failed")
    assert ttft(nothing) is tpot(nothing) is e2e(nothing) is model_latency(nothing) is None
    assert itl(nothing) == []


def test_a_target_that_does_not_tell_its_model_latency_has_none():
    events = (Event(2.0, 1), Event(3.0, 1))
    served = Record("r", 10, 0.0, 0.0, 3.0, events, 2, "completed")
    assert model_latency(served) is None
    assert latencies([served])["model_latency"].n == 0


def test_rates():
    records = [record((2.0, 1), (6.0, 4)), record((8.0, 1), (10.0, 1), sent=7.0)]
    assert prefill_rate(records) == pytest.approx(20 / 3)
    assert decode_rate(records) == pytest.approx(5 / 6)
    rates = throughput(records, 10.0)
    assert rates.requests_per_s == 0.2
    assert rates.output_tokens_per_s == 0.7
    assert rates.total_tokens_per_s == 2.7


def test_rates_without_work_are_undefined():
    assert prefill_rate([]) is None
    assert decode_rate([record((1.0, 1))]) is None
    assert throughput([], 0.0).requests_per_s is None
    assert throughput([], 1.0).requests_per_s == 0.0


steps = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 3)), min_size=1, max_size=20)


@st.composite
def any_record(draw):
    sent = draw(st.floats(0, 1000))
    time, events = sent, []
    for gap, tokens in draw(steps):
        time += gap
        events.append((time, tokens))
    status = draw(st.sampled_from(["completed", "failed", "truncated"]))
    return record(*events, sent=sent, status=status)


@given(any_record())
def test_no_latency_is_negative_and_they_are_ordered(one):
    found = [value for value in (ttft(one), tpot(one), e2e(one)) if value is not None]
    assert all(value >= 0 for value in found)
    assert all(gap >= 0 for gap in itl(one))
    if ttft(one) is not None:
        assert ttft(one) <= e2e(one)


@given(st.lists(any_record(), max_size=8))
def test_only_completed_requests_count(records):
    completed = [one for one in records if one.status == "completed"]
    assert latencies(records) == latencies(completed)
    assert throughput(records, 3.0) == throughput(completed, 3.0)
    assert prefill_rate(records) == prefill_rate(completed)
    assert decode_rate(records) == decode_rate(completed)
    assert latencies(records)["e2e"].n == len(completed)
