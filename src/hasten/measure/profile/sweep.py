"""What one setting changes: rates of reading prompts and of decoding, its values in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter

from hasten.errors import CapacityError, UsageError
from hasten.generation import Engine
from hasten.machine import available_cores
from hasten.measure.profile.run import Prompt, run_group
from hasten.models import Model
from hasten.types import EngineOptions

__all__ = ["SWEEPS", "Setting", "Sweep", "SweepRow", "run_sweep", "settings_of"]

SWEEPS = ("batch", "input", "threads", "weights", "fuse")
LEAST_ROUNDS = 3
MOST_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of a sweep.

    Attributes:
        name: Of the value.
        options: How the engine runs.
        batch: Requests side by side.
        input_tokens: Of each prompt.
    """

    name: str
    options: EngineOptions
    batch: int
    input_tokens: int


@dataclass(frozen=True, slots=True)
class SweepRow:
    """What one value reached.

    Attributes:
        value: Its name.
        prefill: Prompt tokens per second, median of the rounds.
        decode: Output tokens per second of all requests together, likewise.
        prefill_ratio: Over that of the base in the same round, median of the rounds.
        decode_ratio: Likewise.
    """

    value: str
    prefill: float
    decode: float
    prefill_ratio: float
    decode_ratio: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep found.

    Attributes:
        setting: What was varied.
        base: The value that ratios are over.
        rounds: In which each value had a turn.
        rows: In the order of the values.
        left_out: Values that this machine or model does not take, and why.
    """

    setting: str
    base: str
    rounds: int
    rows: tuple[SweepRow, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


def settings_of(
    sweep: str,
    options: EngineOptions,
    *,
    batch: int,
    input_tokens: int,
    output_tokens: int,
    context: int,
) -> tuple[list[Setting], str]:
    """The values of a sweep, and the name of the one that is given.

    Args:
        sweep: One of `SWEEPS`.
        options: As given.
        batch: As given.
        input_tokens: As given.
        output_tokens: As given.
        context: Longest sequence that the model may have here.

    Raises:
        UsageError: No such sweep.
    """
    longest = input_tokens + output_tokens
    options = replace(options, max_context=longest, max_sequences=batch)
    given = Setting("", options, batch, input_tokens)
    match sweep:
        case "batch":
            sizes = sorted({1, 2, 4, 8, batch})
            shared = replace(options, max_sequences=max(sizes))
            found = [replace(given, name=str(n), options=shared, batch=n) for n in sizes]
            return found, str(batch)
        case "input":
            lengths = sorted({32, 128, 512, input_tokens})
            fitting = [n for n in lengths if n + output_tokens <= context]
            shared = replace(options, max_context=max(fitting) + output_tokens)
            found = [Setting(str(n), shared, batch, n) for n in fitting]
            return found, str(input_tokens)
        case "threads":
            cores = available_cores()
            counts = sorted({n for n in (1, 2, 4, 8, 16, 32, 64) if n < cores} | {cores})
            found = [
                replace(given, name=str(n), options=replace(options, threads=n, decode_threads=n))
                for n in counts
            ]
            return [replace(given, name="chosen"), *found], "chosen"
        case "weights":
            names = dict.fromkeys((options.weights, "carried", "bf16", "int8:32", "int4:32"))
            found = [replace(given, name=n, options=replace(options, weights=n)) for n in names]
            return found, options.weights
        case "fuse":
            found = [
                replace(given, name=name, options=replace(options, fuse=fuse))
                for name, fuse in (("fused", True), ("op by op", False))
            ]
            return found, "fused" if options.fuse else "op by op"
        case _:
            raise UsageError(f"no sweep over {sweep!r}", allowed=", ".join(SWEEPS))


def run_sweep(
    model: Model,
    sweep: str,
    settings: Sequence[Setting],
    base: str,
    *,
    prompts: Callable[[int, int], Sequence[Prompt]],
    output_tokens: int,
    seconds: float,
    on_progress: Callable[[float, str], None] = lambda done, note: None,
) -> Sweep:
    """Gives each value a turn a round, in rounds that alternate in direction, until time is up.

    Engines of all values are open at once; values for which there is no room are left out.

    Args:
        model: To run.
        sweep: What is varied.
        settings: Its values.
        base: The one that ratios are over.
        prompts: So many prompts of a length, others each time.
        output_tokens: That each request generates.
        seconds: After which no further round begins, once there were enough for a median.
        on_progress: Called with the seconds that are over, and what runs.

    Raises:
        CapacityError: There is no room for the base.
    """
    with ExitStack() as stack:
        ready, left_out = _open(model, settings, base, stack, on_progress)
        found: dict[str, list[tuple[float, float]]] = {one.name: [] for one, _ in ready}
        for setting, engine in ready:  # the first run starts threads and touches memory
            _measure(engine, setting, prompts, output_tokens)
        started, rounds = perf_counter(), 0
        while rounds < LEAST_ROUNDS or (
            rounds < MOST_ROUNDS and perf_counter() - started < seconds
        ):
            for setting, engine in ready if rounds % 2 == 0 else reversed(ready):
                on_progress(min(seconds, perf_counter() - started), setting.name)
                found[setting.name].append(_measure(engine, setting, prompts, output_tokens))
            rounds += 1
    rows = [_row(one.name, found[one.name], found[base]) for one in settings if one.name in found]
    return Sweep(sweep, base, rounds, tuple(rows), left_out)


def _open(
    model: Model,
    settings: Sequence[Setting],
    base: str,
    stack: ExitStack,
    on_progress: Callable[[float, str], None],
) -> tuple[list[tuple[Setting, Engine]], dict[str, str]]:
    """Engines for the values, the base first, and why others have none; equal options share one."""
    ready: list[tuple[Setting, Engine]] = []
    left_out = {}
    for setting in sorted(settings, key=lambda one: one.name != base):
        on_progress(0.0, f"opening {setting.name}")
        engine = next((e for one, e in ready if one.options == setting.options), None)
        try:
            engine = engine or stack.enter_context(Engine(model, setting.options))
        except (CapacityError, UsageError) as error:
            if setting.name == base:
                raise
            left_out[setting.name] = str(error)
            continue
        ready.append((setting, engine))
    return ready, left_out


def _measure(
    engine: Engine,
    setting: Setting,
    prompts: Callable[[int, int], Sequence[Prompt]],
    output_tokens: int,
) -> tuple[float, float]:
    """Tokens per second of reading prompts and of decoding, of one group of requests."""
    times = run_group(engine, prompts(setting.batch, setting.input_tokens), output_tokens)
    return setting.batch * setting.input_tokens / times.prefill, times.tokens / times.decode


def _row(
    name: str, rates: Sequence[tuple[float, float]], base: Sequence[tuple[float, float]]
) -> SweepRow:
    prefill, decode = zip(*rates, strict=True)
    ratios = [
        (one[0] / other[0], one[1] / other[1]) for one, other in zip(rates, base, strict=True)
    ]
    over_prefill, over_decode = zip(*ratios, strict=True)
    return SweepRow(
        name, median(prefill), median(decode), median(over_prefill), median(over_decode)
    )
