"""Small random encoders: in memory, and as transformers saves them."""

from tiny import make_model

from hasten.models.config import EncoderConfig

SHAPE = {
    "model_type": "bert",
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 10,
    "output": "hidden",
}


def make_encoder(seed=0, *, activation="gelu", token_types=2, offset=0, **changes):
    """A random encoder of 128 positions."""
    encoder = EncoderConfig(128 + offset, offset, token_types, activation)
    return make_model(seed, **SHAPE | {"max_position": 128, "encoder": encoder} | changes)


HF_SHAPE = {
    "hidden_size": 40,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 77,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": None,
}
DISTIL_SHAPE = {
    "dim": 40,
    "hidden_dim": 52,
    "n_layers": 2,
    "n_heads": 4,
    "vocab_size": 77,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def save_random_encoder(name, path, **changes):
    """A transformers model of class `name`, with large random weights and biases, saved."""
    import torch
    import transformers

    kind = name.removesuffix("ForMaskedLM").removesuffix("Model")
    config = getattr(transformers, kind + "Config")
    shape = DISTIL_SHAPE if kind == "DistilBert" else HF_SHAPE
    torch.manual_seed(0)
    made = getattr(transformers, name)(config(**shape | changes)).eval()
    with torch.no_grad():
        for parameter, values in made.named_parameters():
            if values.ndim == 1:
                values.copy_(torch.rand_like(values) + (0.5 if "orm.weight" in parameter else -0.5))
            else:
                values.normal_(0, 2 / values.shape[1] ** 0.5)
    made.save_pretrained(path)
    return made
