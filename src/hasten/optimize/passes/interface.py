"""What a pass is: one change of a model, made by itself or after others.

A pass is a frozen dataclass whose fields (JSON values, tuples for lists) are its parameters. Its
module has its name and says `PASS = <the class>`, where `hasten.optimize.passes.make_pass` looks.
The search knows passes by this interface alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from hasten.measure.corpus import Windows
from hasten.models import Model

__all__ = ["Need", "Pass", "Prediction", "Workshop", "parameters_of"]

Need = Literal["calibration", "training"]
Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a pass promises before it runs, as shares of what the model it is given has.

    Attributes:
        weight_bytes: Bytes of the matrices that a decoded token reads.
        operations: Multiply-adds of a token.
    """

    weight_bytes: float = 1.0
    operations: float = 1.0


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a pass may use while it is applied.

    Attributes:
        original: The model before any pass, for passes that learn from it.
        calibration: Text; never what the proof is measured on.
        directory: Where a long pass keeps how far it came, so that it goes on from there.
        progress: Told what is being done, and the share of the pass that is done.
        seed: Of what a pass draws.
        training_text: Much more text, for passes that train; None: only `calibration`.
    """

    original: Model
    calibration: Windows
    directory: Path
    progress: Callable[[str, float], None]
    seed: int = 0
    training_text: Windows | None = None

    @property
    def training(self) -> Windows:
        """Text to train on."""
        return self.training_text or self.calibration


class Pass(Protocol[Subject]):
    """One change of a model (`Subject`: a `Model`, or what other rooms optimise).

    Attributes:
        name: As in recipes, and of the module.
        needs: The text that it cannot do without: "calibration", or much more ("training").
        label: A few words with its parameters, for tables.
        exact: It says that the changed model computes what the model did, but for the order in
            which floats are added: the search holds it to that. Else it is held to the budget.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]

    @property
    def label(self) -> str:
        """See the class."""
        ...

    @property
    def exact(self) -> bool:
        """See the class."""
        ...

    def why_unfit(self, model: Subject) -> str | None:
        """Why it cannot change this model, or None."""
        ...

    def predict(self, model: Subject) -> Prediction:
        """What it saves, from shapes alone."""
        ...

    def apply(self, model: Subject, workshop: Workshop) -> Subject:
        """The changed model; the same bits each time for the same model, workshop and parameters.

        Raises:
            HastenError: It cannot be done; says why.
            KeyboardInterrupt: Ctrl-C; what is done is kept in the workshop's directory.
        """
        ...


def parameters_of(step: Pass[Any]) -> Mapping[str, object]:
    """As in recipes: the name of the pass and its fields, JSON-ready."""
    values = {field.name: getattr(step, field.name) for field in fields(step)}  # type: ignore[arg-type]
    return {"pass": step.name, **values}
