"""A tokenizer as a GGUF file describes it: the inverse of `hasten.models.gguf_tokenizer`.

What cannot be said there is refused, and what was said is read back and tried on texts: a file
whose tokens differ gives worse text without any error.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from hasten.errors import HastenError, UnsupportedModelError
from hasten.models import pretokenizers
from hasten.models.chat import ChatTemplate
from hasten.models.gguf_tokenizer import SPECIAL_KEYS
from hasten.models.tokenizer import Tokenizer

__all__ = ["template_keys", "vocabulary_keys"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_SPACE = "▁"
_ALLOWED = "byte-level BPE with a pre-tokenizer that llama.cpp knows, SentencePiece BPE"
_DO = "export it as compressed-tensors or safetensors"
_Steps = tuple[tuple[str, object], ...]

_PROBES = (
    "Hello, world! I'm here; they'LL go.",
    "  two  spaces   three\n\nlines\t\tand tabs \r\n",
    "0 12 345 6789 1234567890 3.14 ½ ٣٤٥",
    "Café naïve Cafe\u0301 Ünïcödé ÅNGSTRÖM don’t",
    "你好，世界。日本語のテキスト 한국어 Привет мир ไทย हिन्दी",
    "😀👍🏽 👨\u200d👩\u200d👧 ∑∫√ ≤ ∞ \u00a0 \u3000",
    "def f(x_1):\n    return x**2 + 1e-10  # CamelCase snake_case\n",
    "https://example.org/a?b=c&d=%20#frag !?!?...---",
    "a",
    " a",
)
"""Where pre-tokenizers differ: contractions, digits, spaces, marks, scripts."""


def vocabulary_keys(tokenizer: Tokenizer, rows: int, ends: Sequence[int]) -> dict[str, Any]:
    """Metadata from which readers of GGUF files make this tokenizer.

    Args:
        tokenizer: Of the model.
        rows: Of the model's embedding, as many as the file must list tokens.
        ends: Tokens that end a generation.

    Raises:
        UnsupportedModelError: The file cannot describe it.
    """
    definition = tokenizer.definition()
    kind = definition["model"].get("type")
    if kind != "BPE":
        raise UnsupportedModelError(
            f"GGUF files of language models hold no {reprlib.repr(kind)} tokenizer",
            allowed=_ALLOWED,
            do=_DO,
        )
    byte_level = _last_step(definition) == "ByteLevel"
    texts, types = _tokens(definition, rows, byte_level=byte_level)
    keys = _byte_level(definition) if byte_level else _sentencepiece(definition, texts)
    keys |= {"tokens": texts, "token_type": types} | _special_keys(tokenizer, ends)
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    _check(tokenizer, metadata)
    return metadata


def template_keys(template: ChatTemplate | None) -> dict[str, Any]:
    """Metadata that hold a chat template."""
    if template is None:
        return {}
    keys: dict[str, Any] = {"tokenizer.chat_template": template.source}
    if template.tool_source is not None:
        keys["tokenizer.chat_templates"] = ["tool_use"]
        keys["tokenizer.chat_template.tool_use"] = template.tool_source
    return keys


def _refuse(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"a GGUF file cannot hold this tokenizer: {what}", allowed=_ALLOWED, do=_DO
    )


def _steps(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, sequences taken apart."""
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [step for one in part[key] for step in _steps(one, key)]
    return [part]


def _last_step(definition: Mapping[str, Any]) -> object:
    steps = _steps(definition["pre_tokenizer"], "pretokenizers")
    return steps[-1]["type"] if steps else None


def _tokens(
    definition: Mapping[str, Any], rows: int, *, byte_level: bool
) -> tuple[list[str], list[int]]:
    """Text and type of each id; ids that no token has are listed as unused."""
    model = definition["model"]
    texts = [f"[PAD{i}]" for i in range(rows)]
    types = [_UNUSED] * rows
    added = {token["id"]: token for token in definition["added_tokens"]}
    ids = {**model["vocab"], **{token["content"]: i for i, token in added.items()}}
    for text, i in ids.items():
        if i >= rows:
            raise _refuse(f"token {text!r} has the id {i}, and the embedding has {rows} rows")
        if text == texts[i]:
            continue  # so listed by the file that it came from
        texts[i], types[i] = text, _NORMAL
        if i in added:
            types[i] = _CONTROL if added[i]["special"] else _USER_DEFINED
        if not byte_level and text == model.get("unk_token"):
            types[i] = _UNKNOWN
        elif not byte_level and model.get("byte_fallback") and _is_byte(text):
            types[i] = _BYTE
    return texts, types


def _is_byte(text: str) -> bool:
    return re.fullmatch(r"<0x[0-9A-F]{2}>", text) is not None


def _plain_bpe(definition: Mapping[str, Any], fixed: Mapping[str, object]) -> list[list[str]]:
    """The merges, after a look at the options that change how they apply."""
    model = definition["model"]
    fixed = {
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        **fixed,
    }
    for key, value in fixed.items():
        if (model.get(key) or None) != value:
            raise _refuse(f"its {key} is {reprlib.repr(model.get(key))}")
    pairs = [one.split(" ") if isinstance(one, str) else one for one in model["merges"]]
    if any(len(pair) != 2 or " " in pair[0] + pair[1] for pair in pairs):
        raise _refuse("a merge joins tokens with spaces in them")
    return pairs


def _byte_level(definition: Mapping[str, Any]) -> dict[str, Any]:
    pairs = _plain_bpe(definition, {"byte_fallback": None})
    normalizer = [step["type"] for step in _steps(definition["normalizer"], "normalizers")]
    if normalizer not in ([], ["NFC"]):
        raise _refuse(f"its normalizer is {', '.join(normalizer)}")
    steps = tuple(map(_cut_step, _steps(definition["pre_tokenizer"], "pretokenizers")))
    whole_words = bool(definition["model"].get("ignore_merges"))
    for name, cut in pretokenizers.BY_NAME.items():
        flags = (cut.nfc, cut.ignore_merges) == (bool(normalizer), whole_words)
        if flags and _steps_of(cut) == steps:
            return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in pairs]}
    raise _refuse(f"its pre-tokenizer, {reprlib.repr(steps)}, has no name there")


def _cut_step(step: Mapping[str, Any]) -> tuple[str, object]:
    """A step of a pre-tokenizer, in a form in which those that cut alike are equal."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(gpt2)}:
            return "bytes", gpt2
        case {"type": "Digits", "individual_digits": True}:
            return "split", r"\p{N}"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": how, "invert": no}:
            # What a pattern that covers all text does not match is nothing.
            if (how, no) in (("Isolated", False), ("Removed", True)):
                return "split", pattern
    raise _refuse(f"its pre-tokenizer has the step {reprlib.repr(dict(step))}")


def _steps_of(cut: pretokenizers.Cut) -> _Steps:
    return (*(("split", split) for split in cut.splits), ("bytes", cut.gpt2))


def _sentencepiece(definition: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """Scores in the order of the merges: readers join the neighbours of the highest score."""
    pairs = _plain_bpe(definition, {"ignore_merges": None})
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    return {
        "model": "llama",
        "pre": "default",
        "scores": [-float(ranks.get(text, len(pairs))) for text in texts],
        "add_space_prefix": _space_prefix(definition),
    }


def _space_prefix(definition: Mapping[str, Any]) -> bool:
    """Whether a text begins with a space of its own, if spaces are spelled as by SentencePiece."""
    steps = [
        *_steps(definition["normalizer"], "normalizers"),
        *_steps(definition["pre_tokenizer"], "pretokenizers"),
    ]
    prefix = spelled = False
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                spelled = True
            case {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": how}:
                spelled, prefix = True, how != "never"
            case {"type": "Split", "pattern": {"String": " "}}:
                pass  # of Gemma: after the spaces were replaced there are none
            case _:
                raise _refuse(f"it has the step {reprlib.repr(dict(step))}")
    if not spelled:
        raise _refuse("it does not spell spaces as SentencePiece does")
    return prefix


def _special_keys(tokenizer: Tokenizer, ends: Sequence[int]) -> dict[str, Any]:
    roles = dict(tokenizer.roles)
    around = (tokenizer.prefix, tokenizer.suffix)
    for role, tokens in zip(("bos_token", "eos_token"), around, strict=True):
        if len(tokens) > 1 or (tokens and roles.setdefault(role, tokens[0]) != tokens[0]):
            raise _refuse(f"it puts the tokens {tokens} around a text where others are declared")
    first = roles.pop("eos_token", None)
    ordered = [end for end in ends if end != first]
    ordered = ordered if first is None else [first, *ordered]
    return {
        **{SPECIAL_KEYS[role]: token for role, token in roles.items()},
        **dict(zip(_END_KEYS, ordered, strict=False)),
        "add_bos_token": bool(tokenizer.prefix),
        "add_eos_token": bool(tokenizer.suffix),
    }


def _check(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    """Reads the keys back: the same merges, and the same tokens of texts."""
    try:
        again = Tokenizer.from_gguf(metadata)
    except HastenError as error:
        raise _refuse(error.what) from error
    if _merges(tokenizer) != _merges(again):
        raise _refuse("its merges do not follow from the order of its tokens")
    for text in _PROBES:
        if tokenizer.encode(text) != again.encode(text):
            raise _refuse(f"its tokens of {text!r} would be others")


def _merges(tokenizer: Tokenizer) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tokens in the order in which they are joined, each with the pairs that give it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for left, right in tokenizer.definition()["model"]["merges"]:
        found.setdefault(left + right, []).append((left, right))
    return [(token, sorted(pairs)) for token, pairs in found.items()]
