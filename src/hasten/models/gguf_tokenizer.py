"""A `tokenizers.Tokenizer` out of what a GGUF file says about its vocabulary.

Four styles occur: "gpt2" (byte-level BPE), "llama" (SentencePiece BPE: scores instead of merges),
"t5" (SentencePiece unigram) and "bert" (WordPiece). Keys and their defaults: llama.cpp,
`gguf-py/gguf/constants.py` and `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models import pretokenizers
from hasten.models.tokenizer_files import Parts, backend_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.normalizers import Normalizer

__all__ = ["SPECIAL_KEYS", "build", "special_ids"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_SPACE = "▁"
SPECIAL_KEYS: Final = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "sep_token": "seperator_token_id",
    "mask_token": "mask_token_id",
}
"""Keys of the tokens that have a role, by transformers' name of the role."""
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def build(metadata: Mapping[str, Any]) -> Parts:
    """Builds the tokenizer that a GGUF's metadata describes.

    Args:
        metadata: The file's key-value pairs; arrays are lists or NumPy arrays.

    Raises:
        ModelFileError: The metadata hold no tokenizer, or one that contradicts itself.
        UnsupportedModelError: A tokenizer model or pre-tokenizer that is not known here.
    """
    vocabulary = _Vocabulary(metadata)
    with backend_errors("tokenizer.ggml"):
        match vocabulary.model:
            case "gpt2":
                backend, add_bos, add_eos = _byte_level(vocabulary)
            case "llama":
                backend, add_bos, add_eos = _sentencepiece_bpe(vocabulary), True, False
            case "t5":
                backend, add_bos, add_eos = _unigram(vocabulary), False, True
            case "bert":
                backend, add_bos, add_eos = _wordpiece(vocabulary), True, True
            case other:
                raise UnsupportedModelError(
                    f"tokenizer.ggml.model is {other!r}", allowed='"gpt2", "llama", "t5", "bert"'
                )
        _add_marked_tokens(backend, vocabulary)
        special = special_ids(metadata, len(vocabulary.tokens))
        begin, end = special.get("bos_token"), special.get("eos_token")
        if vocabulary.model == "bert":
            begin, end = _bert_ends(vocabulary, special)
        _add_template(
            backend,
            vocabulary.tokens,
            begin if vocabulary.flag("add_bos_token", add_bos) else None,
            end if vocabulary.flag("add_eos_token", add_eos) else None,
        )
    ends = (_token_id(metadata, key, len(vocabulary.tokens)) for key in _END_KEYS)
    return Parts(backend, special, frozenset(i for i in ends if i is not None))


def special_ids(metadata: Mapping[str, Any], size: int) -> dict[str, int]:
    """Ids of the tokens that have a role, by transformers' name of the role.

    Raises:
        ModelFileError: An id is no integer in 0..size-1.
    """
    found = {name: _token_id(metadata, key, size) for name, key in SPECIAL_KEYS.items()}
    return {name: token for name, token in found.items() if token is not None}


class _Vocabulary:
    """The checked arrays of one file."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        model = self.get("model")
        tokens = self.get("tokens")
        if model is None or tokens is None:
            raise ModelFileError(
                "the GGUF holds no tokenizer (looked for tokenizer.ggml.model and "
                "tokenizer.ggml.tokens)",
                do="use a file that was converted with its tokenizer",
            )
        if not isinstance(tokens, list) or not tokens or set(map(type, tokens)) != {str}:
            raise ModelFileError("tokenizer.ggml.tokens is not a list of strings")
        self.model: object = model
        self.tokens: list[str] = tokens
        self.ids = {token: i for i, token in enumerate(tokens)}
        if len(self.ids) != len(tokens):
            i = next(i for i, token in enumerate(tokens) if self.ids[token] != i)
            raise ModelFileError(
                f"tokenizer.ggml.tokens holds {tokens[i]!r} twice, as {i} and {self.ids[tokens[i]]}"
            )
        self.types = self.numbers("token_type", "iu")

    def get(self, key: str) -> Any:  # noqa: ANN401 - a file's value, checked by whoever asks
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool | np.bool_):
            raise ModelFileError(f"tokenizer.ggml.{key} is {value!r}, not true or false")
        return default if value is None else bool(value)

    def numbers(self, key: str, kinds: str) -> NDArray[Any] | None:
        """The array of one number a token under a key, None where the file has none."""
        value = self.get(key)
        if value is None:
            return None
        array = np.asarray(value)
        if array.dtype.kind not in kinds or array.shape != (len(self.tokens),):
            raise ModelFileError(
                f"tokenizer.ggml.{key} holds {array.shape} values of {array.dtype}, "
                f"tokenizer.ggml.tokens {len(self.tokens)}"
            )
        return array

    def scores(self) -> NDArray[np.float64]:
        """float64 [tokens]; a SentencePiece vocabulary means nothing without them."""
        scores = self.numbers("scores", "fiu")
        if scores is None or not np.isfinite(scores).all():
            raise ModelFileError("tokenizer.ggml.scores is missing or not finite")
        return scores.astype(np.float64)

    def marked(self, kind: int) -> list[int]:
        return [] if self.types is None else np.flatnonzero(self.types == kind).tolist()

    def unknown(self) -> int | None:
        declared = _token_id(self.metadata, "unknown_token_id", len(self.tokens))
        marked = self.marked(_UNKNOWN)
        return declared if declared is not None else marked[0] if marked else None

    def merges(self) -> list[tuple[str, str]] | None:
        lines = self.get("merges")
        if lines is None:
            return None
        try:
            # Tuples straight from split: a loop that unpacks them takes twice as long.
            pairs: list[Any] = [tuple(line.split(" ", 1)) for line in lines]
        except (AttributeError, TypeError) as error:
            raise ModelFileError("tokenizer.ggml.merges is not a list of strings") from error
        if not set(map(len, pairs)) <= {2}:
            raise ModelFileError(
                "tokenizer.ggml.merges holds a line that is not two tokens with a space between"
            )
        return pairs


def _token_id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ModelFileError(f"tokenizer.ggml.{key} is {value!r}, not a token id")
    if not 0 <= value < size:
        raise ModelFileError(f"tokenizer.ggml.{key} is {value}", allowed=f"0 to {size - 1}")
    return int(value)


def _byte_level(vocabulary: _Vocabulary) -> tuple[Backend, bool, bool]:
    from tokenizers import Tokenizer, decoders, models, normalizers

    name = vocabulary.get("pre")
    cut = pretokenizers.BY_NAME.get(name) if isinstance(name, str) else None
    if cut is None:
        raise UnsupportedModelError(
            "the GGUF does not name its pre-tokenizer (tokenizer.ggml.pre)"
            if name is None
            else f"tokenizer.ggml.pre is {name!r}",
            allowed=", ".join(pretokenizers.BY_NAME),
            do="use the model's Hugging Face directory instead",
        )
    merges = vocabulary.merges()
    if merges is None:
        raise ModelFileError('tokenizer.ggml.merges is missing, which "gpt2" vocabularies need')
    model = models.BPE(vocabulary.ids, merges, ignore_merges=cut.ignore_merges)
    backend = Tokenizer(model)
    if cut.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = cut.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend, cut.add_bos, False


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> Backend:
    from tokenizers import Tokenizer, models

    unknown = vocabulary.unknown()
    merges = vocabulary.merges()
    model = models.BPE(
        vocabulary.ids,
        _merges_from_scores(vocabulary) if merges is None else merges,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=bool(vocabulary.marked(_BYTE)),
    )
    backend = Tokenizer(model)
    _add_sentencepiece_rules(backend, vocabulary, [])
    return backend


def _merges_from_scores(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Every way to join two tokens to a third, best third first.

    SentencePiece joins whichever neighbours give the token of the highest score. Only normal
    tokens take part: text never becomes a control, byte or unknown token by merging. The order
    within one token, longest left part first, is that of transformers' `generate_merges`.
    """
    tokens = vocabulary.tokens
    order = np.argsort(-vocabulary.scores(), kind="stable")
    if vocabulary.types is not None:
        order = order[vocabulary.types[order] == _NORMAL]
    pieces = [tokens[i] for i in order.tolist()]
    known = set(pieces)
    return [
        (piece[:i], piece[i:])
        for piece in pieces
        for i in range(len(piece) - 1, 0, -1)
        if piece[:i] in known and piece[i:] in known
    ]


def _unigram(vocabulary: _Vocabulary) -> Backend:
    from tokenizers import Regex, Tokenizer, models, normalizers

    model = models.Unigram(
        list(zip(vocabulary.tokens, vocabulary.scores().tolist(), strict=True)),
        unk_id=vocabulary.unknown(),
        byte_fallback=bool(vocabulary.marked(_BYTE)),
    )
    backend = Tokenizer(model)
    steps: list[Normalizer] = []
    if (charsmap := vocabulary.get("precompiled_charsmap")) is not None:
        steps.append(normalizers.Precompiled(np.asarray(charsmap).astype(np.uint8).tobytes()))
    if vocabulary.flag("remove_extra_whitespaces", True):
        # SentencePiece removes spaces only; normalizers.Strip would take line ends too.
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    _add_sentencepiece_rules(backend, vocabulary, steps)
    return backend


def _wordpiece(vocabulary: _Vocabulary) -> Backend:
    """BERT's tokenizer.

    In the file, tokens that begin a word have U+2581 before them, and the others lack the "##" of
    BERT's own vocabulary. Control tokens are spelled as they are, and by old converters whatever
    stands in brackets.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    control = {*vocabulary.marked(_CONTROL), *vocabulary.marked(_UNKNOWN)}
    spelled: dict[str, int] = {}
    for i, token in enumerate(vocabulary.tokens):
        if i in control or re.fullmatch(r"\[.+\]", token):
            spelled[token] = i
        else:
            spelled[token[1:] if token.startswith(_SPACE) else f"##{token}"] = i
    unknown = vocabulary.unknown()
    if unknown is None:
        unknown = spelled.get("[UNK]", spelled.get("<unk>"))
    if unknown is None:
        raise ModelFileError("tokenizer.ggml.unknown_token_id is missing, and there is no '[UNK]'")
    text = next(token for token, i in spelled.items() if i == unknown)
    # 100 characters a word at most, as in every BERT.
    backend = Tokenizer(models.WordPiece(spelled, unk_token=text, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=vocabulary.flag("normalizer.lowercase", True),
        strip_accents=vocabulary.flag("normalizer.strip_accents", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _bert_ends(
    vocabulary: _Vocabulary, special: Mapping[str, int]
) -> tuple[int | None, int | None]:
    """What stands around a text: [CLS] and [SEP], which files declare under several names."""
    begin = special.get("cls_token", special.get("bos_token", vocabulary.ids.get("[CLS]")))
    end = special.get("sep_token", special.get("eos_token", vocabulary.ids.get("[SEP]")))
    return begin, end


def _add_sentencepiece_rules(
    backend: Backend, vocabulary: _Vocabulary, normalization: Sequence[Normalizer]
) -> None:
    """Spells spaces as U+2581, one more at the start, and undoes that when decoding.

    SentencePiece prepends a space whether or not the text begins with one, and so do llama.cpp and
    the tokenizer.json of Llama 2, TinyLlama and Mistral. (transformers' LlamaTokenizer, which its
    GGUF reader uses, does not prepend where the text begins with a space.)
    """
    from tokenizers import decoders, normalizers

    prefix = vocabulary.flag("add_space_prefix", True)
    spelling: list[Normalizer] = [normalizers.Replace(" ", _SPACE)]
    if prefix:
        spelling.insert(0, normalizers.Prepend(_SPACE))
    backend.normalizer = normalizers.Sequence([*normalization, *spelling])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)


def _add_marked_tokens(backend: Backend, vocabulary: _Vocabulary) -> None:
    """Declares control tokens as special, user-defined ones as tokens that always match whole."""
    from tokenizers import AddedToken

    special = [*vocabulary.marked(_CONTROL), *vocabulary.marked(_UNKNOWN)]
    if vocabulary.model == "gpt2":
        special = vocabulary.marked(_CONTROL)  # byte-level text is never unknown
    for ids, is_special in ((special, True), (vocabulary.marked(_USER_DEFINED), False)):
        tokens = [vocabulary.tokens[i] for i in ids]
        backend.add_tokens(
            [AddedToken(token, normalized=False, special=is_special) for token in tokens if token]
        )


def _add_template(
    backend: Backend, tokens: Sequence[str], begin: int | None, end: int | None
) -> None:
    from tokenizers import processors

    used = {name: i for name, i in (("begin", begin), ("end", end)) if i is not None}
    if used:
        # Names of our own, since a token's text may hold the ":" that separates type ids here.
        backend.post_processor = processors.TemplateProcessing(
            single=[name for name in ("begin", "$A", "end") if name == "$A" or name in used],
            special_tokens=[
                {"id": name, "ids": [i], "tokens": [tokens[i]]} for name, i in used.items()
            ],
        )
