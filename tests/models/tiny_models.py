"""Small models on disk, made without torch, and GGUF files written byte by byte."""

import json
import struct
from pathlib import Path

import numpy as np

HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCABULARY = 4, 2, 16, 2, 48
HIDDEN, INNER = HEADS * HEAD_DIM, 96

CONFIG = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_tensors(seed=0, *, tied=False, bias=False):
    """Float32 tensors under their Hugging Face names."""
    rng = np.random.default_rng(seed)
    keys = KV_HEADS * HEAD_DIM
    matrices = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (HIDDEN,)
        shapes[prefix + "post_attention_layernorm.weight"] = (HIDDEN,)
        for name, shape in matrices.items():
            shapes[f"{prefix}{name}.weight"] = shape
            if bias and name.startswith("self_attn"):
                shapes[f"{prefix}{name}.bias"] = shape[:1]
    if not tied:
        shapes["lm_head.weight"] = (VOCABULARY, HIDDEN)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_directory(directory: Path, tensors=None, **changes) -> Path:
    """A Hugging Face directory with one safetensors file; None as a value removes a key."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    config = CONFIG | changes
    values = {key: value for key, value in config.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(values))
    save_file(tiny_tensors() if tensors is None else tensors, directory / "model.safetensors")
    return directory


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, suffix = name.rsplit(".", 1)
    if stem in whole:
        return f"{whole[stem]}.{suffix}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{suffix}"


def permuted(values, heads):
    """As `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_gguf(path: Path, tensors=None, *, encoding="F32", metadata=(), more=()) -> Path:
    """A GGUF file through the gguf package; matrices in `encoding`, vectors in F32."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    for key, value in metadata:
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    kind = gguf.GGMLQuantizationType[encoding]
    for name, values in (tiny_tensors() if tensors is None else tensors).items():
        stored = values
        if ".q_proj." in name:
            stored = permuted(values, HEADS)
        elif ".k_proj." in name:
            stored = permuted(values, KV_HEADS)
        if values.ndim == 1 or encoding == "F32":
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(stored))
        else:
            blocks = gguf.quants.quantize(np.ascontiguousarray(stored), kind)
            writer.add_tensor(gguf_name(name), blocks, raw_dtype=kind)
    for name, values in more:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def string(text) -> bytes:
    """A GGUF string."""
    encoded = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def key_value(key, kind: int, value: bytes) -> bytes:
    """A GGUF metadata entry."""
    return string(key) + struct.pack("<I", kind) + value


def tensor_info(name, dimensions=(32,), kind=0, offset=0) -> bytes:
    """A GGUF tensor description; dimensions as in the file, fastest first."""
    sizes = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return string(name) + sizes + struct.pack("<IQ", kind, offset)


def raw_gguf(keys=(), tensors=(), data=b"", *, version=3, counts=None) -> bytes:
    """A GGUF file from its parts; `counts` (tensors, keys) overrides the true ones."""
    count = (len(tensors), len(keys)) if counts is None else counts
    head = b"GGUF" + struct.pack("<IQQ", version, *count) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data
