"""Mixed precision: some layers as one pass makes them, the others as another does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hasten.errors import UsageError
from hasten.generation.formats import MatrixFormat
from hasten.models import Model
from hasten.models.weights import StoredTensor
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.optimize.quantization.integer_weights import IntegerWeights, predict_bytes
from hasten.optimize.sensitivity import parts_of

__all__ = ["PASS", "MixedPrecision", "mix_models"]

Parameters = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class MixedPrecision:
    """Takes each layer from one of two models that two passes make of the same one.

    Both passes see the whole model, so that the mixture computes what was measured when the two
    models were mixed with `mix_models`.

    Attributes:
        coarse: Parameters of the pass that makes most layers smaller, as in recipes: a mapping, or
            pairs of name and value. It must be one that makes weights integers.
        fine: Of the pass for the parts that stay finer; empty leaves them as they are.
        layers: Names of those parts, as `parts_of` has them: "layer 3", or the name of a module
            outside the layers.

    Raises:
        ValueError: The parameters are no pairs, or of no such pass.
    """

    coarse: Parameters
    fine: Parameters = ()
    layers: tuple[str, ...] = ()

    name: ClassVar[str] = "mixed"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})

    def __post_init__(self) -> None:
        for field in ("coarse", "fine"):
            object.__setattr__(self, field, _pairs(getattr(self, field)))
        if not self.coarse:
            raise ValueError("coarse is empty; allowed: the parameters of a pass")
        for parameters in filter(None, (self.coarse, self.fine)):
            _integers(parameters)

    @property
    def label(self) -> str:
        """A few words with its parameters, for tables."""
        fine = _integers(self.fine).label if self.fine else "unchanged"
        count = len(self.layers)
        return f"{_integers(self.coarse).label}, {count} part{'s' * (count != 1)} {fine}"

    def why_unfit(self, model: Model) -> str | None:
        """Why it cannot change this model, or None."""
        known = {part.name for part in parts_of(model.weights)}
        for name in self.layers:
            if name not in known:
                return f"{name!r} is no part of this model"
        steps = [_integers(one) for one in (self.coarse, self.fine) if one]
        return next(filter(None, (step.why_unfit(model) for step in steps)), None)

    def predict(self, model: Model) -> Prediction:
        """What it saves, from shapes alone."""
        kept = _tensors_of(model, self.layers)
        forms: dict[str, MatrixFormat] = {}
        for parameters, stays in ((self.coarse, False), (self.fine, True)):
            if parameters:
                changed = _integers(parameters).formats(model)
                forms |= {name: form for name, form in changed.items() if (name in kept) is stays}
        return predict_bytes(model, forms)

    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The mixture.

        Raises:
            UsageError: It does not fit the model.
            HastenError: A pass cannot be done.
        """
        reason = self.why_unfit(model)
        if reason is not None:
            raise UsageError(reason, do="choose other layers or formats")
        share = 0.5 if self.fine else 1.0
        first = replace(workshop, progress=lambda what, done: workshop.progress(what, done * share))
        second = replace(
            workshop, progress=lambda what, done: workshop.progress(what, share + done * share)
        )
        coarse = _integers(self.coarse).apply(model, first)
        fine = _integers(self.fine).apply(model, second) if self.fine else model
        return mix_models(coarse, fine, self.layers)


def mix_models(coarse: Model, fine: Model, layers: Collection[str]) -> Model:
    """The coarse model with some parts, all their tensors, from the fine one.

    Args:
        coarse: Gives the other parts.
        fine: A model of the same shape.
        layers: Names of parts (`hasten.optimize.sensitivity.parts_of` of all tensors).
    """
    kept = _tensors_of(coarse, layers)
    weights: dict[str, StoredTensor] = {
        name: fine.weights[name] if name in kept else tensor
        for name, tensor in coarse.weights.items()
    }
    return coarse.derive(weights)


def _tensors_of(model: Model, layers: Collection[str]) -> set[str]:
    parts = parts_of(model.weights)
    return {name for part in parts if part.name in layers for name in part.tensors}


def _integers(parameters: Parameters) -> IntegerWeights:
    step = make_pass(dict(parameters))
    if not isinstance(step, IntegerWeights):
        raise ValueError(f"{step.name!r} is no pass that makes weights integers")
    return step


def _pairs(values: object) -> Parameters:
    """Parameters in a form that can be hashed, whatever form JSON gave them."""
    items = values.items() if isinstance(values, Mapping) else values
    try:
        pairs = [(str(key), tuple(one) if isinstance(one, list) else one) for key, one in items]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(f"{values!r} are no parameters of a pass") from None
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


PASS = MixedPrecision
