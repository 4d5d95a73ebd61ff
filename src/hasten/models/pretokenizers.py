"""How each byte-level BPE vocabulary cuts text before its merges apply.

A GGUF names the cut (`tokenizer.ggml.pre`) and does not spell it out. The names, which names
share a cut, and the flags `ignore_merges` and `add_bos` are those of llama.cpp's
`src/llama-vocab.cpp`; the patterns are those of the families' own `tokenizer.json`, which
llama.cpp quotes and transformers repeats (`integrations/gguf/gguf_tokenizer_mapping.py` and the
tokenizer classes of GPT-NeoX, Cohere and Qwen2, from which the NFC marks come too: llama.cpp and
transformers' GGUF reader leave that step out). A name that is not here is refused: a wrong cut
gives other tokens without any error, which is worse than none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

__all__ = ["BY_NAME", "Cut"]

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{tail}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{tail}"
)

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_BLANKS}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}|{_BLANKS}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
)
_TEKKEN = _CASED.replace("{tail}", "") + rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
_GPT4O = (
    _CASED.replace("{tail}", f"{_CONTRACTION}?")
    + rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}"
)
_DIGIT = r"\p{N}"
_CJK = "[一-龥\u0800-一가-\ud7ff]+"


@dataclass(frozen=True, slots=True)
class Cut:
    """One way to cut text into the pieces inside which merges apply.

    Attributes:
        splits: Regular expressions (Oniguruma), applied one after the other; matches and what
            lies between them become pieces.
        gpt2: Whether GPT-2's own pattern cuts what the splits leave.
        nfc: Whether text is brought to Unicode's NFC form first.
        ignore_merges: Whether a piece that is a token as a whole is taken without merging.
        add_bos: Whether a text begins with the BOS token where the file does not say.
    """

    splits: tuple[str, ...] = ()
    gpt2: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    add_bos: bool = False

    def pre_tokenizer(self) -> PreTokenizer:
        """Returns the cut, followed by the spelling of bytes as characters."""
        from tokenizers import Regex, pre_tokenizers

        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2)
        if not self.splits:
            return byte_level
        splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in self.splits]
        return pre_tokenizers.Sequence([*splits, byte_level])


def _named(names: str, cut: Cut) -> dict[str, Cut]:
    return dict.fromkeys(names.split(), cut)


BY_NAME: Mapping[str, Cut] = {
    **_named("gpt-2 phi-2", Cut(gpt2=True)),
    **_named("mpt olmo", Cut(gpt2=True, nfc=True)),
    **_named("smollm starcoder refact", Cut((_DIGIT,), gpt2=True)),
    **_named("command-r", Cut((_DIGIT,), gpt2=True, nfc=True)),
    **_named(
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        Cut((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    **_named("dbrx smaug-bpe", Cut((_LLAMA3,))),
    **_named("qwen2 deepseek-r1-qwen megrez", Cut((_QWEN2,), nfc=True)),
    **_named("qwen35", Cut((_QWEN35,), nfc=True)),
    **_named("tekken", Cut((_TEKKEN,), ignore_merges=True, add_bos=True)),
    **_named("gpt-4o llama4", Cut((_GPT4O,))),
    **_named("deepseek-coder", Cut((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT))),
    **_named("deepseek-v3", Cut((r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3))),
    # A file that says "default" itself means these four, in this order.
    **_named("default", Cut((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
}
