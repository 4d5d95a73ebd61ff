"""How a student learns from a teacher: the parameters of distillation, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Literal

from hasten.errors import UsageError

__all__ = ["DistillSettings"]


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """Parameters of distillation.

    The loss of a token is (1 - cross_entropy) * temperature^2 * KL(teacher || student), both
    softened by the temperature (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), plus
    cross_entropy * -ln p(next token), plus hidden * the relative square error of hidden states.

    Attributes:
        steps: Updates of the weights.
        learning_rate: The highest of the schedule: a linear rise over `warmup`, then half a cosine
            down to a tenth (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983).
        batch: Windows of one pass forward and back.
        accumulate: Such passes of one update.
        length: Tokens of a window; 0 for 256, or the longest that the text has if that is less.
        warmup: Share of the steps.
        temperature: Divides the logits of both.
        cross_entropy: Share of the text's own next tokens in the loss, 0 to 1.
        hidden: Weight of the hidden states after each layer; 0 leaves them out.
        layers: The teacher's layer that each of the student's layers stands for; empty finds them.
        weight_decay: Of matrices (AdamW, Loshchilov and Hutter 2019,
            https://arxiv.org/abs/1711.05101).
        clip: Gradients with a larger norm are scaled down to it.
        train: Patterns of names, as of files; a weight that fits none stays as it is. A text is
            split at its spaces.
        precision: Of the products: "bf16" is faster where the processor multiplies it; weights and
            sums stay float32.
        result: Format of the tensors that were trained.
        held_out: Share of the windows that only measure; the best weights by them are the result.
        check_every: Steps between two such measurements.
        written: Tokens that the teacher writes on from the text, to learn from as well.

    Raises:
        UsageError: A value is out of range.
    """

    steps: int = 100
    learning_rate: float = 3e-4
    batch: int = 4
    accumulate: int = 1
    length: int = 0
    warmup: float = 0.1
    temperature: float = 1.0
    cross_entropy: float = 0.0
    hidden: float = 0.0
    layers: tuple[int, ...] = ()
    weight_decay: float = 0.0
    clip: float = 1.0
    train: tuple[str, ...] | str = ("*",)
    precision: Literal["f32", "bf16"] = "f32"
    result: Literal["f32", "bf16"] = "f32"
    held_out: float = 0.05
    check_every: int = 25
    written: int = 0

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "steps": (1, 10**8),
            "learning_rate": (1e-9, 1.0),
            "batch": (1, 4096),
            "accumulate": (1, 4096),
            "length": (0, 1 << 20),
            "warmup": (0.0, 1.0),
            "temperature": (0.01, 100.0),
            "cross_entropy": (0.0, 1.0),
            "hidden": (0.0, 1e6),
            "weight_decay": (0.0, 1.0),
            "clip": (1e-6, 1e6),
            "held_out": (0.001, 0.5),
            "check_every": (1, 10**8),
            "written": (0, 10**9),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            whole = isinstance(low, int) and isinstance(high, int)
            if (whole and type(value) is not int) or not low <= value <= high:  # also of NaN
                raise UsageError(
                    f"distillation with {name} {value}", allowed=f"{low:g} to {high:g}"
                )
        if self.length == 1:
            raise UsageError("distillation with length 1", allowed="2 or more tokens; 0 chooses")
        for name in ("precision", "result"):
            if getattr(self, name) not in ("f32", "bf16"):
                raise UsageError(
                    f"distillation with {name} {getattr(self, name)!r}", allowed="f32, bf16"
                )

    @property
    def changes(self) -> str:
        """The settings that are not the defaults, in a few words."""
        values = ((one, getattr(self, one.name)) for one in fields(DistillSettings))
        return ", ".join(f"{one.name} {value}" for one, value in values if value != one.default)

    def trains(self, name: str) -> bool:
        """Whether a weight of this name changes."""
        patterns = self.train.split() if isinstance(self.train, str) else self.train
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        fallen = (step - rising) / max(1, self.steps - rising)
        return self.learning_rate * (0.1 + 0.9 * (1 + math.cos(math.pi * fallen)) / 2)
