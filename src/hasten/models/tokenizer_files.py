"""The tokenizer files of a Hugging Face directory, read and written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import ModelFileError
from hasten.models.json_file import read_json_object

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

__all__ = ["ROLES", "Parts", "backend_errors", "read_parts", "read_roles", "write_parts"]

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAX_BYTES = 256 << 20
_OTHER_FORMATS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a tokenizer is made of.

    Attributes:
        backend: The vocabulary with its rules.
        special: Ids by the name that transformers gives their role ("bos_token", ...).
        end_ids: Ids that the files themselves declare to end a generation.
    """

    backend: Backend
    special: Mapping[str, int]
    end_ids: frozenset[int]


@contextmanager
def backend_errors(source: str) -> Iterator[None]:
    """Turns what the tokenizers library raises about a vocabulary into a `ModelFileError`."""
    try:
        yield
    except BaseException as error:
        # The library raises bare Exception, and PanicException (a BaseException) out of Rust.
        if type(error) is Exception or type(error).__name__ == "PanicException":
            raise ModelFileError(f"{source}: the tokenizer is not valid ({error})") from error
        raise


def read_parts(directory: Path) -> Parts:
    """Reads the tokenizer of a directory.

    As in transformers, `tokenizer.json` decides what is added around a text, and the flags
    `add_bos_token` and `add_eos_token` beside it are ignored.

    Raises:
        ModelFileError: There is no tokenizer.json, or a file is not what it should be.
    """
    from tokenizers import Tokenizer

    file = directory / "tokenizer.json"
    if not file.is_file():
        raise _missing(directory)
    if (size := file.stat().st_size) > _MAX_BYTES:
        raise ModelFileError(f"{file} has {size} bytes", allowed=f"up to {_MAX_BYTES}")
    with backend_errors(str(file)):
        backend = Tokenizer.from_file(str(file))
        backend.add_tokens(_declared_tokens(directory, backend))
        roles = read_roles(directory)
        special = {role: backend.token_to_id(text) for role, text in roles.items()}
    found = {role: token for role, token in special.items() if token is not None}
    ends = _end_ids(directory) | ({found["eos_token"]} if "eos_token" in found else set())
    return Parts(backend, found, frozenset(ends))


def read_roles(directory: Path) -> dict[str, str]:
    """Texts of the special tokens that a directory names, by role ("bos_token", ...).

    Raises:
        ModelFileError: A file is no JSON object, or a token no text.
    """
    config = _optional(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        # The older of the two places; transformers reads it only where the newer is not complete.
        config = config | _optional(directory / "special_tokens_map.json")
    found = {}
    for role in ROLES:
        value = config.get(role)
        text = value.get("content") if isinstance(value, dict) else value
        if text is None:
            continue
        if not isinstance(text, str):
            raise ModelFileError(f"{directory}: {role} is {value!r}, not a text")
        found[role] = text
    return found


def write_parts(parts: Parts, directory: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json.

    The last only where none is there yet.

    transformers' AutoTokenizer reads the directory back as the same tokenizer.
    """
    added = parts.backend.get_added_tokens_decoder()
    config: dict[str, Any] = {
        # Any other class would be rebuilt by transformers with rules of its own.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): _token_fields(t) for i, t in sorted(added.items())},
    }
    config |= {role: parts.backend.id_to_token(i) for role, i in parts.special.items()}
    directory.mkdir(parents=True, exist_ok=True)
    parts.backend.save(str(directory / "tokenizer.json"), pretty=False)
    _write_json(directory / "tokenizer_config.json", config)
    generation = directory / "generation_config.json"
    if not generation.exists():
        _write_json(
            generation,
            {"bos_token_id": parts.special.get("bos_token"), "eos_token_id": sorted(parts.end_ids)},
        )


def _missing(directory: Path) -> ModelFileError:
    others = [name for name in _OTHER_FORMATS if (directory / name).is_file()]
    seen = f" (there is {', '.join(others)}, which is not read)" if others else ""
    return ModelFileError(
        f"{directory} holds no tokenizer: looked for tokenizer.json{seen}",
        do="save it with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        if others
        else "copy the model's tokenizer.json and tokenizer_config.json there",
    )


def _optional(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.is_file() else {}


def _declared_tokens(directory: Path, backend: Backend) -> list[AddedToken]:
    """Tokens that tokenizer_config.json adds to, or marks otherwise than, tokenizer.json."""
    from tokenizers import AddedToken

    known = {t.content: _token_fields(t) for t in backend.get_added_tokens_decoder().values()}
    declared = _optional(directory / "tokenizer_config.json").get("added_tokens_decoder", {})
    try:
        fields = [declared[i] for i in sorted(declared, key=int)]
        found = [
            AddedToken(f["content"], **{k: bool(f[k]) for k in _TOKEN_FLAGS if k in f})
            for f in fields
        ]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{directory / 'tokenizer_config.json'}: added_tokens_decoder is not valid ({error!r})"
        ) from error
    changed = [t for t in found if known.get(t.content) != _token_fields(t)]
    known |= {t.content: {} for t in changed}
    # Roles must be special, but a role that the vocabulary lacks gets no id of ours: the model has
    # no embedding for it.
    roles = {text for text in read_roles(directory).values() if text not in known}
    roles = {text for text in roles if backend.token_to_id(text) is not None}
    return changed + [AddedToken(text, special=True) for text in sorted(roles)]


def _token_fields(token: AddedToken) -> dict[str, Any]:
    return {"content": token.content} | {flag: getattr(token, flag) for flag in _TOKEN_FLAGS}


def _end_ids(directory: Path) -> set[int]:
    for name in ("generation_config.json", "config.json"):
        value = _optional(directory / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ModelFileError(f"{directory / name}: eos_token_id is {value!r}, not token ids")
        return set(ids)
    return set()


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
