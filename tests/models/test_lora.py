"""LoRA adapters from files: PEFT directories, and hostile ones."""

import json
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_adapters import PROJECTIONS, random_adapter, random_pairs, save_pairs

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models.config import ModelConfig
from hasten.models.config_json import to_huggingface
from hasten.models.lora import adapted_modules, load_adapter

CONFIG = ModelConfig(
    model_type="llama",
    hidden_size=40,
    intermediate_size=52,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    vocab_size=77,
    max_position=64,
    norm_eps=1e-5,
    rope_theta=10000.0,
)
QUERY = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def pairs():
    return random_pairs(CONFIG, 4, 0, ("q_proj", "down_proj"))


def test_reads_matrices_and_scale(tmp_path, pairs):
    adapter = load_adapter(save_pairs(tmp_path, pairs, lora_alpha=6), CONFIG)
    assert adapter.rank == 4
    assert adapter.weights.keys() == {f"{module}.weight" for module in pairs}
    for module, (a, b) in pairs.items():
        weight = adapter.weights[f"{module}.weight"]
        np.testing.assert_array_equal(weight.a, a)
        np.testing.assert_array_equal(weight.b, b)
        assert weight.scale == 1.5


def test_scales_and_ranks_by_pattern(tmp_path, pairs):
    wide = random_pairs(CONFIG, 9, 1, ("q_proj",), [1])
    fields = {
        "lora_alpha": 8,
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {"layers.1.self_attn.q_proj": 9, "q_proj": 4},
        "alpha_pattern": {f"^{QUERY}": 3, "^self_attn.q_proj": 1000, "down_proj": 2.5},
        "target_modules": ["q_proj", "down_proj"],
    }
    adapter = load_adapter(save_pairs(tmp_path, pairs | wide, **fields), CONFIG)
    scales = {name: weight.scale for name, weight in adapter.weights.items()}
    assert adapter.rank == 9
    assert scales[f"{QUERY}.weight"] == 1.0
    assert scales["model.layers.0.self_attn.q_proj.weight"] == 4.0
    assert scales["model.layers.2.mlp.down_proj.weight"] == 1.25


def test_the_digest_tells_files_apart(tmp_path, pairs):
    digests = {
        load_adapter(save_pairs(tmp_path / name, pairs, lora_alpha=alpha), CONFIG).digest
        for name, alpha in (("a", 1), ("b", 1), ("c", 2))
    }
    other = random_adapter(tmp_path / "d", CONFIG, 4, 1, ("q_proj", "down_proj"), lora_alpha=1)
    assert len(digests) == 2
    assert other.digest not in digests


def test_modules_are_those_that_multiply(tmp_path):
    modules = adapted_modules(CONFIG)
    assert len(modules) == 7 * 3 + 1
    assert modules["lm_head"].parts == (("lm_head.weight", 77),)
    assert (modules[QUERY].rows, modules[QUERY].columns) == (40, 40)


def test_joint_projections_share_their_input_matrix(tmp_path):
    """Phi-3's files have one module where the graph has three, or two."""
    config = replace(CONFIG, model_type="phi3")
    modules = adapted_modules(config)
    assert len(modules) == 4 * 3 + 1
    layer = "model.layers.1"
    assert [name for name, _ in modules[f"{layer}.self_attn.qkv_proj"].parts] == [
        f"{layer}.self_attn.{one}_proj.weight" for one in "qkv"
    ]
    pairs = random_pairs(config, 4, 0, ("qkv_proj", "gate_up_proj"))
    adapter = load_adapter(save_pairs(tmp_path, pairs), config)
    assert len(adapter.weights) == 5 * 3
    a, b = pairs[f"{layer}.self_attn.qkv_proj"]
    parts = [adapter.weights[f"{layer}.self_attn.{one}_proj.weight"] for one in "qkv"]
    assert all(part.a is parts[0].a for part in parts)
    np.testing.assert_array_equal(parts[0].a, a)
    np.testing.assert_array_equal(np.concatenate([part.b for part in parts]), b)
    with pytest.raises(ModelFileError, match="does not have"):
        load_adapter(save_pairs(tmp_path / "single", random_pairs(CONFIG, 4, 0)), config)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": r".*\.(q|down)_proj"},
        {"target_modules": None},
        {"target_modules": ["q_proj", "mlp.down_proj", "nothing_of_this_model"]},
        {"target_modules": ["q_proj", "k_proj", "down_proj"], "exclude_modules": ["k_proj"]},
        {"layers_to_transform": [0, 1, 2]},
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1, "inference_mode": True},
        {"modules_to_save": None, "rank_pattern": {}, "loftq_config": {}, "use_dora": False},
    ],
)
def test_accepts_what_changes_nothing(tmp_path, pairs, fields):
    assert len(load_adapter(save_pairs(tmp_path, pairs, **fields), CONFIG).weights) == 6


def test_names_without_the_models_own_prefix(tmp_path, pairs):
    """As PEFT saves adapters of a model without its output projection."""
    short = {module.removeprefix("model."): pair for module, pair in pairs.items()}
    adapter = load_adapter(save_pairs(tmp_path, short), CONFIG)
    assert adapter.weights.keys() == {f"{module}.weight" for module in pairs}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": "LOHA"}, "'LOHA'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, "use_dora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"rank_pattern": {".*q_proj": 4}}, "regular expression"),
        ({"alpha_pattern": {"(a+)+$": 4}}, "regular expression"),
    ],
)
def test_refuses_variants(tmp_path, pairs, fields, said):
    with pytest.raises(UnsupportedModelError, match=r"adapter_config\.json") as caught:
        load_adapter(save_pairs(tmp_path, pairs, **fields), CONFIG)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"r": 5}, "needs [5, "),
        ({"r": "four"}, "r is 'four'"),
        ({"r": 0}, "rank is 0"),
        ({"lora_alpha": None}, "lora_alpha is missing"),
        ({"lora_alpha": float("nan")}, "alpha is nan"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 0}}, "rank is 0"),
        ({"target_modules": ["q_proj"]}, "holds model.layers.0.mlp.down_proj"),
        ({"target_modules": ["q_proj", "down_proj", "v_proj"]}, "lacks model.layers.0.self_attn.v"),
        ({"layers_to_transform": [0, 1]}, "holds model.layers.2."),
        ({"layers_to_transform": 1}, "holds model.layers.0."),
    ],
)
def test_refuses_contradictions(tmp_path, pairs, fields, said):
    with pytest.raises(ModelFileError) as caught:
        load_adapter(save_pairs(tmp_path, pairs, **fields), CONFIG)
    assert said in str(caught.value)


def tensors_of(pairs):
    return {
        f"base_model.model.{module}.lora_{side}.weight": matrix
        for module, pair in pairs.items()
        for side, matrix in zip("AB", pair, strict=True)
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({f"base_model.model.{QUERY}.lora_B.weight": None}, f"only lora_A of {QUERY}"),
        ({f"base_model.model.{QUERY}.lora_A.weight": (4, 39)}, "needs [4, 40]"),
        ({f"base_model.model.{QUERY}.lora_B.weight": (41, 4)}, "needs [40, 4]"),
        ({f"base_model.model.{QUERY}.lora_B.weight": (160,)}, "needs [40, 4]"),
        ({"base_model.model.model.layers.3.mlp.down_proj.lora_A.weight": (4, 52)}, "layers.3"),
        ({f"base_model.model.{QUERY}.lora_magnitude_vector": (40,)}, "no part of a plain LoRA"),
        ({"base_model.model.model.embed_tokens.lora_embedding_A": (4, 77)}, "no part of a plain"),
        ({"base_model.model.lm_head.weight": (77, 40)}, "no part of a plain"),
    ],
)
def test_refuses_tensors_that_do_not_fit(tmp_path, pairs, changes, said):
    save_pairs(tmp_path, pairs)
    tensors = tensors_of(pairs)
    for name, shape in changes.items():
        del_or_zero = None if shape is None else np.zeros(shape, np.float32)
        tensors[name] = del_or_zero
    left = {name: values for name, values in tensors.items() if values is not None}
    save_file(left, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelFileError) as caught:
        load_adapter(tmp_path, CONFIG)
    assert said in str(caught.value)


def test_refuses_values_that_are_no_numbers(tmp_path, pairs):
    save_pairs(tmp_path, pairs)
    tensors = tensors_of(pairs)
    tensors[f"base_model.model.{QUERY}.lora_A.weight"][2, 3] = np.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelFileError, match="NaN"):
        load_adapter(tmp_path, CONFIG)
    save_file({"a": np.zeros(1, np.int32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ModelFileError, match="no part"):
        load_adapter(tmp_path, CONFIG)


def test_refuses_directories_without_an_adapter(tmp_path, pairs):
    with pytest.raises(ModelFileError, match="no adapter"):
        load_adapter(tmp_path / "nowhere", CONFIG)
    path = save_pairs(tmp_path / "one", pairs)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"adapter_model\.safetensors"):
        load_adapter(path, CONFIG)
    (path / "adapter_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(UnsupportedModelError, match="run code"):
        load_adapter(path, CONFIG)
    empty = save_pairs(tmp_path / "two", {}, target_modules="nothing")
    with pytest.raises(ModelFileError, match="changes nothing"):
        load_adapter(empty, CONFIG)


@pytest.mark.parity
@pytest.mark.parametrize(
    "fields",
    [
        {"r": 3, "lora_alpha": 5, "target_modules": list(PROJECTIONS)},
        {
            "r": 4,
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"up_proj": 7},
            "alpha_pattern": {"^model.layers.1.self_attn.q_proj": 3},
            "use_rslora": True,
            "layers_to_transform": [1, 2],
        },
    ],
)
def test_reads_what_peft_writes(tmp_path, fields):
    """Names, and scale * B A of every module, are PEFT's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**to_huggingface(CONFIG)))
        theirs = get_peft_model(model, LoraConfig(init_lora_weights=False, **fields))
        theirs.save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path, CONFIG)
    wanted = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default")
        for name, module in theirs.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert adapter.weights.keys() == {f"{name}.weight" for name in wanted}
    for name, delta in wanted.items():
        weight = adapter.weights[f"{name}.weight"]
        got = weight.scale * (weight.b @ weight.a)
        np.testing.assert_allclose(got, delta.detach().numpy(), rtol=1e-5, atol=1e-6)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
