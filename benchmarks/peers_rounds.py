"""The turns: in each round every configuration does the same work, in an order drawn anew."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from peers_plan import Configuration, Plan, Workload
from peers_process import PeerError, PeerProcess

from hasten import _native
from hasten.measure.interference import CpuTimes, read_cpu_times

__all__ = ["PARTS", "Prompts", "Started", "measure_limits", "run_rounds", "warm_up"]

PAUSE = 0.3  # seconds in which the thread pool of the peer before stops spinning
LEAST_ROUNDS = 3
LEAST_MEGABYTES = 16
PARTS = ("prefill", "decode", "batch")

Prompts = Callable[[int, int], list[int]]
"""Makes a prompt of so many tokens, the same each time for the same number."""


class Started:
    """A configuration whose process has the model loaded, and what of it works."""

    def __init__(self, configuration: Configuration, process: PeerProcess) -> None:
        self.configuration = configuration
        self.process = process
        self.failed: dict[str, str] = {}

    def turn(self, work: Mapping[str, Callable[[PeerProcess], Any]]) -> dict[str, Any]:
        """Does each piece of work that has not failed before; notes those that fail."""
        found: dict[str, Any] = {}
        for name, call in work.items():
            if name in self.failed or not self.process.alive:
                continue
            before, spent = read_cpu_times(), self.process.cpu_seconds()
            try:
                found[name] = call(self.process)
            except PeerError as error:
                self.failed[name] = str(error)
                continue
            others = share_of_others(before, read_cpu_times(), self.process.cpu_seconds() - spent)
            found[name]["others"] = others
        return found


def warm_up(
    peer: Started, workload: Workload, prompts: Prompts, parts: Collection[str] = PARTS
) -> None:
    """Lets a peer choose its settings, if it can, and runs each part once, unmeasured."""
    work = _work(workload, prompts, parts, number=0)
    if peer.configuration.kind == "llama_cpp":
        together = [prompts(100 + i, 16) for i in range(workload.sequences)]
        chosen = peer.process.call(
            "tune", parts=list(work), prompt=prompts(0, 256), prompts=together, count=12
        )
        peer.process.description["settings"] = chosen
    peer.turn(work)


def run_rounds(
    peers: Sequence[Started],
    plan: Plan,
    prompts: Prompts,
    *,
    parts: Collection[str] = PARTS,
    begin: int,
    threads: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Yields one JSON document a round: the order, the turns, and the limits beside them.

    Args:
        peers: Warmed up.
        plan: Rounds and sizes.
        prompts: Makes prompts.
        parts: Of a turn, among `PARTS`.
        begin: Number of the first round to run, from 1.
        threads: That the limits are measured with.
        seed: Of the orders.
    """
    deadline = time.monotonic() + plan.seconds
    for number in range(begin, plan.rounds + 1):
        if number > LEAST_ROUNDS and time.monotonic() > deadline:
            return
        order = [
            peer
            for peer in peers
            if peer.process.alive and (number - 1) % peer.configuration.every == 0
        ]
        random.Random(f"{seed} {number}").shuffle(order)
        now = parts if (number - 1) % plan.batch_every == 0 else set(parts) - {"batch"}
        work = _work(plan.workload, prompts, now, number)
        turns = {}
        for peer in order:
            time.sleep(PAUSE)
            turns[peer.configuration.name] = peer.turn(work)
        time.sleep(PAUSE)
        sizes = {p.process.description["step_bytes"] for p in peers if p.configuration.ours}
        yield {
            "number": number,
            "order": [peer.configuration.name for peer in order],
            "turns": turns,
            "limits": measure_limits(threads, sizes),
        }


def measure_limits(threads: int, sizes: set[int]) -> dict[str, Any]:
    """What the machine can do now: streams of as many bytes as a decoded token reads; rates."""
    isa = _native.isas()[0]
    return {
        "bandwidth_bytes_per_s": {
            str(size): _native.stream_bandwidth(threads, max(LEAST_MEGABYTES, round(size / 2**20)))
            for size in sorted(sizes)
        },
        "int8_operations_per_s": _native.int8_rate(threads, isa),
        "fp32_operations_per_s": _native.fp32_rate(threads, isa),
    }


def _work(
    workload: Workload, prompts: Prompts, parts: Collection[str], number: int
) -> dict[str, Callable[[PeerProcess], dict[str, Any]]]:
    """What a turn consists of; round 0 is the warm-up, with short outputs."""
    first = number * 1000
    alone = prompts(first, workload.prefill)
    before = prompts(first + 1, workload.context)
    together = [prompts(first + 2 + i, workload.prompt) for i in range(workload.sequences)]
    decode = workload.decode if number else 4
    output = workload.output if number else 4

    def run_prefill(process: PeerProcess) -> dict[str, Any]:
        return {"seconds": process.call("prefill", tokens=alone)}

    def run_decode(process: PeerProcess) -> dict[str, Any]:
        seconds, tokens = process.call("decode", tokens=before, count=decode)
        return {"seconds": seconds, "tokens": tokens}

    def run_batch(process: PeerProcess) -> dict[str, Any]:
        return together_figures(process.call("batch", prompts=together, count=output), output)

    work = {"prefill": run_prefill, "decode": run_decode, "batch": run_batch}
    return {name: work[name] for name in PARTS if name in parts}


def together_figures(times: Sequence[Sequence[float]], output: int) -> dict[str, float]:
    """Of sequences that ran together: the whole time, and the phase in which all of them decode.

    Args:
        times: For each sequence, seconds from the start to each of its tokens.
        output: Tokens that each should have.

    Raises:
        PeerError: A sequence has more or fewer tokens.
    """
    if any(len(one) != output for one in times):
        raise PeerError(f"sequences of {sorted({len(one) for one in times})} tokens, not {output}")
    begin = max(one[0] for one in times)
    end = min(one[-1] for one in times)
    phase = sum(begin < moment <= end for one in times for moment in one)
    return {
        "seconds": max(one[-1] for one in times),
        "phase_seconds": max(0.0, end - begin),
        "phase_tokens": phase,
    }


def share_of_others(
    before: CpuTimes | None, after: CpuTimes | None, peer_seconds: float
) -> float | None:
    """Share of the cores that neither this process nor the peer used; None where unknown."""
    if before is None or after is None:
        return None
    busy, own = after.busy - before.busy, after.own - before.own
    total = busy + after.idle - before.idle + after.steal - before.steal
    return max(0.0, busy - own - peer_seconds) / total if total > 0 else None
