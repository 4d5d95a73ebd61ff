"""Distillation: gradients, what it learns, what it refuses, and that it goes on exactly."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import DECODERS, decoder, logits, text, workshop
from tiny import CONTEXT, make_model

from hasten.errors import (
    CapacityError,
    HastenError,
    MissingDependencyError,
    UnsupportedModelError,
    UsageError,
)
from hasten.generation.torch_graph import Decoder, weight_tensors
from hasten.measure.corpus import Windows
from hasten.models import architectures
from hasten.optimize.distillation import distill as module
from hasten.optimize.distillation import loss as distill_loss
from hasten.optimize.distillation.data import cut_lessons
from hasten.optimize.distillation.distill import distill
from hasten.optimize.distillation.loss import (
    NO_TARGET,
    LogitLoss,
    Network,
    learn_by_rows,
    loss_by_rows,
)
from hasten.optimize.distillation.settings import DistillSettings
from hasten.optimize.distillation.state import STATE
from hasten.optimize.passes import make_pass
from hasten.optimize.passes.interface import parameters_of
from hasten.optimize.passes.prune_layers import without_layers
from hasten.optimize.pruning.structure import corresponding_layers
from hasten.optimize.training import LOSSES_FILE

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SETTINGS = DistillSettings(
    steps=6, learning_rate=2e-3, batch=6, length=16, held_out=0.2, check_every=2
)
WINDOWS = text(lengths=(35,) * 24)


def quiet(_what, _share):
    """Progress that nobody reads."""


def learn(student, teacher, directory, settings=SETTINGS, windows=WINDOWS, **given):
    return distill(
        student, teacher, windows, settings, directory, given.pop("progress", quiet), **given
    )


def losses(directory):
    return json.loads((directory / LOSSES_FILE).read_text())["losses"]


def same(a, b):
    """Whether two models have the same bits."""
    return a.weights.keys() == b.weights.keys() and all(
        np.array_equal(a.weights[name].to_float32(), b.weights[name].to_float32())
        for name in a.weights
    )


@pytest.fixture(scope="module")
def teacher():
    return decoder("llama", tie_embeddings=True, attention_bias=False, mlp_bias=False)


@pytest.fixture(scope="module")
def student(teacher):
    return without_layers(teacher, [2])


@pytest.fixture(scope="module")
def taught(student, teacher, tmp_path_factory):
    """Uninterrupted, with the directory that it leaves."""
    directory = tmp_path_factory.mktemp("taught")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "available_cores", lambda: 1)
        return learn(student, teacher, directory), directory


@pytest.mark.parametrize("family", DECODERS)
def test_logits_of_whole_sequences(family):
    """Side by side they are what the reference executor computes for each."""
    model = decoder(family)
    tokens = np.random.default_rng(5).integers(0, model.config.vocab_size, 30)
    network = Decoder(model.config, CONTEXT, CPU)
    weights = weight_tensors(model, CPU)
    both = torch.tensor(np.stack([tokens[::-1].copy(), tokens]))
    got = network.logits(weights, network.hidden(weights, both)[0])[30:].numpy()
    want = logits(model, executor="reference")
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "phi3", "granite"])
def test_gradients_are_those_of_finite_differences(family):
    model = make_model(**DECODERS[family] | {"num_layers": 2, "hidden_size": 12})
    network = Decoder(model.config, 12, CPU)
    network_tables = network._tables
    weights = {name: one.double() for name, one in weight_tensors(model, CPU).items()}
    network._tables = {k: (c.double(), s.double()) for k, (c, s) in network_tables.items()}
    tokens = torch.tensor(np.random.default_rng(1).integers(0, 77, (2, 12)))
    draw = torch.Generator().manual_seed(0)

    def loss(values):
        hidden = network.hidden(values, tokens)[0]
        return network.logits(values, hidden).double().log_softmax(-1)[:, 3].sum()

    for one in weights.values():
        one.requires_grad_(True)
    loss(weights).backward()
    for name, one in weights.items():
        direction = torch.randn(one.shape, generator=draw, dtype=torch.float64)
        step = 1e-4
        with torch.no_grad():
            ahead, behind = (
                loss(weights | {name: one + sign * step * direction}) for sign in (1, -1)
            )
        slope = float(ahead - behind) / (2 * step)
        # Logits are rounded to float32 at the end, which the differences feel.
        found = float((one.grad * direction).sum())
        assert found == pytest.approx(slope, rel=2e-2, abs=0.1), name


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_rows_of_logits_in_pieces(teacher, student, share, monkeypatch):
    """Loss and gradients are those of all rows at once."""
    tokens = torch.tensor(np.random.default_rng(2).integers(0, 77, (2, 9)))
    targets = torch.where(tokens % 5 > 0, tokens, NO_TARGET).view(-1)
    loss = LogitLoss(2.0, share)
    found = []
    for most in (1 << 30, 4 * 77 * 10 * 4):
        monkeypatch.setattr(distill_loss, "LOGIT_BYTES", most)
        networks = [
            Network(Decoder(one.config, 9, CPU), weight_tensors(one, CPU))
            for one in (student, teacher)
        ]
        for one in networks[0].weights.values():
            one.requires_grad_(True)
        hidden = tuple(network.body(tokens)[0] for network in networks)
        value, gradient = learn_by_rows(loss, *networks, hidden, targets, 0.5)
        assert loss_by_rows(loss, *networks, hidden, targets) == pytest.approx(value, rel=1e-5)
        hidden[0].backward(gradient)
        found.append((value, networks[0].weights["model.embed_tokens.weight"].grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)

    ours, theirs = (network.head(state) for network, state in zip(networks, hidden, strict=True))
    soft = [(one / 2).log_softmax(-1) for one in (theirs, ours)]
    divergence = (soft[0].exp() * (soft[0] - soft[1])).sum(-1).mean() * 4
    chosen = targets != NO_TARGET
    surprise = -ours.log_softmax(-1)[chosen, targets[chosen]].mean()
    expected = (1 - share) * divergence + share * surprise
    assert found[0][0] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("known", [True, False])
def test_the_gradient_written_out_is_that_of_autograd(temperature, share, known):
    draw = torch.Generator().manual_seed(4)
    ours, theirs = (3 * torch.randn(37, 101, generator=draw) for _ in range(2))
    targets = torch.randint(0, 101, (37,), generator=draw)
    targets[:: 4 if known else 1] = NO_TARGET
    loss = LogitLoss(temperature, share)
    factors = loss.factors(torch.cat([targets, targets]))
    watched = ours.clone().requires_grad_(True)
    sums = loss(watched, theirs, targets)
    wanted = factors[0] * sums[0] + factors[1] * sums[1]
    wanted.backward()
    slope = ours.clone()
    value = loss.descend(slope, theirs, targets, factors)
    assert value == pytest.approx(wanted.item(), rel=1e-4)
    torch.testing.assert_close(slope, watched.grad, rtol=1e-4, atol=1e-6)


def test_bfloat16_changes_digits_and_not_the_way(student, teacher, tmp_path):
    settings = replace(SETTINGS, steps=20, learning_rate=1e-3, batch=4, length=32, check_every=20)
    lessons = text(lengths=(32,) * 96)
    ends = []
    for precision in ("f32", "bf16"):
        directory = tmp_path / precision
        learn(student, teacher, directory, replace(settings, precision=precision), lessons)
        told = losses(directory)
        ends.append((told[0]["held_out"], told[-1]["held_out"]))
    assert ends[1][0] == pytest.approx(ends[0][0], rel=0.03)
    assert ends[1][1] == pytest.approx(ends[0][1], rel=0.03)
    assert ends[0] != ends[1]


def test_a_student_learns(student, teacher, tmp_path):
    settings = replace(SETTINGS, steps=40, learning_rate=1e-3, batch=8, length=32, check_every=20)
    made = learn(student, teacher, tmp_path, settings, text(lengths=(32,) * 160))
    told = losses(tmp_path)
    assert [one["step"] for one in told] == list(range(41))
    held_out = {one["step"]: one["held_out"] for one in told if one["held_out"] is not None}
    assert list(held_out) == [0, 20, 40]
    assert held_out[40] < 0.9 * held_out[0]
    want = logits(teacher, executor="reference")
    before, after = (logits(one, executor="reference") for one in (student, made))
    assert np.square(after - want).mean() < 0.95 * np.square(before - want).mean()
    assert "lm_head.weight" not in made.weights


def test_the_best_weights_are_kept(student, teacher, tmp_path):
    """Steps that only harm leave what there was."""
    made = learn(student, teacher, tmp_path, replace(SETTINGS, learning_rate=0.9, warmup=0))
    told = [one["held_out"] for one in losses(tmp_path) if one["held_out"] is not None]
    assert min(told) == told[0]
    assert same(made, student)


def test_nothing_to_learn_changes_little(teacher, tmp_path):
    assert same(learn(teacher, teacher, tmp_path), teacher)
    assert losses(tmp_path)[0]["held_out"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden": 1.0},
        {"hidden": 1.0, "layers": (0, 1, 3)},
        {"cross_entropy": 0.5, "temperature": 2.0},
        {"accumulate": 2, "batch": 3, "weight_decay": 0.1},
        {"precision": "bf16", "result": "bf16"},
    ],
)
def test_ways_to_learn(student, teacher, tmp_path, changes):
    made = learn(student, teacher, tmp_path, replace(SETTINGS, **changes))
    told = losses(tmp_path)
    held_out = [one["held_out"] for one in told if one["held_out"] is not None]
    assert min(held_out) < held_out[0]
    encodings = {tensor.encoding for tensor in made.weights.values()}
    assert encodings == {"BF16" if "result" in changes else "F32"}


def test_parts_of_a_batch_add_up(student, teacher, tmp_path):
    """Two windows at once, or one after the other: the same up to rounding."""
    whole = learn(student, teacher, tmp_path / "whole")
    parts = replace(SETTINGS, batch=3, accumulate=2)
    made = learn(student, teacher, tmp_path / "parts", parts)
    first = [losses(tmp_path / name)[1]["loss"] for name in ("whole", "parts")]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    for name, tensor in whole.weights.items():
        np.testing.assert_allclose(
            made.weights[name].to_float32(), tensor.to_float32(), rtol=0.05, atol=2e-2
        )


def test_only_what_fits_the_patterns_is_trained(student, teacher, tmp_path):
    patterns = ("*.mlp.*", "model.norm.weight")
    made = learn(student, teacher, tmp_path, replace(SETTINGS, train=patterns))
    for name, tensor in student.weights.items():
        trained = ".mlp." in name or name == "model.norm.weight"
        equal = np.array_equal(made.weights[name].to_float32(), tensor.to_float32())
        assert equal != trained, name
        assert trained or made.weights[name] is tensor


@pytest.mark.parametrize("family", DECODERS)
def test_layers_are_known_by_their_norms(family):
    model = decoder(family)
    assert corresponding_layers(without_layers(model, [1]), model) == (0, 2, 3)
    assert corresponding_layers(model, model) == (0, 1, 2, 3)
    assert corresponding_layers(decoder(family, seed=9), model) is None


class Stopped(BaseException):
    """As if the process were killed: nothing is saved on the way out."""


def stops_at(step, error):
    """Progress that raises when it is told of this step."""

    def told(what, _share):
        if what.startswith(f"step {step} of"):
            raise error

    return told


@pytest.mark.parametrize("step", [0, 1, 4, 5])
def test_interrupted_and_resumed(taught, student, teacher, tmp_path, step):
    """Ctrl-C saves; the bits are those of an uninterrupted run."""
    with pytest.raises(KeyboardInterrupt):
        learn(student, teacher, tmp_path, progress=stops_at(step, KeyboardInterrupt()))
    told = []
    made = learn(student, teacher, tmp_path, progress=lambda what, _: told.append(what))
    assert told[0].startswith(f"step {step} of 6")
    assert same(made, taught[0])
    assert losses(tmp_path) == losses(taught[1])


def test_killed_and_resumed(taught, student, teacher, tmp_path):
    """What was done since the last saving is done again, to the same bits."""
    directory = tmp_path / "state"
    with pytest.raises(Stopped):
        learn(student, teacher, directory, save_seconds=0, progress=stops_at(3, Stopped()))
    saved = (directory / STATE).read_bytes()
    with pytest.raises(Stopped):
        learn(student, teacher, directory, save_seconds=1e9, progress=stops_at(5, Stopped()))
    assert (directory / STATE).read_bytes() == saved
    assert same(learn(student, teacher, directory), taught[0])
    told = []
    again = learn(student, teacher, directory, progress=lambda what, _: told.append(what))
    assert told == []
    assert same(again, taught[0])


def test_a_killed_process(taught, student, teacher, tmp_path):
    """Killed by a signal while it writes as often as it can."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        f"sys.path[:0] = {sys.path[:8]!r}\n"
        "import test_distill as t\n"
        "teacher = t.decoder('llama', tie_embeddings=True, attention_bias=False, mlp_bias=False)\n"
        "t.module.available_cores = lambda: 1\n"
        "def told(what, _):\n"
        "    if what.startswith('step 3 of'): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"t.learn(t.without_layers(teacher, [2]), teacher, Path({str(tmp_path)!r}),"
        " save_seconds=0, progress=told)\n"
    )
    here = str(Path(__file__).parent)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([here, *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert same(learn(student, teacher, tmp_path), taught[0])


def test_ctrl_c_waits_for_the_end_of_a_step(student, teacher, tmp_path, monkeypatch, taught):
    """A signal inside the optimiser's step does not leave half of it."""
    steps = []
    original = torch.optim.AdamW.step

    def step(self):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return original(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        learn(student, teacher, tmp_path)
    assert len(steps) == 3
    assert [one["step"] for one in losses(tmp_path)] == [0, 1, 2, 3]
    assert same(learn(student, teacher, tmp_path), taught[0])


def test_a_state_belongs_to_its_distillation(taught, student, teacher):
    other = replace(SETTINGS, temperature=3.0)
    with pytest.raises(UsageError, match="other models, text or settings"):
        learn(student, teacher, taught[1], other)
    with pytest.raises(UsageError, match="other models, text or settings"):
        learn(student, teacher, taught[1], seed=1)


def test_each_window_once_before_any_again():
    lessons = cut_lessons(text(lengths=(48, 48, 40, 16)), length=16, held_out=0.3, seed=0)
    held_out = {tuple(one) for one in lessons.held_out.tolist()}
    seen = [tuple(one) for n in range(3) for one in lessons.batch(n, 2).tolist()]
    assert (len(lessons), len(held_out), len(set(seen))) == (6, 3, 6)
    assert not set(seen) & held_out
    assert sorted(map(tuple, lessons.batch(1, 6).tolist())) == sorted(seen)
    assert not np.array_equal(lessons.batch(0, 6), lessons.batch(1, 6))
    assert not np.array_equal(
        lessons.batch(0, 6), cut_lessons(WINDOWS, length=16, held_out=0.3, seed=1).batch(0, 6)
    )


def windows(*lengths, largest=77):
    return text(vocabulary=largest, lengths=lengths)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"student": lambda: decoder(vocab_size=80)}, UsageError, "80 tokens and the teacher"),
        ({"windows": windows(300, 300), "length": 300}, UsageError, "up to 256"),
        ({"windows": windows(9, 9), "length": 16}, UsageError, "longer windows"),
        ({"windows": windows(16)}, UsageError, "longer text"),
        ({"windows": Windows("nothing", "", (), 16)}, UsageError, "0 windows"),
        ({"windows": windows(64, 64, largest=200)}, UsageError, "holds token 1"),
        ({"train": ("lm_tail.*",)}, UsageError, "no weight of tiny"),
        ({"hidden": 1.0, "layers": (0, 1, 4)}, UsageError, "0 to 3"),
        ({"hidden": 1.0, "layers": (0, 1)}, UsageError, "for the 3 layers"),
        ({"hidden": 1.0, "student": lambda: decoder(seed=5)}, UsageError, r"layers \[\]"),
        (
            {"hidden": 1.0, "student": lambda: decoder(hidden_size=32)},
            UsageError,
            "32 and 48 dimensions",
        ),
    ],
)
def test_refused(student, teacher, tmp_path, change, error, words):
    change = dict(change)
    student = change.pop("student", lambda: student)()
    given = change.pop("windows", WINDOWS)
    settings = replace(SETTINGS, **change)
    with pytest.raises(error, match=words):
        learn(student, teacher, tmp_path, settings, given)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_logits_is_refused(teacher, tmp_path):
    with pytest.raises(UnsupportedModelError, match="no logits"):
        learn(decoder(output="hidden"), teacher, tmp_path)


def test_too_little_memory(student, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "memory_limit", lambda: 100 << 20)
    with pytest.raises(CapacityError, match="smaller batch"):
        learn(student, teacher, tmp_path)


def test_values_that_are_not_finite(student, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Decoder, "logits", lambda self, w, h: (h[:, :1] * 1e38 * 1e38).expand(-1, 77)
    )
    with pytest.raises(HastenError, match="held-out loss after step 0 is"):
        learn(student, teacher, tmp_path)


@pytest.mark.parametrize(
    "field",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"length": 1},
        {"temperature": float("nan")},
        {"precision": "f16"},
    ],
)
def test_settings_out_of_range(field):
    with pytest.raises(UsageError, match=next(iter(field))):
        DistillSettings(**field)


def test_the_rate_rises_and_falls():
    rates = [DistillSettings(steps=100, learning_rate=1.0).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.11


FIELDS = {"steps": 2, "batch": 6, "length": 16, "learning_rate": 3e-4, "check_every": 2}


def test_the_pass_heals(student, teacher, tmp_path):
    step = make_pass({"pass": "heal", **FIELDS})
    assert make_pass(json.loads(json.dumps(parameters_of(step)))) == step
    assert step.why_unfit(student) is None
    assert step.predict(student).weight_bytes == 1
    assert "steps 2" in step.label
    assert make_pass({"pass": "heal"}).label == "healed"
    patterns = make_pass({"pass": "heal", "train": "*.mlp.* model.norm.weight"})
    assert [patterns.trains(name) for name in ("a.mlp.b", "model.norm.weight", "mlp")] == [1, 1, 0]
    assert "no logits to learn" in step.why_unfit(decoder(output="hidden"))
    made = step.apply(student, workshop(teacher, WINDOWS, tmp_path))
    assert losses(tmp_path)[-1]["held_out"] < losses(tmp_path)[0]["held_out"]
    assert architectures.build(made.config) == architectures.build(student.config)


def test_the_pass_distils(tiny_model, tmp_path):
    from hasten.models import load_model

    teacher = load_model(str(tiny_model))
    step = make_pass({"pass": "distill", "student": str(tiny_model), **FIELDS})
    assert step.why_unfit(teacher) is None
    assert step.predict(teacher).operations == 1
    given = text(vocabulary=teacher.config.vocab_size, lengths=(40, 40))
    made = step.apply(teacher, workshop(teacher, given, tmp_path))
    assert made.config == teacher.config
    assert "exist" in make_pass({"pass": "distill", "student": "nowhere"}).why_unfit(teacher)
    assert "without a student" in make_pass({"pass": "distill"}).why_unfit(teacher)
    changed = make_pass({"pass": "distill", "student": str(tiny_model), "digest": "0"})
    assert "have changed" in changed.why_unfit(teacher)
    good = make_pass({"pass": "distill", "student": str(tiny_model), "digest": teacher.digest()})
    assert good.why_unfit(teacher) is None


def test_what_is_missing_is_named(student, teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"hasten\[torch\]"):
        make_pass({"pass": "heal"}).apply(student, workshop(teacher, WINDOWS, tmp_path))
