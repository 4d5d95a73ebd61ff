"""Which passes a search tries: those that a user writes, and those that are tried by default."""

from __future__ import annotations

import json
import re
from typing import Any

from hasten.errors import ModelFileError, UsageError
from hasten.models import Model
from hasten.optimize.candidates import Candidate
from hasten.optimize.passes import make_pass, pass_names
from hasten.optimize.passes.interface import Pass
from hasten.optimize.quantization.integer_weights import inner_products

__all__ = ["default_passes", "parse_candidate"]

_FOUR_BITS = (
    {"pass": "gptq", "bits": 4, "group": 64},
    {"pass": "awq", "bits": 4, "group": 64},
    {"pass": "gptq", "bits": 4, "group": 128},
)
_COMMA = re.compile(r",(?![^\[]*\])")
"""Between parameters, and not inside a list."""

_ONE_LAYER = {"pass": "prune_layers", "count": 1}
_CHANNELS = {"pass": "prune_channels", "share": 0.1}


def default_passes(model: Model, threads: int) -> list[Candidate]:
    """Candidates with passes that are worth a try on any decoder and take a minute or two.

    Passes that do not fit the model are left out. A model that is in floating point runs in 8 bits
    after layers or channels were removed; of one that is quantised the rest stays as it is, and the
    products that a correction has made floats are rounded to 4 bits again.
    """
    products = inner_products(model.config)
    quantised = all(model.weights[name].layout() is not None for name in products)
    lists = [("carried", [one]) for one in _FOUR_BITS]
    if quantised:
        last = [name for name in products if name.endswith("down_proj.weight")]
        again = {"pass": "gptq", "bits": 4, "group": 32, "matrices": last, "vocabulary": "carried"}
        lists += [("carried", [_ONE_LAYER]), ("carried", [_CHANNELS, again])]
    else:
        lists += [("int8:32", [_ONE_LAYER]), ("int8:32", [_CHANNELS])]
    found = []
    for weights, parameters in lists:
        steps = tuple(make_pass(one) for one in parameters)
        if steps[0].why_unfit(model) is None:
            found.append(Candidate(weights, "bf16", threads, steps=steps))
    return found


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
