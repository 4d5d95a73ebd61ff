"""The pass that makes two products of low rank of one, W x ~ up (down x).

The rank is spent where the inputs of the calibration text go, not on all directions alike: Wang et
al. 2024, "SVD-LLM", https://arxiv.org/abs/2403.07378.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.generation.reference import ReferenceExecutor
from hasten.kernels.quantization import BLOCK
from hasten.models import Model, architectures
from hasten.models.config import ModelConfig
from hasten.models.ops import Linear, Op
from hasten.models.weights import DenseTensor, StoredTensor
from hasten.optimize.calibration import calibrate
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.optimize.pruning.structure import layer_of, predict_shapes, why_no_decoder
from hasten.optimize.quantization.gram import check_ridge, damped, gram_of

__all__ = ["PASS", "Factorise", "factorise", "low_rank"]

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Factorise:
    """Factors products of the layers; those that would not become smaller stay whole.

    Attributes:
        share: Of the values of each matrix to save, in (0, 1); 0 with `rank`.
        rank: Of every product that is factored; 0 with `share`.
        matrices: Last parts of the names of those to factor; empty for all of the layers.
        multiple: With `share`, ranks are the nearest multiple of this, itself one of 32.
        ridge: See `damped`.

    Raises:
        UsageError: Not exactly one of `share` and `rank` is given, or a value is out of range.
    """

    share: float = 0.0
    rank: int = 0
    matrices: tuple[str, ...] = ()
    multiple: int = 64
    ridge: float = 0.01

    name: ClassVar[str] = "factorise"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if (self.share != 0) == (self.rank != 0) or not 0 <= self.share < 1 or self.rank < 0:
            raise UsageError(
                f"factorise with share {self.share} and rank {self.rank}",
                allowed="either a share between 0 and 1, or a rank of 1 or more",
            )
        if self.multiple < BLOCK or self.multiple % BLOCK:
            raise UsageError(
                f"ranks in multiples of {self.multiple}", allowed=f"multiples of {BLOCK}"
            )
        check_ridge(self.ridge)

    @property
    def label(self) -> str:
        """The share or rank, and of what."""
        size = f"rank {self.rank}" if self.rank else f"{self.share:.0%} less by low rank"
        return f"{size} of {', '.join(self.matrices)}" if self.matrices else size

    def why_unfit(self, model: Model) -> str | None:
        """An encoder, a name of no product, or nothing to save."""
        if (reason := why_no_decoder(model.config)) is not None:
            return reason
        if model.config.factored:
            return "the model has products of low rank already"
        known = {_last(op) for op in _layer_products(model.config)}
        if unknown := sorted(set(self.matrices) - known):
            return f"no product is called {unknown[0]!r}; there are {', '.join(sorted(known))}"
        if not self._ranks(model.config):
            return "no product would become smaller"
        return None

    def predict(self, model: Model) -> Prediction:
        """The factors are smaller than the products."""
        return predict_shapes(model, _factored(model.config, self._ranks(model.config)))

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model with factors."""
        if (reason := self.why_unfit(model)) is not None:
            raise UsageError(reason)
        return factorise(model, self._ranks(model.config), workshop, ridge=self.ridge)

    def _ranks(self, config: ModelConfig) -> dict[str, int]:
        """The rank of each module that is factored."""
        ranks = {}
        for op in _layer_products(config):
            if self.matrices and _last(op) not in self.matrices:
                continue
            rows, columns = op.rows[0], op.columns
            least = rows * columns / (rows + columns)
            nearest = round((1 - self.share) * least / self.multiple) * self.multiple
            rank = self.rank or max(self.multiple, nearest)
            if rank < least:
                ranks[_module(op)] = rank
        return ranks


PASS = Factorise


def factorise(model: Model, ranks: Mapping[str, int], workshop: Workshop, *, ridge: float) -> Model:
    """The model with some products factored, one after another.

    So that each is fitted to the inputs that those before it, factored, give it.

    Args:
        model: A decoder.
        ranks: The rank of each module to factor.
        workshop: Gives the text.
        ridge: See `damped`.

    Raises:
        UnsupportedModelError: The model computes values that are not finite.
    """
    weights: dict[str, StoredTensor] = dict(model.weights)
    grams: dict[str, NDArray[np.float64]] = {}
    done = 0

    def look(executor: ReferenceExecutor, op: Op, values: Mapping[str, Array]) -> None:
        nonlocal done
        if not isinstance(op, Linear) or (module := _module(op)) not in ranks:
            return
        workshop.progress(module, done / len(ranks))
        done += 1
        if op.source not in grams:  # several products may read a value
            grams.clear()
            grams[op.source] = damped(gram_of(values[op.source]), ridge)
        name = op.weights[0]
        down, up = low_rank(executor.weight(name), grams[op.source], ranks[module])
        executor.replace_weight(name, up @ down)
        del weights[name]
        for part, factor in (("down", down), ("up", up)):
            new = f"{module}.{part}.weight"
            weights[new] = DenseTensor(new, "F32", factor)

    calibrate(model, workshop.calibration, look)
    workshop.progress(f"{len(ranks)} products factored", 1.0)
    return model.derive(weights, _factored(model.config, ranks))


def low_rank(matrix: Array, gram: NDArray[np.float64], rank: int) -> tuple[Array, Array]:
    """The factors whose product is nearest to a matrix, as the inputs see it.

    Args:
        matrix: float32 W [rows, columns].
        gram: float64 X^T X [columns, columns] of the inputs X, positive definite.
        rank: At most the lesser of rows and columns.

    Returns:
        down, float32 [rank, columns], and up, float32 [rows, rank], which minimise
        |X W^T - X (up down)^T|^2.
    """
    wide = matrix.astype(np.float64)
    # With S S^T = gram and the singular values of W S: the truncated U U^T W S, or W S V V^T.
    if len(wide) <= wide.shape[1]:
        _, vectors = np.linalg.eigh(wide @ gram @ wide.T)
        up = vectors[:, ::-1][:, :rank]
        down = up.T @ wide
    else:
        root = np.linalg.cholesky(gram)
        spread = wide @ root
        _, vectors = np.linalg.eigh(spread.T @ spread)
        first = vectors[:, ::-1][:, :rank]
        up, down = spread @ first, np.linalg.solve(root.T, first).T
    return (
        np.ascontiguousarray(down, dtype=np.float32),
        np.ascontiguousarray(up, dtype=np.float32),
    )


def _layer_products(config: ModelConfig) -> list[Linear]:
    ops = [op for op in architectures.build(config).ops if isinstance(op, Linear)]
    return [op for op in ops if layer_of(op.weights[0]) is not None]


def _module(op: Linear) -> str:
    return op.weights[0].removesuffix(".weight")


def _last(op: Linear) -> str:
    return _module(op).rpartition(".")[2]


def _factored(config: ModelConfig, ranks: Mapping[str, int]) -> ModelConfig:
    return replace(config, factored=tuple(ranks.items()))
