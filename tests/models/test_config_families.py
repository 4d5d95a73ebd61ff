"""What config.json of each family means, against transformers' own reading of it."""

import dataclasses
import json
import warnings

import pytest
from family_configs import SIZES, VARIANTS, YARN

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.config import ModelConfig
from hasten.models.config_json import from_huggingface, to_huggingface
from hasten.models.rope import DynamicScaling, LinearScaling, LongRopeScaling, YarnScaling

CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "phi3": "Phi3",
    "granite": "Granite",
}
FIELDS = {
    "num_key_value_heads": "num_kv_heads",
    "max_position_embeddings": "max_position",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "sliding_window": "sliding_window",
    "query_pre_attn_scalar": "query_pre_attn_scalar",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention_multiplier",
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_scaling",
}


def in_transformers(model_type, changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        return getattr(transformers, f"{CLASSES[model_type]}Config")(**SIZES | changes)


def check_agreement(ours: ModelConfig, theirs):
    for key, field in FIELDS.items():
        if hasattr(theirs, key):
            windowless = key == "sliding_window" and all(
                ours.window(layer) is None for layer in range(ours.num_layers)
            )
            if not windowless:
                assert getattr(ours, field) == getattr(theirs, key), key
    dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert ours.head_dim == dim
    types = getattr(theirs, "layer_types", None)
    if types is not None:
        found = [
            "full_attention" if ours.window(layer) is None else "sliding_attention"
            for layer in range(ours.num_layers)
        ]
        assert found == types
    rope = theirs.rope_parameters
    full = rope.get("full_attention", rope)
    assert ours.rope_theta == full["rope_theta"]
    if "sliding_attention" in rope:
        assert ours.local_rope_theta == rope["sliding_attention"]["rope_theta"]


@pytest.mark.parity
@pytest.mark.parametrize("model_type", CLASSES)
def test_absent_values_mean_what_they_mean_in_transformers(model_type):
    theirs = in_transformers(model_type, {})
    check_agreement(from_huggingface(SIZES | {"model_type": model_type}), theirs)


@pytest.mark.parity
@pytest.mark.parametrize("shape", ["as found", "as saved"])
@pytest.mark.parametrize(("model_type", "changes"), VARIANTS.values(), ids=VARIANTS)
def test_variants_mean_what_they_mean_in_transformers(model_type, changes, shape, tmp_path):
    theirs = in_transformers(model_type, json.loads(json.dumps(changes)))
    values = SIZES | changes | {"model_type": model_type}
    if shape == "as saved":
        theirs.save_pretrained(tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
    check_agreement(from_huggingface(values), theirs)


@pytest.mark.parametrize("model_type", CLASSES)
def test_survives_being_written_and_read(model_type):
    changes = [{}, *(change for kind, change in VARIANTS.values() if kind == model_type)]
    for change in changes:
        config = from_huggingface(SIZES | change | {"model_type": model_type})
        assert from_huggingface(json.loads(json.dumps(to_huggingface(config)))) == config


def test_the_length_before_scaling_survives_being_written():
    config = from_huggingface(SIZES | VARIANTS["phi3 longrope"][1] | {"model_type": "phi3"})
    scaling = dataclasses.replace(config.rope_scaling, original_max_position=77)
    config = dataclasses.replace(config, rope_scaling=scaling)
    assert from_huggingface(to_huggingface(config)) == config


@pytest.mark.parametrize("dims", [(10, 6), (96, 72), (80, 56), (128, 94), (3000, 2998)])
def test_parts_of_a_head_survive_being_written(dims):
    head_dim, rotary_dim = dims
    config = from_huggingface(SIZES | {"model_type": "phi3", "head_dim": head_dim})
    config = dataclasses.replace(config, rotary_dim=rotary_dim)
    assert from_huggingface(to_huggingface(config)).rotary_dim == rotary_dim


def test_how_long_a_text_may_be():
    values = SIZES | {"model_type": "llama", "max_position_embeddings": 1000}

    def longest(**rope):
        return from_huggingface(values | {"rope_scaling": rope}).longest

    assert longest(rope_type="default") == 1000
    assert longest(rope_type="linear", factor=4.0) == 1000
    assert longest(rope_type="dynamic", factor=4.0) == 4000
    assert longest(rope_type="yarn", factor=4.0) == 4000
    assert longest(rope_type="yarn", factor=4.0, original_max_position_embeddings=250) == 1000


def test_rotations_of_layers():
    values = SIZES | {
        "model_type": "gemma3_text",
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    config = from_huggingface(values)
    local, whole = config.rotation(0), config.rotation(5)
    assert (local.theta, local.scaling, config.window(0)) == (1e4, None, 4096)
    assert (whole.theta, whole.scaling, config.window(5)) == (1e6, LinearScaling(8.0), None)


def test_attention_factors():
    values = SIZES | {"model_type": "qwen2", "max_position_embeddings": 64}
    yarn = from_huggingface(values | {"rope_scaling": YARN}).rope_scaling
    assert isinstance(yarn, YarnScaling)
    assert yarn.attention_factor == pytest.approx(1.1386294361119891)
    longrope = from_huggingface(SIZES | {"model_type": "phi3"} | VARIANTS["phi3 longrope"][1])
    assert isinstance(longrope.rope_scaling, LongRopeScaling)
    assert longrope.rope_scaling.attention_factor == pytest.approx(1.1902380714238083)
    assert longrope.rotary_dim == 12
    dynamic = values | {"rope_scaling": {"type": "dynamic", "factor": 2}}
    assert from_huggingface(dynamic).rope_scaling == DynamicScaling(2.0, 64)


@pytest.mark.parametrize(
    ("model_type", "change", "words"),
    [
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping.*'llama'.*null"),
        ("llama", {"logits_scaling": 8}, "logits_scaling.*1"),
        ("llama", {"attention_multiplier": 0.1}, "attention_multiplier"),
        ("llama", {"num_experts": 8}, "num_experts"),
        ("llama", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 12}, "chunked_attention"),
        ("qwen3", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
        ("gemma2", {"hidden_activation": "gelu"}, "'gelu'.*gelu_pytorch_tanh"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}},
            "yarn.*window",
        ),
        ("gemma2", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention"),
        ("granite", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("gemma3n", {}, "'gemma3n' is not supported"),
    ],
)
def test_refuses_what_it_would_compute_otherwise(model_type, change, words):
    with pytest.raises(UnsupportedModelError, match=words):
        from_huggingface(SIZES | change | {"model_type": model_type})


@pytest.mark.parametrize(
    ("model_type", "change"),
    [
        ("gemma2", {"layer_types": ["full_attention"]}),
        ("gemma2", {"layer_types": ["sliding_attention"] * 12, "sliding_window": None}),
        ("gemma2", {"query_pre_attn_scalar": 0}),
        ("gemma2", {"attn_logit_softcapping": -1.0}),
        ("gemma2", {"final_logit_softcapping": float("nan")}),
        ("gemma3_text", {"rope_local_base_freq": 0.5}),
        ("granite", {"residual_multiplier": "0.5"}),
        ("granite", {"logits_scaling": 0}),
        ("phi3", {"partial_rotary_factor": 1.5}),
        ("phi3", {"partial_rotary_factor": 0.1, "head_dim": 16}),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": "1"}},
        ),
        (
            "phi3",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 2}},
        ),
        ("qwen2", {"rope_scaling": {"type": "yarn"}}),
        ("qwen2", {"use_sliding_window": 1}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": "3"}),
    ],
)
def test_refuses_values_out_of_range(model_type, change):
    with pytest.raises(ModelFileError):
        from_huggingface(SIZES | change | {"model_type": model_type})


@pytest.mark.parametrize("text", [None, [], "gemma3_text"])
def test_refuses_a_model_without_a_text_part(text):
    with pytest.raises(ModelFileError, match="text_config"):
        from_huggingface({"model_type": "gemma3", "text_config": text})


@pytest.mark.parametrize(
    "change", [{"layer_types": ["full_attention"] * 12}, {"num_experts": 0}, {"logit_scale": None}]
)
def test_takes_values_that_change_nothing(change):
    values = SIZES | {"model_type": "llama"}
    assert from_huggingface(values | change) == from_huggingface(values)
