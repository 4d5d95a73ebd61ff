"""One way in for every kind of model file."""

from __future__ import annotations

from pathlib import Path

from hasten.models.artefact import is_artefact, load_artefact
from hasten.models.gguf_model import load_gguf
from hasten.models.huggingface import CONFIG_FILE, load_huggingface
from hasten.models.json_file import read_json_object
from hasten.models.model import Model
from hasten.models.source import find_model

__all__ = ["load_model"]


def load_model(model: str | Path) -> Model:
    """Loads configuration and weight directory of a model; the weights stay in their files.

    Args:
        model: "smollm2" or "minilm", the path of a Hugging Face directory, a .gguf file or an
            artefact, or "org/name" on the Hugging Face Hub.

    Raises:
        ModelFileError: A file is missing, truncated, or contradicts itself.
        UnsupportedModelError: A family, encoding or variant that Hasten does not run.
        MissingDependencyError: A package is needed to find it.
        UsageError: The path holds several models.
    """
    name, path = find_model(model)
    if path.is_file():
        return load_gguf(path, name)
    if is_artefact(read_json_object(path / CONFIG_FILE)):
        return load_artefact(path, name)
    return load_huggingface(path, name)
