"""Models of every family with a tiny tokenizer, made without files of weights."""

from functools import cache

import numpy as np
from tiny_tokenizers import copy_of, train_byte_level
from tokenizers import Regex, pre_tokenizers

from hasten.kernels.quantization import quantize_rtn
from hasten.models.config_json import from_huggingface
from hasten.models.huggingface import directory_text_parts
from hasten.models.inventory import tensor_shapes
from hasten.models.model import Model
from hasten.models.tokenizer_files import Parts, write_parts
from hasten.models.weights import DenseTensor, QuantizedTensor

VOCABULARY = 320
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": [2, 0],
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 9}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
    "long_factor": [2.0] * 6,
    "attention_factor": 1.25,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": ("llama", {}),
    "llama tied, biases": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3": ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    "llama linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama wide heads": ("llama", {"head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": 16}),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2 yarn": ("qwen2", {"rope_scaling": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": (
        "gemma3_text",
        GEMMA | {"num_hidden_layers": 7, "rope_theta": 1e6, "rope_local_base_freq": 5e3},
    ),
    "phi3": ("phi3", {"sliding_window": 16}),
    "phi4": (
        "phi3",
        {"partial_rotary_factor": 0.75, "rope_scaling": LONGROPE, "tie_word_embeddings": True},
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.4,
            "residual_multiplier": 0.6,
            "logits_scaling": 3.0,
        },
    ),
}


@cache
def _trained():
    digits = pre_tokenizers.Split(Regex(r"\p{N}"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return train_byte_level(pre_tokenizers.Sequence([digits, byte_level]), vocab_size=300)


def tiny_backend():
    """A tokenizer that cuts as SmolLM2's does, of 300 tokens; ids 0 to 2 are special."""
    return copy_of(_trained())


def text_parts(directory, backend=None):
    special = {"bos_token": 1, "eos_token": 2}
    write_parts(Parts(backend or tiny_backend(), special, frozenset({2, 0})), directory)
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return directory_text_parts(directory)


def make_model(directory, family="llama", backend=None, **changes):
    """A random model of float32 tensors."""
    kind, values = FAMILIES[family]
    config = from_huggingface({"model_type": kind} | SIZES | values | changes)
    rng = np.random.default_rng(0)
    weights = {
        name: DenseTensor(
            name, "F32", (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
        )
        for name, shape in tensor_shapes(config).items()
    }
    directory.mkdir(parents=True, exist_ok=True)
    return Model("tiny", directory, config, weights, (), text_parts(directory, backend))


def quantised(model, *formats):
    """The model with its matrices in the formats (bits, group) by turns, None to leave one."""
    weights = dict(model.weights)
    matrices = [name for name, tensor in weights.items() if len(tensor.shape) == 2]
    for number, name in enumerate(matrices):
        form = formats[number % len(formats)]
        if form is not None:
            bits, group = form
            columns = weights[name].shape[1]
            group = group if group is None or columns % group == 0 else 32
            matrix = quantize_rtn(weights[name].to_float32(), bits, group)
            weights[name] = QuantizedTensor(name, matrix)
    return model.derive(weights)
