from __future__ import annotations

import asyncio
import dataclasses
import signal

import numpy as np
import pytest

from hasten.measure.arrivals import ClosedLoop, constant
from hasten.measure.load import run_load
from hasten.measure.metrics import e2e, itl, ttft
from hasten.measure.workload import Chat, Session, Turn, Workload


def test_times_come_from_the_clock_and_the_warmup_does_not_count(target, make_workload):
    starts = []
    result = run_load(
        target,
        make_workload(2, warmup=1),
        clock=target.clock,
        on_start=lambda: starts.append(target.now),
    )
    assert len(target.prompts) == 3
    assert starts == [pytest.approx(101.2)]
    assert [record.status for record in result.records] == ["completed"] * 2
    assert [ttft(record) for record in result.records] == pytest.approx([1.0, 1.0])
    assert itl(result.records[0]) == pytest.approx([0.1, 0.1])
    assert result.window == pytest.approx(2.4)
    assert not result.interrupted
    assert not result.out_of_time


def test_time_between_requests_is_not_measured(target, make_workload):
    def wait(done: int) -> None:
        target.now += 50

    result = run_load(target, make_workload(2), clock=target.clock, on_progress=wait)
    assert [ttft(record) for record in result.records] == pytest.approx([1.0, 1.0])


def test_a_failed_request_is_recorded_and_the_loop_goes_on(target, make_workload):
    target.fail_on = {1}
    result = run_load(target, make_workload(3), clock=target.clock)
    assert [record.status for record in result.records] == ["completed", "failed", "completed"]
    assert result.records[1].reason == "the target is broken"


def test_a_failure_in_the_warmup_is_kept(target, make_workload):
    target.fail_on = {0}
    result = run_load(target, make_workload(1, warmup=1), clock=target.clock)
    assert result.warmup_failures == ("the target is broken",)
    assert [record.status for record in result.records] == ["completed"]


@pytest.mark.parametrize("tokens", [0, 2])
def test_an_interrupt_keeps_what_was_measured(target, make_workload, tokens):
    target.interrupt_after = (2, tokens)
    result = run_load(target, make_workload(5), clock=target.clock)
    assert result.interrupted
    assert [record.status for record in result.records] == ["completed", "completed", "truncated"]
    assert result.records[2].reason == f"interrupted after {tokens} tokens"


def test_an_interrupt_in_the_warmup_leaves_nothing(target, make_workload):
    target.interrupt_after = (0, 1)
    result = run_load(target, make_workload(2, warmup=1), clock=target.clock)
    assert result.interrupted
    assert result.records == ()
    assert result.window == 0


def test_an_interrupt_ends_the_request_that_comes_next(target, make_workload):
    def interrupt(done: int) -> None:
        signal.raise_signal(signal.SIGINT)

    result = run_load(target, make_workload(5), clock=target.clock, on_progress=interrupt)
    assert result.interrupted
    assert [record.status for record in result.records] == ["completed", "truncated"]
    assert len(target.prompts) == 1


def test_the_duration_ends_the_run_between_requests(target, make_workload):
    result = run_load(target, make_workload(10), duration=2.0, clock=target.clock)
    assert result.out_of_time
    assert [record.status for record in result.records] == ["completed", "completed"]


def test_all_requests_inside_the_duration_are_not_out_of_time(target, make_workload):
    result = run_load(target, make_workload(2), duration=100.0, clock=target.clock)
    assert not result.out_of_time


def test_an_answer_that_ends_early_is_complete_only_if_the_model_ended_it(target, make_workload):
    target.stop_after = 2
    stopped = run_load(target, make_workload(1), clock=target.clock)
    assert stopped.records[0].status == "completed"
    assert stopped.records[0].output_tokens == 2
    target.stop_after, target.cut_after = None, 2
    cut = run_load(target, make_workload(1), clock=target.clock)
    assert cut.records[0].status == "truncated"
    assert cut.records[0].reason == "ended after 2 of 3 tokens"


def test_no_output_is_a_failure(target, make_workload):
    target.cut_after = 0
    result = run_load(target, make_workload(1), clock=target.clock)
    assert (result.records[0].status, result.records[0].reason) == ("failed", "no output")


def test_requests_do_not_stay_open(target, make_workload):
    target.fail_on = {1}
    run_load(target, make_workload(3), clock=target.clock)
    assert (target.closed, target.opened) == (3, 0)


def test_what_the_target_counts_is_believed(target, make_workload):
    """A server that speculates sends several tokens in one event."""

    class Counting(type(target)):
        async def send(self, work, answer):
            await super().send(work, answer)
            answer.output_tokens, answer.prompt_tokens = 7, 11

    result = run_load(Counting(), make_workload(1), clock=target.clock)
    assert (result.records[0].output_tokens, result.records[0].prompt_tokens) == (7, 11)


class Slow:
    """Takes so many seconds a request of real time, and counts how many run at once."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.works, self.running, self.most = [], 0, 0

    def describe(self):
        return {"kind": "slow"}

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    async def send(self, work, answer):
        self.works.append(work)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        answer.arrive(work.output_tokens, text="yes")


def test_so_many_clients_as_asked_for(make_workload):
    slow = Slow(0.01)
    result = run_load(slow, make_workload(12), ClosedLoop(4))
    assert slow.most == 4
    assert len(result.records) == 12
    assert len({record.request_id for record in result.records}) == 12


def test_an_open_loop_does_not_wait(make_workload):
    slow = Slow(0.3)
    result = run_load(slow, make_workload(10), constant(100))
    assert slow.most == 10
    sends = [record.intended_send for record in result.records]
    assert np.diff(sends) == pytest.approx([0.01] * 9)
    assert all(record.sent >= record.intended_send for record in result.records)


def test_a_stall_counts_from_when_requests_were_due(make_workload):
    """As with a target that answers one at a time: what waits for it in the client is late, too."""
    slow = Slow(0.05)
    pattern = dataclasses.replace(constant(1000), max_in_flight=1)
    result = run_load(slow, make_workload(5), pattern)
    waits = [e2e(record) for record in result.records]
    assert slow.most == 1
    assert all(wait >= 0.05 * (n + 1) - 0.01 * n for n, wait in enumerate(waits))


def test_the_duration_ends_an_open_loop(make_workload):
    result = run_load(Slow(0.001), make_workload(100), constant(100), duration=0.1)
    assert result.out_of_time
    assert len(result.records) == 10


def test_a_session_sends_what_was_said_before():
    slow = Slow(0.001)
    session = Session("Be brief.", (Turn("One?", 3), Turn("Two?", 4, pause=0.05)))
    result = run_load(slow, Workload("made up", None, (), (session,)))
    first, second = result.records
    assert slow.works[1].prompt == Chat(
        (
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "Two?"},
        )
    )
    assert second.intended_send - first.end == pytest.approx(0.05, abs=0.01)
    assert [work.output_tokens for work in slow.works] == [3, 4]


def test_a_bug_is_not_a_failed_request(make_workload):
    class Broken(Slow):
        async def send(self, work, answer):
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        run_load(Broken(0), make_workload(1))
