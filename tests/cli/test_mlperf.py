"""The command around LoadGen; LoadGen itself runs in processes of their own in tests/measure."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("mlperf_loadgen")


def run(tmp_path, model, *options):
    path = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "hasten", "mlperf", str(model), "--seconds", "0.3"),
            *("--requests", "20", "--input-len", "8", "--output-len", "4", "--threads", "1"),
            *("--logs", str(tmp_path / "logs"), "--json", str(path), *options),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize("scenario", ["single-stream", "offline"])
def test_a_scenario(tmp_path, tiny_model, scenario):
    done, report = run(tmp_path, tiny_model, "--scenario", scenario, "--max-context", "64")
    assert done.returncode == 0, done.stderr
    assert (report["scenario"], report["valid"]) == (scenario, True)
    assert report["score"]["value"] > 0
    assert (tmp_path / "logs" / "mlperf_log_summary.txt").exists()
    assert "score" in done.stdout


def test_answers_are_logged_for_accuracy(tmp_path, tiny_model):
    bounds = ("--ttft-bound", "60000", "--tpot-bound", "60000")
    done, report = run(
        *(tmp_path, tiny_model, "--scenario", "server", "--query-rate", "2000", *bounds),
        *("--accuracy",),
    )
    assert done.returncode == 0, done.stderr
    assert report["mode"] == "accuracy"
    assert (tmp_path / "logs" / "mlperf_log_accuracy.json").stat().st_size > 2


def test_a_search_that_finds_none(hasten, world, tmp_path, monkeypatch):
    from hasten.measure.loadgen import ServerRate

    asked = []

    def find(target, workload, settings, folder, **more):
        asked.append((settings.rate, settings.ttft_bound, len(workload.items)))
        return ServerRate(None, ())

    monkeypatch.setattr("hasten.measure.loadgen.find_server_rate", find)
    path = tmp_path / "found.json"
    result = hasten(
        *("mlperf", "fake", "--scenario", "server", "--query-rate", "5", "--ttft-bound", "2000"),
        *("--tpot-bound", "200", "--find-rate", "--requests", "7", "--json", str(path)),
    )
    assert result.status == 1
    assert "no rate kept the bounds" in result.out
    assert asked == [(5.0, 2.0, 7)]
    assert json.loads(path.read_text())["rate"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "1"), "--query-rate"),
        (("--scenario", "server"), "needs rate"),
        (("--find-rate",), "server scenario"),
    ],
)
def test_options_that_do_not_go(tmp_path, tiny_model, options, message):
    done, report = run(tmp_path, tiny_model, *options)
    assert (done.returncode, report) == (2, None)
    assert message in done.stderr
