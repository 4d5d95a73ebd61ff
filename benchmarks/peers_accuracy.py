"""What each configuration loses against float32, on the same tokens."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers_process import PeerError, PeerProcess
from peers_rounds import Started

from hasten.generation import Engine, engine_options
from hasten.measure.accuracy import Reference, summarize
from hasten.measure.corpus import cut_windows, default_corpus
from hasten.models import Model

__all__ = ["PeerScorer", "compare_all"]

CONTEXT = 512
KEEP_BYTES = 2 << 30


class PeerScorer:
    """A process whose logits come through a file."""

    def __init__(self, process: PeerProcess, file: Path) -> None:
        self._process = process
        self._file = file

    def score(self, token_ids: Sequence[int], /) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """One part: the whole window."""
        self._process.call("logits", tokens=list(token_ids), target=str(self._file))
        yield 0, np.load(self._file)


def compare_all(
    peers: Sequence[Started], model: Model, *, tokens: int, threads: int, seed: int
) -> dict[str, Any]:
    """Compares each configuration that shows its logits with Hasten's float32.

    Args:
        peers: Loaded, with contexts of at least 512 tokens.
        model: The weights as carried, which the reference dequantises.
        tokens: Of `pydoc_data.topics`.
        threads: Of the reference.
        seed: Of the intervals.

    Returns:
        Figures as `hasten eval` reports them, or the error, by configuration.
    """
    windows = cut_windows(default_corpus(), model.tokenizer, tokens=tokens, context=CONTEXT)
    options = engine_options(model, weights="f32", kv="f32", threads=threads, max_context=CONTEXT)
    size = model.config.vocab_size
    reference = Reference(Engine(model, options), windows, vocab_size=size, keep_bytes=KEEP_BYTES)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hasten-peers-") as folder:
        for peer in peers:
            name = peer.configuration.name
            print(f"accuracy of {name}", file=sys.stderr)
            try:
                scorer = PeerScorer(peer.process, Path(folder) / "logits.npy")
                found[name] = summarize(reference.compare(scorer), seed=seed).as_dict()
            except PeerError as error:
                found[name] = {"error": str(error)}
    return found
