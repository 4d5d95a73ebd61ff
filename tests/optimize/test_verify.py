"""Old artefacts: proved anew, made again bit for bit, and what may have changed meanwhile."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from artefacts import BRIEF, make_artefact

from hasten.errors import ModelFileError, UsageError
from hasten.measure.corpus import default_corpus
from hasten.measure.statistics import Interval
from hasten.models import load_model
from hasten.models.artefact import DIGEST_KEY
from hasten.models.weights import DenseTensor
from hasten.optimize import passes as passes_module
from hasten.optimize.passes.interface import Prediction
from hasten.optimize.replay import read_recipe, replay, with_candidate
from hasten.optimize.tail import TailBound, TailFinding
from hasten.optimize.verify import Check, verify

QUIET = {"progress": lambda *_: None}


@dataclass(frozen=True)
class Jostle:
    """Adds to a matrix what depends on the seed and on the calibration text."""

    amount: float
    name: ClassVar[str] = "jostle"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset] = frozenset({"calibration"})

    @property
    def label(self):
        return f"jostle {self.amount}"

    def why_unfit(self, model):
        return None if self.amount > 0 else "it would do nothing"

    def predict(self, model):
        return Prediction()

    def apply(self, model, workshop):
        name = "model.layers.0.mlp.up_proj.weight"
        values = model.weights[name].to_float32()
        rng = np.random.default_rng([workshop.seed, *workshop.calibration.ids[0][:50]])
        moved = values + self.amount * rng.standard_normal(values.shape).astype(np.float32)
        return model.derive({**model.weights, name: DenseTensor(name, "F32", moved)})


@pytest.fixture(scope="module")
def jostle(tmp_path_factory):
    """Makes the pass known to recipes."""
    found = passes_module.importlib.import_module

    class Module:
        PASS = Jostle

    def load(name):
        return Module if name.endswith(".jostle") else found(name)

    with pytest.MonkeyPatch.context() as patch:
        names = [*passes_module.pass_names(), "jostle"]
        patch.setattr(passes_module, "pass_names", lambda: names)
        patch.setattr(passes_module.importlib, "import_module", load)
        yield


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory, jostle):
    """A copy of the source, and an artefact that two passes and rounding made of it."""
    place = tmp_path_factory.mktemp("verify")
    make_artefact(tiny_model, place, (Jostle(0.01), Jostle(0.02)))
    return place


def test_replay_makes_the_same_bits(made, tmp_path):
    recipe = read_recipe(made / "fast")
    assert [one["pass"] for one in recipe["passes"]] == ["jostle", "jostle", "quantize"]
    told = []
    assert (
        replay(recipe, tmp_path / "again", progress=lambda doing, share: told.append(doing))
        == "same"
    )
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        one, two = (place / name for place in (made / "fast", tmp_path / "again"))
        assert one.read_bytes() == two.read_bytes(), name
    again = json.loads((tmp_path / "again" / "recipe.json").read_text())
    assert again.pop("replayed")["hasten"]
    assert again == recipe
    assert told[-1] == "writing the artefact"
    other = {**recipe, "seed": 4}
    assert replay(other, tmp_path / "other", **QUIET) == "different"
    one, two = (place / "model.safetensors" for place in (made / "fast", tmp_path / "other"))
    assert one.read_bytes() != two.read_bytes()
    # What was written speaks of its own weights.
    assert verify(str(tmp_path / "other"), effort=BRIEF, **QUIET).weights == "same"


def test_replay_of_passes_that_learn_from_text(made, tmp_path):
    recipe = read_recipe(made / "fast")
    passes = [
        {"pass": "prune_channels", "share": 0.3, "multiple": 32},
        {"pass": "gptq", "bits": 4, "group": 32},
        {"pass": "quantize", "weights": "carried", "overrides": {"lm_head.weight": "int8:32"}},
    ]
    for name in ("one", "two"):
        replay({**recipe, "passes": passes}, tmp_path / name, **QUIET)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    found = load_model(tmp_path / "one")
    assert found.config.intermediate_size == 64
    assert found.weights["lm_head.weight"].encoding == "int8:32"
    assert "int4:32" in {tensor.encoding for tensor in found.weights.values()}


def test_a_recipe_without_a_digest_says_nothing_of_the_bits(made, tmp_path):
    recipe = {key: one for key, one in read_recipe(made / "fast").items() if key != DIGEST_KEY}
    assert replay(recipe, tmp_path / "again", **QUIET) == "unknown"
    listed = [{**one, "memory_bytes": None} for one in read_recipe(made / "fast")["candidates"]]
    other = with_candidate({**read_recipe(made / "fast"), "candidates": listed}, 0)
    assert replay(other, tmp_path / "original", **QUIET) == "unknown"


def test_the_recipe_has_the_digest_of_the_file_of_weights(made):
    weights = (made / "fast" / "model.safetensors").read_bytes()
    assert read_recipe(made / "fast")[DIGEST_KEY] == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize("place", [-1, 5000, "a scale"])
def test_one_flipped_bit_of_the_weights_is_found(made, tmp_path, place):
    shutil.copytree(made / "fast", tmp_path / "fast")
    path = tmp_path / "fast" / "model.safetensors"
    weights = bytearray(path.read_bytes())
    if place == "a scale":
        header = int.from_bytes(weights[:8], "little")
        entry = json.loads(weights[8 : 8 + header])["model.layers.1.mlp.up_proj.weight.scales"]
        place = 8 + header + entry["data_offsets"][0]
    weights[place] ^= 1
    path.write_bytes(weights)
    found = verify(str(tmp_path / "fast"), effort=BRIEF, **QUIET)
    assert found.weights == "different"
    assert not found.holds
    assert found.as_dict()["weights"] == "different"


def test_replay_without_passes_keeps_the_original(made, tmp_path):
    recipe = {**read_recipe(made / "fast" / "recipe.json"), "passes": []}
    replay(recipe, tmp_path / "again", **QUIET)
    one, two = load_model(made / "source"), load_model(tmp_path / "again")
    for name, tensor in one.weights.items():
        assert np.array_equal(tensor.to_float32(), two.weights[name].to_float32())


def test_replay_refuses_recipes_that_it_cannot_follow(made, tmp_path):
    recipe = read_recipe(made / "fast")
    first, _, last = recipe["passes"]
    for passes, words in (
        ([last, first], "passes after 'quantize'"),
        ([{"pass": "magic"}, last], r"pass 'magic'; allowed: .*jostle"),
        ([{**first, "amount": 0}, last], "'jostle 0' does not fit: it would do nothing"),
    ):
        with pytest.raises(ModelFileError, match=words):
            replay({**recipe, "passes": passes}, tmp_path / "again", **QUIET)
    (tmp_path / "recipe.json").write_text('{"schema": "hasten.recipe/9"}')
    with pytest.raises(ModelFileError, match=r"schema 'hasten.recipe/9'"):
        read_recipe(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_an_artefact_is_proved_anew(made):
    told = []
    found = verify(
        str(made / "fast"), progress=lambda doing, share: told.append(share), effort=BRIEF
    )
    checks = {check.name: check for check in found.checks}
    assert list(checks) == ["kl_divergence", "perplexity_ratio", "top1_agreement", "speedup"]
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["schema"] == "hasten.verification/1"
    assert document["outside_budget"] is None
    assert document["weights"] == "same"
    assert document["machines"]["was"]["cpu"] == document["machines"]["is"]["cpu"]
    assert len(found.rows()) == 4
    # The same text, program and machine: the same figures.
    for name in ("kl_divergence", "perplexity_ratio", "top1_agreement"):
        assert checks[name].now == checks[name].was
        assert checks[name].verdict == "inside"
    assert told == sorted(told)


def test_an_artefact_that_became_worse_does_not_hold(made, tmp_path):
    shutil.copytree(made / "fast", tmp_path / "fast")
    recipe = json.loads((tmp_path / "fast" / "recipe.json").read_text())
    good = {"estimate": 1e-7, "low": 0.0, "high": 1e-6, "confidence": 0.95}
    recipe["accuracy"] = {"kl_divergence": good}
    recipe["budget"]["kl"] = 1e-5
    recipe["settings"]["threads"] = 4096
    (tmp_path / "fast" / "recipe.json").write_text(json.dumps(recipe))
    found = verify(str(tmp_path / "fast"), effort=BRIEF, **QUIET)
    assert not found.holds
    assert found.checks[0].verdict == "worse"
    assert "KL divergence" in found.refused
    assert "of then 4096" in found.remarks[0]


@pytest.mark.parametrize("isa", ["scalar", "of another processor"])
def test_operators_of_then_run_now_where_the_machine_has_them(made, tmp_path, isa):
    shutil.copytree(made / "fast", tmp_path / "fast")
    recipe = json.loads((tmp_path / "fast" / "recipe.json").read_text())
    recipe["settings"] |= {"fuse": False, "isa": isa}
    (tmp_path / "fast" / "recipe.json").write_text(json.dumps(recipe))
    found = verify(str(tmp_path / "fast"), effort=BRIEF, **QUIET)
    said = [one for one in found.remarks if "kernels" in one]
    assert bool(said) == (isa != "scalar")
    assert all(one.endswith(f"kernels, then {isa}") for one in said)
    assert found.checks


def with_bound(made, place, ms, *, kept=True):
    """A copy of the artefact whose recipe has a bound on the slowest requests."""
    shutil.copytree(made / "fast", place)
    recipe = json.loads((place / "recipe.json").read_text())
    was = TailFinding.of(TailBound("e2e", 0.95, 1e9), [1e-3] * 60, 60).as_dict()
    recipe["after"]["tails"] = [{**was, "ms": ms, "kept": kept}]
    (place / "recipe.json").write_text(json.dumps(recipe))
    return str(place)


def test_a_bound_on_the_slowest_requests_is_measured_again(made, tmp_path):
    told = []
    found = verify(
        with_bound(made, tmp_path / "fast", 1e9),
        progress=lambda doing, share: told.append((doing, share)),
        effort=BRIEF,
        tail_seconds=60,
    )
    (tail,) = found.tails
    assert (tail.verdict, tail.now.late, tail.was["requests"]) == ("kept", 0, 60)
    assert tail.now.requests >= 59
    assert found.rows()[-1] == [
        "latency within 1e+09 ms for 95 % of requests",
        "0 of 60 late",
        f"0 of {tail.now.requests} late",
        "kept",
    ]
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["tails"][0]["is"]["kept"]
    assert any("slowest requests of" in doing for doing, _ in told)
    shares = [share for _, share in told]
    assert shares == sorted(shares)


@pytest.mark.parametrize(("kept", "verdict"), [(True, "worse"), (False, "not shown")])
def test_a_bound_that_is_missed_now_counts_if_it_was_kept_then(made, tmp_path, kept, verdict):
    place = with_bound(made, tmp_path / "fast", 1e-6, kept=kept)
    found = verify(place, effort=BRIEF, tail_seconds=1, **QUIET)
    assert [one.verdict for one in found.tails] == [verdict]
    worse = [check for check in found.checks if check.verdict == "worse"]
    assert found.holds == (not kept and not worse)


def interval(low, estimate, high):
    return Interval(estimate, low, high, 0.95)


@pytest.mark.parametrize(
    ("name", "now", "verdict"),
    [
        ("speedup", (1.4, 1.5, 1.6), "inside"),
        ("speedup", (1.3, 1.35, 1.45), "overlaps"),
        ("speedup", (1.0, 1.1, 1.2), "worse"),
        ("speedup", (2.0, 2.1, 2.2), "better"),
        ("kl_divergence", (2.0, 2.1, 2.2), "worse"),
        ("kl_divergence", (0.1, 0.1, 0.2), "better"),
        ("top1_agreement", (0.1, 0.1, 0.2), "worse"),
    ],
)
def test_verdicts(name, now, verdict):
    check = Check(name, interval(1.4, 1.5, 1.6), interval(*now))
    assert check.verdict == verdict
    assert check.as_dict()["is"]["estimate"] == now[1]


def test_a_source_that_moved_or_changed_is_named(made, tmp_path):
    shutil.copytree(made / "fast", tmp_path / "fast")
    shutil.copytree(made / "source", tmp_path / "moved")
    path = tmp_path / "fast" / "recipe.json"
    recipe = json.loads(path.read_text())
    recipe["source"]["path"] = str(tmp_path / "gone")
    path.write_text(json.dumps(recipe))
    with pytest.raises(ModelFileError, match=r"is no longer at .*gone; say where it is now"):
        verify(str(tmp_path / "fast"), effort=BRIEF, **QUIET)
    with pytest.raises(ModelFileError, match="no longer at"):
        replay(recipe, tmp_path / "again", **QUIET)
    replay(recipe, tmp_path / "again", source=str(tmp_path / "moved"), **QUIET)
    with (tmp_path / "moved" / "tokenizer_config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ModelFileError, match="is not what the artefact was made of"):
        verify(str(tmp_path / "fast"), source=str(tmp_path / "moved"), effort=BRIEF, **QUIET)
    with pytest.raises(UsageError, match="is no artefact: it has no recipe"):
        verify(str(made / "source"), effort=BRIEF, **QUIET)


def test_texts_that_are_missing_or_others_are_named(made, tmp_path):
    recipe = json.loads((made / "fast" / "recipe.json").read_text())
    named = json.loads(json.dumps(recipe))
    named["texts"]["calibration"]["name"] = "mails.txt, first half"
    with pytest.raises(UsageError, match=r"with the text 'mails.txt', which is not given; give it"):
        replay(named, tmp_path / "again", **QUIET)
    (tmp_path / "mails.txt").write_text("dear sir or madam, " * 2000)
    with pytest.raises(ModelFileError, match="gives other tokens than when"):
        replay(named, tmp_path / "again", text=tmp_path / "mails.txt", **QUIET)
    (tmp_path / "mails.txt").write_text(default_corpus().text)
    replay(named, tmp_path / "again", text=tmp_path / "mails.txt", **QUIET)
    one, two = (place / "model.safetensors" for place in (made / "fast", tmp_path / "again"))
    assert one.read_bytes() == two.read_bytes()
    recipe["texts"]["calibration"]["digest"] = "0" * 64
    with pytest.raises(ModelFileError, match="use Python 3"):
        replay(recipe, tmp_path / "third", **QUIET)
