"""Products of low rank: nearest to the whole as the text sees it, and at home everywhere."""

import json
from dataclasses import replace

import numpy as np
import pytest
from decoders import DECODERS, check, decoder, logits, text, workshop
from encoders import make_encoder

from hasten.errors import HastenError, ModelFileError, UnsupportedModelError, UsageError
from hasten.generation import Engine
from hasten.models import architectures, load_model
from hasten.models.artefact import write_artefact
from hasten.models.config_json import to_huggingface
from hasten.models.lora import adapted_modules
from hasten.models.ops import Linear
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.factorise import Factorise, factorise, low_rank
from hasten.optimize.passes.prune_channels import PruneChannels
from hasten.optimize.passes.prune_heads import PruneHeads
from hasten.optimize.passes.prune_layers import PruneLayers, without_layers
from hasten.optimize.quantization.gram import damped, gram_of
from hasten.types import EngineOptions

DOWN = "model.layers.0.mlp.down_proj"


def products(model):
    return [op for op in architectures.build(model.config).ops if isinstance(op, Linear)]


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_runs_with_factors(family, tmp_path):
    model = decoder(family, hidden_size=96, intermediate_size=160)
    changed = check(Factorise(0.4, multiple=32), model, tmp_path)
    factored = dict(changed.config.factored)
    assert factored[DOWN] == 32
    assert changed.weights[f"{DOWN}.down.weight"].shape == (32, 160)
    assert changed.weights[f"{DOWN}.up.weight"].shape == (96, 32)
    assert f"{DOWN}.weight" not in changed.weights


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "granite"])
def test_full_rank_changes_nothing(family):
    model = decoder(family)
    ranks = {
        op.weights[0].removesuffix(".weight"): min(op.rows[0], op.columns)
        for op in products(model)[:-1]
    }
    changed = factorise(model, ranks, workshop(model), ridge=0.01)
    assert len(products(changed)) == 2 * len(products(model)) - 1
    for options in ({"executor": "reference"}, {"weights": "f32", "kv": "f32"}):
        difference = logits(changed, **options) - logits(model, **options)
        assert np.abs(difference).max() < 2e-3


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (20, 20)])
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_factors_are_the_nearest_of_their_rank_as_the_inputs_see_it(shape, rank):
    draw = np.random.default_rng(rank)
    matrix = draw.standard_normal(shape).astype(np.float32)
    inputs = draw.standard_normal((90, shape[1])) @ draw.standard_normal((shape[1], shape[1]))
    down, up = low_rank(matrix, inputs.T @ inputs, rank)
    assert (down.shape, up.shape) == ((rank, shape[1]), (shape[0], rank))
    error = np.linalg.norm(inputs @ (matrix - up @ down).T)
    # Eckart and Young: no matrix of that rank is nearer to the outputs than their truncated SVD.
    least = np.linalg.svd(inputs @ matrix.T, compute_uv=False)[rank:]
    assert error == pytest.approx(np.linalg.norm(least), rel=1e-4)


def test_factors_of_inputs_that_are_zero():
    matrix = np.random.default_rng(1).standard_normal((6, 9)).astype(np.float32)
    gram = damped(gram_of(np.zeros((4, 9), np.float32)), 0.1)
    down, up = low_rank(matrix, gram, 6)
    np.testing.assert_allclose(up @ down, matrix, atol=1e-5)


def test_a_later_product_is_fitted_to_what_earlier_factors_give_it():
    model = decoder()
    later = "model.layers.1.mlp.down_proj"
    both = factorise(model, {DOWN: 2, later: 20}, workshop(model), ridge=0.01)
    alone = factorise(model, {later: 20}, workshop(model), ridge=0.01)
    assert not np.allclose(
        both.weights[f"{later}.down.weight"].to_float32(),
        alone.weights[f"{later}.down.weight"].to_float32(),
        atol=1e-3,
    )


@pytest.mark.parametrize("weights", ["int8:32", "int4:32", "bf16"])
def test_fused_and_unfused_runs_agree(weights):
    model = decoder("gemma2", hidden_size=96, intermediate_size=160)
    changed = Factorise(0.4, multiple=32).apply(model, workshop(model))
    fused, plain = (logits(changed, weights=weights, fuse=fuse) for fuse in (True, False))
    np.testing.assert_array_equal(fused, plain)


def test_one_factored_product_leaves_the_others_fused():
    model = decoder()
    changed = factorise(model, {"model.layers.0.self_attn.k_proj": 16}, workshop(model), ridge=0.01)
    kinds = []
    for one in (model, changed):
        with Engine(one, EngineOptions(max_context=64, threads=1)) as engine:
            kinds.append([type(op).__name__ for op in engine._executor.graph.ops])
    layers = model.config.num_layers
    assert kinds[0].count("RopeKvWrite") == layers
    assert kinds[1].count("RopeKvWrite") == layers - 1
    assert kinds[1].count("KvWrite") == 1


def test_factors_go_with_other_passes(tmp_path):
    model = decoder(num_layers=4, hidden_size=96, intermediate_size=160)
    only = ("down_proj", "gate_proj", "o_proj", "v_proj")
    changed = Factorise(0.3, matrices=only, multiple=32).apply(model, workshop(model))
    for step in (
        PruneLayers(layers=(1,)),
        PruneChannels(0.2, multiple=32),
        PruneHeads(1),
    ):
        assert step.predict(changed).operations < 1
        changed = check(step, changed, tmp_path)
    assert {int(name.split(".")[2]) for name, _ in changed.config.factored} == {0, 1, 2}


def test_factors_of_layers_move_with_them():
    model = decoder()
    changed = factorise(model, {DOWN.replace("0", "2"): 20}, workshop(model), ridge=0.01)
    assert without_layers(changed, [1]).config.factored == ((DOWN.replace("0", "1"), 20),)
    assert without_layers(changed, [2]).config.factored == ()


def test_prediction_is_the_share_that_stays():
    model = decoder(hidden_size=96, intermediate_size=160)
    step = Factorise(0.4, matrices=("down_proj",), multiple=32)
    shares = step.predict(model)
    changed = step.apply(model, workshop(model))
    sizes = [sum(op.rows[0] * op.columns for op in products(one)) for one in (changed, model)]
    assert shares.operations == pytest.approx(sizes[0] / sizes[1])
    assert shares.weight_bytes == pytest.approx(shares.operations)
    assert shares.operations < 1


def test_adapters_and_other_formats_refuse_factors():
    model = decoder()
    changed = factorise(model, {DOWN: 20}, workshop(model), ridge=0.01)
    with pytest.raises(UnsupportedModelError, match="LoRA adapters do not fit"):
        adapted_modules(changed.config)
    with pytest.raises(UnsupportedModelError, match="LoRA adapters do not fit"):
        Engine(changed, EngineOptions(max_adapters=1, max_context=64))
    with pytest.raises(UnsupportedModelError, match="low rank"):
        to_huggingface(changed.config)


@pytest.mark.parametrize(
    ("factored", "words"),
    [
        ({"model.layers.9.mlp.down_proj": 20}, "none of this model's"),
        ({DOWN: 0}, "rank of"),
        ({DOWN: 49}, "rank of"),
        ({DOWN: "20"}, "down_proj"),
        ([], "no object"),
        ({DOWN: 21}, "shape"),
        ({}, "missing"),
    ],
)
def test_artefacts_whose_factors_lie_are_refused(factored, words, tmp_path):
    model = decoder()
    changed = factorise(model, {DOWN: 20}, workshop(model), ridge=0.01)
    write_artefact(tmp_path / "a", changed, changed.weights, {})
    path = tmp_path / "a" / "config.json"
    values = json.loads(path.read_text())
    values["quantization_config"]["factored"] = factored
    path.write_text(json.dumps(values))
    with pytest.raises(ModelFileError, match=words):
        load_model(tmp_path / "a")


@pytest.mark.parametrize(
    ("step", "model", "words"),
    [
        (Factorise(0.2), make_encoder(), "is an encoder"),
        (Factorise(0.2, matrices=("w1",)), decoder(), "no product is called 'w1'"),
        (Factorise(rank=48), decoder(), "no product would become smaller"),
    ],
)
def test_says_why_it_does_not_fit(step, model, words):
    assert words in step.why_unfit(model)
    with pytest.raises(UsageError, match=words):
        step.apply(model, workshop(model))


def test_a_model_is_factored_once():
    model = decoder()
    changed = factorise(model, {DOWN: 20}, workshop(model), ridge=0.01)
    assert "already" in Factorise(rank=8).why_unfit(changed)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"share": 0.2, "rank": 32},
        {"share": 1.0},
        {"share": -0.1},
        {"share": float("nan")},
        {"rank": -1},
        {"share": 0.2, "multiple": 40},
        {"share": 0.2, "ridge": 0},
    ],
)
def test_refuses_values_out_of_range(fields):
    with pytest.raises(HastenError):
        make_pass({"pass": "factorise"} | fields)


def test_refuses_a_rank_beyond_the_model():
    with pytest.raises(ModelFileError, match="rank of"):
        replace(decoder().config, factored=((DOWN, 1 << 40),))


def test_text_of_one_token_still_gives_factors():
    model = decoder()
    place = workshop(model, text(lengths=(1, 1)))
    changed = factorise(model, {DOWN: 20}, place, ridge=0.01)
    assert np.isfinite(logits(changed, executor="reference")).all()
