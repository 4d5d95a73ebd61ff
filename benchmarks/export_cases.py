"""What `export_peers.py` compares: artefacts, their exports, and who reads them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hasten.measure.corpus import cut_windows, default_corpus
from hasten.models import Model, load_model
from hasten.models.artefact import load_artefact, write_artefact
from hasten.models.export.directory import export_directory
from hasten.models.export.gguf import export_gguf
from hasten.optimize.candidates import Candidate
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.quantize import QuantizeWeights
from hasten.optimize.variants import Variants

__all__ = ["ARTEFACTS", "CASES", "Case", "Files"]

_CONTEXT, _CALIBRATION_TOKENS = 512, 4096
_GPTQ = {"pass": "gptq", "bits": 4, "symmetric": True}
ARTEFACTS: Mapping[str, Mapping[str, Any] | str] = {
    "carried": "carried",
    "int8": "int8",
    "int8:32": {"pass": "round", "bits": 8, "group": 32},
    "int4:32": {**_GPTQ, "group": 32},
    "int4:64": {**_GPTQ, "group": 64},
}
"""By name, the weight format or the pass that makes it; all 4-bit codes but the carried ones are
symmetric."""


@dataclass(frozen=True, slots=True)
class Case:
    """An export, and how a peer is to read it.

    Attributes:
        artefact: Of `ARTEFACTS`.
        form: What is written.
        peer: Kind of worker.
        export: Arguments of the export.
        settings: Of the peer.
    """

    artefact: str
    form: Literal["gguf", "compressed-tensors", "safetensors"]
    peer: Literal["vllm", "llama_cpp", "transformers"]
    export: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Name of what is written."""
        words = [self.artefact, self.form, *(f"{key}={self.export[key]}" for key in self.export)]
        return "-".join(words).replace(":", "-") + (".gguf" if self.form == "gguf" else "")

    @property
    def name(self) -> str:
        """As in tables."""
        words = [f"{key} {value}" for key, value in (*self.export.items(), *self.settings.items())]
        return ", ".join([f"{self.artefact} as {self.form} in {self.peer}", *words])


_F32 = {"dtype": "float32"}
_BF16 = {"dtype": "bfloat16"}
_PACKED: Literal["compressed-tensors"] = "compressed-tensors"
CASES = (
    *(Case(name, "gguf", "llama_cpp") for name in ("carried", "int8:32", "int4:32", "int4:64")),
    Case("int8:32", "safetensors", "vllm", settings=_F32),
    Case("int4:32", "safetensors", "vllm", settings=_F32),
    Case("int8", _PACKED, "vllm", {"activations": True}, _F32),
    Case("int8", _PACKED, "vllm", settings=_F32),
    Case("int8:32", _PACKED, "vllm", settings=_F32),
    Case("int4:32", _PACKED, "vllm", settings=_F32),
    # vLLM's own 4-bit kernel: its build for AVX-512 has it, for bfloat16.
    Case("int4:32", _PACKED, "vllm", settings=_BF16),
    Case("int4:64", _PACKED, "vllm", settings=_BF16),
    Case("carried", _PACKED, "vllm", {"lossy": True}, _BF16),
    # The same with the product that vLLM's build for AVX2 lacks.
    Case("int4:32", _PACKED, "vllm", settings={**_F32, "product": "torch"}),
    Case("int4:64", _PACKED, "vllm", settings={**_F32, "product": "torch"}),
    Case("carried", _PACKED, "vllm", {"lossy": True}, {**_F32, "product": "torch"}),
    *(
        Case(one, _PACKED, "transformers", settings=_F32)
        for one in ("int8:32", "int4:32", "int4:64")
    ),
    Case("int8", _PACKED, "transformers", {"activations": True}, _F32),
)


class Files:
    """Artefacts and exports of one model, each made when it is first asked for and then kept.

    Args:
        model: What `load_model` takes.
        folder: Where they are kept; it belongs to this model.
    """

    def __init__(self, model: str, folder: Path) -> None:
        self._original = load_model(model)
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        first, _ = default_corpus().halves()
        calibration = cut_windows(
            first, self._original.tokenizer, tokens=_CALIBRATION_TOKENS, context=_CONTEXT
        )
        self._variants = Variants(self._original, calibration, folder / "variants", _tell, seed=0)

    def artefact(self, name: str) -> Model:
        """One of `ARTEFACTS`."""
        step = ARTEFACTS[name]
        if not isinstance(step, str):
            return self._variants.model([make_pass(step)])
        place = self._folder / name
        if not place.exists():
            weights = QuantizeWeights(Candidate(step, "f32", 1)).apply(self._original)
            write_artefact(place, self._original, weights, {})
        return load_artefact(place, name)

    def export(self, case: Case) -> Path:
        """What the peer of a case is to read.

        Raises:
            HastenError: It cannot be exported.
        """
        target = self._folder / case.file
        if not target.exists():
            model = self.artefact(case.artefact)
            if case.form == "gguf":
                export_gguf(model, target, **case.export)
            else:
                packed = case.form == "compressed-tensors"
                export_directory(model, target, quantized=packed, **case.export)
        return target


def _tell(doing: str, _: float) -> None:
    print(doing, file=sys.stderr, flush=True)
