"""Where the spread of a speed-up comes from, and whether its interval holds in another process.

    python benchmarks/speed_spread.py smollm2 --weights carried bf16 --json build/speed_spread.json

Starts processes one after the other. Each races the formats with the model in float32, in blocks of
rounds with engines opened anew, as `hasten optimize` does. Of the logarithms of speed-ups, the
variance between rounds, between blocks of a process and between processes is told apart (nested
analysis of variance; Kalibera and Jones, "Rigorous benchmarking in reasonable time", 2013), and it
is counted how often the estimate of one process is inside the interval of another: that of the
blocks, and that of a bootstrap over all rounds. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.machine import available_cores, detect_machine, memory_limit
from hasten.measure.corpus import default_corpus
from hasten.measure.interference import between, read_cpu_times
from hasten.measure.statistics import Interval, bootstrap_ratio_of_medians
from hasten.models import load_model
from hasten.optimize import prepare_material
from hasten.optimize.candidates import Candidate, original
from hasten.optimize.laboratory import EngineLaboratory
from hasten.optimize.objective import SHAPES
from hasten.optimize.speed import Duel, Effort, speedup

Seconds = NDArray[np.float64]


def main() -> int:
    """Measures and tells the variances apart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--weights", nargs="+", default=["carried", "bf16"])
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="of each block")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if min(options.processes, options.blocks, options.rounds) < 2:
        parser.error("a variance needs two of each")
    found: list[dict[str, Any]] = []
    for number in range(options.processes):
        # A process of its own each time: nothing of the one before is left.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found.append(
                pool.submit(
                    measure, options.model, options.weights, options.blocks, options.rounds
                ).result()
            )
        words = {name: round(one["speedup"]["estimate"], 3) for name, one in found[-1].items()}
        print(f"process {number + 1} of {options.processes}: {words}", file=sys.stderr, flush=True)
    report = {
        "schema": "hasten.speed_spread/1",
        "machine": detect_machine().as_dict(),
        "formats": {name: analyse([one[name] for one in found]) for name in options.weights},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def measure(path: str, weights: Sequence[str], blocks: int, rounds: int) -> dict[str, Any]:
    """Races the formats in this process."""
    model, cores, shape = load_model(path), available_cores(), SHAPES["chat"]
    material = prepare_material(model, default_corpus(), shape, tokens=512, quick=True, seed=0)
    field = [Candidate(one, "bf16", cores) for one in weights]
    began = read_cpu_times()
    with EngineLaboratory(
        lambda steps: model,
        context=material.evaluation.context,
        material=material,
        threads=cores,
        memory_limit=memory_limit(),
        seed=0,
    ) as laboratory:
        for candidate in field:
            with laboratory.open(candidate):
                pass
        effort = Effort(blocks * rounds, blocks * rounds, math.inf, blocks)
        duels = laboratory.race([original(cores), *field], effort, lambda share: None)
    shared = between(began, read_cpu_times())
    return {
        one.weights: {
            "seconds": [_seconds(side) for side in (duels[one].before, duels[one].after)],
            "speedup": speedup(duels[one], seed=0).as_dict(),
            "of_rounds": _of_rounds(duels[one]).as_dict(),
            "others": None if shared is None else shared.others + shared.steal,
        }
        for one in field
    }


def analyse(processes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Variances of each level, and how often processes meet in each other's intervals."""
    logs = np.array([np.log(one["seconds"][0]) - np.log(one["seconds"][1]) for one in processes])
    pairs = list(permutations(processes, 2))
    return {
        "standard_deviations": {
            level: math.sqrt(variance) for level, variance in components(logs).items()
        },
        "met_again": {
            name: sum(
                one[name]["low"] <= other[name]["estimate"] <= one[name]["high"]
                for one, other in pairs
            )
            / len(pairs)
            for name in ("speedup", "of_rounds")
        },
        "processes": list(processes),
    }


def components(logs: Seconds) -> dict[str, float]:
    """Variance that each level adds to those below it; what comes out negative counts as 0.

    Args:
        logs: float64 [processes, blocks, rounds].
    """
    _, blocks, rounds = logs.shape
    of_blocks = logs.mean(axis=2)
    within = float(logs.var(axis=2, ddof=1).mean())
    between_blocks = float(of_blocks.var(axis=1, ddof=1).mean())
    between_processes = float(of_blocks.mean(axis=1).var(ddof=1))
    return {
        "round": within,
        "block": max(0.0, between_blocks - within / rounds),
        "process": max(0.0, between_processes - between_blocks / blocks),
    }


def _seconds(side: Any) -> list[list[float]]:
    return [[one.seconds for one in block] for block in side.blocks]


def _of_rounds(duel: Duel) -> Interval:
    """As if all rounds were of one block."""
    before, after = ([one.seconds for one in side.rounds] for side in (duel.before, duel.after))
    return bootstrap_ratio_of_medians(before, after, paired=True)


if __name__ == "__main__":
    sys.exit(main())
