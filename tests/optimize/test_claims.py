"""Steps that say they change nothing: the honest pass, and what is broken is named and refused."""

import json
import re
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from made_up import MadeUpLaboratory, MadeUpPass, timings
from tiny import make_model

from hasten.errors import HastenError, UsageError
from hasten.measure.accuracy import compare_logits
from hasten.measure.corpus import Windows, default_corpus
from hasten.models import load_model
from hasten.models.weights import DenseTensor
from hasten.optimize import optimize, prepare_material, prepare_plan
from hasten.optimize.candidates import Candidate, original
from hasten.optimize.claims import hold_to_claim
from hasten.optimize.gate import Budget
from hasten.optimize.journal import Journal, JournaledLaboratory
from hasten.optimize.laboratory import EngineLaboratory, Material
from hasten.optimize.objective import Objective
from hasten.optimize.passes.awq import AwqWeights
from hasten.optimize.passes.interface import Prediction
from hasten.optimize.passes.prune_channels import PruneChannels
from hasten.optimize.passes.reorder import ReorderChannels
from hasten.optimize.search import Search
from hasten.optimize.search_plan import SearchPlan
from hasten.optimize.speed import Duel, RequestShape
from hasten.optimize.variants import Variants

MIB = 1 << 20
EXACT, LOSSY = MadeUpPass("folded", 0.9, exact=True), MadeUpPass("rounded", 0.9)
ANYTHING = Budget(perplexity_percent=None, kl=1e6, top1_percent=None)
LAYER = "model.layers.1."
STEP = ReorderChannels()


def search(laboratory, *asked, budget=None):
    plan = SearchPlan(threads=1, candidates=(), asked=asked, mixed_seconds=0)
    made = Search(laboratory, budget or Budget(), plan, lambda *_: None)
    return made, made.run()


def made_up(**figures):
    laboratory = MadeUpLaboratory({"int8": (0.5, 0.003, MIB)}, kv_gain=1.2)
    for name, value in figures.items():
        setattr(laboratory, name, value)
    return laboratory


def with_steps(*steps, weights="int8"):
    return Candidate(weights, "bf16", 1, steps=steps)


def test_a_step_that_keeps_to_its_claim_passes_and_its_figures_are_kept():
    laboratory = made_up(excess=0.0005)
    _, winner = search(laboratory, with_steps(EXACT, LOSSY))
    assert winner.candidate.steps == (EXACT, LOSSY)
    assert winner.claim.steps == ("folded",)
    assert winner.claim.excess.kl.estimate == 0.0005
    proofs = dict(zip(laboratory.proved, laboratory.confidences, strict=True))
    assert all(proofs[candidate] == confidence for candidate, confidence in laboratory.held)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (
            {"excess": 0.00095},
            r"folded: .* KL divergence 0.0009 \(0.0009 to 0.0010\), budget 0.001",
        ),
        ({"inexactness": 2e-6}, r"folded: .* float32: KL divergence 2.0e-06 .* budget 1e-07"),
    ],
)
def test_a_step_that_changes_something_is_refused_by_its_name(figures, words):
    made, winner = search(made_up(**figures), with_steps(LOSSY, EXACT))
    assert winner is made.original
    (reason,) = {one.reason for one in made.trials if one.proved and one.status == "refused"}
    assert re.search(words, reason)
    assert "says that it changes nothing" in reason


def test_a_claim_that_cannot_be_tested_is_not_believed():
    class Failing(MadeUpLaboratory):
        def hold(self, candidate, confidence):
            raise UsageError("4 values for an interval")

    made, winner = search(Failing({"int8": (0.5, 0.003, MIB)}), with_steps(EXACT))
    assert winner is made.original
    assert "folded: whether it changes nothing cannot be told: 4 values" in made.trials[0].reason


def test_only_exact_steps_inside_the_budget_are_held_to_anything():
    laboratory = made_up(excess=1.0)
    _, winner = search(laboratory, with_steps(LOSSY))
    assert winner.candidate.steps == (LOSSY,)
    assert winner.claim is None
    laboratory = made_up(table={"int8": (0.5, 0.5, MIB)})
    made, winner = search(laboratory, with_steps(EXACT))
    assert winner is made.original
    assert laboratory.held == []


def samples(damage, seed=0, tokens=512):
    rng = np.random.default_rng(seed)
    reference = (rng.normal(size=(tokens, 50)) * 3).astype(np.float32)
    changed = reference + np.float32(damage) * rng.normal(size=reference.shape).astype(np.float32)
    return compare_logits(reference, changed, rng.integers(0, 50, tokens))


def test_what_was_found_first_ends_the_measurements_and_names_the_step():
    asked = []

    def comparing(name, damage):
        def compare():
            asked.append(name)
            return samples(damage, tokens=127)

        return name, compare

    exact = [comparing("first", 0), comparing("second", 0.02), comparing("third", 0)]
    served = samples(0.05)
    claim = hold_to_claim(served, served, exact, seed=0)
    assert asked == ["first", "second"]
    assert claim.refusals.keys() == {"float32"}
    assert claim.why_refused.startswith("second: says that it changes nothing")
    asked.clear()
    claim = hold_to_claim(samples(0.2), served, exact, seed=0)
    assert asked == []
    assert claim.why_refused.startswith("first + second + third: says that it changes nothing")
    assert hold_to_claim(served, served, exact[::2], seed=0).why_refused is None
    few = samples(0.05, tokens=256)
    with pytest.raises(UsageError, match="4 values"):
        hold_to_claim(few, few, exact, seed=0)


def test_a_claim_comes_back_from_the_journal_and_is_not_measured_again(tmp_path):
    laboratory = made_up(excess=0.5)
    laboratory.remarks, laboratory.memory = [], lambda _: {"weights": MIB}
    laboratory.remember = lambda *_: None
    candidate, found = with_steps(ReorderChannels()), []
    for _ in range(2):
        with closing(Journal(tmp_path / "journal.jsonl", {"seed": 0})) as journal:
            found.append(JournaledLaboratory(laboratory, journal).hold(candidate, 0.95))
    assert found[0] == found[1]
    assert found[1].refusals.keys() == {"excess"}
    assert len(laboratory.held) == 1


@dataclass(frozen=True, slots=True)
class Broken:
    """Says that it changes nothing, and does."""

    kind: str
    name: ClassVar[str] = "broken"
    needs: ClassVar[frozenset[str]] = frozenset()
    exact: ClassVar[bool] = True

    @property
    def label(self):
        return self.kind

    def why_unfit(self, model):
        return None

    def predict(self, model):
        return Prediction()

    def apply(self, model, workshop):
        config, weights = model.config, dict(model.weights)

        def rows(name, change):
            values = weights[name].to_float32().copy()
            weights[name] = DenseTensor(name, "F32", change(values))

        match self.kind:
            case "RoPE base x 0.75":
                config = replace(config, rope_theta=config.rope_theta * 0.75)
            case "RoPE base x 0.999":
                config = replace(config, rope_theta=config.rope_theta * 0.999)
            case "head swapped":
                order = np.arange(config.num_heads * config.head_dim)
                order = np.roll(order.reshape(config.num_heads, -1), 1, axis=0).reshape(-1)
                rows(LAYER + "self_attn.q_proj.weight", lambda values: values[order])
            case "matrix scrambled":
                rng = np.random.default_rng(2)
                rows(LAYER + "mlp.up_proj.weight", rng.permutation)
            case "vocabulary truncated":
                rows(
                    "lm_head.weight", lambda values: values * (np.arange(len(values)) > 3)[:, None]
                )
        return model.derive(weights, config)


class Race(EngineLaboratory):
    """Real engines; only speed is made up: whatever has passes is twice as fast."""

    def race(self, candidates, effort, on_round):
        before = timings(1.0)
        return {one: Duel(before, timings(0.5 if one.steps else 1.0)) for one in candidates}


@pytest.fixture(scope="module")
def model():
    found = make_model(
        hidden_size=64, intermediate_size=128, num_heads=4, num_kv_heads=2, head_dim=16
    )
    output = found.weights["lm_head.weight"].to_float32() / 2
    found.weights["lm_head.weight"] = DenseTensor("lm_head.weight", "F32", output)
    return found


@pytest.fixture(scope="module")
def laboratory(model, tmp_path_factory):
    draw = np.random.default_rng(1)
    calibration, evaluation = (
        Windows(name, name, tuple(map(tuple, draw.integers(3, 77, (count, 128)).tolist())), 128)
        for name, count in (("calibration", 2), ("evaluation", 8))
    )
    variants = Variants(
        model, calibration, tmp_path_factory.mktemp("made"), lambda *_: None, seed=0
    )
    material = Material(calibration, evaluation, (), RequestShape(16, 8))
    with Race(
        variants.model, context=128, material=material, threads=1, memory_limit=1 << 30, seed=0
    ) as running:
        yield running


def proved(laboratory, *steps):
    """The trial of these steps in int8, from a search whose budget admits anything."""
    candidate = with_steps(*steps, weights="int8:32")
    made, _ = search(laboratory, candidate, budget=ANYTHING)
    (trial,) = (one for one in made.trials if one.candidate == candidate)
    return trial


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("RoPE base x 0.75", "excess"),
        ("RoPE base x 0.999", "float32"),
        ("head swapped", "excess"),
        ("matrix scrambled", "excess"),
        ("vocabulary truncated", "excess"),
    ],
)
def test_a_broken_step_is_refused_with_its_name_and_figure(laboratory, kind, found):
    trial = proved(laboratory, Broken(kind))
    assert ANYTHING.admits(trial.proved)
    assert trial.status == "refused"
    assert trial.reason.startswith(f"{kind}: says that it changes nothing, but")
    assert trial.claim.refusals == {found: trial.reason}
    assert re.search(r"KL divergence [0-9.e-]+ \([0-9.e-]+ to [0-9.e-]+\), budget", trial.reason)


def test_a_broken_step_is_found_between_others(laboratory):
    kind = "RoPE base x 0.999"
    trial = proved(laboratory, PruneChannels(0.25, multiple=32), ReorderChannels(), Broken(kind))
    assert trial.status == "refused"
    assert f"{kind}: " in trial.reason
    assert trial.claim.steps == ("channels reordered", kind)


@pytest.mark.parametrize(
    "steps", [(ReorderChannels(),), (AwqWeights(group=32, rounds=False, steps=3),)]
)
def test_honest_steps_pass(laboratory, steps):
    trial = proved(laboratory, *steps)
    assert trial.status in ("passed", "chosen"), trial.reason
    assert trial.claim.float32[0].kl.estimate < 1e-8
    assert trial.claim.as_dict()["limits"] == {"excess": 0.001, "float32": 1e-7}


def test_a_claim_is_about_the_step_alone(laboratory):
    """What loses something before or after it is in both of what is compared."""
    trial = proved(laboratory, PruneChannels(0.25, multiple=32), ReorderChannels())
    assert trial.proved.text.kl.estimate > 0.1
    assert trial.status in ("passed", "chosen"), trial.reason
    assert laboratory.hold(replace(trial.candidate, kv="int8"), 0.95).why_refused is None


def test_an_original_has_no_exact_steps():
    assert original(1).without_exact == original(1)
    steps = (EXACT, LOSSY, EXACT)
    assert with_steps(*steps).without_exact == with_steps(LOSSY)
    assert issubclass(UsageError, HastenError)


def test_the_whole_search_refuses_goes_on_where_it_was_and_reports(
    tiny_model, tmp_path, monkeypatch
):
    held = []

    def hold(self, candidate, confidence):
        held.append(candidate)
        return real(self, candidate, confidence)

    real = EngineLaboratory.hold
    monkeypatch.setattr(EngineLaboratory, "hold", hold)
    monkeypatch.setattr(EngineLaboratory, "race", Race.race)
    monkeypatch.setattr("hasten.optimize.pipeline.fresh_process_peak", lambda *_: None)
    model, shape = load_model(str(tiny_model)), RequestShape(16, 8)
    asked = [with_steps(one, weights="bf16") for one in (Broken("matrix scrambled"), STEP)]
    plan = prepare_plan(
        model,
        Objective("as given", shape),
        threads=1,
        formats=("int8:32",),
        asked=asked,
        quick=True,
        seed=0,
    )
    material = prepare_material(model, default_corpus(), shape, tokens=640, quick=True, seed=0)

    def progress(doing, _):
        if doing.startswith("writing") and not told:
            told.append(doing)
            raise KeyboardInterrupt

    told, found = [], None
    while found is None:
        with suppress(KeyboardInterrupt):
            found = optimize(
                model,
                tmp_path / "fast",
                budget=ANYTHING,
                material=material,
                plan=plan,
                progress=progress,
                stopped=lambda _: None,
            )
    assert told
    assert len(set(held)) == len(held)
    recipe = json.loads((tmp_path / "fast" / "recipe.json").read_text())
    by_steps = {one["passes"][0]["pass"]: one for one in recipe["candidates"] if one["passes"]}
    assert by_steps["broken"]["status"] == "refused"
    assert by_steps["broken"]["reason"].startswith("matrix scrambled: says that it changes nothing")
    assert by_steps["reorder"]["status"] in ("passed", "chosen")
    claim = by_steps["reorder"]["claim"]
    assert claim["steps"] == ["channels reordered"]
    assert claim["excess"]["kl_divergence"]["high"] <= claim["limits"]["excess"]
    assert claim["float32"][0]["kl_divergence"]["estimate"] <= claim["limits"]["float32"]
    assert "channels reordered says that it changes nothing: " in (
        (tmp_path / "fast" / "report.html").read_text()
    )
