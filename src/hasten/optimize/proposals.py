"""Which passes a search tries: those that a user writes, and those that are tried by default."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hasten.errors import ModelFileError, UsageError
from hasten.models import Model
from hasten.optimize.candidates import Candidate, matrix_shapes, vocabulary_matrices
from hasten.optimize.passes import make_pass, pass_names
from hasten.optimize.passes.interface import Pass
from hasten.optimize.pruning.structure import layer_of
from hasten.optimize.quantization.integer_weights import inner_products

__all__ = ["default_passes", "parse_candidate"]

_COMMA = re.compile(r",(?![^\[]*\])")
"""Between parameters, and not inside a list."""

_CHANNELS = {"pass": "prune_channels", "share": 0.1}


def default_passes(model: Model, threads: int) -> list[Candidate]:
    """Candidates with passes that are worth a try on any decoder and take a minute or two.

    Passes that do not fit the model are left out. GPTQ goes to 4 bits in the whole model, in its
    middle layers alone, which bear it best, and with 4 bits for the vocabulary as well. A model
    that is in floating point runs in 8 bits after layers or channels were removed; of one that is
    quantised the rest stays as it is, and the products that a correction has made floats are
    rounded to 4 bits again.
    """
    products = inner_products(model.config)
    quantised = all(model.weights[name].layout() is not None for name in products)
    vocabulary = "carried" if quantised else "int8:32"
    names = vocabulary_matrices(matrix_shapes(model.weights), model.config.vocab_size)
    group = 64 if all(model.weights[name].shape[1] % 64 == 0 for name in products) else 32
    gptq = {"pass": "gptq", "bits": 4, "group": group, "vocabulary": vocabulary}
    found = [
        _candidate(threads, gptq),
        _candidate(threads, {**gptq, "matrices": _middle(products, model.config.num_layers)}),
    ]
    found.append(replace(found[0], overrides=tuple((name, "int4:32") for name in sorted(names))))
    found[-1] = replace(found[-1], mixed="carried, vocabulary int4:32")
    if quantised:
        last = [name for name in products if name.endswith("down_proj.weight")]
        again = {**gptq, "group": 32, "matrices": last}
        found += [_candidate(threads, one) for one in _layers(model.config.num_layers)]
        found.append(_candidate(threads, _CHANNELS, again))
    else:
        removed = [*_layers(model.config.num_layers), _CHANNELS]
        found += [replace(_candidate(threads, one), weights="int8:32") for one in removed]
    return [one for one in found if one.steps[0].why_unfit(model) is None]


def _candidate(threads: int, *parameters: Mapping[str, Any]) -> Candidate:
    return Candidate("carried", "bf16", threads, steps=tuple(map(make_pass, parameters)))


def _layers(count: int) -> list[Mapping[str, Any]]:
    """Without one layer, and without a sixth of them."""
    fewer = sorted({1, max(1, count // 6)})
    return [{"pass": "prune_layers", "count": one} for one in fewer]


def _middle(products: Sequence[str], layers: int) -> list[str]:
    """The products of the middle half of the layers."""
    inside = range(layers // 4, layers - layers // 4)
    return [name for name in products if layer_of(name) in inside]


def parse_candidate(text: str, threads: int) -> Candidate:
    """Reads passes as in "prune_layers:count=5+heal:steps=200+int8:32".

    Each is a name and perhaps parameters; a last part that is a weight format says how what the
    passes leave is rounded ("carried" if there is none). Values are JSON, or else text.

    Args:
        text: As the user wrote it.
        threads: Of the candidate.

    Raises:
        UsageError: It is not written so, or there is no such pass or parameter.
    """
    *first, last = map(str.strip, text.split("+"))
    if last.partition(":")[0] in pass_names():
        first, last = [*first, last], "carried"
    if not first:
        raise UsageError(
            f"{text!r:.80} names no pass",
            allowed=f"passes joined by +, of {', '.join(pass_names())}",
            do="give formats alone with --weights",
        )
    return Candidate(last, "bf16", threads, steps=tuple(_parse_pass(part) for part in first))


def _parse_pass(text: str) -> Pass[Model]:
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {"pass": name.strip()}
    for part in filter(None, map(str.strip, _COMMA.split(rest))):
        key, found, value = part.partition("=")
        if not found:
            raise UsageError(f"parameter {part!r:.60} of pass {name!r:.40}", allowed="NAME=VALUE")
        values[key.strip()] = _value(value.strip())
    try:
        return make_pass(values)
    except ModelFileError as error:
        raise UsageError(error.what, allowed=error.allowed) from error


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
