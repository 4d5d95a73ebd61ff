from __future__ import annotations

import pytest

from hasten.measure.load import run_closed_loop
from hasten.measure.metrics import itl, ttft


def test_times_come_from_the_clock_and_the_warmup_does_not_count(target, make_workload):
    starts = []
    result = run_closed_loop(
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

    result = run_closed_loop(target, make_workload(2), clock=target.clock, on_progress=wait)
    assert [ttft(record) for record in result.records] == pytest.approx([1.0, 1.0])


def test_a_failed_request_is_recorded_and_the_loop_goes_on(target, make_workload):
    target.fail_on = {1}
    result = run_closed_loop(target, make_workload(3), clock=target.clock)
    assert [record.status for record in result.records] == ["completed", "failed", "completed"]
    assert result.records[1].reason == "the target is broken"


def test_a_failure_in_the_warmup_is_kept(target, make_workload):
    target.fail_on = {0}
    result = run_closed_loop(target, make_workload(1, warmup=1), clock=target.clock)
    assert result.warmup_failures == ("the target is broken",)
    assert [record.status for record in result.records] == ["completed"]


@pytest.mark.parametrize("tokens", [0, 2])
def test_an_interrupt_keeps_what_was_measured(target, make_workload, tokens):
    target.interrupt_after = (2, tokens)
    result = run_closed_loop(target, make_workload(5), clock=target.clock)
    assert result.interrupted
    assert [record.status for record in result.records] == ["completed", "completed", "truncated"]
    assert result.records[2].reason == f"interrupted after {tokens} tokens"


def test_an_interrupt_in_the_warmup_leaves_nothing(target, make_workload):
    target.interrupt_after = (0, 1)
    result = run_closed_loop(target, make_workload(2, warmup=1), clock=target.clock)
    assert result.interrupted
    assert result.records == ()
    assert result.window == 0


def test_an_interrupt_between_requests(target, make_workload):
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    result = run_closed_loop(target, make_workload(2), clock=target.clock, on_progress=interrupt)
    assert result.interrupted
    assert [record.status for record in result.records] == ["completed"]


def test_the_duration_ends_the_run_between_requests(target, make_workload):
    result = run_closed_loop(target, make_workload(10), duration=2.0, clock=target.clock)
    assert result.out_of_time
    assert [record.status for record in result.records] == ["completed", "completed"]


def test_all_requests_inside_the_duration_are_not_out_of_time(target, make_workload):
    result = run_closed_loop(target, make_workload(2), duration=100.0, clock=target.clock)
    assert not result.out_of_time


def test_an_answer_that_ends_early_is_complete_only_if_the_model_ended_it(target, make_workload):
    target.stop_after = 2
    stopped = run_closed_loop(target, make_workload(1), ignore_eos=False, clock=target.clock)
    assert stopped.records[0].status == "completed"
    assert stopped.records[0].output_tokens == 2

    class Short(type(target)):
        def generate(self, prompt, sampling):
            yield from list(super().generate(prompt, sampling))[:2]

    cut = run_closed_loop(Short(), make_workload(1), clock=target.clock)
    assert cut.records[0].status == "truncated"
    assert cut.records[0].reason == "ended after 2 of 3 tokens"


def test_no_output_is_a_failure(target, make_workload):
    class Silent(type(target)):
        def generate(self, prompt, sampling):
            yield from ()

    result = run_closed_loop(Silent(), make_workload(1), clock=target.clock)
    assert (result.records[0].status, result.records[0].reason) == ("failed", "no output")


def test_requests_do_not_stay_open(target, make_workload):
    target.fail_on = {1}
    run_closed_loop(target, make_workload(3), clock=target.clock)
    assert target.closed == 3
