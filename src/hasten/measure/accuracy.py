"""How much a candidate's predictions differ from a reference's, on the same tokens.

Every figure is paired: both models see the same windows, and each position gives one sample of
(reference loss, candidate loss, KL divergence, agreement). Logits are consumed chunk by chunk, so
memory does not grow with the sample.

Neighbouring tokens are correlated, so intervals come from a block bootstrap: runs of 64
consecutive positions are resampled, not single positions (Künsch, "The jackknife and the
bootstrap for general stationary observations", Annals of Statistics 17, 1989; here with blocks
that do not overlap).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.measure.corpus import Windows
from hasten.measure.statistics import Interval, bootstrap_mean, signed_rank_interval

__all__ = [
    "ACCURACY_FORMULAS",
    "Accuracy",
    "PairedSamples",
    "Reference",
    "Scorer",
    "compare_logits",
    "excess",
    "summarize",
    "summarize_excess",
]

BLOCK = 64
"""Consecutive positions that are resampled together."""

ACCURACY_FORMULAS = {
    "perplexity": "exp(mean over scored positions of -ln p(token | window before it))",
    "perplexity_ratio": "candidate perplexity / reference perplexity, same positions",
    "kl_divergence": "mean of sum_v p_ref(v) ln(p_ref(v) / p_cand(v)), in nats per token",
    "top1_agreement": "share of positions where both models' likeliest token is the same",
    "interval": "95 % percentiles of a block bootstrap (blocks of 64 consecutive positions)",
}

Logits = NDArray[np.float32]

_ROWS = 32
"""Rows worked on at once: with 49152 tokens in the vocabulary they stay in a core's L3 share."""


class Scorer(Protocol):
    """What accuracy needs of an engine."""

    def score(self, token_ids: Sequence[int], /) -> Iterator[tuple[int, Logits]]:
        """Yields (start, logits [n, vocab]) for token_ids[start:start + n]."""
        ...


@dataclass(frozen=True, slots=True)
class PairedSamples:
    """One entry a scored position, in the order of the text; all arrays float64 [n].

    Attributes:
        reference_loss: -ln p of the token that follows, by the reference.
        candidate_loss: The same by the candidate; infinite where its logits are not finite.
        kl: KL(reference || candidate) in nats.
        agree: 1 where both choose the same token, else 0.
        regret: By how many nats the reference holds its own choice likelier than the candidate's;
            0 where they agree, small where the reference was nearly undecided.
    """

    reference_loss: NDArray[np.float64]
    candidate_loss: NDArray[np.float64]
    kl: NDArray[np.float64]
    agree: NDArray[np.float64]
    regret: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What a candidate loses against its reference, each figure with its interval."""

    tokens: int
    reference_perplexity: Interval
    perplexity: Interval
    perplexity_ratio: Interval
    kl: Interval
    top1_agreement: Interval

    def as_dict(self) -> dict[str, Any]:
        """As JSON, with the names that `ACCURACY_FORMULAS` explains."""
        return {
            "tokens": self.tokens,
            "reference_perplexity": _as_json(self.reference_perplexity),
            "perplexity": _as_json(self.perplexity),
            "perplexity_ratio": _as_json(self.perplexity_ratio),
            "kl_divergence": _as_json(self.kl),
            "top1_agreement": _as_json(self.top1_agreement),
        }


class Reference:
    """The reference's logits on fixed windows; kept if they fit, else computed anew each time.

    Args:
        engine: The reference model.
        windows: The tokens to score.
        vocab_size: Columns of a logits row.
        keep_bytes: Most memory that may hold logits for the next candidate. The tokens of
            windows that do not fit are scored again beside every candidate.
    """

    def __init__(
        self, engine: Scorer, windows: Windows, *, vocab_size: int, keep_bytes: int = 0
    ) -> None:
        self.windows = windows
        self._engine = engine
        largest = windows.context * vocab_size * np.dtype(np.float32).itemsize
        self._keep = min(len(windows.ids), keep_bytes // max(largest, 1))
        self._kept: dict[int, Logits] = {}

    def compare(
        self,
        candidate: Scorer,
        on_progress: Callable[[int], None] | None = None,
        enough: Callable[[PairedSamples], bool] | None = None,
    ) -> PairedSamples:
        """Scores the candidate on the same windows.

        Args:
            candidate: The model to compare.
            on_progress: Called after each window with the tokens scored in it.
            enough: Asked after each window whether the samples so far will do, as they do where a
                candidate is beyond hope.

        Raises:
            UsageError: The candidate's vocabulary has another size than the reference's.
        """
        parts: list[PairedSamples] = []
        for index, window in enumerate(self.windows.ids):
            parts.append(_compare_window(self._window(index), candidate, window))
            if on_progress is not None:
                on_progress(len(window) - 1)
            if enough is not None and enough(_concatenate(parts)):
                break
        return _concatenate(parts)

    def _window(self, index: int) -> Logits:
        if index in self._kept:
            return self._kept[index]
        chunks = [logits.copy() for _, logits in self._engine.score(self.windows.ids[index])]
        logits = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
        if index < self._keep:
            self._kept[index] = logits
        return logits


def _compare_window(reference: Logits, candidate: Scorer, window: Sequence[int]) -> PairedSamples:
    targets = np.asarray(window[1:], dtype=np.int64)
    parts: list[PairedSamples] = []
    for start, logits in candidate.score(window):
        stop = min(start + len(logits), len(targets))
        if stop > start:
            parts.append(
                compare_logits(reference[start:stop], logits[: stop - start], targets[start:stop])
            )
    return _concatenate(parts)


def compare_logits(
    reference: Logits, candidate: Logits, targets: NDArray[np.int64]
) -> PairedSamples:
    """Compares two models' logits for the same positions.

    KL is taken as sum_v p_ref (x_ref - x_cand) - lse_ref + lse_cand, so that equal logits give
    exactly 0; what rounding leaves below 0 counts as 0.

    Args:
        reference: float32 [n, vocab].
        candidate: float32 [n, vocab].
        targets: The token that followed each position, int64 [n].

    Raises:
        UsageError: The shapes differ.
    """
    if reference.shape != candidate.shape:
        raise UsageError(
            f"the candidate's logits have shape {candidate.shape}, the reference's"
            f" {reference.shape}",
            do="compare models with the same vocabulary",
        )
    parts = [
        _compare_rows(reference[i : i + _ROWS], candidate[i : i + _ROWS], targets[i : i + _ROWS])
        for i in range(0, len(targets), _ROWS)
    ]
    return _concatenate(parts)


def excess(samples: PairedSamples, beside: PairedSamples) -> PairedSamples:
    """What a candidate loses more than another, position by position.

    For a change that says it changes nothing: beside it, the unchanged model in the same formats,
    whose rounding costs the same. What both share cancels, so that much less can be shown.

    Args:
        samples: The changed model against the original.
        beside: The unchanged one, on the same windows.

    Returns:
        As if the unchanged model were the reference: `kl` and `regret` are differences, which may
        be negative, and `agree` is 1 plus the difference.

    Raises:
        UsageError: They are of different windows.
    """
    if not np.array_equal(samples.reference_loss, beside.reference_loss):
        raise UsageError("two models were scored on different tokens")
    return PairedSamples(
        reference_loss=beside.candidate_loss,
        candidate_loss=samples.candidate_loss,
        kl=samples.kl - beside.kl,
        agree=1 + samples.agree - beside.agree,
        regret=samples.regret - beside.regret,
    )


def _compare_rows(
    reference: Logits, candidate: Logits, targets: NDArray[np.int64]
) -> PairedSamples:
    rows = np.arange(len(targets))
    # A broken candidate may hold NaN or infinities; they become infinite losses below.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        weights, reference_lse = _softmax_parts(reference)
        _, candidate_lse = _softmax_parts(candidate)
        expected = np.einsum("nv,nv->n", weights, reference - candidate)
        expected /= weights.sum(axis=1, dtype=np.float64)
        kl = np.maximum(expected - reference_lse + candidate_lse, 0)
        candidate_loss = candidate_lse - candidate[rows, targets]
    broken = ~np.isfinite(candidate).all(axis=1)
    choice = candidate.argmax(axis=1)
    agree = (reference.argmax(axis=1) == choice) & ~broken
    regret = reference.max(axis=1) - reference[rows, choice]
    return PairedSamples(
        reference_loss=reference_lse - reference[rows, targets],
        candidate_loss=np.where(broken, np.inf, candidate_loss),
        kl=np.where(broken, np.inf, kl),
        agree=agree.astype(np.float64),
        regret=np.where(broken, np.inf, regret),
    )


def _softmax_parts(logits: Logits) -> tuple[Logits, NDArray[np.float64]]:
    """Unnormalised probabilities exp(x - max), and the log of the sum of exp(x)."""
    largest = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - largest)
    lse = np.log(weights.sum(axis=1, dtype=np.float64)) + largest[:, 0]
    return weights, lse


def _concatenate(parts: Sequence[PairedSamples]) -> PairedSamples:
    if len(parts) == 1:
        return parts[0]
    return PairedSamples(
        np.concatenate([part.reference_loss for part in parts]),
        np.concatenate([part.candidate_loss for part in parts]),
        np.concatenate([part.kl for part in parts]),
        np.concatenate([part.agree for part in parts]),
        np.concatenate([part.regret for part in parts]),
    )


def summarize(samples: PairedSamples, *, seed: int, confidence: float = 0.95) -> Accuracy:
    """Means with block-bootstrap intervals.

    A sample with an infinite loss (logits that are not finite) has infinite figures and
    intervals, so that no budget holds for it.

    Args:
        samples: One entry a position.
        seed: Makes the intervals repeatable.
        confidence: Of the intervals, in (0, 1).
    """

    def mean(values: NDArray[np.float64]) -> Interval:
        if np.isfinite(values).all():
            return bootstrap_mean(values, block=BLOCK, confidence=confidence, seed=seed)
        return Interval(math.inf, math.inf, math.inf, confidence)

    return Accuracy(
        tokens=len(samples.kl),
        reference_perplexity=_exp(mean(samples.reference_loss)),
        perplexity=_exp(mean(samples.candidate_loss)),
        perplexity_ratio=_exp(mean(samples.candidate_loss - samples.reference_loss)),
        kl=mean(samples.kl),
        top1_agreement=mean(samples.agree),
    )


def summarize_excess(
    samples: PairedSamples, beside: PairedSamples, *, seed: int, confidence: float = 0.95
) -> Accuracy:
    """What `excess` gives, in figures, with KL by the signed ranks of blocks.

    Two models that round otherwise and are equally good may change places, so the differences of
    their blocks are symmetric about 0: what signed ranks ask for, and all they ask. Means would be
    moved by single positions at which one of the two happens to be far off.

    Args:
        samples: The changed model against the original.
        beside: The unchanged one, on the same windows; 384 positions at least.
        seed: Of the other intervals.
        confidence: Of all intervals, in (0, 1).
    """
    more = excess(samples, beside)
    found = summarize(more, seed=seed, confidence=confidence)
    if not np.isfinite(more.kl).all():
        return found
    starts = np.arange(0, len(more.kl), BLOCK)
    means = np.add.reduceat(more.kl, starts) / np.diff(np.append(starts, len(more.kl)))
    return replace(found, kl=signed_rank_interval(means, confidence))


def _exp(interval: Interval) -> Interval:
    """Percentile intervals keep their meaning under a function that grows."""
    ends = (interval.estimate, interval.low, interval.high)
    # e**700 is near the largest float64; a model that bad has no perplexity worth telling apart.
    value, low, high = (math.exp(end) if end < 700 else math.inf for end in ends)
    return Interval(value, low, high, interval.confidence)


def _as_json(interval: Interval) -> dict[str, float | None]:
    """JSON has no infinity: null stands for it."""
    figures = interval.as_dict().items()
    return {name: value if math.isfinite(value) else None for name, value in figures}
