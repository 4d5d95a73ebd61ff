"""What engines reach that share the cores: with each other, and with a process that is not ours.

    python benchmarks/sharing.py

Each engine has as many threads as there are cores, as it would without options. A round runs every
condition for a short while, in an order drawn anew, and the ratios are to the engine alone in the
same round. An engine beside one busy loop on N cores has N threads among N + 1, so a fair scheduler
leaves it N / (N + 1) of its rate.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peers_process import PeerProcess

from hasten.machine import available_cores

PROMPTS = {"decode": (16, 200), "prefill": (256, 1)}
"""Length of the prompt and of the output."""
CONDITIONS = ("alone", "two engines", "two processes", "beside a busy loop")


def main() -> int:
    """Measures and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.2, help="of each condition")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    first, second = (PeerProcess("sharing", Path(sys.executable)) for _ in range(2))
    try:
        for process, engines in ((first, 2), (second, 1)):
            process.call("load", model=arguments.model, engines=engines, max_context=512)
        rates = measure(first, second, arguments.rounds, arguments.seconds)
    finally:
        first.close()
        second.close()
    report = {work: summary(found) for work, found in rates.items()}
    for work, conditions in report.items():
        print(f"{work}, {available_cores()} cores, {arguments.rounds} rounds")
        for name, one in conditions.items():
            print(
                f"  {name:20} {one['tokens_per_s']:7.1f} tokens/s  {one['ratio']:.2f} of alone, "
                f"{one['least']:.2f} to {one['most']:.2f}"
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(
    first: PeerProcess, second: PeerProcess, rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Tokens a second by work and condition, one entry a round; the first round is a warm-up."""
    found = {work: {name: list[float]() for name in CONDITIONS} for work in PROMPTS}
    turns = [(work, name) for work in PROMPTS for name in CONDITIONS]
    for number in range(rounds + 1):
        random.Random(number).shuffle(turns)
        for work, name in turns:
            rate = run(first, second, work, name, seconds if number else seconds / 4)
            if number:
                found[work][name].append(rate)
    return found


def run(first: PeerProcess, second: PeerProcess, work: str, name: str, seconds: float) -> float:
    """Tokens a second of all engines together."""
    prompt, output = PROMPTS[work]
    call = {"prompt": list(range(100, 100 + prompt)), "output": output, "seconds": seconds}
    if name == "two processes":
        with ThreadPoolExecutor(2) as pool:
            parts = [pool.submit(one.call, "run", engines=1, **call) for one in (first, second)]
        return float(sum(part.result() for part in parts))
    if name == "beside a busy loop":
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
            rate = float(first.call("run", engines=1, **call))
            busy.kill()
        return rate
    return float(first.call("run", engines=2 if name == "two engines" else 1, **call))


def summary(found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median rates, and ratios to the rate alone in the same round."""
    result = {}
    for name, rates in found.items():
        ratios = [rate / alone for rate, alone in zip(rates, found["alone"], strict=True)]
        result[name] = {
            "tokens_per_s": statistics.median(rates),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return result


if __name__ == "__main__":
    sys.exit(main())
