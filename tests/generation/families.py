"""Tiny random models of every family, made and saved by transformers."""

import warnings
from dataclasses import dataclass, field

VOCABULARY = 77
SIZES = {
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.0, 4.0],
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 9, "rms_norm_eps": 1e-5}
GRANITE = {
    "embedding_multiplier": 6.0,
    "attention_multiplier": 0.4,
    "residual_multiplier": 0.6,
    "logits_scaling": 3.0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@dataclass(frozen=True)
class Variant:
    """A family in transformers, and what its configuration says beyond `SIZES`.

    Attributes:
        name: Of the family's classes.
        changes: Fields of its configuration.
        in_gguf: Other fields, so that a GGUF file can hold it; None if none can.
    """

    name: str
    changes: dict = field(default_factory=dict)
    in_gguf: dict | None = field(default_factory=dict)

    def make(self, more=None):
        """The model, with large random weights; biases and norms are random too."""
        import torch
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{self.name}Config")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = config(**SIZES | self.changes | (more or {}))
            made = getattr(transformers, f"{self.name.removesuffix('Text')}ForCausalLM")(values)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
                elif "norm" in name:
                    # Around 1, or around 0 where the family adds 1 to it.
                    centre = float(parameter.mean())
                    parameter.copy_(torch.rand_like(parameter) - 0.5 + centre)
                else:
                    parameter.copy_(torch.rand_like(parameter) - 0.5)
        return made.eval()

    def save(self, path):
        """Makes the model, writes it as a Hugging Face directory and returns it."""
        made = self.make()
        made.save_pretrained(path)
        return made


VARIANTS = {
    "llama": Variant("Llama"),
    "tied": Variant("Llama", {"tie_word_embeddings": True}),
    "attention bias": Variant("Llama", {"attention_bias": True}),
    "all biases": Variant("Llama", {"attention_bias": True, "mlp_bias": True}),
    "one kv head": Variant("Llama", {"num_key_value_heads": 1, "head_dim": 64}),
    "llama3 scaling": Variant("Llama", {"rope_parameters": LLAMA3}, None),
    "linear scaling": Variant("Llama", {"rope_parameters": LINEAR}),
    "yarn scaling": Variant("Llama", {"rope_parameters": YARN}),
    "dynamic scaling": Variant("Llama", {"rope_parameters": DYNAMIC}, None),
    "mistral": Variant("Mistral", {"head_dim": 10, "sliding_window": None}),
    "window": Variant("Mistral", {"head_dim": 10, "sliding_window": 16}),
    "qwen2": Variant("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 windows": Variant(
        "Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}, None
    ),
    "qwen3": Variant("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3 bias": Variant(
        "Qwen3", {"head_dim": 6, "attention_bias": True, "num_key_value_heads": 4}
    ),
    "qwen3 windows": Variant(
        "Qwen3",
        {
            "head_dim": 64,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rope_parameters": YARN,
        },
        {"use_sliding_window": False, "layer_types": None},
    ),
    "gemma2": Variant(
        "Gemma2", GEMMA | {"attn_logit_softcapping": 2.0}, {"query_pre_attn_scalar": 16}
    ),
    "gemma2 uncapped": Variant(
        "Gemma2",
        GEMMA
        | {
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "num_key_value_heads": 4,
            "head_dim": 6,
        },
        {
            "query_pre_attn_scalar": 6,
            "final_logit_softcapping": 30.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": Variant(
        "Gemma3Text",
        GEMMA | {"sliding_window_pattern": 3},
        {"query_pre_attn_scalar": 16, "sliding_window_pattern": 6, "num_hidden_layers": 7},
    ),
    "gemma3 scaled": Variant(
        "Gemma3Text",
        GEMMA
        | {
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "final_logit_softcapping": 3.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {"query_pre_attn_scalar": 16, "layer_types": None, "num_hidden_layers": 6},
    ),
    "phi3": Variant("Phi3"),
    "phi3 window": Variant("Phi3", {"sliding_window": 16, "num_key_value_heads": 1}),
    "phi4": Variant(
        "Phi3", {"hidden_size": 48, "rope_parameters": LONGROPE, "tie_word_embeddings": True}
    ),
    "phi4 long": Variant(
        "Phi3",
        {
            "hidden_size": 48,
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 32,
        },
    ),
    "granite": Variant("Granite", GRANITE),
    "granite bias": Variant(
        "Granite", GRANITE | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
    ),
}


def logits_of(made, tokens):
    """What a model of transformers (or PEFT) computes for every token."""
    import torch

    with torch.no_grad():
        return made(input_ids=torch.tensor([tokens])).logits[0].numpy()
