"""What was traded for what, in sentences with this model's figures; drawn from the recipe alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["trade_offs"]

_Trial = Mapping[str, Any]


def trade_offs(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what against what, what that meant here) for each trade that the search measured."""
    found = [
        ("Speed and accuracy", _accuracy(recipe)),
        ("Latency and throughput", _throughput(recipe)),
        ("Memory and recomputation", _memory(recipe)),
        ("General and specialised", _specialised(recipe)),
    ]
    return [(title, " ".join(sentences)) for title, one in found if (sentences := list(one))]


def _accuracy(recipe: Mapping[str, Any]) -> Iterator[str]:
    front = [recipe["candidates"][place] for place in recipe["front"]][1:]
    chosen = _chosen(recipe)
    if chosen["accuracy"] is not None:
        yield f"Chosen: {_point(chosen)}."
    speed = _speed(chosen) or 1
    faster = [one for one in front if (_speed(one) or 0) > speed]
    slower = [one for one in front if (_speed(one) or 0) < speed]
    if faster:
        yield f"Faster at a price: {_point(faster[0])}" + (
            f", refused ({faster[0]['reason']})." if faster[0]["status"] == "refused" else "."
        )
    if slower:
        yield f"Nearer to the original: {_point(slower[-1])}."


def _throughput(recipe: Mapping[str, Any]) -> Iterator[str]:
    before, after = recipe["before"], recipe["after"]
    if "ttft_ms" not in before or "ttft_ms" not in after:
        return
    concurrent = recipe["objective"]["concurrent"]
    yield (
        f"With {concurrent} request{'s' * (concurrent != 1)} at once"
        f" {before['output_tokens_per_s']:.0f} -> {after['output_tokens_per_s']:.0f} output"
        f" tokens/s, first token after {before['ttft_ms']:.0f} -> {after['ttft_ms']:.0f} ms."
    )
    for field, what in (("chunk", "steps of {} tokens"), ("max_sequences", "{} at once")):
        for one in recipe["candidates"]:
            value = one["settings"].get(field)
            timings = one["timings"]
            if value is not None and timings is not None and one["status"] != "chosen":
                yield (
                    f"With {what.format(value)}: {timings['output_tokens_per_s']:.0f} tokens/s,"
                    f" first token after {timings['ttft_ms']:.0f} ms."
                )


def _memory(recipe: Mapping[str, Any]) -> Iterator[str]:
    before, after = recipe["before"]["memory"], recipe["after"]["memory"]
    for key, title in (("weights", "Weights"), ("kv_cache", "KV cache")):
        if key in before and key in after:
            yield f"{title} {_mib(before[key])} -> {_mib(after[key])}."
    chosen = _chosen(recipe)
    for one in recipe["candidates"]:
        other = {**one["settings"], "kv": chosen["settings"]["kv"]}
        same = other == chosen["settings"] and one["passes"] == chosen["passes"]
        if same and one is not chosen and _speed(one) is not None and one["memory_bytes"]:
            ratio = (_speed(one) or 0) / (_speed(chosen) or 1)
            yield (
                f"With the KV cache in {one['settings']['kv']} it would hold"
                f" {_mib(one['memory_bytes'])} in all and run at {ratio:.2f} of the speed, KL"
                f" {_kl(one)}."
            )


def _specialised(recipe: Mapping[str, Any]) -> Iterator[str]:
    objective = recipe["objective"]
    yield (
        f"Chosen for {objective['concurrent']} request(s) at once of {objective['input_tokens']}"
        f" tokens in and {objective['output_tokens']} out on this machine; other requests or"
        " another machine may have another winner."
    )
    yield from _operators(recipe)
    applied = [one["pass"] for one in recipe["passes"]]
    needing = [name for name in applied if name != "quantize"]
    if needing:
        yield (
            f"{', '.join(needing)} looked at {recipe['texts']['calibration']['tokens']} tokens of"
            f" {recipe['texts']['calibration']['name']}; texts unlike it may lose more than the"
            " proof says."
        )


def _operators(recipe: Mapping[str, Any]) -> Iterator[str]:
    """What fusion and the kernels' instruction set are worth, where that was measured."""

    def parts(one: _Trial) -> tuple[_Trial, tuple[Any, Any]]:
        settings = dict(one["settings"])
        operators = {name: settings.pop(name) for name in ("fuse", "isa") if name in settings}
        return operators, (one["passes"], settings)

    raced = [one for one in recipe["candidates"] if _speed(one) is not None]
    for one in raced:
        operators, rest = parts(one)
        usual = [other for other in raced if parts(other) == ({}, rest)]
        if not operators or not usual:
            continue
        how = "op by op" if "fuse" in operators else f"with {operators['isa']} kernels"
        ratio = (_speed(one) or 0) / (_speed(usual[0]) or 1)
        yield f"Run {how}, {usual[0]['label']} has {ratio:.2f} of its speed."


def _chosen(recipe: Mapping[str, Any]) -> _Trial:
    """The winner; the original where nothing was better."""
    candidates: list[_Trial] = recipe["candidates"]
    return next((one for one in candidates if one["status"] == "chosen"), candidates[0])


def _point(one: _Trial) -> str:
    return f"{one['label']}: {_speed(one):.2f} times as fast, KL {_kl(one)}"


def _speed(one: _Trial) -> float | None:
    return None if one["speedup"] is None else one["speedup"]["estimate"]


def _kl(one: _Trial) -> str:
    value = one["accuracy"] and one["accuracy"]["kl_divergence"]["estimate"]
    return "not measured" if value is None else f"{value:.4f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
