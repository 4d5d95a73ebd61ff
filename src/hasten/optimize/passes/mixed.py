"""Mixed precision: bytes go where rounding would cost most, in as many bytes as one may choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hasten.errors import UsageError
from hasten.generation.formats import MatrixFormat, keeps_values, parse_format, quantize_as
from hasten.generation.torch_extra import require_torch
from hasten.models import Model
from hasten.models.weights import QuantizedTensor
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.optimize.quantization.allocation import Choice, allocate
from hasten.optimize.quantization.gptq import check_damping, products_by_input, round_in_turn
from hasten.optimize.quantization.integer_weights import (
    check_vocabulary,
    inner_products,
    integer_format,
    padded_columns,
    read_bytes,
    rounded_vocabulary,
    vocabulary_formats,
)
from hasten.optimize.quantization.shelf import Shelf, fingerprint

__all__ = ["PASS", "MixedPrecision"]

Groups = Mapping[tuple[str, ...], Sequence[MatrixFormat]]
"""Matrices that read the same value, and the formats they may have, the smallest first."""

_MEASURING = 0.4
"""Share of the time that goes into finding what formats cost."""


@dataclass(frozen=True, slots=True)
class MixedPrecision:
    """Chooses a format for each matrix inside the layers by what it costs, and rounds by GPTQ.

    Matrices that read the same value (queries, keys and values; gate and up) have one format, so
    that they still run as one product. Codes that a file holds in the format chosen stay.

    Attributes:
        bits: Most bits a weight inside the layers, scales and minimums counted, on average.
        formats: To choose among, "int8:G" or "int4:G" (with minimum); those whose groups do not
            divide a matrix are left out for that one.
        vocabulary: Format of the embedding and the output projection: "carried" leaves them, else
            they are rounded to nearest.
        damping: As for GPTQ.

    Raises:
        ValueError: A parameter is out of range.
    """

    bits: float = 4.5
    formats: tuple[str, ...] = ("int8:64", "int4:32", "int4:64", "int4:128", "int4:192")
    vocabulary: str = "int8:32"
    damping: float = 0.5

    name: ClassVar[str] = "mixed"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})
    exact: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 4 < self.bits <= 9:
            raise ValueError(f"bits is {self.bits}; allowed: more than 4, at most 9")
        if not self.formats or not all(map(_is_grouped, self.formats)):
            raise ValueError(f"formats is {self.formats!r}; allowed: a list of int8:G, int4:G")
        check_vocabulary(self.vocabulary)
        check_damping(self.damping)

    @property
    def label(self) -> str:
        """A few words with its parameters, for tables."""
        return f"mixed to {self.bits:g} bits"

    def why_unfit(self, model: Model) -> str | None:
        """Why it cannot change this model, or None."""
        if model.config.encoder is not None or model.config.output != "logits":
            return f"a model of type {model.config.model_type} predicts no tokens"
        for name, form in vocabulary_formats(model, self.vocabulary).items():
            if padded_columns(model.weights[name].shape[1]) % form.group:
                return f"groups of {form.group} do not divide the columns of {name}"
        groups = self._groups(model)
        for names, forms in groups.items():
            if not forms:
                columns = model.weights[names[0]].shape[1]
                return f"no group of the formats divides the {columns} columns of {names[0]}"
        least, weights = _smallest(model, groups), _weights(model)
        if least > self.bits / 8 * weights:
            return (
                f"{self.bits:g} bits a weight are less than the smallest formats take,"
                f" {8 * least / weights:.4g}"
            )
        return None

    def predict(self, model: Model) -> Prediction:
        """What it saves, from shapes alone, if all bytes are used that it may use."""
        groups = self._groups(model)
        smallest = {name: forms[0] for names, forms in groups.items() for name in names}
        largest = sum(_bytes(model, names, forms[-1]) for names, forms in groups.items())
        more = min(largest, self._most(model)) - _smallest(model, groups)
        after = read_bytes(model, vocabulary_formats(model, self.vocabulary) | smallest)
        return Prediction(weight_bytes=(after + more) / read_bytes(model, {}))

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The model with rounded matrices.

        Raises:
            UsageError: It does not fit the model.
            MissingDependencyError: torch is not installed.
            UnsupportedModelError: The model computes NaN or infinite values on the text.
        """
        reason = self.why_unfit(model)
        if reason is not None:
            raise UsageError(reason, do="choose other formats, or more bits")
        chosen = self._choose(model, workshop)
        changed = {
            name: form
            for name, form in chosen.items()
            if not keeps_values(model.weights[name], form)
        }
        rest = replace(
            workshop,
            progress=lambda what, done: workshop.progress(
                what, _MEASURING + done * (1 - _MEASURING)
            ),
        )
        rounded = round_in_turn(model, changed, rest, damping=self.damping, order=True)
        vocabulary = rounded_vocabulary(model, self.vocabulary)
        return model.derive({**model.weights, **vocabulary, **rounded})

    def _choose(self, model: Model, workshop: Workshop) -> dict[str, MatrixFormat]:
        """The format of each matrix."""
        groups = self._groups(model)
        losses = self._losses(model, groups, workshop)
        choices = [
            [
                Choice(form, _bytes(model, names, form), float(sum(losses[n][i] for n in names)))
                for i, form in enumerate(forms)
            ]
            for names, forms in groups.items()
        ]
        found = allocate(choices, self._most(model))
        return {n: one.form for names, one in zip(groups, found, strict=True) for n in names}

    def _losses(
        self, model: Model, groups: Groups, workshop: Workshop
    ) -> Mapping[str, NDArray[np.float64]]:
        """What each format costs each matrix when it is rounded to nearest."""
        key = {"losses of": self.formats, "seed": workshop.seed}
        shelf = Shelf(workshop.directory, fingerprint(model, workshop.calibration, key))
        kept = shelf.take("losses")
        if kept is not None:
            return kept
        require_torch("measuring what formats cost")
        from hasten.optimize.quantization.fisher import rounding_losses

        rounded = {
            name: [QuantizedTensor(name, quantize_as(model.weights[name], form)) for form in forms]
            for names, forms in groups.items()
            for name in names
        }
        losses = rounding_losses(
            model,
            workshop.calibration,
            rounded,
            lambda done: workshop.progress("what formats cost", done * _MEASURING),
            seed=workshop.seed,
        )
        found = {name: np.array(one) for name, one in losses.items()}
        shelf.put("losses", found)
        return found

    def _groups(self, model: Model) -> Groups:
        products = products_by_input(model.config, inner_products(model.config))
        return {tuple(names): self._forms(model, names) for names in products.values()}

    def _forms(self, model: Model, names: Sequence[str]) -> list[MatrixFormat]:
        """Formats for matrices with the same inputs, up to one that loses nothing."""
        tensors = [model.weights[name] for name in names]
        columns = tensors[0].shape[1]
        forms = [integer_format(one, columns) for one in dict.fromkeys(self.formats)]
        fit = [form for form in forms if padded_columns(columns) % form.group == 0]
        fit.sort(key=lambda form: form.nbytes(tensors[0].shape))
        exact = [all(keeps_values(one, form) for one in tensors) for form in fit]
        return fit[: exact.index(True) + 1] if any(exact) else fit

    def _most(self, model: Model) -> int:
        """Bytes that the matrices inside the layers may have."""
        return int(self.bits / 8 * _weights(model))


def _is_grouped(form: str) -> bool:
    try:
        kind, group = parse_format(form)
    except UsageError:
        return False
    return kind in ("int8", "int4") and group is not None


def _bytes(model: Model, names: Sequence[str], form: MatrixFormat) -> int:
    return sum(form.nbytes(model.weights[name].shape) for name in names)


def _smallest(model: Model, groups: Groups) -> int:
    return sum(_bytes(model, names, forms[0]) for names, forms in groups.items())


def _weights(model: Model) -> int:
    """Weights inside the layers, with what rows are padded by."""
    shapes = [model.weights[name].shape for name in inner_products(model.config)]
    return sum(rows * padded_columns(columns) for rows, columns in shapes)


PASS = MixedPrecision
