"""What a recipe was made of, found again: the source by its digest, the texts by theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hasten.errors import ModelFileError, UsageError
from hasten.measure.corpus import (
    Corpus,
    TextEncoder,
    Windows,
    cut_windows,
    default_corpus,
    leading_tokens,
    read_corpus,
)
from hasten.models import Model, load_model
from hasten.models.artefact import DIGEST_KEY, weights_digest
from hasten.models.source import PACKAGED
from hasten.optimize.recipe import check_recipe
from hasten.optimize.training_text import cut_training_text

__all__ = [
    "Sameness",
    "compare_weights",
    "find_source",
    "recipe_corpus",
    "recut_training_text",
    "recut_windows",
    "require_recipe",
]

_HALVES = {"calibration": ", first half", "evaluation": ", second half"}
Use = Literal["calibration", "evaluation"]
Sameness = Literal["same", "different", "unknown"]
"""Whether weights are those that a recipe speaks of, bit for bit; not every recipe says which."""


def require_recipe(artefact: Model) -> Mapping[str, Any]:
    """The recipe of an artefact.

    Raises:
        UsageError: The model is no artefact.
        ModelFileError: The recipe is of another schema, or lacks a part.
    """
    if artefact.recipe is None:
        raise UsageError(
            f"{artefact.path} is no artefact: it has no recipe",
            do="give a directory that `hasten optimize` wrote",
        )
    return check_recipe(artefact.recipe)


def compare_weights(recipe: Mapping[str, Any], artefact: Path) -> Sameness:
    """Holds the weights of an artefact to the digest in a recipe.

    Args:
        recipe: Its own, or the one that it was made again from.
        artefact: Its directory.
    """
    expected = recipe.get(DIGEST_KEY)
    if expected is None:
        return "unknown"
    return "same" if weights_digest(artefact) == expected else "different"


def find_source(recipe: Mapping[str, Any], given: str | None = None) -> Model:
    """Loads the model that an artefact was made of, and holds it to the recipe's digest.

    Args:
        recipe: Names the source, its path and its digest.
        given: Where it is, if elsewhere than the recipe says.

    Raises:
        ModelFileError: It is not there, or it is not what it was.
        HastenError: It cannot be loaded.
    """
    source = recipe["source"]
    place = given or str(source["path"])
    if given is None and not Path(place).exists():
        if source["name"] not in PACKAGED:
            raise ModelFileError(
                f"{source['name']}, of which the artefact was made, is no longer at {place}",
                do="say where it is now",
            )
        place = source["name"]
    model = load_model(place)
    if (found := model.digest()) != source["digest"]:
        raise ModelFileError(
            f"{place} is not what the artefact was made of: its files have the SHA-256"
            f" {found[:12]}..., those of then {source['digest'][:12]}...",
            do="say where the files of then are, or optimise the new ones",
        )
    return model


def recut_windows(
    recipe: Mapping[str, Any], use: Use, tokenizer: TextEncoder, text: Path | None = None
) -> Windows:
    """Cuts the windows that a recipe names once more, and holds them to their digest.

    Args:
        recipe: Says which text, and how many tokens of it.
        use: Which of its two texts.
        tokenizer: Of the source.
        text: The file that the recipe's texts were cut from, unless it was the default text.

    Raises:
        UsageError: The text is missing.
        ModelFileError: It gives other tokens than it did.
    """
    wanted = recipe["texts"][use]
    prefix = len(leading_tokens(tokenizer))
    # Of each window all tokens but the first are scored, and the prefix is no text.
    tokens = wanted["tokens"] - wanted["windows"] * (prefix - 1)
    half = recipe_corpus(recipe, use, text).halves()[list(_HALVES).index(use)]
    found = cut_windows(half, tokenizer, tokens=tokens, context=wanted["context"])
    if found.digest != wanted["digest"]:
        raise ModelFileError(
            f"{half.name} gives other tokens than when the artefact was made",
            do="Python's own text changes with its version: use Python"
            f" {recipe['versions']['python']}"
            if text is None
            else "give the file of then",
        )
    return found


def recut_training_text(
    recipe: Mapping[str, Any], model: Model, text: Path | None = None
) -> Windows:
    """Cuts the text that passes trained on once more, and holds it to its digest.

    Raises:
        UsageError: The text is missing.
        ModelFileError: It gives other tokens than it did, or the recipe does not name any.
    """
    wanted = recipe["texts"].get("training")
    if wanted is None:
        raise ModelFileError("the recipe does not say what its passes were trained on")
    proof = recut_windows(recipe, "evaluation", model.tokenizer, text)
    half = recipe_corpus(recipe, "calibration", text).halves()[0]
    found = cut_training_text(model, half, proof)
    if found.digest != wanted["digest"]:
        raise ModelFileError(f"{half.name} gives other tokens than when the artefact was made")
    return found


def recipe_corpus(recipe: Mapping[str, Any], use: Use, text: Path | None = None) -> Corpus:
    """The text of which a recipe used one half so.

    Raises:
        UsageError: It is missing.
    """
    name = str(recipe["texts"][use]["name"]).removesuffix(_HALVES[use])
    default = default_corpus()
    if text is None and name != default.name:
        raise UsageError(
            f"the artefact was made with the text {name!r}, which is not given",
            do="give it with --text",
        )
    return default if text is None else read_corpus(text)
