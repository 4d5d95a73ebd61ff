"""LoRA adapters in the executors: what they compute, and for whom."""

import warnings

import numpy as np
import pytest
from families import VARIANTS, logits_of
from tiny import Player, make_model, some_tokens
from tiny_adapters import PROJECTIONS, random_adapter

from hasten.generation import Engine
from hasten.models import load_model
from hasten.models.weights import DenseTensor
from hasten.types import EngineOptions

SEQUENCES = [some_tokens(n, seed=n) for n in (70, 33, 1, 7, 12, 40)]
SLOTS = [0, -1, 2, 1, 0, -1]
RANKS = (1, 8, 64)
WEIGHTS = ("f32", "bf16", "int8:32", "int8:64", "int4:32")


@pytest.fixture(scope="module")
def model():
    return make_model(attention_bias=True, num_layers=3)


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    """One on every projection, one on some of the middle layer, one that nothing has in common."""
    path = tmp_path_factory.mktemp("adapters")
    return [
        random_adapter(path / "all", model.config, 8, 0),
        random_adapter(path / "some", model.config, 1, 1, ("k_proj", "up_proj"), [1]),
        random_adapter(path / "head", model.config, 19, 2, (*PROJECTIONS, "lm_head")),
    ]


def player(model, adapters, slots=SLOTS, sequences=SEQUENCES, **options):
    made = Player(model, sequences, slots, max_adapters=4, **options)
    for slot, adapter in enumerate(adapters):
        made.executor.load_adapter(slot, adapter)
    return made


def split(logits, sequences=SEQUENCES):
    return np.split(logits, np.cumsum([len(s) for s in sequences])[:-1])


def merged(model, adapter):
    """The model with an adapter added to its weights."""
    changes = {
        name: DenseTensor(
            name,
            "F32",
            model.weights[name].to_float32() + np.float32(weight.scale) * (weight.b @ weight.a),
        )
        for name, weight in adapter.weights.items()
    }
    made = make_model(attention_bias=True, num_layers=3)
    made.weights |= changes
    return made


@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_do_not_depend_on_company(isa, model, adapters, weights):
    """Bit for bit: alone or among other adapters, in chunks, by any threads, fused or not."""
    given = {"isa": isa, "weights": weights}
    want = player(model, adapters, **given).alone()
    assert np.isfinite(want).all()
    for threads, fuse, lora in ((1, True, "bf16"), (2, True, "bf16"), (3, False, "bf16")):
        got = player(model, adapters, threads=threads, fuse=fuse, lora=lora, **given).together()
        np.testing.assert_array_equal(got, want, f"{threads=} {fuse=}")
    for size in (1, 3, 7, 32):
        got = player(model, adapters, threads=2, **given).together(size)
        np.testing.assert_array_equal(got, want, f"{size=}")


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sequences_without_an_adapter_do_not_notice(isa, model, adapters, weights):
    plain = split(Player(model, SEQUENCES, isa=isa, weights=weights).together())
    mixed = split(player(model, adapters, isa=isa, weights=weights, threads=2).together())
    empty = split(player(model, [], isa=isa, weights=weights).together())
    for slot, want, got, unfilled in zip(SLOTS, plain, mixed, empty, strict=True):
        np.testing.assert_array_equal(unfilled, want)
        assert np.array_equal(got, want) == (slot == -1)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_equals_its_merged_weights(isa, rank, tied, tmp_path):
    model = make_model(tie_embeddings=tied)
    targets = PROJECTIONS if tied else (*PROJECTIONS, "lm_head")
    adapter = random_adapter(tmp_path, model.config, rank, rank, targets, lora_alpha=2 * rank)
    together = make_model(tie_embeddings=tied)
    for name, weight in adapter.weights.items():
        values = model.weights[name].to_float32() + np.float32(2) * (weight.b @ weight.a)
        together.weights[name] = DenseTensor(name, "F32", values)
    want = Player(together, SEQUENCES, executor="reference").together()
    options = {"weights": "f32", "kv": "f32", "lora": "f32"}
    got = player(model, [adapter], [0] * len(SEQUENCES), isa=isa, **options).together()
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


def test_reference_and_torch_mix_adapters_too(model, adapters):
    want = player(model, adapters, executor="reference").together()
    torch = player(model, adapters, executor="torch").together()
    assert np.abs(torch - want).max() < 2e-5 * np.abs(want).max()
    options = {"weights": "f32", "kv": "f32", "lora": "f32"}
    got = player(model, adapters, **options).together()
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
    one = Player(merged(model, adapters[1]), SEQUENCES, executor="reference").together()
    difference = np.abs(split(one)[3] - split(want)[3]).max()
    assert difference < 2e-5 * np.abs(want).max()


def test_a_head_that_shares_the_embedding_is_adapted_alone(tmp_path):
    model = make_model(tie_embeddings=True)
    adapter = random_adapter(tmp_path, model.config, 4, targets=("lm_head",))
    (weight,) = adapter.weights.values()
    plain = Player(model, SEQUENCES, executor="reference").together()
    for executor in ("reference", "native"):
        options = {"executor": executor, "weights": "f32", "kv": "f32", "lora": "f32"}
        got = player(model, [adapter], [0] * len(SEQUENCES), **options).together()
        # The hidden states are those of the model itself, so the difference has the adapter's rank.
        added = got - plain
        basis = np.linalg.lstsq(weight.b, added.T, rcond=None)[0]
        np.testing.assert_allclose(weight.b @ basis, added.T, atol=1e-4)
        assert np.abs(added).max() > 0.1


def test_bf16_adapters_round_their_matrices_alone(model, adapters):
    """The error is that of rounding A and B to 8 bits, far below what the adapter adds."""
    plain, exact, rounded = (
        player(model, adapters, slots, weights="f32", kv="f32", lora=lora).together()
        for slots, lora in (([-1] * 6, "f32"), ([0] * 6, "f32"), ([0] * 6, "bf16"))
    )
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact - plain).max()


def test_slots_are_emptied_and_filled_again(isa, model, adapters):
    given = {"isa": isa, "weights": "int8:32"}
    made = player(model, adapters[:1], [0] * len(SEQUENCES), **given)
    want = made.together()
    made.executor.unload_adapter(0)
    made.logits = [[] for _ in SEQUENCES]
    plain = made.together()
    np.testing.assert_array_equal(plain, Player(model, SEQUENCES, **given).together())
    made.executor.load_adapter(0, adapters[2])
    made.executor.load_adapter(0, adapters[0])
    made.logits = [[] for _ in SEQUENCES]
    np.testing.assert_array_equal(made.together(), want)


def test_many_tokens_and_adapters(isa, model, adapters):
    """More tokens than a product takes at once, of adapters by turns."""
    sequences = [some_tokens(n, seed=n) for n in (120, 5, 90, 100, 80, 1, 1)]
    slots = [1, 0, -1, 2, 0, 1, 0]
    given = {"isa": isa, "weights": "int4:32", "sequences": sequences}
    want = player(model, adapters, slots, **given).alone(128)
    got = player(model, adapters, slots, threads=3, **given).together(128)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "gemma2"])
def test_logits_are_those_of_peft(family, tmp_path):
    """Two adapters of several ranks, both in one engine, each against PEFT's own forward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model

        made = VARIANTS[family].save(tmp_path / "model")
        joint = ["qkv_proj", "gate_up_proj", "down_proj"]
        apart = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
        fields = {
            "init_lora_weights": False,
            "target_modules": joint if family == "phi3" else apart,
        }
        patterns = {"rank_pattern": {"down_proj": 5}, "alpha_pattern": {"down_proj": 3}}
        first = LoraConfig(r=4, lora_alpha=6, **patterns, **fields)
        theirs = get_peft_model(made, first, adapter_name="first")
        theirs.add_adapter("second", LoraConfig(r=7, use_rslora=True, **fields))
        theirs.save_pretrained(tmp_path)
        tokens = some_tokens(60)
        want = {}
        for name in ("first", "second"):
            theirs.set_adapter(name)
            want[name] = logits_of(theirs, tokens)
        with theirs.disable_adapter():
            want[None] = logits_of(theirs, tokens)
    model = load_model(str(tmp_path / "model"))
    for run in ({"executor": "reference"}, {"executor": "torch"}, {"fuse": True}, {"fuse": False}):
        given = {"weights": "f32", "kv": "f32", "lora": "f32", "threads": 1, "chunk": 33} | run
        with Engine(model, EngineOptions(max_context=128, max_adapters=2, **given)) as engine:
            engine.load_adapter("first", tmp_path / "first")
            engine.load_adapter("second", tmp_path / "second")
            for name, logits in want.items():
                got = np.concatenate([rows for _, rows in engine.score(tokens, adapter=name)])
                assert np.abs(got - logits).max() < 2e-5 * np.abs(logits).max(), (run, name)
    assert np.abs(want["first"] - want[None]).max() > 0.01 * np.abs(want[None]).max()
