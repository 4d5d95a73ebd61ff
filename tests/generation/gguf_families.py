"""GGUF files of every family, as llama.cpp's converter writes them.

Tensor names come from the gguf package's own mapping; what the converter does to tensors and which
keys it writes, from its `set_gguf_parameters` and `modify_tensors`.
"""

import math

import numpy as np

ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def write_gguf(path, made, encoding="F32"):
    """Writes a transformers model.

    Args:
        path: The file.
        made: The model.
        encoding: Of the matrices; vectors are F32.
    """
    import gguf

    config = made.config
    kind = config.model_type
    name = ARCHITECTURES.get(kind, kind)
    writer = gguf.GGUFWriter(path, name)
    write_metadata(writer, config, kind)
    architecture = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    state = {key: value.numpy() for key, value in made.state_dict().items()}
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    for key, values in state.items():
        theirs = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, key
        stored = np.ascontiguousarray(converted(key, values, config))
        if values.ndim == 1 or encoding == "F32":
            writer.add_tensor(theirs, stored)
        else:
            form = gguf.GGMLQuantizationType[encoding]
            writer.add_tensor(theirs, gguf.quants.quantize(stored, form), raw_dtype=form)
    for key, values in extra_tensors(config):
        writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(name, values, config):
    """What the converter makes of a tensor."""
    if config.model_type in ("llama", "mistral", "granite"):
        for part, heads in (
            (".q_proj.", config.num_attention_heads),
            (".k_proj.", config.num_key_value_heads),
        ):
            if part in name:
                halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
                return halves.swapaxes(1, 2).reshape(values.shape)
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return values + np.float32(1)
    return values


def write_metadata(writer, config, kind):
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if kind != "gemma2":
        writer.add_rope_freq_base(rope["rope_theta"])
    if kind not in ("phi3", "granite"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    write_rope(writer, config, rope, kind, head_dim)
    if kind in ("mistral", "gemma2", "gemma3_text", "phi3"):
        writer.add_sliding_window(config.sliding_window or 0)
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping or 0)
    if kind.startswith("gemma") and config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if kind == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)


def write_rope(writer, config, rope, kind, head_dim):
    import gguf

    dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    if kind in ("llama", "mistral", "granite", "phi3"):
        writer.add_rope_dimension_count(dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "phi3" or rope["rope_type"] == "yarn":
        original = rope.get("original_max_position_embeddings", config.max_position_embeddings)
        writer.add_rope_scaling_orig_ctx_len(original)
    if rope["rope_type"] == "longrope":
        scale = config.max_position_embeddings / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(factor)


def extra_tensors(config):
    """Rotary factors that the converter computes."""
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    if rope["rope_type"] == "longrope":
        yield "rope_factors_long.weight", np.array(rope["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(rope["short_factor"], np.float32)
