"""What passes that turn weights into integer codes have in common: which matrices, what format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from hasten.errors import UsageError
from hasten.generation.formats import MatrixFormat, choose_formats, parse_format, quantize_as
from hasten.kernels.quantization import BLOCK
from hasten.models import Model, architectures
from hasten.models.config import ModelConfig
from hasten.models.ops import Embed, Linear
from hasten.models.weights import QuantizedTensor, StoredTensor
from hasten.optimize.passes.interface import Need, Prediction, Workshop
from hasten.types import EngineOptions

__all__ = [
    "IntegerWeights",
    "check_vocabulary",
    "inner_products",
    "integer_format",
    "padded_columns",
    "predict_bytes",
    "read_bytes",
    "rounded_vocabulary",
    "vocabulary_formats",
    "vocabulary_weights",
]


@dataclass(frozen=True, slots=True)
class IntegerWeights(ABC):
    """A pass that makes weights integers: parameters and predictions that all of them have.

    Attributes:
        bits: 4 or 8.
        group: Columns that share a scale; a multiple of 32 that divides the padded columns.
        symmetric: Codes of 4 bits count from the middle, not from a minimum of each group; those
            of 8 bits always do.
        matrices: Full names of the matrices to change; empty for all products but the one with the
            vocabulary. The other products stay as they are.
        vocabulary: Format of the embedding and the output projection: "carried" leaves them, else
            they are rounded to nearest.

    Raises:
        ValueError: A parameter is out of range.
    """

    bits: int = 4
    group: int = 64
    symmetric: bool = False
    matrices: tuple[str, ...] = ()
    vocabulary: str = "int8:32"

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"bits is {self.bits}; allowed: 4, 8")
        if self.group < BLOCK or self.group % BLOCK:
            raise ValueError(f"group is {self.group}; allowed: multiples of {BLOCK}")
        check_vocabulary(self.vocabulary)

    @property
    @abstractmethod
    def label(self) -> str:
        """A few words with its parameters, for tables."""

    @abstractmethod
    def apply(self, model: Model, workshop: Workshop) -> Model:
        """The changed model: see `Pass.apply`."""

    @property
    def extent(self) -> str:
        """For labels: how many matrices, where not all."""
        return f" in {len(self.matrices)} matrices" if self.matrices else ""

    @property
    def form(self) -> MatrixFormat:
        """The format of the matrices that change."""
        minimum = self.bits == 4 and not self.symmetric
        return MatrixFormat("int4" if self.bits == 4 else "int8", self.group, minimum)

    def chosen(self, model: Model) -> list[str]:
        """Names of the matrices that change, in the order in which they run."""
        names = inner_products(model.config)
        return [name for name in names if not self.matrices or name in self.matrices]

    def why_unfit(self, model: Model) -> str | None:
        """Why it cannot change this model, or None."""
        names = inner_products(model.config)
        for name in self.matrices:
            if name not in names:
                return f"{name!r} is no product of this model inside its layers"
        forms = self.formats(model) | dict.fromkeys(self.chosen(model), self.form)
        for name, form in forms.items():
            columns = model.weights[name].shape[1]
            if padded_columns(columns) % form.group:
                return f"groups of {form.group} do not divide the {columns} columns of {name}"
        return None

    def formats(self, model: Model) -> dict[str, MatrixFormat]:
        """The formats of the matrices that change."""
        return vocabulary_formats(model, self.vocabulary) | dict.fromkeys(
            self.chosen(model), self.form
        )

    def predict(self, model: Model) -> Prediction:
        """What it saves, from shapes alone."""
        return predict_bytes(model, self.formats(model))

    def check_fit(self, model: Model) -> None:
        """Refuses a model that it cannot change.

        Raises:
            UsageError: Says why.
        """
        reason = self.why_unfit(model)
        if reason is not None:
            raise UsageError(reason, do="choose another group, other matrices or another pass")


def inner_products(config: ModelConfig) -> list[str]:
    """Names of the matrices that are multiplied with, less those of the vocabulary, in order."""
    outer = vocabulary_weights(config)
    products = [op for op in architectures.build(config).ops if isinstance(op, Linear)]
    names = dict.fromkeys(name for op in products for name in op.weights)
    return [name for name in names if name not in outer]


def vocabulary_weights(config: ModelConfig) -> list[str]:
    """Names of the matrices with a row a token: the embedding, and the one that yields logits."""
    ops = architectures.build(config).ops
    names = {op.weight: None for op in ops if isinstance(op, Embed)}
    if config.output == "logits":
        last = [op for op in ops if isinstance(op, Linear)][-1]
        names.update(dict.fromkeys(last.weights))
    return list(names)


def check_vocabulary(vocabulary: str) -> None:
    """Refuses what is no format for the matrices with the vocabulary.

    Raises:
        ValueError: Says what is allowed.
    """
    if vocabulary != "carried" and not vocabulary.startswith("int"):
        raise ValueError(f"vocabulary is {vocabulary!r}; allowed: carried, int8:G, int4:G")
    try:
        parse_format(vocabulary)
    except UsageError as error:
        raise ValueError(f"vocabulary: {error}") from error


def integer_format(name: str, columns: int) -> MatrixFormat:
    """The format "int8:G" or "int4:G" of a matrix; four bits count from a minimum."""
    return MatrixFormat.from_name(f"{name}+min" if name.startswith("int4") else name, columns)


def vocabulary_formats(model: Model, vocabulary: str) -> dict[str, MatrixFormat]:
    """The formats of the embedding and the output projection, where they change."""
    if vocabulary == "carried":
        return {}
    return {
        name: integer_format(vocabulary, model.weights[name].shape[1])
        for name in vocabulary_weights(model.config)
    }


def rounded_vocabulary(model: Model, vocabulary: str) -> dict[str, StoredTensor]:
    """The embedding and the output projection in their new format."""
    return {
        name: QuantizedTensor(name, quantize_as(model.weights[name], form))
        for name, form in vocabulary_formats(model, vocabulary).items()
    }


def predict_bytes(model: Model, formats: Mapping[str, MatrixFormat]) -> Prediction:
    """What a change of some formats saves of the bytes that a decoded token reads.

    Args:
        model: Before the change, as it runs when its matrices stay as they are stored.
        formats: Of matrices that change.
    """
    return Prediction(weight_bytes=read_bytes(model, formats) / read_bytes(model, {}))


def read_bytes(model: Model, formats: Mapping[str, MatrixFormat]) -> int:
    """Bytes of the matrices that a decoded token reads; those without a format as stored."""
    products = [op for op in architectures.build(model.config).ops if isinstance(op, Linear)]
    names = dict.fromkeys(name for op in products for name in op.weights)
    before = choose_formats(model.weights, names, EngineOptions(weights="carried"))
    return sum(
        formats.get(name, form).nbytes(model.weights[name].shape) for name, form in before.items()
    )


def padded_columns(columns: int) -> int:
    """Columns of the codes of a matrix: a multiple of 32."""
    return -(-columns // BLOCK) * BLOCK
