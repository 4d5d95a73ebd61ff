"""The files of a model in every form that an engine reads; each is made once and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from peers_environment import find_python
from peers_process import PeerError, PeerProcess
from shapes import SHAPES, write_gguf, write_huggingface

from hasten.models import Model, load_model
from hasten.models.config_json import to_huggingface

__all__ = ["Files"]


class Files:
    """Where the forms of one model lie.

    Args:
        name: "smollm2", or one of `shapes.SHAPES`.
        folder: Where files are made.
        pythons: Interpreters that may have peers installed.
        artefact: What `hasten optimize` made of the model, if anything.
    """

    def __init__(
        self, name: str, folder: Path, pythons: Sequence[Path], artefact: Path | None
    ) -> None:
        self._name = name
        self._folder = folder
        self._pythons = pythons
        self._artefact = artefact
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, form: str) -> Path:
        """The model in a form, made now if it is not there.

        Args:
            form: "carried", "artefact", "directory" (Hugging Face), "onnx-PRECISION", or an
                encoding of GGUF files.

        Raises:
            PeerError: It cannot be made.
        """
        if form == "artefact":
            if self._artefact is None:
                raise PeerError("no artefact was given")
            return self._artefact
        if form == "carried":
            return load_model(self._name).path
        if form == "directory":
            return self._directory()
        if form.startswith("onnx-"):
            return self._onnx(form)
        return self._gguf(form)

    def _directory(self) -> Path:
        directory = self._folder / self._name
        if not (directory / "config.json").exists():
            if self._name in SHAPES:
                write_huggingface(directory, SHAPES[self._name])
            else:
                _write_float32(load_model(self._name), directory)
        return directory

    def _gguf(self, encoding: str) -> Path:
        target = self._folder / f"{self._name}.{encoding}.gguf"
        if not target.exists():
            if self._name in SHAPES:
                write_gguf(self._directory(), target, encoding)
            else:
                source = str(self.path("carried"))
                self._call("llama_cpp", "quantize", source=source, target=target, form=encoding)
        return target

    def _onnx(self, form: str) -> Path:
        target = self._folder / f"{self._name}.{form}"
        if not target.exists():
            precision = form.removeprefix("onnx-")
            source = str(self._directory())
            self._call("onnxruntime", "build", source=source, target=target, precision=precision)
        return target

    def _call(self, kind: str, call: str, *, target: Path, **arguments: str) -> None:
        process = PeerProcess(kind, find_python(kind, self._pythons))
        try:
            process.call(call, target=str(target), **arguments)
        finally:
            process.close()


def _write_float32(model: Model, directory: Path) -> None:
    """Writes the dequantised weights and the tokenizer as a Hugging Face directory."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to_float32() for name, tensor in model.weights.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    model.text.save(directory)
    config = json.dumps(to_huggingface(model.config))
    (directory / "config.json").write_text(config, encoding="utf-8")
