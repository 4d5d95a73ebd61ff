from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def small(*arguments: str) -> tuple[str, ...]:
    return (
        *("bench", "fake", "--requests", "3", "--warmup", "1"),
        *("--input-len", "16", "--output-len", "4", *arguments),
    )


def test_a_bench_makes_different_prompts_of_exact_length(hasten, world):
    result = hasten(*small())
    assert result.status == 0
    assert [len(prompt) for prompt in world.prompts] == [16] * 4
    assert len(set(world.prompts)) == 4
    assert {(one.max_tokens, one.ignore_eos) for one in world.sampling} == {(4, True)}
    assert "3 completed, 0 failed" in result.out
    for name in ("ttft", "tpot", "itl", "e2e", "model_latency", "decode tokens/s", "peak RSS"):
        assert name in result.out
    assert "p90 needs 44" in result.err


def test_the_report(hasten, world, tmp_path):
    path = tmp_path / "report.json"
    assert hasten(*small("--json", str(path))).status == 0
    report = json.loads(path.read_text())
    assert report["schema"] == "hasten.bench/1"
    assert report["requests"] == {"completed": 3, "failed": 0, "truncated": 0}
    assert report["metrics"]["ttft"]["n"] == 3
    assert report["metrics"]["itl"]["n"] == 9
    assert report["target"]["formats"] == ["int4:32"]
    assert report["target"]["isa"] == "fake"
    assert report["workload"]["source"] == "pydoc_data.topics"
    assert report["memory"]["peak_rss_bytes"] > 1 << 20


def test_a_bench_measures_one_request_whose_prompt_is_new(hasten, world):
    hasten(*small())
    hasten(*small("--prefix-cache", "--max-sequences", "2"))
    found = [(e.options.max_sequences, e.options.prefix_cache) for e in world.engines]
    assert found == [(1, False), (2, True)]


def test_json_on_stdout_is_json_alone(hasten, world):
    assert json.loads(hasten(*small("--json", "-")).out)["schema"] == "hasten.bench/1"


def test_a_seed_chooses_other_prompts(hasten, world):
    hasten(*small())
    hasten(*small())
    hasten(*small("--seed", "1"))
    first, again, other = world.prompts[:4], world.prompts[4:8], world.prompts[8:]
    assert first == again != other


def test_prompts_from_a_file(hasten, world, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "max_tokens": 2}\n{"prompt": "c"}\n')
    result = hasten("bench", "fake", "--prompt-file", str(path), "--warmup", "1", "--honour-eos")
    assert result.status == 0
    assert world.prompts == ["[user:c]>", "[user:a]>", "[user:b]>"]
    assert [one.max_tokens for one in world.sampling] == [64, 64, 2]
    assert not any(one.ignore_eos for one in world.sampling)


def test_a_bad_prompt_file_is_one_line(hasten, world, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("{}\n")
    result = hasten("bench", "fake", "--prompt-file", str(path))
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"error: {path} line 1 has no prompt")


def test_lengths_beyond_the_context_are_refused_before_the_run(hasten, world):
    result = hasten(*small("--max-context", "19"))
    assert (result.status, result.out) == (1, "")
    assert "16 input and 4 output tokens do not fit the context of 19" in result.err
    assert not world.prompts


def test_failed_requests_are_counted_apart(hasten, world, tmp_path):
    path = tmp_path / "prompts.jsonl"
    long = json.dumps({"prompt": "x" * 100})
    path.write_text(f'{{"prompt": "a"}}\n{long}\n')
    arguments = ("bench", "fake", "--prompt-file", str(path), "--warmup", "0")
    result = hasten(*arguments, "--max-context", "90", "--json", "-")
    assert result.status == 0
    report = json.loads(result.out)
    assert report["requests"] == {"completed": 1, "failed": 1, "truncated": 0}
    assert report["metrics"]["e2e"]["n"] == 1
    assert any("1 x failed: the prompt has 108 tokens" in note for note in report["notes"])


def test_a_run_in_which_nothing_completes_fails(hasten, world, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "x" * 100}))
    arguments = ("--prompt-file", str(path), "--warmup", "0", "--max-context", "50", "--json", "-")
    result = hasten("bench", "fake", *arguments)
    assert result.status == 1
    report = json.loads(result.out)
    assert report["valid"] is False
    assert report["metrics"]["ttft"]["mean"] is None


def test_ctrl_c_reports_what_was_measured(hasten, world, tmp_path):
    class InterruptTheThird(list):
        def append(self, item):
            super().append(item)
            if len(self) == 3:  # the warm-up and one measured request are done
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.2)  # for the main thread to hear of it

    world.sampling = InterruptTheThird()
    result = hasten(*small("--json", str(tmp_path / "report.json")))
    assert result.status == 130
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["requests"] == {"completed": 1, "failed": 0, "truncated": 1}
    assert report["valid"] is False
    assert "partial: interrupted by the user" in report["notes"]
    assert "1 completed" in result.out


def test_clients_side_by_side(hasten, world):
    result = hasten(*small("--concurrency", "2", "--json", "-"))
    assert result.status == 0
    scenario = json.loads(result.out)["scenario"]
    assert (scenario["name"], scenario["concurrency"]) == ("closed-loop", 2)
    assert world.engines[0].options.max_sequences == 2


def test_a_rate(hasten, world):
    result = hasten(*small("--rate", "100", "--burstiness", "2", "--json", "-"))
    scenario = json.loads(result.out)["scenario"]
    assert (scenario["name"], scenario["rate"], scenario["burstiness"]) == ("gamma", 100, 2)
    assert world.engines[0].options.max_sequences == 16


def test_a_trace_is_replayed(hasten, world, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f'{{"prompt": "a", "at": {n / 10}}}\n' for n in range(3)))
    arguments = ("--prompt-file", str(path), "--replay", "2", "--warmup", "0", "--json", "-")
    result = hasten("bench", "fake", *arguments)
    assert json.loads(result.out)["records"]["intended_s"] == [0, 0.05, 0.1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "1", "--concurrency", "2"), "--concurrency and --rate"),
        (("--burstiness", "2"), "--burstiness needs --rate"),
        (("--max-in-flight", "2"), "use --concurrency"),
        (("--replay", "1"), "needs the times"),
        (("--rate", "nan"), "finite"),
        (("--input-len", "x"), "length 'x'"),
        (("--sweep", "0,1"), "sweep '0,1'"),
        (("--sweep", "1,2", "--rate", "3"), "--sweep says when"),
        (("--goal", "chatt"), "objective 'chatt'"),
        (("--against", "nowhere.json"), "cannot read the report"),
        (("--html", "nowhere/a.html"), "does not exist"),
    ],
)
def test_options_that_do_not_go(hasten, world, options, message):
    result = hasten(*small(*options))
    assert result.status == 2
    assert message in result.err
    assert not world.prompts


def test_prefixes_are_cached_where_they_are_asked_for(hasten, world):
    assert hasten(*small("--shared-prefix", "8")).status == 0
    assert world.engines[0].options.prefix_cache
    assert {len(prompt) for prompt in world.prompts} == {24}
    assert len({prompt[:8] for prompt in world.prompts}) == 1


def test_conversations(hasten, world):
    assert hasten(*small("--turns", "2", "--warmup", "0", "--requests", "1")).status == 0
    first, second = world.prompts
    assert second.startswith(first[:-1] + "[assistant:Hell][user:")


def test_goals_are_checked(hasten, world):
    result = hasten(*small("--goal", "ttft=60000,e2e=0.000001"))
    assert result.status == 0
    assert "met by 100.0%" in result.out
    assert "missed" in result.out


def test_a_sweep(hasten, world, tmp_path):
    path = tmp_path / "page.html"
    result = hasten(*small("--sweep", "1,2", "--html", str(path)))
    assert result.status == 0
    assert "requests/s" in result.out
    assert "Latency against throughput" in path.read_text()
    assert world.engines[0].options.max_sequences == 2
    assert len(set(world.prompts)) == len(world.prompts) == 1 + 4 + 2 + 8


def test_requests_as_csv(hasten, world, tmp_path):
    path = tmp_path / "requests.csv"
    assert hasten(*small("--csv", str(path))).status == 0
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["status"] for row in rows] == ["completed"] * 3
    assert all(float(row["e2e_ms"]) >= float(row["ttft_ms"]) > 0 for row in rows)


def test_the_gate_tells_by_its_status(hasten, world, tmp_path):
    path = tmp_path / "before.json"
    arguments = small("--requests", "30", "--json", str(path))
    assert hasten(*arguments).status == 0
    before = json.loads(path.read_text())
    for scale, status in ((1000, 0), (0.001, 1)):
        for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
            before["records"][name] = [scale * value for value in before["records"][name]]
        other = tmp_path / "other.json"
        other.write_text(json.dumps(before))
        result = hasten(*small("--requests", "30", "--against", str(other)))
        assert result.status == status
        assert ("worse" in result.err) == bool(status)
        before = json.loads(path.read_text())


@pytest.mark.model
def test_sigint_ends_a_real_bench_with_a_report(tmp_path):
    path = tmp_path / "report.json"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "hasten", "bench", "smollm2", "--requests", "100000"),
            *("--warmup", "0", "--input-len", "8", "--output-len", "8", "--json", str(path)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    while process.poll() is None and ".gguf" not in maps.read_text():
        time.sleep(0.05)  # what is being imported may drop a Ctrl-C
    time.sleep(2.0)  # what has been measured by then does not matter
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    if path.exists():  # else it was still loading
        assert "partial: interrupted by the user" in json.loads(path.read_text())["notes"]
        assert "ttft" in out


@pytest.mark.model
def test_smollm2_is_measured(tmp_path):
    path = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "hasten", "bench", "smollm2", "--requests", "7"),
            *("--warmup", "1", "--input-len", "20", "--output-len", "5", "--json", str(path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert report["requests"] == {"completed": 7, "failed": 0, "truncated": 0}
    metrics = report["metrics"]
    assert metrics["itl"]["n"] == 7 * 4
    assert 0 < metrics["ttft"]["p50"] < metrics["e2e"]["p50"]
    assert 0 < metrics["model_latency"]["mean"] < metrics["e2e"]["mean"]
    assert report["workload"]["input_tokens"] == {"min": 20, "mean": 20, "max": 20}
    assert report["memory"]["peak_rss_bytes"] > 60 << 20
