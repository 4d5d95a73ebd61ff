"""What the parameters of a created model set for the clients of other protocols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from hasten.serve.protocols.ollama.options import read_options, read_sampling
from hasten.types import SamplingParams

__all__ = ["fill_sampling"]

_OPTIONS = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"} | {
    name: name
    for name in (
        *("temperature", "top_k", "top_p", "min_p", "seed", "stop"),
        *("presence_penalty", "frequency_penalty"),
    )
}
"""What options set in `SamplingParams`."""

_FIELDS = {
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "stop_sequences": "stop",
}
"""What fields of requests set there, where the names differ."""


def fill_sampling(
    sampling: SamplingParams, request: msgspec.Struct, overrides: Mapping[str, Any]
) -> SamplingParams:
    """Sets what a model was made with, where the client does not say.

    Args:
        sampling: What the request comes to, with the protocol's defaults.
        request: The client's; what is None in it was not said.
        overrides: As in `ModelInfo`.
    """
    if "parameters" not in overrides:
        return sampling
    options, _ = read_options(overrides["parameters"], place="parameters")
    own = read_sampling(options, None, None)
    said = {name for name in request.__struct_fields__ if getattr(request, name) is not None}
    said |= {_FIELDS[name] for name in said & _FIELDS.keys()}
    unsaid = {
        field: getattr(own, field)
        for name, field in _OPTIONS.items()
        if getattr(options, name) is not None and field not in said
    }
    return replace(sampling, **unsaid)
