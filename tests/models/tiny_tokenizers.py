"""Texts that break tokenizers, and tiny vocabularies of each style trained on the spot."""

import io
import json
from functools import cache
from pydoc_data import topics

import numpy as np
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

HARD_TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    " leading space",
    "   three leading spaces",
    "trailing space ",
    "trailing newline\n",
    "double  inside   triple",
    "\n",
    "\n\n\n",
    "\r\n windows \r\n",
    "tab\tand\t\ttabs\t",
    "\t\n \t mixed \u00a0 non-breaking \u3000 ideographic \u2003 em",
    "def f(x):\n    if x > 10:\n        return x**2 + 1.5e-10  # comment\n\n\n    return None\n",
    '{"a": [1, 22, 333, 4444], "b": null}\n',
    "0 12 345 6789 1234567890  3.14159   007",
    "x   123   456\n789\n\n10",
    "½ ² Ⅷ ٣٤٥ १२३ 五",
    "I'm you're he's WE'LL THEY'VE don'T it'd",
    "Café naïve déjà vu Ünïcödé",
    "Cafe\u0301 combining a\u0300\u0301\u0302 \u1112\u1161\u11ab",
    "emoji 😀👍🏽 family 👨\u200d👩\u200d👧\u200d👦 flag 🇩🇪 heart ❤️",
    "你好，世界。日本語のテキスト 한국어 텍스트",
    "مرحبا بالعالم שלום עולם",
    "Привет мир Ελληνικά ไทย தமிழ் हिन्दी বাংলা",
    "mathematical 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ∑∫√ ≤ ≥ ≠ ∞",
    "null\x00byte \x01 control \x7f",
    "zero\u200bwidth\ufeffbom \u202eright-to-left\u202c \u2028line\u2029para",
    "private \ue000 unassigned \U000e0fff replacement \ufffd",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "</s><s>[INST] hi [/INST]<unk>",
    "<|im_end|",
    "<0x41><0xE2>",
    "▁already▁there ▁",
    "Ġ spelled Ċ",
    "a" * 300,
    "!?" * 100,
    " " * 100 + "x" + "\n" * 50,
    "CamelCaseWithUPPERAndLower snake_case_words SCREAMING_CASE kebab-case",
    "https://example.org/a?b=c&d=%20#frag user@example.org",
]
CORPUS = [*HARD_TEXTS, *(topics.topics[name] for name in sorted(topics.topics)[:40])]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def long_text(length=100_000):
    text = "\n".join([*HARD_TEXTS, *(topics.topics[name] for name in sorted(topics.topics)[40:60])])
    return (text * (length // len(text) + 1))[:length]


def train_byte_level(pre_tokenizer, normalizer=None, vocab_size=1500):
    """A byte-level BPE tokenizer whose first ids are `SPECIALS`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, normalized=False, special=True) for t in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def tiny_byte_level():
    """GPT-2 style; treat it as constant (`copy_of` gives one to change)."""
    return train_byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def copy_of(tokenizer):
    return Tokenizer.from_str(tokenizer.to_str())


def byte_level_metadata(tokenizer, pre):
    """What llama.cpp's converter writes for a byte-level tokenizer (`_set_vocab_gpt2`)."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@cache
def tiny_sentencepiece(model_type, normalization="identity", squeeze=False, vocab_size=800):
    """A SentencePiece model as Llama 2's is made (model type "bpe") or T5's ("unigram")."""
    stream = io.BytesIO()
    lines = [line for text in CORPUS for line in text.splitlines() if "\x00" not in line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=stream,
        model_type=model_type,
        vocab_size=vocab_size,
        byte_fallback=model_type == "bpe",
        normalization_rule_name=normalization,
        remove_extra_whitespaces=squeeze,
        character_coverage=0.9995,
        split_digits=model_type == "bpe",
        allow_whitespace_only_pieces=model_type == "bpe",
        minloglevel=3,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=stream.getvalue())


def sentencepiece_metadata(processor, model):
    """What llama.cpp's converter writes for a SentencePiece model (`_set_vocab_sentencepiece`)."""
    ids = range(processor.vocab_size())
    types = [
        2
        if processor.is_unknown(i)
        else 3
        if processor.is_control(i)
        else 5
        if processor.is_unused(i)
        else 6
        if processor.is_byte(i)
        else 1
        for i in ids
    ]
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": np.array([processor.get_score(i) for i in ids], np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
    }
