"""ModelConfig from config.json, checked against transformers' own reading."""

import dataclasses
import json
import warnings

import pytest
from tiny_models import CONFIG

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.config import ModelConfig
from hasten.models.config_json import from_huggingface, to_huggingface
from hasten.models.rope import LinearScaling, Llama3Scaling

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def test_reads_a_config_of_transformers_4():
    config = from_huggingface(CONFIG | {"rope_theta": 5e5, "rope_scaling": LLAMA3})
    assert config == ModelConfig(
        model_type="llama",
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        vocab_size=48,
        max_position=128,
        norm_eps=1e-5,
        rope_theta=5e5,
        rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64),
        bos_id=1,
        eos_ids=(2,),
    )


def test_reads_the_rope_parameters_of_transformers_5():
    old = from_huggingface(CONFIG | {"rope_theta": 5e5, "rope_scaling": LLAMA3})
    new = {key: value for key, value in CONFIG.items() if key != "rope_theta"}
    assert from_huggingface(new | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}) == old
    linear = from_huggingface(CONFIG | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert linear.rope_scaling == LinearScaling(2.0)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_absent_values_are_the_familys_defaults(model_type):
    needed = {
        key: CONFIG[key]
        for key in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
        )
    }
    needed |= {"model_type": model_type, "num_attention_heads": 8}
    config = from_huggingface(needed)
    mistral = model_type == "mistral"
    assert (config.num_kv_heads, config.head_dim) == (8, 8)
    assert config.sliding_window == (4096 if mistral else None)
    assert config.max_position == (131072 if mistral else 2048)
    assert (config.norm_eps, config.rope_theta) == (1e-6, 10000.0)
    flags = {config.tie_embeddings, config.attention_bias, config.mlp_bias}
    assert flags == {False}
    assert (config.bos_id, config.eos_ids) == (None, ())
    assert from_huggingface(needed | {"sliding_window": None}).sliding_window is None


def test_takes_a_list_of_end_tokens():
    assert from_huggingface(CONFIG | {"eos_token_id": [7, 2, 7]}).eos_ids == (2, 7)
    assert from_huggingface(CONFIG | {"eos_token_id": None}).eos_ids == ()


def test_never_looks_at_code():
    hostile = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    assert from_huggingface(CONFIG | hostile) == from_huggingface(CONFIG)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", 10**30),
        ("hidden_size", "64"),
        ("hidden_size", 64.0),
        ("hidden_size", True),
        ("hidden_size", [64] * 10_000),
        ("intermediate_size", 0),
        ("num_hidden_layers", 1 << 40),
        ("num_attention_heads", 0),
        ("num_attention_heads", -4),
        ("num_key_value_heads", 3),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", 8),
        ("head_dim", 15),
        ("head_dim", 0),
        ("vocab_size", 0),
        ("vocab_size", 1 << 40),
        ("max_position_embeddings", 0),
        ("rms_norm_eps", -1.0),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", 10**400),
        ("rope_theta", 0.0),
        ("rope_theta", float("inf")),
        ("rope_theta", "10000"),
        ("bos_token_id", -1),
        ("bos_token_id", 48),
        ("eos_token_id", 48),
        ("eos_token_id", [2, "3"]),
        ("eos_token_id", {"id": 2}),
        ("tie_word_embeddings", 1),
        ("attention_bias", "yes"),
        ("rope_scaling", [1]),
        ("rope_scaling", {"type": "linear"}),
        ("rope_scaling", {"type": "linear", "factor": 0}),
        ("rope_scaling", {"type": "linear", "factor": float("nan")}),
        ("rope_scaling", LLAMA3 | {"high_freq_factor": 1.0}),
        ("rope_scaling", LLAMA3 | {"low_freq_factor": 0.0}),
        ("rope_scaling", LLAMA3 | {"original_max_position_embeddings": 0}),
        ("rope_scaling", {key: LLAMA3[key] for key in ("rope_type", "factor")}),
    ],
)
def test_refuses_values_out_of_range(key, value):
    with pytest.raises(ModelFileError) as caught:
        from_huggingface(CONFIG | {key: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_refuses_a_mistral_window_of_zero():
    with pytest.raises(ModelFileError, match="sliding_window is 0"):
        from_huggingface(CONFIG | {"model_type": "mistral", "sliding_window": 0})


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_names_what_is_missing(key):
    with pytest.raises(ModelFileError, match=key):
        from_huggingface({name: value for name, value in CONFIG.items() if name != key})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt_neox"}, "'gpt_neox'.*allowed: .*llama, mistral"),
        ({"model_type": None}, "None.*allowed: .*llama"),
        ({"model_type": "../llama"}, "llama"),
        ({"model_type": "__init__"}, "llama"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"partial_rotary_factor": 0.5}, "0.5"),
        ({"rope_scaling": {"rope_type": "proportional", "factor": 2.0}}, "proportional.*llama3"),
        ({"rope_scaling": {"rope_type": "default", "mrope_section": [1]}}, "mrope_section"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
    ],
)
def test_names_variants_that_are_not_supported(change, words):
    with pytest.raises(UnsupportedModelError, match=words):
        from_huggingface(CONFIG | change)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rope_scaling": LLAMA3, "tie_word_embeddings": True, "eos_token_id": [2, 3]},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "attention_bias": True},
        {"model_type": "mistral", "sliding_window": 32, "head_dim": 32, "bos_token_id": None},
    ],
)
def test_survives_being_written_and_read(change):
    config = from_huggingface(CONFIG | change)
    assert from_huggingface(json.loads(json.dumps(to_huggingface(config)))) == config


@pytest.mark.parity
@pytest.mark.parametrize("family", ["Llama", "Mistral"])
@pytest.mark.parametrize(
    "options",
    [{}, {"rope_scaling": LLAMA3}, {"head_dim": 32, "tie_word_embeddings": True}],
    ids=["plain", "llama3", "wide heads, tied"],
)
def test_agrees_with_transformers(tmp_path, family, options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        sizes = {key: value for key, value in CONFIG.items() if key != "model_type"}
        theirs = getattr(transformers, f"{family}Config")(**sizes | options)
        theirs.save_pretrained(tmp_path)
    ours = from_huggingface(json.loads((tmp_path / "config.json").read_text()))
    assert (ours.num_layers, ours.num_kv_heads) == (2, 2)
    assert ours.head_dim == theirs.head_dim
    assert ours.tie_embeddings == theirs.tie_word_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    written = to_huggingface(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "config.json").write_text(json.dumps(written))
        again = transformers.AutoConfig.from_pretrained(tmp_path)
    for key in (*sizes.keys() - {"rope_theta", "eos_token_id"}, "head_dim", "rope_parameters"):
        assert getattr(again, key) == getattr(theirs, key), key


def test_fields_are_checked_however_a_config_is_made():
    config = from_huggingface(CONFIG)
    with pytest.raises(ModelFileError, match="head_dim is 7"):
        dataclasses.replace(config, head_dim=7)
