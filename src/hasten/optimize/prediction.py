"""What a candidate will run like, from what was measured.

Decoding moves with the bytes of the weights, reading prompts with the operations: the two sides of
the roofline.
"""

from __future__ import annotations

from collections.abc import Iterable

from hasten.models import Model
from hasten.optimize.passes.interface import Pass, Prediction
from hasten.optimize.speed import Timings

__all__ = ["predict_passes", "predicted_seconds"]


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
