"""Text that the teacher writes, for a student to learn from.

A student learns from what its teacher predicts, so any text will do on which the teacher is at
home; what it writes itself is, and there is as much of it as is wanted (Liu et al. 2023, "LLM-QAT",
https://arxiv.org/abs/2305.17888). Here it goes on from places of a given text, to stay near it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasten.generation import Engine
from hasten.measure.corpus import Windows, leading_tokens
from hasten.models import Model
from hasten.optimize.quantization.shelf import Shelf, fingerprint
from hasten.types import EngineOptions, Request, SamplingParams

__all__ = ["PORTION", "with_written"]

PORTION = 64
"""Windows that are written and kept together."""
_SIDE_BY_SIDE = 32
_OPENING = (16, 96)
"""Tokens of the given text that a window begins with, least and most."""


def with_written(
    text: Windows,
    teacher: Model,
    tokens: int,
    directory: Path,
    progress: Callable[[str, float], None],
    *,
    seed: int,
) -> Windows:
    """The text, and at least so many tokens besides that the teacher writes on from it.

    Args:
        text: Where each window gets its opening from.
        teacher: Writes, at temperature 1, with the weights of its files and one seed a window: what
            it writes hangs on no other window.
        tokens: To write.
        directory: Keeps finished portions, which are not written again.
        progress: Told how much is written, and the share of it.
        seed: Of openings and text.

    Raises:
        KeyboardInterrupt: Ctrl-C; finished portions are kept.
    """
    windows = -(-tokens // text.context)
    key = fingerprint(teacher, text, {"written": PORTION, "opening": _OPENING, "seed": seed})
    shelf = Shelf(directory, key)
    written: list[tuple[int, ...]] = []
    options = EngineOptions(max_sequences=_SIDE_BY_SIDE, max_context=text.context)
    with Engine(teacher, options) as engine:
        for number in range(-(-windows // PORTION)):
            progress(f"writing text: {len(written) * text.context} tokens", len(written) / windows)
            kept = shelf.take(f"text.{number}")
            if kept is None:
                draw = np.random.default_rng([seed, number])
                openings = [_opening(text, teacher, draw) for _ in range(PORTION)]
                kept = {"tokens": _go_on(engine, openings, text.context, draw)}
                shelf.put(f"text.{number}", kept)
            written += map(tuple, kept["tokens"].tolist())
    name = f"{text.name}, and {windows * text.context} tokens written by {teacher.name}"
    return Windows.of(name, (*text.ids, *written[:windows]), text.context)


def _opening(text: Windows, teacher: Model, draw: np.random.Generator) -> tuple[int, ...]:
    """What a window begins with: the tokens before any text, then some of the given one."""
    first = leading_tokens(teacher.tokenizer)
    longest = max(1, text.context // 2 - len(first))
    source = text.ids[draw.integers(len(text.ids))][len(first) :]
    length = min(int(draw.integers(*_OPENING, endpoint=True)), longest, len(source))
    begin = int(draw.integers(len(source) - length + 1))
    return (*first, *source[begin : begin + length])


def _go_on(
    engine: Engine, openings: Sequence[tuple[int, ...]], length: int, draw: np.random.Generator
) -> NDArray[np.int32]:
    """Windows [openings, length], each with what the engine writes after its opening."""
    found = {str(number): list(opening) for number, opening in enumerate(openings)}
    for name, opening in found.items():
        sampling = SamplingParams(
            max_tokens=length - len(opening),
            temperature=1.0,
            seed=int(draw.integers(1 << 31)),
            ignore_eos=True,
        )
        engine.submit(Request(name, tuple(opening), sampling))
    while any(len(window) < length for window in found.values()):
        for output in engine.step():
            found[output.request_id] += output.tokens
    return np.array(list(found.values()), np.int32)
