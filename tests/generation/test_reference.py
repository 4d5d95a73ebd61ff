"""The native executor in float32 against the reference executor."""

import numpy as np
import pytest
from tiny import FAMILIES, Player, make_model, some_tokens

from hasten.models.rope import LinearScaling, Llama3Scaling

LLAMA3 = Llama3Scaling(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position=32,
)
VARIANTS = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "attention bias": {"attention_bias": True},
    "all biases": {"attention_bias": True, "mlp_bias": True},
    "one head each": {"num_kv_heads": 6},
    "one kv head": {"num_kv_heads": 1, "head_dim": 64},
    "llama3 scaling": {"rope_scaling": LLAMA3},
    "linear scaling": {"rope_scaling": LinearScaling(factor=4.0)},
    "window": {"model_type": "mistral", "sliding_window": 9},
    "window of one": {"model_type": "mistral", "sliding_window": 1},
    **FAMILIES,
}
SEQUENCES = [some_tokens(n, seed=n) for n in (100, 40, 3)]


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_native_equals_reference(isa, changes, fuse):
    model = make_model(**changes)
    want = Player(model, SEQUENCES, executor="reference").together()
    native = Player(model, SEQUENCES, isa=isa, weights="f32", kv="f32", fuse=fuse, threads=2)
    got = native.together(33)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_torch_equals_reference(changes):
    model = make_model(**changes)
    want = Player(model, SEQUENCES, executor="reference").together()
    got = Player(model, SEQUENCES, executor="torch").together(33)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("changes", [VARIANTS["window"], VARIANTS["llama3 scaling"]])
def test_variants_change_the_answer(changes):
    """Or the comparison above would not notice that both executors ignore them."""
    plain = Player(make_model(), SEQUENCES, executor="reference").together()
    varied = Player(make_model(**changes), SEQUENCES, executor="reference").together()
    assert np.abs(plain - varied).max() > 0.1 * np.abs(plain).max()


@pytest.mark.parametrize(
    ("weights", "kv", "tolerance"),
    [("bf16", "f32", 0.05), ("f32", "bf16", 0.03), ("f32", "int8", 0.05), ("int8:32", "f32", 0.1)],
)
def test_coarser_formats_stay_near(isa, weights, kv, tolerance):
    model = make_model()
    want = Player(model, SEQUENCES, executor="reference").together()
    got = Player(model, SEQUENCES, isa=isa, weights=weights, kv=kv).together()
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert 1e-6 < error < tolerance


def test_reference_does_not_depend_on_chunks():
    model = make_model()
    want = Player(model, SEQUENCES, executor="reference").alone()
    got = Player(model, SEQUENCES, executor="reference").together(7)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=0)
