"""Mixed precision: formats by what they cost, inside the bytes that were asked for."""

import itertools
import json
import sys

import numpy as np
import pytest
from decoders import DECODERS, decoder, logits, text
from encoders import make_encoder
from tiny import Player

from hasten.errors import HastenError, MissingDependencyError, ModelFileError, UsageError
from hasten.generation.formats import MatrixFormat
from hasten.models.artefact import write_artefact
from hasten.models.loading import load_model
from hasten.models.weights import DenseTensor
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import Workshop, parameters_of
from hasten.optimize.proposals import parse_candidate
from hasten.optimize.quantization import fisher
from hasten.optimize.quantization.allocation import Choice, allocate
from hasten.optimize.quantization.integer_weights import inner_products

FORMATS = ("int8:32", "int4:32", "int4:64")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Threads of torch wait for one another, long where other tests have the cores."""
    monkeypatch.setattr(fisher, "available_cores", lambda: 1)


def small(family="llama", **changes):
    """A decoder into whose columns groups of 32 and of 64 fit."""
    return decoder(family, **{"head_dim": 16, "num_layers": 2} | changes)


def mixed(**changes):
    return make_pass({"pass": "mixed", "bits": 5.0, "formats": FORMATS} | changes)


def workshop(model, directory, progress=lambda *_: None):
    return Workshop(model, text(), directory, progress)


def forms_of(model):
    layouts = {name: model.weights[name].layout() for name in inner_products(model.config)}
    return {name: f"int{one.bits}:{one.group}" for name, one in layouts.items()}


def stored(model):
    matrices = {name: tensor.quantized() for name, tensor in model.weights.items()}
    return {
        name: None if one is None else (one.codes.tobytes(), one.scales.tobytes())
        for name, one in matrices.items()
    }


def inner_bytes(model):
    return sum(model.weights[name].nbytes for name in inner_products(model.config))


@pytest.mark.parametrize("family", DECODERS)
def test_every_family_gets_its_size_and_runs_on(family, tmp_path):
    model = small(family)
    step = mixed()
    assert step.why_unfit(model) is None
    changed = step.apply(model, workshop(model, tmp_path))
    shapes = [model.weights[name].shape for name in inner_products(model.config)]
    most = sum(rows * -(-columns // 32) * 32 for rows, columns in shapes) * 5 // 8
    # What is left over is less than the largest step, a block of gate and up.
    assert most * 0.9 < inner_bytes(changed) <= most
    forms = forms_of(changed)
    assert len(set(forms.values())) > 1
    for layer in range(2):
        for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            alike = [f for n, f in forms.items() if f".{layer}." in n and n.split(".")[-2] in parts]
            assert len(set(alike)) == 1
    exact = logits(changed, weights="f32", kv="f32")
    np.testing.assert_allclose(exact, logits(changed, executor="reference"), rtol=1e-3, atol=1e-3)
    assert np.isfinite(logits(changed, weights="carried")).all()


def test_the_result_is_the_same_each_time_and_survives_being_written(tmp_path):
    model = small()
    step = mixed()
    assert make_pass(json.loads(json.dumps(parameters_of(step)))) == step
    changed = step.apply(model, workshop(model, tmp_path / "a"))
    again = step.apply(model, workshop(model, tmp_path / "b"))
    assert stored(again) == stored(changed)
    write_artefact(tmp_path / "artefact", changed, changed.weights, {})
    assert stored(load_model(tmp_path / "artefact")) == stored(changed)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("moment", [0.2, 0.6])
def test_a_killed_pass_goes_on_to_the_same_bits(moment, tmp_path):
    model, told = small(), []

    def stop(_, share):
        told.append(share)
        if share > moment:
            raise KilledError

    with pytest.raises(KilledError):
        mixed().apply(model, workshop(model, tmp_path / "a", stop))
    assert told == sorted(told)
    resumed = mixed().apply(model, workshop(model, tmp_path / "a"))
    assert stored(resumed) == stored(mixed().apply(model, workshop(model, tmp_path / "b")))


def test_the_prediction_is_the_size_that_is_allowed(tmp_path):
    model = small()
    changed = mixed().apply(model, workshop(model, tmp_path))
    names = [*inner_products(model.config), "lm_head.weight"]
    sizes = [sum(one.weights[name].nbytes for name in names) for one in (changed, model)]
    assert 0 <= mixed().predict(model).weight_bytes - sizes[0] / sizes[1] < 0.02
    # More than the largest formats take is not used.
    forms = {name: MatrixFormat("int8", 32) for name in names}
    largest = sum(form.nbytes(model.weights[name].shape) for name, form in forms.items())
    assert mixed(bits=9).predict(model).weight_bytes == pytest.approx(largest / sizes[1])


def test_codes_of_the_file_stay_and_nothing_larger_is_chosen(tmp_path):
    start = {"pass": "round", "group": 32, "vocabulary": "carried"}
    model = make_pass(start).apply(small(), workshop(small(), tmp_path))
    changed = mixed(bits=4.8).apply(model, workshop(model, tmp_path))
    forms = forms_of(changed)
    assert set(forms.values()) == {"int4:32", "int4:64"}
    for name, form in forms.items():
        assert (changed.weights[name] is model.weights[name]) == (form == "int4:32")
    whole = mixed(bits=9).apply(model, workshop(model, tmp_path))
    assert all(whole.weights[name] is model.weights[name] for name in forms)


def uneven():
    """A model whose two layers in the middle hardly reach the output."""
    model = small("granite", num_layers=4)
    quiet = {
        name: DenseTensor(name, "F32", tensor.to_float32() * np.float32(0.01))
        for name, tensor in model.weights.items()
        if any(f"layers.{i}.{part}" in name for i in (1, 2) for part in ("mlp.d", "self_attn.o"))
    }
    return model.derive({**model.weights, **quiet})


def test_bytes_go_where_errors_cost_most(tmp_path):
    model = uneven()
    step = mixed(bits=4.75, formats=("int4:32", "int4:64"))
    forms = forms_of(step.apply(model, workshop(model, tmp_path)))
    fine = {name for name, form in forms.items() if form == "int4:32"}
    assert fine
    assert all(".layers.0." in name or ".layers.3." in name for name in fine)


def test_it_loses_less_than_one_format_of_as_many_bytes(tmp_path):
    model = uneven()
    ids = [list(window) for window in text().ids]
    both = [mixed(), make_pass({"pass": "gptq", "group": 32})]
    ours, uniform = (step.apply(model, workshop(model, tmp_path)) for step in both)
    assert inner_bytes(ours) <= inner_bytes(uniform)
    assert kl(model, ours, ids) < 0.9 * kl(model, uniform, ids)


def kl(model, changed, ids):
    """KL of what two models predict for all tokens of a text, nats a token."""
    first, second = (
        Player(one, ids, executor="reference").together().astype(np.float64)
        for one in (model, changed)
    )
    first, second = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (first, second))
    return float((np.exp(first) * (first - second)).sum(-1).mean())


@pytest.mark.parametrize(
    ("family", "part"), [("llama", "self_attn.v_proj"), ("gemma2", "mlp.down_proj")]
)
def test_losses_are_what_rounding_one_matrix_costs(family, part):
    model = small(family)
    windows = text(lengths=(60,) * 8)
    name = f"model.layers.0.{part}.weight"
    values = model.weights[name].to_float32()
    off = np.random.default_rng(1).normal(0, 0.03 * values.std(), values.shape)
    near = DenseTensor(name, "F32", (values + off).astype(np.float32))
    found = fisher.rounding_losses(
        model, windows, {name: [near, model.weights[name]]}, lambda _: None, seed=0
    )
    measured = kl(
        model, model.derive({**model.weights, name: near}), [list(w) for w in windows.ids]
    )
    assert found[name][0] == pytest.approx(measured, rel=0.35)
    assert found[name][1] == 0


def choices(draw, groups):
    """Random ones, not all with the same formats."""
    forms = [MatrixFormat("int4", group, True) for group in (192, 128, 64, 32)]
    found = []
    for _ in range(groups):
        size = int(draw.integers(1, 20))
        losses = np.sort(draw.exponential(size, len(forms)))[::-1]
        one = [
            Choice(form, size * (10 + 2 * i), float(loss))
            for i, (form, loss) in enumerate(zip(forms, losses, strict=True))
        ]
        found.append(one if draw.random() < 0.9 else one[: int(draw.integers(1, 5))])
    return found


def test_allocation_keeps_the_size_and_comes_near_the_best():
    draw = np.random.default_rng(0)
    excess = []
    for _ in range(100):
        groups = choices(draw, 5)
        least, largest = (sum(f(c.nbytes for c in one) for one in groups) for f in (min, max))
        most = int(draw.integers(least, largest + 1))
        found = allocate(groups, most)
        assert found == allocate(groups, most)
        assert all(one in of for one, of in zip(found, groups, strict=True))
        ways = list(itertools.product(*groups))
        best = min(sum(c.loss for c in way) for way in ways if sum(c.nbytes for c in way) <= most)
        assert sum(one.nbytes for one in found) <= most
        for way in ways:
            if len({c.form for c in way}) == 1 and sum(c.nbytes for c in way) <= most:
                assert sum(c.loss for c in found) <= sum(c.loss for c in way)
        worst = sum(max(c.loss for c in one) for one in groups)
        excess.append((sum(c.loss for c in found) - best) / worst)
    assert np.mean(excess) < 0.05


def test_one_format_for_all_is_taken_where_steps_lead_astray():
    small_form, large = MatrixFormat("int4", 64, True), MatrixFormat("int4", 32, True)
    # The first step, by loss a byte, leaves no room for the other, which is worth more.
    best = [[Choice(small_form, 10, 5.0), Choice(large, 12, 1.0)]] * 2
    third = MatrixFormat("int8", 32)
    groups = [
        [*best[0], Choice(third, 14, 0.0)],
        [Choice(small_form, 10, 90.0), Choice(large, 40, 0)],
    ]
    found = allocate(groups, 52)
    assert [one.form for one in found] == [large, large]
    assert sum(one.nbytes for one in found) == 52


def test_try_can_write_it():
    (step,) = parse_candidate('mixed:bits=4.7,formats=["int4:32","int4:64"]', 2).steps
    assert parameters_of(step) == {
        "pass": "mixed",
        "bits": 4.7,
        "formats": ("int4:32", "int4:64"),
        "vocabulary": "int8:32",
        "damping": 0.5,
    }
    assert step.label == "mixed to 4.7 bits"
    with pytest.raises(UsageError, match="a list of int8:G, int4:G"):
        parse_candidate("mixed:formats=int4:32", 2)


@pytest.mark.parametrize(
    "parameters",
    [
        {"bits": 4},
        {"bits": 32},
        {"bits": float("nan")},
        {"formats": []},
        {"formats": ["int4:48"]},
        {"formats": ["int8"]},
        {"formats": ["bf16"]},
        {"vocabulary": "f32"},
        {"damping": 0},
        {"layers": ["layer 1"]},
    ],
)
def test_parameters_out_of_range(parameters):
    with pytest.raises(ModelFileError):
        mixed(**parameters)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"bits": 4.4}, "4.4 bits a weight are less than the smallest formats take, 4.5"),
        ({"formats": ["int4:96"]}, "no group of the formats divides the 48 columns"),
        ({"vocabulary": "int8:96"}, "groups of 96 do not divide"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(parameters, reason, tmp_path):
    model = small()
    assert reason in mixed(**parameters).why_unfit(model)
    with pytest.raises(UsageError, match=reason):
        mixed(**parameters).apply(model, workshop(model, tmp_path))


def test_models_that_predict_no_tokens(tmp_path):
    assert "predicts no tokens" in mixed().why_unfit(make_encoder())


def test_values_that_are_not_finite(tmp_path):
    model = small(num_layers=1)
    norm = model.weights["model.layers.0.input_layernorm.weight"]
    huge = DenseTensor(norm.name, "F32", norm.to_float32() * np.float32(1e30))
    broken = model.derive({**model.weights, norm.name: huge})
    with pytest.raises(HastenError, match="not finite"):
        mixed().apply(broken, workshop(broken, tmp_path))


def test_without_torch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    model = small(num_layers=1)
    with pytest.raises(MissingDependencyError, match=r"hasten\[torch\]"):
        mixed().apply(model, workshop(model, tmp_path))
