"""Whether what a search claims holds: its Pareto front met again, and kills that lose nothing.

    python benchmarks/optimizing.py front build/fast --json build/front.json
    python benchmarks/optimizing.py kills --model smollm2 --json build/kills.json -- --quick

`front` makes every point of an artefact's front again from its recipe and proves it anew, each in
fresh processes; a figure is met again if it is inside the interval of then. `kills` ends a search
with SIGKILL at random moments, gives the same command again until it is through: what was measured
before a kill has to be there after it, and the recipe has to say the same as that of a search that
nobody stopped, but for what hangs on the moment: speeds, and a number of threads that they decide.
What follows `--` goes to `hasten optimize`. Both print JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HASTEN = (sys.executable, "-m", "hasten")


def main() -> int:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    front = commands.add_parser("front")
    front.add_argument("artefact", type=Path)
    kills = commands.add_parser("kills")
    kills.add_argument("--model", default="smollm2")
    kills.add_argument("--kills", type=int, default=10)
    kills.add_argument("--seed", type=int, default=0)
    kills.add_argument("rest", nargs="*", help="options of hasten optimize, after --")
    for command in (front, kills):
        command.add_argument("--json", type=Path)
    options = parser.parse_args()
    report = meet_again(options.artefact) if options.command == "front" else kill(options)
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0 if report["holds"] else 1


def meet_again(artefact: Path) -> dict[str, Any]:
    """Makes and proves each point of the front but the original."""
    recipe = json.loads((artefact / "recipe.json").read_text(encoding="utf-8"))
    points = []
    for number in recipe["front"][1:]:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "point"
            run("--replay", str(artefact), "--candidate", str(number), "-o", str(place))
            verified = run("--verify", str(place), "--json", "-", allowed=(0, 1))
        found = json.loads(verified.stdout)
        points.append({"label": recipe["candidates"][number]["label"], "checks": found["checks"]})
        say(points[-1]["label"], *(f"{one['name']} {one['verdict']}" for one in found["checks"]))
    verdicts = [one["verdict"] for point in points for one in point["checks"]]
    return {
        "schema": "hasten.front/1",
        "points": points,
        "inside": verdicts.count("inside"),
        "overlaps": verdicts.count("overlaps"),
        "figures": len(verdicts),
        "holds": len(points) >= 4 and verdicts.count("worse") == 0,
    }


def kill(options: argparse.Namespace) -> dict[str, Any]:
    """Searches twice, once undisturbed and once killed again and again."""
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        began = time.perf_counter()
        run(options.model, "-o", str(whole), *options.rest)
        seconds = time.perf_counter() - began
        command = [*HASTEN, "optimize", options.model, "-o", str(killed), *options.rest]
        moments: list[float] = []
        kept = True
        known: list[str] = []
        for _ in range(options.kills):
            process = subprocess.Popen(
                command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            moment = chance.uniform(0.02, 0.25) * seconds
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                moments.append(moment)
                say(f"killed after {moment:.1f} s")
                lines = measured(killed)
                kept = kept and lines[: len(known)] == known
                known = lines
                continue
            break
        if not killed.is_dir():
            run(options.model, "-o", str(killed), *options.rest)
        recipes = [json.loads((one / "recipe.json").read_text()) for one in (whole, killed)]
    found = compare(*recipes)
    return {
        "schema": "hasten.kills/1",
        "seconds": seconds,
        "kills": moments,
        "measurements_kept": kept,
        **found,
        "holds": found["holds"] and kept,
    }


def measured(output: Path) -> list[str]:
    """What the journal of a search that was stopped holds, without a line that was cut off."""
    (journal,) = (output.parent / f".{output.name}.search").glob("journal.jsonl")
    return [line for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]


def compare(whole: dict[str, Any], killed: dict[str, Any]) -> dict[str, Any]:
    """What two recipes have in common: choice, passes, and accuracy of what both measured."""
    first, second = (
        {(one["label"], one["accuracy_text"]): one["accuracy"] for one in recipe["candidates"]}
        for recipe in (whole, killed)
    )
    both = [key for key in first.keys() & second.keys() if first[key] is not None]
    same = sum(first[key] == second[key] for key in both)
    chosen = [recipe["chosen"] for recipe in (whole, killed)]
    return {
        "chosen": chosen,
        "passes": [recipe["passes"] for recipe in (whole, killed)],
        "accuracies": {"of both": len(both), "equal": same},
        "holds": whole["passes"] == killed["passes"] and same == len(both),
    }


def run(*arguments: str, allowed: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    """`hasten optimize`, in a process of its own."""
    done = subprocess.run(
        [*HASTEN, "optimize", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode not in allowed:
        raise RuntimeError(f"hasten optimize {' '.join(arguments)}: {done.stderr[-500:]}")
    return done


def say(*words: str) -> None:
    """Progress, on stderr."""
    print(*words, sep="; ", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
