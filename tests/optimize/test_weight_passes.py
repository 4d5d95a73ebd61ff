"""Passes that make weights integers: what they promise, for every family of decoders."""

import json

import numpy as np
import pytest
from decoders import DECODERS, decoder, logits, text
from encoders import make_encoder
from tiny import Player, some_tokens

from hasten.errors import HastenError, ModelFileError, UsageError
from hasten.models import architectures, load_model
from hasten.models.artefact import write_artefact
from hasten.models.ops import Linear
from hasten.models.weights import DenseTensor, QuantizedTensor
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import Workshop, parameters_of
from hasten.optimize.quantization import gptq
from hasten.optimize.quantization.folding import find_folds, fold
from hasten.optimize.quantization.integer_weights import inner_products, vocabulary_weights

QUERY, EMBEDDING = "model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"
STEPS = {
    "round": {"pass": "round", "group": 32},
    "searched": {"pass": "round", "group": 64, "search": True},
    "gptq": {"pass": "gptq", "group": 32},
    "symmetric": {"pass": "gptq", "group": 64, "symmetric": True, "order": False},
    "int8": {"pass": "gptq", "bits": 8, "group": 64, "vocabulary": "int4:32"},
    "awq": {"pass": "awq", "group": 32, "steps": 8},
}


def small(family="llama", **changes):
    """A decoder into whose columns groups of 32 and of 64 fit."""
    return decoder(family, **{"head_dim": 16, "num_layers": 2} | changes)


def workshop(model, directory, progress=lambda *_: None):
    return Workshop(model, text(), directory, progress)


def apply(name, model, directory, **changes):
    return make_pass(STEPS[name] | changes).apply(model, workshop(model, directory))


def stored(model):
    """What the tensors of a model hold, in a form that can be compared bit by bit."""
    parts = {}
    for name, tensor in model.weights.items():
        matrix = tensor.quantized()
        arrays = [tensor.to_float32()] if matrix is None else [matrix.codes, matrix.scales]
        parts[name] = [array.tobytes() for array in arrays]
    return parts


def codes_of(model):
    return {n: parts for n, parts in stored(model).items() if n in inner_products(model.config)}


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_every_family_runs_on_after_it(family, name, tmp_path):
    model = small(family)
    before = stored(model)
    step = make_pass(STEPS[name])
    assert step.why_unfit(model) is None
    changed = step.apply(model, workshop(model, tmp_path))
    assert stored(model) == before
    expected = logits(changed, executor="reference")
    assert np.isfinite(expected).all()
    exact = logits(changed, weights="f32", kv="f32")
    np.testing.assert_allclose(exact, expected, rtol=1e-3, atol=1e-3)
    player = Player(changed, [some_tokens(20)], weights="carried")
    formats = {n: str(form) for n, form in step.formats(model).items()}
    assert player.executor.formats == formats
    assert np.isfinite(player.together()).all()


@pytest.mark.parametrize("name", STEPS)
def test_the_result_is_the_same_each_time_and_survives_being_written(name, tmp_path):
    model = small()
    step = make_pass(STEPS[name])
    assert make_pass(json.loads(json.dumps(parameters_of(step)))) == step
    assert step.label
    changed = apply(name, model, tmp_path / "a")
    assert stored(apply(name, model, tmp_path / "b")) == stored(changed)
    write_artefact(tmp_path / "artefact", changed, changed.weights, {})
    read = load_model(tmp_path / "artefact")
    assert stored(read) == stored(changed)
    np.testing.assert_array_equal(
        logits(read, weights="carried"), logits(changed, weights="carried")
    )


@pytest.mark.parametrize("name", STEPS)
def test_the_prediction_is_what_the_matrices_take(name, tmp_path):
    model = small(tie_embeddings=name == "awq")
    changed = apply(name, model, tmp_path)
    ops = architectures.build(model.config).ops
    read = {n for op in ops if isinstance(op, Linear) for n in op.weights}
    sizes = [sum(one.weights[n].nbytes for n in read) for one in (changed, model)]
    predicted = make_pass(STEPS[name]).predict(model)
    assert predicted.weight_bytes == pytest.approx(sizes[0] / sizes[1])
    assert predicted.operations == 1.0


def test_outputs_change_less_than_by_rounding_to_nearest(tmp_path):
    """The text that decides is the one that the pass was shown."""
    model = small("granite")
    ids = [list(window) for window in text().ids]
    before = Player(model, ids, executor="reference").together()
    errors = {}
    for name in ("round", "awq", "gptq"):
        changed = apply(name, model, tmp_path, vocabulary="carried")
        after = Player(changed, ids, executor="reference").together()
        errors[name] = float(np.square(after - before).mean())
    assert errors["gptq"] < 0.75 * errors["round"]
    assert errors["awq"] < errors["round"]


@pytest.mark.parametrize("family", DECODERS)
def test_scales_leave_the_function_as_it_is(family):
    model = small(family)
    folds = find_folds(architectures.build(model.config), model.config)
    tensors = {name: tensor.to_float32() for name, tensor in model.weights.items()}
    draw = np.random.default_rng(0)
    for place in folds:
        count = len(tensors[place.rows[0]])
        tensors |= fold(tensors, place, np.exp(draw.normal(0, 1, count)))
    dense = {name: DenseTensor(name, "F32", values) for name, values in tensors.items()}
    found = logits(model.derive(dense), executor="reference")
    np.testing.assert_allclose(found, logits(model, executor="reference"), rtol=2e-3, atol=2e-3)
    scaled = {name for place in folds for name in place.columns} - {"lm_head.weight"}
    # The inputs of all products in the layers can be scaled, in every family so far.
    assert scaled == set(inner_products(model.config))


def test_awq_can_leave_the_rounding_to_another_pass(tmp_path):
    model = small()
    scaled = apply("awq", model, tmp_path, rounds=False)
    assert all(isinstance(tensor, DenseTensor) for tensor in scaled.weights.values())
    assert stored(scaled)[QUERY] != stored(model)[QUERY]
    found = logits(scaled, executor="reference")
    np.testing.assert_allclose(found, logits(model, executor="reference"), rtol=2e-3, atol=2e-3)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_a_killed_pass_goes_on_to_the_same_bits(name, tmp_path):
    model = small()
    told = []

    def stop(_, share):
        told.append(share)
        if share > 0.5:
            raise KilledError

    step = make_pass(STEPS[name])
    with pytest.raises(KilledError):
        step.apply(model, workshop(model, tmp_path / "a", stop))
    assert told == sorted(told)
    finished = list((tmp_path / "a").rglob("*.safetensors"))
    assert finished
    dates = {path: path.stat().st_mtime_ns for path in finished}
    resumed = apply(name, model, tmp_path / "a")
    assert {path: path.stat().st_mtime_ns for path in finished} == dates
    assert stored(resumed) == stored(apply(name, model, tmp_path / "b"))


def test_what_is_kept_is_taken_for_the_same_work_alone(tmp_path, monkeypatch):
    model = small(num_layers=1)
    expected = stored(apply("gptq", model, tmp_path))
    # A file that a crash of the machine left short is made anew.
    one = next(tmp_path.rglob("*q_proj*"))
    one.write_bytes(one.read_bytes()[:100])
    assert stored(apply("gptq", model, tmp_path)) == expected
    done = []
    real = gptq.round_with_feedback
    monkeypatch.setattr(
        gptq, "round_with_feedback", lambda *a, **k: done.append(1) or real(*a, **k)
    )
    assert stored(apply("gptq", model, tmp_path)) == expected
    assert not done
    assert stored(apply("gptq", model, tmp_path, damping=0.9)) != expected
    assert len(done) == 4  # q, k and v are one; gate and up are one
    other = model.derive({**model.weights, QUERY: _times(model.weights[QUERY], 2)})
    apply("gptq", other, tmp_path)
    assert len(done) == 8


def test_only_named_matrices_change(tmp_path):
    model = small()
    for name in ("round", "gptq"):
        changed = apply(name, model, tmp_path, matrices=[QUERY], vocabulary="carried")
        kinds = {n: isinstance(t, QuantizedTensor) for n, t in changed.weights.items()}
        assert [n for n, quantised in kinds.items() if quantised] == [QUERY]


def test_what_does_not_fit_is_refused_with_the_reason(tmp_path):
    model = small()
    cases = [
        ({"pass": "gptq", "group": 96}, "groups of 96 do not divide the 48 columns"),
        ({"pass": "round", "matrices": [EMBEDDING]}, "no product"),
        ({"pass": "round", "vocabulary": "int8:96"}, f"96 do not divide .* {EMBEDDING}"),
        ({"pass": "awq", "matrices": [QUERY]}, "scale"),
    ]
    for parameters, reason in cases:
        step = make_pass(parameters)
        with pytest.raises(UsageError, match=reason):
            step.apply(model, workshop(model, tmp_path))
        assert step.why_unfit(model) is not None


@pytest.mark.parametrize(
    "parameters",
    [
        {"pass": "gptq", "bits": 3},
        {"pass": "gptq", "group": 48},
        {"pass": "gptq", "damping": 0},
        {"pass": "gptq", "damping": float("nan")},
        {"pass": "round", "vocabulary": "q8"},
        {"pass": "round", "vocabulary": "f32"},
        {"pass": "round", "vocabulary": "int4"},
        {"pass": "awq", "steps": 0},
    ],
)
def test_parameters_out_of_range(parameters):
    with pytest.raises(ModelFileError):
        make_pass(parameters)


def _times(tensor, factor):
    return DenseTensor(tensor.name, "F32", tensor.to_float32() * np.float32(factor))


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_values_that_are_not_finite(name, tmp_path):
    model = small(num_layers=1)
    norm = "model.layers.0.input_layernorm.weight"
    huge = model.derive({**model.weights, norm: _times(model.weights[norm], 1e30)})
    with pytest.raises(HastenError, match="not finite"):
        apply(name, huge, tmp_path)
    broken = model.derive({**model.weights, norm: _times(model.weights[norm], np.nan)})
    with pytest.raises(ModelFileError, match="NaN"):
        apply(name, broken, tmp_path)


@pytest.mark.parametrize("name", ["gptq", "awq"])
@pytest.mark.parametrize("dead", [slice(0, 20), slice(None)])
def test_channels_that_are_always_zero(name, dead, tmp_path):
    model = small(num_layers=1)
    norm = model.weights["model.layers.0.input_layernorm.weight"]
    values = norm.to_float32().copy()
    values[dead] = 0
    silent = model.derive({**model.weights, norm.name: DenseTensor(norm.name, "F32", values)})
    changed = apply(name, silent, tmp_path)
    assert np.isfinite(logits(changed, executor="reference")).all()
    before, after = (one.weights[QUERY].to_float32() for one in (silent, changed))
    if name == "gptq":
        assert np.abs(after - before)[:, dead].mean() < 0.1 * np.abs(before).mean()


def test_the_vocabulary_is_told_from_the_graph():
    assert vocabulary_weights(small().config) == [EMBEDDING, "lm_head.weight"]
    assert vocabulary_weights(small(tie_embeddings=True).config) == [EMBEDDING]
    names = inner_products(small(vocab_size=48).config)  # as wide as the residual stream
    assert len(names) == 2 * 7


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_encoders_run_on_after_it(name, tmp_path):
    """Their norms are read by more than products, so only values can be scaled."""
    model = make_encoder()
    places = find_folds(architectures.build(model.config), model.config)
    assert {column.split(".")[-3] for place in places for column in place.columns} == {"output"}
    changed = apply(name, model, tmp_path)
    ids = [some_tokens(20)]
    expected = Player(model, ids, executor="reference").together()
    found = Player(changed, ids, executor="reference").together()
    assert 0 < np.abs(found - expected).mean() < 0.3 * np.abs(expected).mean()
