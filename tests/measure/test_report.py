from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hasten.machine import detect_machine
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.interference import CpuTimes, Interference, between, read_cpu_times
from hasten.measure.load import run_load
from hasten.measure.memory import PeakRss, peak_rss, reset_peak_rss
from hasten.measure.metrics import FORMULAS
from hasten.measure.report import build_report

sys.path.insert(0, str(Path(__file__).parent))
from made_reports import made_audit, made_records, made_report

QUIET = Interference(others=0.01, steal=0.0)
PEAK = PeakRss(123456789, since_start=False)


def report_of(target, workload, *, interference=QUIET, peak=PEAK, **loop):
    result = run_load(target, workload, clock=target.clock, **loop)
    return build_report(
        target={"model": "fake"},
        pattern=ClosedLoop(),
        workload=workload,
        machine=detect_machine(),
        result=result,
        peak=peak,
        audit=made_audit(interference),
    )


def test_the_contract(target, make_workload):
    report = report_of(target, make_workload(50, warmup=1))
    document = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert document["schema"] == "hasten.bench/1"
    assert set(document) == {
        *("schema", "target", "scenario", "workload", "machine", "metrics", "throughput"),
        *("requests", "memory", "formulas", "valid", "notes", "goal", "checks", "records", "audit"),
        "server_times",
    }
    assert list(document["metrics"]) == ["ttft", "tpot", "itl", "e2e", "model_latency"]
    for summary in document["metrics"].values():
        assert list(summary) == [
            *("unit", "n", "mean", "std", "min", "p50", "p90", "p95", "p99", "max")
        ]
    assert document["metrics"]["ttft"]["mean"] == pytest.approx(1000)
    assert document["metrics"]["tpot"]["mean"] == pytest.approx(100)
    assert document["metrics"]["e2e"]["p90"] == pytest.approx(1200)
    assert document["metrics"]["e2e"]["p99"] is None
    assert document["requests"] == {"completed": 50, "failed": 0, "truncated": 0}
    assert document["throughput"]["output_tokens_per_s"] == pytest.approx(3 / 1.2)
    assert document["throughput"]["prefill_tokens_per_s"] == pytest.approx(4.0)
    assert document["throughput"]["decode_tokens_per_s"] == pytest.approx(10.0)
    assert document["memory"]["peak_rss_bytes"] == 123456789
    assert document["formulas"] == FORMULAS
    assert document["valid"] is True


def test_every_metric_and_rate_has_a_formula(target, make_workload):
    document = report_of(target, make_workload(1)).as_dict()
    assert set(document["metrics"]) | set(document["throughput"]) <= set(FORMULAS)


def test_a_percentile_that_is_left_out_is_explained(target, make_workload):
    notes = report_of(target, make_workload(50)).notes
    assert (
        "ttft, tpot, e2e, model_latency: n = 50 is too small a sample: p95 needs 90, p99 needs 459"
    ) in notes
    assert "itl: n = 100 is too small a sample: p99 needs 459" in notes


def test_no_completed_request_is_invalid(target, make_workload):
    target.fail_on = {0, 1}
    report = report_of(target, make_workload(2))
    assert not report.valid
    assert report.notes[0] == "invalid: no request completed"
    assert "2 x failed: the target is broken" in report.notes
    assert report.as_dict()["metrics"]["ttft"]["mean"] is None


def test_an_interrupted_run_is_partial(target, make_workload):
    target.interrupt_after = (1, 1)
    report = report_of(target, make_workload(3))
    assert not report.valid
    assert report.notes[0].startswith("partial")
    assert report.requests == {"completed": 1, "failed": 0, "truncated": 1}


@pytest.mark.parametrize(
    ("interference", "word"),
    [(Interference(0.5, 0.0), "other processes"), (Interference(0.0, 0.2), "hypervisor")],
)
def test_a_busy_machine_is_invalid(target, make_workload, interference, word):
    report = report_of(target, make_workload(1), interference=interference)
    assert not report.valid
    assert word in report.notes[0]


def test_what_is_not_known_is_said(target, make_workload):
    report = report_of(
        target, make_workload(1), interference=None, peak=PeakRss(1, since_start=True)
    )
    assert report.valid
    assert any("peak memory" in note for note in report.notes)


def test_rows_show_what_is_missing_as_a_dash(target, make_workload):
    rows = {row[0]: row for row in report_of(target, make_workload(1, output=1)).latency_rows()}
    assert rows["ttft"][1:3] == ["1", "1000.00"]
    assert rows["tpot"][1:] == ["0", "-", "-", "-", "-", "-", "-"]


def test_shares_of_processor_time():
    before = CpuTimes(busy=100, idle=50, steal=1, own=10)
    after = CpuTimes(busy=108, idle=51, steal=2, own=15)
    assert between(before, after) == Interference(others=0.3, steal=0.1)
    assert between(None, after) is None
    assert between(before, before) is None


def test_reading_proc_stat(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 200 300 400 500 600 700 800 0 0\ncpu0 1 2\n")
    times = read_cpu_times(stat)
    assert times is not None
    assert (times.busy, times.idle, times.steal) == (19.0, 9.0, 8.0)
    stat.write_text("cpu 1 2\n")
    assert read_cpu_times(stat) is None
    assert read_cpu_times(tmp_path / "none") is None


PEAKS = """
from hasten.measure.memory import peak_rss, reset_peak_rss
def touch(mebibytes):
    return len(bytearray(b"x") * (mebibytes << 20))
touch(64)
was_reset = reset_peak_rss()
before = peak_rss(was_reset=was_reset)
touch(128)
after = peak_rss(was_reset=was_reset)
print(was_reset, after.since_start, after.size_bytes - before.size_bytes)
"""


def test_the_peak_is_that_of_this_run():
    # In a process of its own: this one may give back what earlier tests held meanwhile.
    ran = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, text=True, check=True)
    was_reset, since_start, growth = ran.stdout.split()
    assert since_start != was_reset
    if was_reset == "True":
        assert int(growth) > 100 << 20


def test_memory_without_proc(tmp_path):
    assert reset_peak_rss(tmp_path / "none") is False
    peak = peak_rss(was_reset=True, proc=tmp_path)
    assert peak.since_start
    assert peak.size_bytes > 0


def test_a_warm_up_is_told():
    usual = 0.1 * np.random.default_rng(1).lognormal(0, 0.1, 120)
    times = usual.copy()
    times[:20] += 0.4
    report = made_report(made_records(times, [0.01] * 120))
    assert any("were warm-up" in note for note in report.notes)
    assert report.metrics["ttft"].n == 120  # nothing is dropped
    quiet = made_report(made_records(usual, [0.01] * 120))
    assert not any("warm-up" in note for note in quiet.notes)
