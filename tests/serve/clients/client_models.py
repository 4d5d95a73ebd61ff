"""Tiny models on disk whose tokens are characters; they can write JSON, calls and reasoning."""

import json
import string

import numpy as np
from chat_templates import QWEN
from safetensors.numpy import save_file
from tiny_models import HEAD_DIM, HEADS, HIDDEN, INNER, tiny_tensors, write_directory
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"
CONTEXT = 4096
RECITED = (
    "<think>\nI look",
    " it up.\n</think>\n\n",
    "Let me see.",
    '<tool_call>\n{"name": "weather", ',
    '"arguments": {"city":',
    ' "Oslo"}}\n</tool_call>',
)
"""What the reciting model says: its reasoning, a text, and a call."""


def letters(special, more=()):
    """A tokenizer whose tokens are special ones, single characters, and texts never read."""
    tokens = [*special, *CHARACTERS, *more]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


def write_chat_model(directory, seed=0):
    """A random Llama with the chat template of Qwen 3."""
    tokenizer = letters(SPECIAL)
    size = tokenizer.get_vocab_size()
    rng = np.random.default_rng(seed)
    tensors = tiny_tensors(seed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = rng.standard_normal((size, HIDDEN)).astype(np.float32)
    # Answers are to be text, and long: no special token is ever the likeliest of those allowed.
    tensors["lm_head.weight"][: len(SPECIAL)] = 0
    # Weights of this size keep logits near those of a trained model; larger ones are chaotic.
    scaled = {
        name: values if values.ndim == 1 else values * np.float32(values.shape[1] ** -0.5)
        for name, values in tensors.items()
    }
    return _write(directory, scaled, tokenizer)


def write_reciting_model(directory, texts):
    """A Llama that answers whatever it is asked with these texts, a token each, and ends.

    Its layers add nothing, so what comes next hangs on the last token alone: those of a prompt
    bring the first text, and each text brings the next.
    """
    tokenizer = letters(SPECIAL, texts)
    size = tokenizer.get_vocab_size()
    first = size - len(texts)
    after = np.eye(HIDDEN, dtype=np.float32)  # row i: of what comes after i texts
    read, write = np.tile(after[0], (size, 1)), np.zeros((size, HIDDEN), np.float32)
    for number in range(len(texts)):
        read[first + number] = after[number + 1]
        write[first + number] = after[number]
    write[SPECIAL.index("<|im_end|>")] = after[len(texts)]
    tensors = {
        name: np.zeros_like(values) if "o_proj" in name or "down_proj" in name else values
        for name, values in tiny_tensors().items()
    }
    tensors |= {"model.embed_tokens.weight": read, "lm_head.weight": write}
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    return _write(directory, tensors, tokenizer)


def _write(directory, tensors, tokenizer):
    write_directory(
        directory,
        tensors,
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|im_end|>"),
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": QWEN}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def write_embedding_model(directory, positions=32):
    """A random BERT of one layer."""
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    tokenizer = letters(special)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    size = tokenizer.get_vocab_size()
    layer = "encoder.layer.0."
    matrices = {
        "embeddings.word_embeddings": (size, HIDDEN),
        "embeddings.position_embeddings": (positions, HIDDEN),
        "embeddings.token_type_embeddings": (2, HIDDEN),
        **{f"{layer}attention.self.{one}": (HIDDEN, HIDDEN) for one in ("query", "key", "value")},
        f"{layer}attention.output.dense": (HIDDEN, HIDDEN),
        f"{layer}intermediate.dense": (INNER, HIDDEN),
        f"{layer}output.dense": (HIDDEN, INNER),
    }
    norms = ["embeddings.", f"{layer}attention.output.", f"{layer}output."]
    rng = np.random.default_rng(0)
    tensors = {
        f"{name}.weight": rng.standard_normal(shape).astype(np.float32)
        for name, shape in matrices.items()
    }
    biased = [(name, shape[0]) for name, shape in matrices.items() if name.startswith(layer)]
    tensors |= {f"{name}.bias": np.zeros(rows, np.float32) for name, rows in biased}
    for norm in norms:
        tensors[f"{norm}LayerNorm.weight"] = np.ones(HIDDEN, np.float32)
        tensors[f"{norm}LayerNorm.bias"] = np.zeros(HIDDEN, np.float32)
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    config = {
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": size,
        "max_position_embeddings": positions,
        "type_vocab_size": 2,
        "pad_token_id": 1,
    }
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory
