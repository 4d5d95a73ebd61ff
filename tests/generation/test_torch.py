"""The ops of the torch executor one by one, and what it says where it cannot run."""

import sys

import numpy as np
import pytest
import torch
from tiny import Player, make_model, some_tokens

from hasten.errors import CapacityError, MissingDependencyError, UsageError
from hasten.generation import Engine, torch_executor, torch_ops
from hasten.kernels import activation, attention, linear, lora, norm, rope
from hasten.types import EngineOptions

ROWS, WIDTH = 7, 30


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def both(op, twin, *arrays):
    """What an op and its NumPy twin compute of the same arrays."""
    return op(*(torch.tensor(one) for one in arrays)).numpy(), twin(*arrays)


X, UP = draw(ROWS, WIDTH), draw(ROWS, WIDTH, seed=1)
VECTOR, BIAS = draw(WIDTH), draw(WIDTH, seed=1)
MATRIX, ROW_BIAS = draw(11, WIDTH), draw(11)
A, B = draw(3, WIDTH), draw(11, 3)
CASES = {
    "linear": both(torch_ops.linear, linear.linear, X, MATRIX),
    "linear with bias": both(torch_ops.linear, linear.linear, X, MATRIX, ROW_BIAS),
    "lora": both(
        lambda *given: torch_ops.lora(*given, 0.7), lambda *given: lora.lora(*given, 0.7), X, A, B
    ),
    "rms_norm": both(
        lambda *given: torch_ops.rms_norm(*given, 1e-5),
        lambda *given: norm.rms_norm(*given, 1e-5),
        X,
        VECTOR,
    ),
    "layer_norm": both(
        lambda *given: torch_ops.layer_norm(*given, 1e-5),
        lambda *given: norm.layer_norm(*given, 1e-5),
        X,
        VECTOR,
        BIAS,
    ),
    "rotate": both(
        torch_ops.rotate, rope.rotate, draw(ROWS, 3, 10), draw(ROWS, 5), draw(ROWS, 5, seed=1)
    ),
    "rotate in part": both(
        torch_ops.rotate, rope.rotate, draw(ROWS, 3, 10), draw(ROWS, 3), draw(ROWS, 3, seed=1)
    ),
    "silu_mul": both(torch_ops.silu_mul, activation.silu_mul, X * 30, UP),
    "gelu": both(torch_ops.gelu, activation.gelu, X * 5),
    "gelu_tanh": both(lambda x: torch_ops.gelu(x, tanh=True), activation.gelu_tanh, X * 5),
    "gelu_mul": both(torch_ops.gelu_mul, activation.gelu_mul, X * 5, UP),
    "softcap": both(
        lambda x: torch_ops.softcap(x, 3.0), lambda x: activation.softcap(x, 3.0), X * 5
    ),
}


@pytest.mark.parametrize(("got", "want"), CASES.values(), ids=CASES)
def test_an_op_is_as_in_numpy(got, want):
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=3e-6 * np.abs(want).max(), rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 4])
def test_attention_is_as_in_numpy(kv_heads, cap, window):
    query, keys, values = draw(5, 6, 10), draw(20, kv_heads, 10), draw(20, kv_heads, 10, seed=1)
    positions = np.arange(15, 20, dtype=np.int32)
    want = attention.attention(query, keys, values, positions, window, 0.4, cap)
    mask = torch_ops.visible(torch.tensor(positions).long(), 20, window)
    tensors = (torch.tensor(one)[None] for one in (query, keys, values))
    got = torch_ops.attention(*tensors, scale=0.4, cap=cap, mask=mask)[0]
    np.testing.assert_allclose(got, want, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_without_a_mask(cap, causal):
    query, keys, values = (draw(9, 4, 10, seed=seed) for seed in range(3))
    positions = np.arange(9, dtype=np.int32)
    want = attention.attention(query, keys, values, positions, None, 0.4, cap, causal=causal)
    tensors = (torch.tensor(one)[None] for one in (query, keys, values))
    got = torch_ops.attention(*tensors, scale=0.4, cap=cap, causal=causal)[0]
    np.testing.assert_allclose(got, want, atol=3e-6, rtol=1e-5)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    player = Player(make_model(), [some_tokens(5)], executor="torch", threads=3)
    player.together()
    assert torch.get_num_threads() == before
    assert player.executor.thread_choice.prefill == 3
    assert player.executor.isa == "torch on cpu"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hasten\[torch\]'"):
        Engine(make_model(), EngineOptions(executor="torch"))


def test_an_unknown_executor_is_refused():
    with pytest.raises(UsageError, match="native, reference, torch"):
        Engine(make_model(), EngineOptions(executor="jax"))


def test_what_a_gpu_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 20, 1 << 30))
    check = torch_executor._check_device
    check(torch.device("cuda"), 1 << 20)
    check(torch.device("cpu"), 1 << 40)
    with pytest.raises(CapacityError, match="shorter context"):
        check(torch.device("cuda"), (1 << 20) + 1)
