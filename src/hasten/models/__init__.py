"""Model files: what they hold becomes configuration, weights, tokenizer and chat template."""

from hasten.models.loading import load_model
from hasten.models.model import Model

__all__ = ["Model", "load_model"]
