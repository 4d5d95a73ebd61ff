"""Models of published shapes with random weights, in the files that every engine reads.

    python benchmarks/shapes.py llama-3.2-1b --directory build/models --encodings Q4_0 Q8_0

Speed does not depend on what a model knows, so a shape is enough to compare it. The bfloat16
weights are drawn once into a Hugging Face directory; the GGUF files hold the same weights, every
matrix in the encoding that the file is named after. The vocabulary has the shape's size and means
nothing beyond single bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.models.rope import Llama3Scaling, Rotation, inverse_frequencies
from hasten.models.safetensors import StoredArray, read_safetensors, write_safetensors

__all__ = ["SHAPES", "tensor_shapes", "write_gguf", "write_huggingface"]

_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
    "initializer_range": 0.02,
}
# As the models' own config.json has them, for a transformers that knows them.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        **_COMMON,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    "qwen3-0.6b": {
        **_COMMON,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
}
_PRE_TOKENIZERS = {"llama": "llama-bpe", "qwen3": "qwen2"}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
}
ENCODINGS = ("F16", "Q4_0", "Q8_0")


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, as Hugging Face checkpoints have them."""
    hidden, ffn, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = (config[f"num_{kind}_heads"] * width for kind in ("attention", "key_value"))
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    if config["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": (width,), "self_attn.k_norm": (width,)}
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden)
    }
    for number in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{number}.{name}.weight": size for name, size in layer.items()}
    return found | {"model.norm.weight": (hidden,)}


def write_huggingface(directory: Path, config: Mapping[str, Any], seed: int = 0) -> None:
    """Draws the weights and writes config.json, model.safetensors and a tokenizer.

    Matrices are normal with variance 1 / columns, those that write into the residual stream smaller
    by the square root of their number, so that activations stay of the order of 1.

    Args:
        directory: Made if missing; complete once its config.json is there.
        config: As in `SHAPES`.
        seed: Of the weights; each tensor has its own stream, named after it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: StoredArray("BF16", _draw(name, shape, 2 * config["num_hidden_layers"], seed))
        for name, shape in tensor_shapes(config).items()
    }
    write_safetensors(directory / "model.safetensors", arrays)
    tokens = _vocabulary(config["vocab_size"])
    files = {
        "tokenizer.json": _tokenizer(tokens, config),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[config["bos_token_id"]],
            "eos_token": tokens[config["eos_token_id"]],
        },
        "generation_config.json": {name: config[name] for name in ("bos_token_id", "eos_token_id")},
        "config.json": dict(config),
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _draw(name: str, shape: tuple[int, ...], writers: int, seed: int) -> NDArray[np.uint16]:
    """Bits of bfloat16 weights."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        values *= np.float32(0.1)
        values += 1
    elif "embed" in name:
        values *= np.float32(0.02)
    else:
        writes = "o_proj" in name or "down_proj" in name
        values *= np.float32((shape[1] * (writers if writes else 1)) ** -0.5)
    return _round_to_bf16(values)


def _round_to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Nearest bfloat16, ties to even; the values are finite."""
    bits = values.view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype(np.uint16)


def _vocabulary(size: int) -> list[str]:
    """Bytes as GPT-2 writes them, one merge, and words that no text has."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    # The order of `bytes_to_unicode` in the GPT-2 repository's encoder.py.
    characters = [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]
    special = [f"<|word-{number}|>" for number in range(size - len(characters) - 1)]
    return [*characters, "\u0120a", *special]


def _tokenizer(tokens: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    special = sorted({config["bos_token_id"], config["eos_token_id"]})
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": tokens[number], "special": True, **flags}
            for number in special
        ],
        "pre_tokenizer": {**byte_level, "trim_offsets": True},
        "decoder": {**byte_level, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [["\u0120", "a"]],
        },
    }


def write_gguf(directory: Path, target: Path, encoding: str) -> None:
    """Writes the weights of a directory that `write_huggingface` made as one GGUF file.

    Args:
        directory: The Hugging Face directory.
        target: The file; it appears when it is complete.
        encoding: Of all matrices, one of `ENCODINGS`; vectors are float32.
    """
    import gguf

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    kind = gguf.GGMLQuantizationType[encoding]
    partial = target.with_name(f"{target.name}.partial")
    writer = gguf.GGUFWriter(partial, config["model_type"])
    _add_metadata(writer, config)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{encoding}"])
    for name, values in _gguf_tensors(directory, config):
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)


def _add_metadata(writer: Any, config: Mapping[str, Any]) -> None:
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_name("random weights")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    tokens = _vocabulary(config["vocab_size"])
    special = {config["bos_token_id"], config["eos_token_id"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZERS[config["model_type"]])
    writer.add_token_list(tokens)
    normal, control = 1, 3
    writer.add_token_types([control if i in special else normal for i in range(len(tokens))])
    writer.add_token_merges(["\u0120 a"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def _gguf_tensors(
    directory: Path, config: Mapping[str, Any]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    if (divisors := _rope_divisors(config)) is not None:
        yield "rope_freqs.weight", divisors
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, array in read_safetensors(directory / "model.safetensors").items():
        values = (array.data.astype(np.uint32) << 16).view(np.float32)
        part = name.removesuffix(".weight").rpartition(".")[2]
        if config["model_type"] == "llama" and part in heads:
            # GGUF files of Llama rotate neighbouring rows, Hugging Face's the halves of a head.
            halves = values.reshape(heads[part], 2, config["head_dim"] // 2, -1)
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
        yield _gguf_name(name), values


def _gguf_name(name: str) -> str:
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    number, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{_LAYER_NAMES[part.removesuffix('.weight')]}.weight"


def _rope_divisors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    values = config["rope_scaling"]
    if values is None:
        return None
    scaling = Llama3Scaling(
        values["factor"],
        low_freq_factor=values["low_freq_factor"],
        high_freq_factor=values["high_freq_factor"],
        original_max_position=values["original_max_position_embeddings"],
    )
    rotation = Rotation(config["head_dim"], config["rope_theta"])
    return scaling.divisors(inverse_frequencies(rotation, config["max_position_embeddings"]))


def main() -> int:
    """Writes the files of one shape."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--directory", type=Path, default=Path("build/models"))
    parser.add_argument("--encodings", nargs="*", choices=ENCODINGS, default=["Q4_0"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = arguments.directory / arguments.shape
    if not (folder / "config.json").exists():
        write_huggingface(folder, SHAPES[arguments.shape], arguments.seed)
    for encoding in arguments.encodings:
        target = arguments.directory / f"{arguments.shape}.{encoding}.gguf"
        if not target.exists():
            write_gguf(folder, target, encoding)
    return 0


if __name__ == "__main__":
    sys.exit(main())
