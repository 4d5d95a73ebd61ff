"""How long Hasten takes to start: from the start of the process to its first byte of output.

    python benchmarks/startup.py
    python benchmarks/startup.py --model build/models/llama-3.2-1b.Q4_0.gguf --runs 5

`hasten run` is measured to the first token, so loading, packing and the prefill are in it. The file
cache is warm: `hasten info` has read the model before. The first start finds no packed weights of
an earlier one, the others do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.machine import detect_machine

HASTEN = [sys.executable, "-m", "hasten"]
PHASES = """
import sys, time
begun = time.perf_counter()
from hasten.cli.engine import open_engine, prompt_ids
from hasten.generation import Engine, engine_options
from hasten.models import load_model
times = {"imports": time.perf_counter() - begun}
def lap(name, function):
    started = time.perf_counter()
    result = function()
    times[name] = time.perf_counter() - started
    return result
raw = bool(int(sys.argv[2]))
model = lap("open the files", lambda: load_model(sys.argv[1]))
engine = lap("weights and tokenizer", lambda: Engine(model, engine_options(model)))
ids = lap("template and prompt", lambda: prompt_ids(
    model, [{"role": "user", "content": "Hello"}], raw=raw))
lap("first token", lambda: next(iter(engine.generate(ids))))
import json
print(json.dumps(times))
"""


def main() -> int:
    """Measures and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2", help="other than this one, run as raw text")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    raw = arguments.model != "smollm2"
    with tempfile.TemporaryDirectory(prefix="hasten-startup-") as cache:
        found = measure(arguments.model, raw, arguments.runs, {"XDG_CACHE_HOME": cache})
    for name, times in found["seconds"].items():
        print(
            f"{name:34}  median {statistics.median(times):.3f} s, "
            f"{min(times):.3f} to {max(times):.3f} s of {len(times)}"
        )
    for name, seconds in found["phases"].items():
        print(f"  {name:32}  median {seconds:.3f} s")
    if arguments.json is not None:
        document = {"model": arguments.model, **found, "machine": detect_machine().as_dict()}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(model: str, raw: bool, runs: int, variables: Mapping[str, str]) -> dict[str, Any]:
    """Seconds to the first byte of each command, and medians of the parts of `hasten run`."""
    words = ["run", model, "Hello", "--max-tokens", "2", *(["--raw"] if raw else [])]
    name = f"hasten run {Path(model).name}"
    first_byte(["info", model, "--no-probe"], variables)
    first = first_byte(words, variables)
    return {
        "seconds": {
            "hasten --help": [first_byte(["--help"], variables) for _ in range(runs)],
            f"{name}, first": [first],
            f"{name}, again": [first_byte(words, variables) for _ in range(runs)],
        },
        "phases": phases(model, raw, runs, variables),
    }


def first_byte(words: list[str], variables: Mapping[str, str]) -> float:
    """Seconds from the start of the process to its first byte on stdout."""
    started = time.perf_counter()
    with subprocess.Popen(
        [*HASTEN, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**os.environ, **variables},
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        if not process.stdout.read(1):
            raise SystemExit(f"{words[0]} wrote nothing")
        seconds = time.perf_counter() - started
        process.stdout.read()
    return seconds


def phases(model: str, raw: bool, runs: int, variables: Mapping[str, str]) -> dict[str, float]:
    """Median seconds of the parts of `hasten run`, by name."""
    found = []
    for _ in range(runs):
        command = [sys.executable, "-c", PHASES, model, str(int(raw))]
        output = subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, **variables}
        ).stdout
        found.append(json.loads(output))
    return {name: statistics.median(times[name] for times in found) for name in found[0]}


if __name__ == "__main__":
    sys.exit(main())
