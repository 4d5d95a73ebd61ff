"""What a candidate will run like, from what was measured.

Decoding moves with the bytes of the weights, reading prompts with the operations: the two sides of
the roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from hasten.models import Model
from hasten.optimize.candidates import Candidate
from hasten.optimize.passes.interface import Pass, Prediction
from hasten.optimize.speed import Timings
from hasten.optimize.trial import Trial

__all__ = ["predict_passes", "predicted_seconds", "predicted_speedup"]


def predict_passes(model: Model, steps: Iterable[Pass[Model]]) -> Prediction:
    """What several passes save together, each as it says of the model before any."""
    weight_bytes = operations = 1.0
    for step in steps:
        one = step.predict(model)
        weight_bytes *= one.weight_bytes
        operations *= one.operations
    return Prediction(weight_bytes, operations)


def predicted_seconds(base: Timings, prediction: Prediction) -> float:
    """Seconds of a round after passes.

    Args:
        base: Of a candidate with the same formats and without the passes.
        prediction: What the passes save.
    """
    decoding = min(base.median("tpot") * (base.shape.output_tokens - 1), base.seconds)
    reading = base.seconds - decoding
    return reading * prediction.operations + decoding * prediction.weight_bytes


def predicted_speedup(
    candidate: Candidate, trials: Sequence[Trial], predict: Callable[[Candidate], Prediction]
) -> float | None:
    """How many times faster than the original a candidate with passes will be.

    Args:
        candidate: With its passes.
        trials: What was tried so far.
        predict: Says what the candidate's passes save.

    Returns:
        None where nothing comparable was timed.
    """
    plain = replace(candidate, steps=(), overrides=(), mixed="")
    for trial in trials:
        if trial.candidate == plain and trial.timings is not None and trial.speedup is not None:
            seconds = predicted_seconds(trial.timings, predict(candidate))
            return trial.speedup.estimate * trial.timings.seconds / seconds
    return None
