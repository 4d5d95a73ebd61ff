from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from synthetic_target import Plan, SyntheticTarget

from hasten.errors import HastenError, UsageError
from hasten.measure.arrivals import ClosedLoop, constant
from hasten.measure.audit import (
    Audit,
    Auditor,
    SendLag,
    check_clock,
    measure_client_rate,
    send_lag,
)
from hasten.measure.interference import Interference, between, read_cpu_times
from hasten.measure.load import LoadResult, run_load
from hasten.measure.processes import family, process_use
from hasten.measure.records import Event, Record
from hasten.measure.workload import Item, Workload

BURN = (
    "import time\nend = time.process_time() + 0.6\nwhile time.process_time() < end: pass\ninput()"
)


def workload(requests: int) -> Workload:
    return Workload("made up", 0, (), (Item((1,), 4),) * requests)


def record(intended: float, sent: float, end: float) -> Record:
    return Record("r", 1, intended, sent, end, (Event(end, 1),), 1, "completed")


def audited(records: list[Record], pattern=None, client_rate=None, **how) -> Audit:
    """An audit of a run that took no time on this machine."""
    window = max(r.end for r in records) - records[0].intended_send
    result = LoadResult(tuple(records), window, False, False, ())
    auditor = Auditor(**how)
    auditor.start()
    return auditor.finish(result, pattern, client_rate=client_rate)


def problems(audit: Audit) -> str:
    """Without those that other load on this machine, or this test's own, may bring."""
    mine = [
        one for one in audit.problems if "the processor" not in one and "its one core" not in one
    ]
    return "\n".join(mine)


ON_TIME = [record(n * 0.1, n * 0.1, n * 0.1 + 0.05) for n in range(100)]


def test_a_sound_run_has_no_problem():
    audit = audited(ON_TIME, constant(10), client_rate=1000.0)
    assert problems(audit) == ""
    assert audit.rate == pytest.approx(100 / 9.95)
    assert audit.lag == SendLag(100, 0, 0, 0, 0)
    assert json.loads(json.dumps(audit.as_dict()))["lag"]["late"] == 0


def test_a_client_at_its_limit_is_named():
    assert "near the 12 that this client reaches" in problems(audited(ON_TIME, client_rate=12.0))
    assert problems(audited(ON_TIME, client_rate=20.0)) == ""
    audit = audited(ON_TIME)
    assert any("was not measured" in note for note in audit.notes)


def test_late_requests_are_named():
    late = [record(n * 0.1, n * 0.1 + 0.02 * (n % 20 == 0), n * 0.1 + 0.05) for n in range(100)]
    audit = audited(late, constant(10))
    assert audit.lag.late == pytest.approx(0.05)
    assert audit.lag.max == pytest.approx(0.02)
    assert "5.0% of the requests were sent late" in problems(audit)


def test_waiting_for_a_connection_is_no_lateness_of_the_client():
    late = [record(n * 0.1, n * 0.1 + 0.5, n * 0.1 + 0.55) for n in range(100)]
    assert problems(audited(late, replace(constant(10), max_in_flight=2))) == ""


def test_lateness_is_held_against_the_latency():
    """5 ms are nothing beside a second, and much beside 10 ms."""
    slow = [record(float(n), n + 0.005, n + 1.0) for n in range(100)]
    fast = [record(float(n), n + 0.005, n + 0.015) for n in range(100)]
    assert send_lag(slow).late == 0
    assert send_lag(fast).late == 1
    assert send_lag([]) is None


def test_the_clock_of_this_machine():
    resolution, backwards = check_clock()
    assert 0 < resolution < 0.001
    assert backwards == 0


def test_a_clock_that_runs_wild_is_named(monkeypatch):
    real = time.perf_counter
    start = real()
    monkeypatch.setattr(time, "perf_counter", lambda: start + (real() - start) * 1.05)
    auditor = Auditor()
    auditor.start()
    time.sleep(0.2)
    audit = auditor.finish(LoadResult(tuple(ON_TIME), 10.0, False, False, ()))
    assert audit.clock.drift == pytest.approx(0.05, abs=0.005)
    assert "the clock ran +5" in problems(audit)


def test_a_clock_that_goes_backwards_is_named(monkeypatch):
    readings = iter([5.0, 4.0, *[6.0 + n for n in range(2000)]])
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    assert check_clock() == (1.0, 1)


def test_an_audit_must_start():
    with pytest.raises(UsageError, match="not started"):
        Auditor().finish(LoadResult((), 0.0, False, False, ()))


def test_other_load_makes_a_run_invalid():
    others, steal = Interference(0.2, 0.1).problems()
    assert others.startswith("invalid: other processes used 20% of the processor (at most 10%)")
    assert steal.startswith("invalid: the hypervisor took 10% of the processor (at most 5%)")
    assert Interference(0.1, 0.05).problems() == []


@pytest.fixture
def burner():
    """A process whose child uses 0.6 s of processor time and waits then."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    yield process
    process.stdin.close()
    process.wait()


def test_the_targets_processes_count_as_its_own(burner):
    """The processor time of a server's workers is not other load."""
    before = read_cpu_times()
    auditor = Auditor(pids=[burner.pid])
    auditor.start()
    deadline = time.monotonic() + 60
    while process_use(family([burner.pid])).cpu_seconds < 0.55 and time.monotonic() < deadline:
        time.sleep(0.02)
    audit = auditor.finish(LoadResult(tuple(ON_TIME), 10.0, False, False, ()))
    assert audit.target.cpu_seconds > 0.4
    assert audit.target.peak_rss_bytes > 1 << 20
    assert len(family([burner.pid])) == 2
    after, theirs = read_cpu_times(), read_cpu_times(target=family([burner.pid]))
    assert theirs.own - after.own > 0.4
    assert between(before, theirs).others <= between(before, after).others


def test_this_process_counts_once():
    mine, named = read_cpu_times(), read_cpu_times(target=[os.getpid()])
    assert named.own - mine.own < 0.3 * max(1.0, mine.own)


def test_a_process_that_ended_counts_as_nothing(tmp_path):
    assert process_use([1], tmp_path).cpu_seconds == 0
    assert family([1], tmp_path) == {1}


def test_names_of_processes_cannot_mislead(tmp_path):
    """A name may hold spaces and brackets."""
    (tmp_path / "7").mkdir()
    counters = " ".join(["0"] * 9 + ["250", "50", "100", "0"] + ["0"] * 30)
    (tmp_path / "7" / "stat").write_text(f"7 (a) R 1 (b)) S 3 {counters}", encoding="ascii")
    (tmp_path / "7" / "status").write_text("Name:\ta\nVmHWM:\t    100 kB\n", encoding="ascii")
    use = process_use([7], tmp_path)
    assert use.cpu_seconds == pytest.approx(400 / os.sysconf("SC_CLK_TCK"))
    assert use.peak_rss_bytes == 102400
    assert family([3], tmp_path) == {3, 7}


def test_the_clients_rate_is_that_of_a_closed_loop():
    """16 clients of an echo that takes 10 ms: at most 1,600 a second."""
    echo = SyntheticTarget(lambda number: Plan(0.01, ()))
    assert 50 < measure_client_rate(echo, seconds=0.3) <= 1650
    dead = SyntheticTarget(lambda number: Plan(fails_after=0))
    with pytest.raises(HastenError, match="no request to the echo completed: broke after 0"):
        measure_client_rate(dead, seconds=0.05)


def test_a_real_run_is_audited_from_the_end_of_the_warmup():
    auditor = Auditor(in_process=True)
    target = SyntheticTarget(lambda number: Plan(0.002, ((0.002, 1),) * 3))
    result = run_load(target, workload(40), ClosedLoop(2), on_start=auditor.start)
    audit = auditor.finish(result, ClosedLoop(2))
    assert audit.lag.p99 < 0.5
    assert audit.seconds >= result.window - 0.01
    assert audit.rate == pytest.approx(40 / result.window)
    assert audit.clock.drift is None or abs(audit.clock.drift) < 0.01
