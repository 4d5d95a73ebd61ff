"""From the rounds to figures: medians, ratios over paired rounds, fractions of the limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from peers_plan import GOALS, SCENARIOS, Configuration, Plan, Workload

from hasten.measure.statistics import bootstrap_ratio_of_medians

__all__ = ["FORMULAS", "MOST_OTHERS", "summarize_model"]

MOST_OTHERS = 0.1
"""A turn during which other processes took more of the cores is disturbed."""
LEAST_QUIET = 3
REFERENCE = "transformers fp32"
GROUPS = ("llama.cpp", "any peer", "equal bits")
FORMULAS = {
    "prefill": "prompt tokens / time from the call to the first output token, empty cache",
    "decode": "tokens after the first / time between the first and the last token, greedy, one "
    "sequence",
    "batch decode": "tokens that the sequences got while all of them were decoding / that time",
    "batch": "output tokens of all sequences / time from the start to the last token",
    "rate": "tokens / seconds, median over the quiet rounds; disturbed turns (others > 10 % of the "
    "cores) count only where fewer than 3 rounds were quiet, and the figure is marked",
    "ratio": "median seconds a token of the other / the same of this one, over rounds that both "
    "have; 95 % percentile interval of a bootstrap over rounds; the other is the fastest of its "
    "group at this scenario",
    "limit": "seconds that this run's own probes need / median seconds: for decode a stream of the "
    "bytes of weights and KV cache that a token reads, with the same threads; for prefill the "
    "operations of all products at the int8 rate; for batch decode the greater of the two a step",
    "same tokens": f"greedy tokens equal to those of {REFERENCE} before the first difference",
}
Samples = dict[int, tuple[float, bool]]
"""Seconds a token, and whether the turn was quiet, by number of the round."""


def summarize_model(raw: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The report of one model.

    Args:
        raw: What `peers.py` keeps of a model: settings, peers, rounds, accuracy, failed.
        plan: Its plan.
    """
    rounds, peers = raw["rounds"], raw["peers"]
    present = [one for one in plan.configurations if one.name in peers]
    samples = {
        one.name: {s: _samples(rounds, one.name, s, plan.workload) for s in SCENARIOS}
        for one in present
    }
    configurations = {}
    for one in present:
        configurations[one.name] = {
            **peers[one.name],
            "bits": one.bits,
            "accuracy": raw["accuracy"].get(one.name),
            "same_tokens": _agreement(rounds, one.name),
            "scenarios": {
                scenario: _figure(
                    samples[one.name][scenario],
                    _limits(rounds, peers[one.name], scenario, plan.workload),
                )
                for scenario in SCENARIOS
            },
        }
    ratios = _ratios(present, samples)
    return {
        "settings": raw["settings"],
        "rounds": len(rounds),
        "limits": _limit_spreads(rounds),
        "other_processes_share": _spread(_others(rounds)),
        "configurations": configurations,
        "ratios": ratios,
        "goals": _goals(plan.name, present, configurations, ratios),
        "accuracy_goals": _accuracy_goals(present, configurations),
        "failed": raw["failed"],
    }


def _samples(
    rounds: Iterable[Mapping[str, Any]], name: str, scenario: str, workload: Workload
) -> Samples:
    part = "batch" if scenario == "batch decode" else scenario
    found = {}
    for one in rounds:
        turn = one["turns"].get(name, {}).get(part)
        if turn is None:
            continue
        seconds, tokens = (
            turn["seconds"],
            {
                "prefill": workload.prefill,
                "decode": workload.decode,
                "batch": workload.sequences * workload.output,
            }[part],
        )
        if scenario == "batch decode":
            seconds, tokens = turn["phase_seconds"], turn["phase_tokens"]
        if seconds > 0 and tokens > 0:
            found[one["number"]] = (seconds / tokens, (turn["others"] or 0) <= MOST_OTHERS)
    return found


def _usable(*samples: Samples) -> tuple[list[int], bool]:
    """Rounds that all have, the quiet ones if they suffice; and whether they are quiet."""
    shared = sorted(set.intersection(*(set(one) for one in samples)))
    quiet = [number for number in shared if all(one[number][1] for one in samples)]
    if len(quiet) >= min(LEAST_QUIET, len(shared)):
        return quiet, True
    return shared, False


def _figure(samples: Samples, limits: Mapping[int, float]) -> dict[str, Any] | None:
    """Rate of a scenario and its fraction of the limit; None where it was not measured."""
    if not samples:
        return None
    numbers, quiet = _usable(samples)
    seconds = [samples[number][0] for number in numbers]
    of_limit = None
    if limits:
        wanted = [limits[number] for number in numbers]
        of_limit = bootstrap_ratio_of_medians(wanted, seconds, paired=True).as_dict()
    return {
        "tokens_per_s": 1 / float(np.median(seconds)),
        "rounds": len(numbers),
        "quiet": quiet,
        "of_limit": of_limit,
        "seconds_per_token": {number: value for number, (value, _) in samples.items()},
    }


def _limits(
    rounds: Iterable[Mapping[str, Any]], peer: Mapping[str, Any], scenario: str, workload: Workload
) -> dict[int, float]:
    """Least seconds a token by round; empty for the whole run and where they are unknown."""
    if "layer_operations" not in peer or scenario == "batch":
        return {}
    layers, output = peer["layer_operations"], peer["output_operations"]
    weights, position = peer["step_bytes"], peer["kv_bytes_per_token"]
    found = {}
    for one in rounds:
        int8 = one["limits"]["int8_operations_per_s"]
        stream = one["limits"]["bandwidth_bytes_per_s"][str(weights)]
        if scenario == "prefill":
            seconds = (layers + output / workload.prefill) / int8
        elif scenario == "decode":
            seconds = (weights + (workload.context + workload.decode / 2) * position) / stream
        else:
            count, context = workload.sequences, workload.prompt + workload.output / 2
            reading = (weights + count * context * position) / stream
            seconds = max(reading / count, (layers + output) / int8)
        found[one["number"]] = seconds
    return found


def _ratios(
    present: Sequence[Configuration], samples: Mapping[str, Mapping[str, Samples]]
) -> list[dict[str, Any]]:
    """Each of ours against the fastest of each group, scenario by scenario."""
    found = []
    for ours in (one for one in present if one.ours):
        for scenario in SCENARIOS:
            for group in GROUPS:
                theirs = [
                    one
                    for one in present
                    if _belongs(one, group, ours) and samples[one.name][scenario]
                ]
                mine = samples[ours.name][scenario]
                if not theirs or not mine:
                    continue
                best = min(theirs, key=lambda one: _median(samples[one.name][scenario]))
                ratio = _ratio(samples[best.name][scenario], mine)
                if ratio is not None:
                    about = {"this": ours.name, "scenario": scenario, "against": group}
                    found.append({**about, "other": best.name, **ratio})
    return found


def _belongs(peer: Configuration, group: str, ours: Configuration) -> bool:
    if peer.ours:
        return False
    if group == "llama.cpp":
        return peer.kind == "llama_cpp"
    return group == "any peer" or peer.bits == ours.bits


def _median(samples: Samples) -> float:
    numbers, _ = _usable(samples)
    return float(np.median([samples[number][0] for number in numbers]))


def _ratio(theirs: Samples, mine: Samples) -> dict[str, Any] | None:
    numbers, quiet = _usable(theirs, mine)
    if not numbers:
        return None
    top = [theirs[number][0] for number in numbers]
    bottom = [mine[number][0] for number in numbers]
    interval = bootstrap_ratio_of_medians(top, bottom, paired=True).as_dict()
    return {"ratio": interval, "rounds": len(numbers), "quiet": quiet}


def _goals(
    model: str,
    present: Sequence[Configuration],
    configurations: Mapping[str, Mapping[str, Any]],
    ratios: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What is asked of our 4-bit configurations, and what each reached."""
    found = []
    for goal in (one for one in GOALS if one.model == model):
        for ours in (one for one in present if one.ours and one.bits == 4):
            figure = configurations[ours.name]["scenarios"][goal.scenario]
            reached, other = None, None
            if goal.against == "limit":
                reached = figure and figure["of_limit"]
            for one in ratios:
                if (one["this"], one["scenario"], one["against"]) == (
                    ours.name,
                    goal.scenario,
                    goal.against,
                ):
                    reached, other = one["ratio"], one["other"]
            if reached is not None:
                found.append(
                    {
                        "this": ours.name,
                        "scenario": goal.scenario,
                        "against": goal.against,
                        "other": other,
                        "at_least": goal.at_least,
                        "reached": reached,
                        "holds": reached["estimate"] >= goal.at_least,
                    }
                )
    return found


def _accuracy_goals(
    present: Sequence[Configuration], configurations: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Whether ours lose no more than llama.cpp at equal bits: speed counts only then."""
    losses = {}
    for one in present:
        accuracy = configurations[one.name]["accuracy"] or {}
        loss = accuracy.get("kl_divergence")
        if loss is not None and loss["estimate"] is not None:
            losses[one.name] = loss
    found = []
    for ours in (one for one in present if one.ours and one.name in losses):
        theirs = [
            one.name
            for one in present
            if one.kind == "llama_cpp" and one.bits == ours.bits and one.name in losses
        ]
        if theirs:
            other = min(theirs, key=lambda name: losses[name]["estimate"])
            mine, best = losses[ours.name], losses[other]
            about = {"this": ours.name, "other": other, "kl": mine, "other_kl": best}
            found.append({**about, "holds": mine["low"] <= best["high"]})
    return found


def _agreement(rounds: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """Mean share of greedy tokens that equal the reference's before the first difference."""
    shares = []
    for one in rounds:
        both = [one["turns"].get(peer, {}).get("decode") for peer in (name, REFERENCE)]
        if both[0] is None or both[1] is None:
            continue
        ours, theirs = both[0]["tokens"], both[1]["tokens"]
        same = [a == b for a, b in zip(ours, theirs, strict=True)]
        shares.append((same.index(False) if False in same else len(same)) / len(same))
    return float(np.mean(shares)) if shares else None


def _limit_spreads(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not rounds:
        return {}
    sizes = rounds[0]["limits"]["bandwidth_bytes_per_s"]
    rates = ("int8_operations_per_s", "fp32_operations_per_s")
    return {
        "bandwidth_bytes_per_s": {
            size: _spread([one["limits"]["bandwidth_bytes_per_s"][size] for one in rounds])
            for size in sizes
        },
        **{rate: _spread([one["limits"][rate] for one in rounds]) for rate in rates},
    }


def _others(rounds: Iterable[Mapping[str, Any]]) -> list[float]:
    return [
        work["others"]
        for one in rounds
        for turn in one["turns"].values()
        for work in turn.values()
        if work["others"] is not None
    ]


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    middle = float(np.median(values)) if values else None
    return {"median": middle, "min": min(values, default=None), "max": max(values, default=None)}
