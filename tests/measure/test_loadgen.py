from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from synthetic_target import Plan, SyntheticTarget

from hasten.errors import HastenError, MissingDependencyError, UsageError
from hasten.measure.loadgen import LoadGenSettings, find_server_rate, run_loadgen
from hasten.measure.loadgen.log import read_accuracy, read_detail
from hasten.measure.loadgen.search import highest_passing
from hasten.measure.metrics import samples
from hasten.measure.statistics import early_stopping_estimate, minimum_samples
from hasten.measure.workload import Item, Session, Turn, Workload

pytest.importorskip("mlperf_loadgen")

NEAR_MS = 2.0
"""LoadGen and our clock time the same request from either side of a hand-over between threads."""


def workload(items: int = 20, tokens: int = 4) -> Workload:
    return Workload("made up", 0, (), tuple(Item((n,) * 5, tokens) for n in range(items)))


def levels(number: int) -> Plan:
    """Delays on three levels, so that any definition of a percentile finds the same one."""
    first = 0.04 if number % 25 == 0 else 0.02 if number % 5 == 0 else 0.005
    return Plan(first, ((first / 5, 1),) * 3)


def run(plan_of, folder: Path, scenario: str, **how):
    target = SyntheticTarget(plan_of)
    return run_loadgen(target, workload(), LoadGenSettings(scenario, **how), folder)


def fast(number: int) -> Plan:
    return Plan(0.002, ((0.0005, 1),) * 3)


def differences(result, *names: tuple[str, str], most: float = 100) -> list[str]:
    """Where LoadGen's percentiles are not ours, counted from the records in its way."""
    own = samples(result.records)
    found = []
    for name, ours in names:
        values = sorted(own[ours])
        assert len(values) == result.n
        for percent, theirs in result.percentiles[name].items():
            if percent > most:
                continue
            value = values[int(len(values) * percent / 100)]
            if theirs != pytest.approx(value, abs=NEAR_MS, rel=0.01):
                found.append(f"{name} p{percent:g}: {theirs} is not {value}")
    return found


def assert_agree(make, *names: tuple[str, str], most: float = 100):
    """In one of four runs: another process may come between the two readings of a clock."""
    for _ in range(4):
        result = make()
        assert result.valid, result.problems
        found = differences(result, *names, most=most)
        if not found:
            return result
    raise AssertionError(found)


def test_single_stream_agrees_with_our_own_metrics(tmp_path):
    result = assert_agree(
        lambda: run(levels, tmp_path, "single-stream", seconds=0.6, tokens=True),
        ("latency", "e2e"),
        ("ttft", "ttft"),
        ("tpot", "tpot"),
    )
    assert (result.result, result.valid, result.problems) == ("VALID", True, ())
    assert result.n >= 64
    assert 5 <= result.percentiles["ttft"][50.0] < 20
    assert result.score == result.percentiles["latency"][90.0]
    assert {record.status for record in result.records} == {"completed"}
    assert "LoadGen repeats them" in result.notes[0]
    assert json.loads(json.dumps(result.as_dict()))["score"]["unit"] == "ms (p90)"


def test_early_stopping_is_loadgens(tmp_path):
    result = assert_agree(
        lambda: run(levels, tmp_path, "single-stream", seconds=0.3), ("latency", "e2e")
    )
    said = result.early_stopping["latency"]
    theirs = int(said.partition("percentile estimate: ")[2].split()[0]) / 1e6
    ours = early_stopping_estimate(samples(result.records)["e2e"], 0.9)
    assert ours == pytest.approx(theirs, abs=NEAR_MS)


def test_too_few_queries_are_said_to_be(tmp_path):
    """LoadGen's own count is ours: 64 for a p90 with one late."""
    slow = Plan(0.01, ((0.0, 3),))
    result = run(lambda n: slow, tmp_path, "single-stream", seconds=0.1, queries=5)
    assert result.result == "INVALID"
    assert minimum_samples(0.9, 1) == 64
    assert "Need to process at least 64 queries" in result.early_stopping["latency"]
    assert any("early stopping" in problem for problem in result.problems)


def test_multi_stream_times_whole_queries(tmp_path):
    result = run(fast, tmp_path, "multi-stream", seconds=0.3, percentile=0.9, samples_per_query=4)
    assert result.valid, result.problems
    assert result.n % 4 == 0
    assert result.percentiles["query"][50.0] >= result.percentiles["latency"][50.0]
    assert result.score == result.percentiles["query"][90.0]


def test_server_keeps_a_rate_and_its_bounds(tmp_path):
    asked = {"seconds": 0.5, "rate": 150.0, "percentile": 0.9, "queries": 97}
    bounds = {"tokens": True, "ttft_bound": 0.5, "tpot_bound": 0.5}
    # LoadGen counts from its schedule, our records from the hand-over: tails differ where other
    # processes keep its thread from waking.
    result = assert_agree(
        lambda: run(fast, tmp_path, "server", **asked, **bounds),
        ("ttft", "ttft"),
        ("tpot", "tpot"),
        most=90,
    )
    assert result.score == pytest.approx(150, rel=0.4)


def test_a_bound_that_is_not_kept_is_invalid(tmp_path):
    asked = {"seconds": 0.3, "rate": 150.0, "percentile": 0.9, "queries": 97}
    result = run(fast, tmp_path, "server", **asked, latency_bound=0.001)
    assert (result.result, result.valid) == ("INVALID", False)
    assert any("Reduce target QPS" in problem for problem in result.problems)


def test_offline_sends_all_at_once_and_again_if_it_was_too_short(tmp_path):
    """A rate is expected of 1 sample a second; LoadGen alone would call 0.3 s too short."""
    result = run(fast, tmp_path, "offline", seconds=0.3, rate=1.0)
    assert result.valid, result.problems
    assert result.n > 20
    assert result.score > 100


def test_few_in_flight(tmp_path):
    class Counting(SyntheticTarget):
        running = most = 0

        async def send(self, work, answer):
            self.running += 1
            self.most = max(self.most, self.running)
            await super().send(work, answer)
            self.running -= 1

    target = Counting(fast)
    settings = LoadGenSettings("offline", seconds=0.05, queries=60, max_in_flight=3)
    assert run_loadgen(target, workload(), settings, tmp_path).n >= 60
    assert target.most == 3


def test_accuracy_sends_each_sample_once_and_keeps_the_answers(tmp_path):
    class Telling(SyntheticTarget):
        async def send(self, work, answer):
            await asyncio.sleep(0.001)
            answer.arrive(4, text=f"über {work.prompt[0]}")

    bounds = {"rate": 500.0, "ttft_bound": 1.0, "tpot_bound": 1.0}
    settings = LoadGenSettings("server", accuracy=True, tokens=True, **bounds)
    result = run_loadgen(Telling(), workload(), settings, tmp_path)
    assert result.valid, result.problems
    assert result.outputs == {n: f"über {n}" for n in range(20)}
    assert read_accuracy(tmp_path) == {n: text.encode() for n, text in result.outputs.items()}
    assert (result.result, result.score, result.notes) == (None, None, ())


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "offline"])
def test_a_failed_request_ends_the_run_with_its_reason(tmp_path, scenario, tokens):
    """Before its first token or after it."""
    good, bad = fast(0), dataclasses.replace(fast(0), fails_after=int(tokens))
    target = SyntheticTarget(lambda n: bad if n > 9 else good)
    settings = LoadGenSettings(scenario, seconds=2.0, tokens=tokens, max_in_flight=8)
    started = time.monotonic()
    result = run_loadgen(target, workload(), settings, tmp_path)
    assert time.monotonic() - started < 30
    assert (result.valid, result.result, result.score) == (False, "INVALID", None)
    assert result.problems[0].startswith("invalid: a request failed: broke after ")
    assert result.percentiles == {}
    assert target.sent <= 11 + 8  # the warm-up, ten, and what was under way


def test_a_failed_request_ends_a_server_run_before_its_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr("hasten.measure.loadgen.run.PATIENCE", 0.5)
    target = SyntheticTarget(lambda n: Plan(0.001, (), fails_after=0 if n == 5 else None))
    settings = LoadGenSettings("server", seconds=60.0, rate=1000.0, latency_bound=0.05)
    started = time.monotonic()
    result = run_loadgen(target, workload(tokens=1), settings, tmp_path)
    assert time.monotonic() - started < 30
    assert result.problems == ("invalid: a request failed: broke after 0 events",)


def test_an_answer_at_once_has_no_time_per_token(tmp_path):
    """LoadGen would call its TPOT of nearly nothing VALID."""

    class AtOnce(SyntheticTarget):
        async def send(self, work, answer):
            await asyncio.sleep(0.001)
            answer.arrive(4)

    settings = LoadGenSettings("single-stream", seconds=0.2, tokens=True)
    result = run_loadgen(AtOnce(), workload(), settings, tmp_path)
    assert not result.valid
    assert "TPOT would mean nothing" in result.problems[0]


def test_a_bug_in_a_target_is_raised_not_a_crash(tmp_path):
    class Broken(SyntheticTarget):
        async def send(self, work, answer):
            if self.sent > 3:
                raise ZeroDivisionError("a bug")
            await super().send(work, answer)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_loadgen(Broken(fast), workload(), LoadGenSettings("offline", seconds=0.1), tmp_path)


def test_tokens_that_arrive_in_another_thread(tmp_path):
    """As an engine in this process notes them."""

    class Threaded(SyntheticTarget):
        async def send(self, work, answer):
            loop, done = asyncio.get_running_loop(), asyncio.Event()

            def step() -> None:
                for _ in range(4):
                    time.sleep(0.001)
                    answer.arrive(1, at=time.perf_counter())
                loop.call_soon_threadsafe(done.set)

            threading.Thread(target=step).start()
            await done.wait()

    settings = LoadGenSettings("single-stream", seconds=0.3, tokens=True)
    assert_agree(
        lambda: run_loadgen(Threaded(), workload(), settings, tmp_path),
        ("latency", "e2e"),
        ("ttft", "ttft"),
    )


def test_a_stray_audit_config_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit.config").write_text("*.*.min_query_count = 100000\n*.*.mode = 1\n")
    result = run(fast, tmp_path / "logs", "single-stream", seconds=0.1)
    assert result.valid, result.problems
    assert result.n < 10000
    assert (tmp_path / "logs" / "mlperf_log_summary.txt").exists()
    assert not (tmp_path / "mlperf_log_summary.txt").exists()


INTERRUPTED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from synthetic_target import Plan, SyntheticTarget
from hasten.measure.loadgen import LoadGenSettings, run_loadgen
from hasten.measure.workload import Item, Workload
settings = LoadGenSettings("single-stream", seconds=60.0, rate=50.0)
workload = Workload("made up", 0, (), (Item((1,), 4),))
result = run_loadgen(
    SyntheticTarget(), workload, settings, Path({folder!r}),
    on_progress=lambda done: done == 3 and print("go", flush=True),
)
print(result.interrupted, result.problems[0], len(result.records))
"""


def test_ctrl_c_ends_a_run(tmp_path):
    code = INTERRUPTED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "go\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.startswith("True invalid: interrupted by the user")


def test_what_loadgen_cannot_do_is_refused(tmp_path):
    talk = Workload("made up", 0, (), (Session(None, (Turn("hi", 3),)),))
    with pytest.raises(UsageError, match="no conversations"):
        run_loadgen(SyntheticTarget(), talk, LoadGenSettings("offline"), tmp_path)
    with pytest.raises(UsageError, match="without requests"):
        run_loadgen(SyntheticTarget(), workload(0), LoadGenSettings("offline"), tmp_path)
    settings = LoadGenSettings("offline", tokens=True)
    with pytest.raises(UsageError, match="fewer than two tokens"):
        run_loadgen(SyntheticTarget(), workload(tokens=1), settings, tmp_path)
    target = SyntheticTarget(lambda n: Plan(fails_after=0))
    with pytest.raises(HastenError, match="broke after 0"):
        run_loadgen(target, workload(), LoadGenSettings("offline"), tmp_path)


@pytest.mark.parametrize(
    ("scenario", "how", "why"),
    [
        ("server", {"latency_bound": 1.0}, "needs rate"),
        ("server", {"rate": 1.0}, "needs latency_bound"),
        ("server", {"rate": 1.0, "tokens": True, "tpot_bound": 1.0}, "needs ttft_bound"),
        ("offline", {"percentile": 0.42}, "percentile 0.42; allowed: 0.5, 0.9"),
        ("offline", {"seconds": 0.0}, "a run of 0.0 s"),
        ("offline", {"queries": 0}, "queries: 0"),
        ("offline", {"rate": float("nan")}, "rate: nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(scenario, how, why):
    with pytest.raises(UsageError, match=why):
        LoadGenSettings(scenario, **how)


def test_the_default_length_is_what_early_stopping_needs():
    assert LoadGenSettings("single-stream").least_queries == 64
    assert LoadGenSettings("multi-stream").least_queries == 662
    assert LoadGenSettings("server", rate=1.0, latency_bound=1.0).least_queries == 1157


def test_without_loadgen_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hasten\[loadgen\]'"):
        run(fast, tmp_path, "offline")


def test_logs_that_are_none(tmp_path):
    with pytest.raises(HastenError, match="not LoadGen's detail log"):
        read_detail(tmp_path)
    (tmp_path / "mlperf_log_detail.txt").write_text(":::MLLOG {broken\n", encoding="utf-8")
    with pytest.raises(HastenError, match="not LoadGen's detail log"):
        read_detail(tmp_path)
    (tmp_path / "mlperf_log_accuracy.json").write_text("[{}]", encoding="utf-8")
    with pytest.raises(HastenError, match="not LoadGen's log of answers"):
        read_accuracy(tmp_path)


@pytest.mark.parametrize("limit", [0.3, 1.0, 17.0, 333.3])
@pytest.mark.parametrize("first", [1.0, 50.0])
def test_the_search_ends_just_below_the_limit(limit, first):
    tried = []

    def passes(value: float) -> bool:
        tried.append(value)
        return value <= limit

    found = highest_passing(passes, first, precision=0.05, most=40)
    assert limit / 1.05 <= found <= limit
    assert len(tried) <= 20


def test_the_search_gives_up():
    assert highest_passing(lambda value: False, 10, precision=0.1, most=100) is None
    assert highest_passing(lambda value: True, 1, precision=0.1, most=5) == 16
    with pytest.raises(UsageError):
        highest_passing(lambda value: True, 0, precision=0.1, most=5)


def test_the_rate_of_a_server_with_known_capacity(tmp_path):
    """Two at a time for 10 ms each serve 200 a second at most, and keep 60 ms up to some less."""

    class Two(SyntheticTarget):
        async def __aenter__(self):
            self.room = asyncio.Semaphore(2)
            return self

        async def send(self, work, answer):
            async with self.room:
                await asyncio.sleep(0.01)
            answer.arrive(work.output_tokens)

    settings = LoadGenSettings(
        "server", seconds=0.3, queries=44, percentile=0.9, rate=50.0, latency_bound=0.06
    )
    seen = []
    found = find_server_rate(
        Two(),
        workload(),
        settings,
        tmp_path,
        precision=0.5,
        most_runs=7,
        on_run=lambda rate, result: seen.append(rate),
    )
    assert 0 < found.rate < 400
    assert found.best.valid
    assert seen == [rate for rate, _ in found.tried]
    assert any(not result.valid for _, result in found.tried)
    assert len(list(tmp_path.iterdir())) == len(found.tried)
    assert json.loads(json.dumps(found.as_dict()))["rate"] == found.rate
    with pytest.raises(UsageError, match="server scenario"):
        find_server_rate(Two(), workload(), LoadGenSettings("offline"), tmp_path)
