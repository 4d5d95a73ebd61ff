"""How a request wants its output chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec

from hasten.generation.bounds import MAX_STRUCTURE_CHARACTERS
from hasten.serve.jobs import MAX_OUTPUT
from hasten.serve.protocols.openai.schema import (
    Generating,
    ResponseFormat,
    SamplingRequest,
    StructuredOutputs,
)
from hasten.serve.protocols.reading import FieldError
from hasten.types import SamplingParams, Structure

__all__ = ["base_sampling", "format_structure", "full_sampling"]

_ANY_OBJECT = Structure("json_schema", '{"type": "object"}')


def base_sampling(
    request: Generating,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    structure: Structure | None,
) -> SamplingParams:
    """What every request may say about sampling.

    Args:
        request: What was asked.
        max_tokens: Upper limit of the output; None sets none.
        logprobs: As in `SamplingParams`.
        structure: From the fields of the endpoint.

    Raises:
        FieldError: Structures contradict each other, or one is too large.
    """
    return SamplingParams(
        max_tokens=MAX_OUTPUT if max_tokens is None else min(max_tokens, MAX_OUTPUT),
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=max(request.top_k or 0, 0),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=request.repetition_penalty or 1.0,
        ignore_eos=bool(request.ignore_eos),
        stop_tokens=tuple(request.stop_token_ids or ()),
        logprobs=logprobs,
        structure=_one_of(
            [structure, _structured_outputs(request.structured_outputs, "structured_outputs.")]
        ),
    )


def full_sampling(
    request: SamplingRequest, *, max_tokens: int | None, logprobs: int | None
) -> SamplingParams:
    """What chat completions and completions may say about sampling.

    Raises:
        FieldError: As for `base_sampling`.
    """
    guided = StructuredOutputs(
        request.guided_json, request.guided_regex, request.guided_choice, request.guided_grammar
    )
    structure = _one_of(
        [
            format_structure(request.response_format),
            _structured_outputs(guided, "guided_"),
        ]
    )
    base = base_sampling(request, max_tokens=max_tokens, logprobs=logprobs, structure=structure)
    return replace(
        base,
        n=request.n or 1,
        seed=_seed(request.seed),
        stop=(request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ()),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=request.logit_bias or {},
    )


def format_structure(
    asked: ResponseFormat | None, field: str = "response_format"
) -> Structure | None:
    """What `response_format` demands; None for free text.

    Raises:
        FieldError: The schema is missing, or too large.
    """
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return _ANY_OBJECT
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        raise FieldError(f"{field}.json_schema.schema", "it is missing", allowed="a JSON schema")
    return _schema(asked.json_schema.schema_, f"{field}.json_schema.schema")


def _structured_outputs(asked: StructuredOutputs | None, field: str) -> Structure | None:
    if asked is None:
        return None
    return _one_of(
        [
            None if asked.json is None else _schema(asked.json, f"{field}json"),
            None if asked.regex is None else Structure("regex", asked.regex),
            None if asked.choice is None else _choice(asked.choice, f"{field}choice"),
            None if asked.grammar is None else Structure("grammar", asked.grammar),
            _ANY_OBJECT if asked.json_object else None,
        ]
    )


def _one_of(asked: list[Structure | None]) -> Structure | None:
    structures = [structure for structure in asked if structure is not None]
    if len(structures) > 1:
        kinds = ", ".join(structure.kind for structure in structures)
        raise FieldError("", f"several structures for one output: {kinds}", allowed="one")
    return structures[0] if structures else None


def _schema(asked: str | bool | dict[str, Any], field: str) -> Structure:
    text = asked if isinstance(asked, str) else msgspec.json.encode(asked).decode()
    return _bounded(Structure("json_schema", text), field)


def _choice(texts: list[str], field: str) -> Structure:
    # Strings of llguidance's grammars are those of JSON.
    rule = " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    return _bounded(Structure("grammar", f"start: {rule}"), field)


def _bounded(structure: Structure, field: str) -> Structure:
    if len(structure.text) > MAX_STRUCTURE_CHARACTERS:
        raise FieldError(
            field,
            f"it has {len(structure.text)} characters",
            allowed=f"up to {MAX_STRUCTURE_CHARACTERS}",
        )
    return structure


def _seed(asked: int | None) -> int | None:
    """OpenAI's seeds have a sign, and -1 is none for many clients."""
    return None if asked in (None, -1) else asked % (1 << 64)
