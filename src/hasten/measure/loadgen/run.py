"""MLPerf's scenarios through its own LoadGen, over any target.

LoadGen decides when to send and what the result is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hasten.errors import MissingDependencyError, UsageError
from hasten.measure.loadgen.bridge import Bridge
from hasten.measure.loadgen.log import read_detail
from hasten.measure.loadgen.result import LoadGenResult, read_result
from hasten.measure.loadgen.settings import LoadGenSettings
from hasten.measure.records import Answer
from hasten.measure.targets.target import Target
from hasten.measure.workload import Item, Session, Tensors, Workload

__all__ = ["run_loadgen"]

ATTEMPTS = 6
MARGIN = 2.0
"""Over the rate to expect, so that LoadGen makes enough queries beforehand."""
PATIENCE = 10.0
"""Seconds' worth of unanswered queries with which a server run ends, at least."""


def run_loadgen(
    target: Target,
    workload: Workload,
    settings: LoadGenSettings,
    folder: Path,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> LoadGenResult:
    """Runs a scenario.

    Samples are the items of the workload; measuring, LoadGen draws them again and again. A request
    that fails makes the result invalid, and the rest of LoadGen's queries are answered without
    being sent. Ctrl-C does the same.

    Args:
        target: What is measured; it is opened and closed again.
        workload: Requests without conversations; the warm-up runs first, or else the first item.
        settings: What LoadGen is asked for.
        folder: For LoadGen's logs; made if it is missing.
        on_progress: Called with the number of requests that have ended.

    Raises:
        MissingDependencyError: LoadGen is not installed.
        UsageError: The workload does not suit.
        HastenError: The warm-up failed, or LoadGen wrote no log.
    """
    lg = _import_loadgen()
    works = _samples(workload, settings)
    folder.mkdir(parents=True, exist_ok=True)
    return asyncio.run(_run(lg, target, workload, works, settings, folder, on_progress))


def _import_loadgen() -> Any:  # noqa: ANN401 - LoadGen has no types
    try:
        import mlperf_loadgen  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingDependencyError(
            "MLPerf's scenarios need LoadGen, which is not installed",
            do="pip install 'hasten[loadgen]'",
        ) from error
    return mlperf_loadgen


def _samples(workload: Workload, settings: LoadGenSettings) -> list[Item | Tensors]:
    """The items, if LoadGen can do with them."""
    works: list[Item | Tensors] = []
    for work in workload.items:
        if isinstance(work, Session):
            raise UsageError("LoadGen knows no conversations", do="use single requests")
        if settings.tokens and not (isinstance(work, Item) and work.output_tokens > 1):
            raise UsageError(
                "token latencies of a request with fewer than two tokens",
                do="ask for more output tokens, or leave token latencies off",
            )
        works.append(work)
    if not works:
        raise UsageError("a workload without requests")
    return works


async def _run(
    lg: Any,  # noqa: ANN401 - LoadGen has no types
    target: Target,
    workload: Workload,
    works: Sequence[Item | Tensors],
    settings: LoadGenSettings,
    folder: Path,
    on_progress: Callable[[int], None] | None,
) -> LoadGenResult:
    """See `run_loadgen`; runs again where LoadGen had made too few queries beforehand."""
    async with target:
        least = await _warm_up(target, workload, works)
        rate = settings.rate or MARGIN / least
        bounds = (settings.latency_bound, settings.ttft_bound)
        patience = max(PATIENCE, 4 * least, *(4 * bound for bound in bounds if bound is not None))
        for _ in range(ATTEMPTS):
            bridge = Bridge(lg, target, works, settings, on_progress)
            await bridge.run(rate, math.ceil(rate * patience), folder)
            too_short = read_detail(folder).flag("result_min_duration_met") is False
            if not too_short or bridge.problem is not None or settings.scenario == "server":
                break
            rate = MARGIN * max(rate, bridge.rate)
    return read_result(
        settings,
        folder,
        bridge.records,
        bridge.outputs,
        bridge.problem,
        interrupted=bridge.interrupted,
    )


async def _warm_up(target: Target, workload: Workload, works: Sequence[Item | Tensors]) -> float:
    """Sends the warm-up; gives the least latency, in seconds."""
    least = math.inf
    for work in workload.warmup or works[:1]:
        if isinstance(work, Session):
            raise UsageError("LoadGen knows no conversations", do="use single requests")
        started = time.perf_counter()
        await target.send(work, Answer())
        least = min(least, time.perf_counter() - started)
    return max(least, 1e-6)
