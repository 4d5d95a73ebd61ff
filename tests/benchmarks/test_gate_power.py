"""The changes of benchmarks/gate_power.py do what they say, and the gate tells them apart."""

import numpy as np
import pytest

from hasten.kernels.quantization import quantize_rtn
from hasten.measure.corpus import Windows
from hasten.models import load_model
from hasten.models.weights import QuantizedTensor

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama whose matrices are codes in groups of 32."""
    from tiny_models import LAYERS, VOCABULARY, write_directory

    hidden, inner, queries, keys = 64, 96, 128, 64
    shapes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    rng = np.random.default_rng(0)
    tensors = {"model.norm.weight": np.ones(hidden, np.float32)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = rng.standard_normal((VOCABULARY, hidden)).astype(np.float32)
    tensors["lm_head.weight"] *= np.float32(3 / hidden**0.5)
    for layer in range(LAYERS):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(hidden, np.float32)
        for part, shape in shapes.items():
            values = rng.standard_normal(shape) * 2 * shape[1] ** -0.5
            tensors[f"model.layers.{layer}.{part}.weight"] = values.astype(np.float32)
    path = write_directory(tmp_path_factory.mktemp("coded") / "model", tensors, **SIZES)
    plain = load_model(str(path))
    codes = {
        name: QuantizedTensor(name, quantize_rtn(tensor.to_float32(), 8, 32))
        if len(tensor.shape) == 2
        else tensor
        for name, tensor in plain.weights.items()
    }
    return plain.derive(codes)


@pytest.fixture(scope="module")
def bench(model):
    from gate_power import Bench

    ids = np.random.default_rng(1).integers(3, model.config.vocab_size, (8, 128))
    windows = Windows("random", "00", tuple(map(tuple, ids.tolist())), 128)
    running = Bench(model, windows, 1)
    yield running
    running.close()


def verdicts(model, bench, one, seeds):
    from gate_power import judge

    unchanged = bench.served(one.beside(1).change(model, 0))
    for seed in seeds:
        changed = one.change(model, seed)
        yield judge(bench.served(changed), unchanged, lambda: bench.exact(changed))  # noqa: B023


@pytest.mark.parametrize(
    "kind", ["scrambled matrix", "swapped heads", "RoPE base", "truncated vocabulary"]
)
def test_what_is_broken_never_passes(model, bench, kind):
    from gate_power import Try

    assert not any(one["passed"] for one in verdicts(model, bench, Try(kind, 0), range(3)))


@pytest.mark.parametrize(
    "kind",
    ["unfused", "threads", "packing", "permuted channels", "permuted heads", "rescaled norms"],
)
def test_what_is_harmless_is_the_same_in_float32(model, bench, kind):
    from gate_power import Try
    from model_changes import HARMLESS

    assert kind in HARMLESS
    changed = Try(kind, 0).change(model, 0)
    assert bench.exact(changed).kl.mean() < 1e-7
    if kind in ("unfused", "threads", "packing"):
        served = bench.served(changed)
        unchanged = bench.served(Try("unchanged", 0).change(model, 0))
        np.testing.assert_array_equal(served.kl, unchanged.kl)


def test_the_gate_passes_what_is_harmless(model, bench):
    from gate_power import Try

    found = [
        one
        for kind in ("unfused", "permuted channels", "permuted heads")
        for one in verdicts(model, bench, Try(kind, 0), range(2))
    ]
    assert all(one["passed"] for one in found), found


def test_each_piece_of_text_has_its_own_seeds():
    from gate_power import plan_tries

    tries = plan_tries(25, 1.0)
    assert len(tries) == 200
    assert len(set(tries)) == 200
