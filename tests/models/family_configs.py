"""What config.json of several families may say."""

from tiny_models import CONFIG

SIZES = {
    key: CONFIG[key]
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
} | {"num_attention_heads": 32, "num_hidden_layers": 12}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS = {
    "qwen2 windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    ),
    "qwen2 all windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
    ),
    "qwen3 yarn": ("qwen3", {"rope_scaling": YARN}),
    "gemma2 listed": ("gemma2", {"layer_types": ["full_attention"] * 11 + ["sliding_attention"]}),
    "gemma2 uncapped": ("gemma2", {"attn_logit_softcapping": None, "head_dim": 64}),
    "gemma3 pattern": (
        "gemma3_text",
        {
            "sliding_window_pattern": 4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_theta": 5e5,
            "rope_local_base_freq": 5e3,
        },
    ),
    "phi3 longrope": (
        "phi3",
        {
            "num_attention_heads": 4,
            "eos_token_id": 2,
            "partial_rotary_factor": 0.75,
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0] * 6,
                "long_factor": [2.0] * 6,
            },
        },
    ),
    "granite": ("granite", {"attention_multiplier": 0.015625, "logits_scaling": 8.0}),
}
