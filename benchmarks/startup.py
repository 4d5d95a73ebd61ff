"""How long Hasten takes to start: from the start of the process to its first byte of output.

    python benchmarks/startup.py

`hasten run` is measured to the first token, so loading, packing and the prefill are in it. The file
cache is warm: a first run of each command is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

HASTEN = [sys.executable, "-m", "hasten"]
COMMANDS = {
    "hasten --help": ["--help"],
    'hasten run smollm2 "Hello"': ["run", "smollm2", "Hello", "--max-tokens", "2"],
}
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
model = lap("open the files", lambda: load_model("smollm2"))
engine = lap("pack the weights", lambda: Engine(model, engine_options(model)))
ids = lap("tokenizer and template", lambda: prompt_ids(
    model, [{"role": "user", "content": "Hello"}], raw=False))
lap("first token", lambda: next(iter(engine.generate(ids))))
import json
print(json.dumps(times))
"""


def main() -> int:
    """Measures and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    for name, words in COMMANDS.items():
        first_byte(words)
        times = [first_byte(words) for _ in range(arguments.runs)]
        print(
            f"{name:28}  median {statistics.median(times):.3f} s, "
            f"{min(times):.3f} to {max(times):.3f} s of {len(times)}"
        )
    for name, seconds in phases(arguments.runs).items():
        print(f"  {name:26}  median {seconds:.3f} s")
    return 0


def first_byte(words: list[str]) -> float:
    """Seconds from the start of the process to its first byte on stdout."""
    started = time.perf_counter()
    with subprocess.Popen(
        [*HASTEN, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        if not process.stdout.read(1):
            raise SystemExit(f"{words[0]} wrote nothing")
        seconds = time.perf_counter() - started
        process.stdout.read()
    return seconds


def phases(runs: int) -> dict[str, float]:
    """Median seconds of the parts of `hasten run`, by name."""
    found = []
    for _ in range(runs):
        command = [sys.executable, "-c", PHASES]
        output = subprocess.run(command, check=True, capture_output=True).stdout
        found.append(json.loads(output))
    return {name: statistics.median(times[name] for times in found) for name in found[0]}


if __name__ == "__main__":
    sys.exit(main())
