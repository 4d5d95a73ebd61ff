"""A tiny model all the way through: search, artefact, recipe, report; and what may go wrong."""

import json
import random
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from hasten import _native
from hasten.errors import CapacityError, HastenError, UsageError
from hasten.generation import Engine
from hasten.generation.native import rival_isas
from hasten.measure.corpus import Corpus, default_corpus
from hasten.models import load_model
from hasten.optimize import Budget, optimize, prepare_material, prepare_plan
from hasten.optimize.candidates import Candidate, operator_choices, original, settings_for
from hasten.optimize.journal import Journal
from hasten.optimize.laboratory import EngineLaboratory
from hasten.optimize.objective import Objective
from hasten.optimize.passes.quantize import QuantizeWeights
from hasten.optimize.publish import check_destination, check_same
from hasten.optimize.recipe import check_recipe
from hasten.optimize.speed import Effort, RequestShape
from hasten.types import EngineOptions

SHAPE = RequestShape(16, 8)
FORMATS = ("int8:32", "int8:64", "bf16", "int4:64")
ANYTHING = Budget(perplexity_percent=None, kl=1e6, top1_percent=None)


def run(
    directory,
    output,
    *,
    shape=SHAPE,
    budget=ANYTHING,
    progress=lambda *_: None,
    stopped=None,
    **plan,
):
    model = load_model(str(directory))
    material = prepare_material(model, default_corpus(), shape, tokens=256, quick=True, seed=0)
    settings = {"threads": 1, "formats": ("int8:32",), "quick": True, "seed": 0, **plan}
    return optimize(
        model,
        output,
        budget=budget,
        material=material,
        plan=prepare_plan(model, Objective("as given", shape), **settings),
        progress=progress,
        stopped=stopped or (lambda search: None),
        arguments=("optimize", "tiny"),
    )


def logits(directory, options=None):
    with Engine(load_model(str(directory)), options) as engine:
        return np.concatenate([part.copy() for _, part in engine.score([1, 5, 9, 7, 3])])


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    output = tmp_path_factory.mktemp("made") / "fast"
    return output, run(tiny_model, output, formats=FORMATS)


def test_the_artefact_is_complete_and_nothing_else_is_left(made):
    output, _ = made
    assert [path.name for path in output.parent.iterdir()] == ["fast"]
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {"recipe.json", "report.html"} <= names


def test_the_recipe_says_what_was_done_and_comes_back_from_json(made, tiny_model):
    output, recipe = made
    loaded = json.loads((output / "recipe.json").read_text())
    assert loaded == json.loads(json.dumps(recipe))
    check_recipe(loaded)
    assert loaded["schema"] == "hasten.recipe/1"
    assert loaded["source"]["digest"] == load_model(str(tiny_model)).digest()
    assert loaded["settings"].keys() == {"weights", "kv", "threads"}
    assert loaded["texts"]["calibration"]["digest"] != loaded["texts"]["evaluation"]["digest"]
    assert loaded["before"]["e2e_ms"] > 0
    assert loaded["after"]["memory"]["weights"] > 0
    assert loaded["candidates"][0]["status"] == "original"
    labels = [one["label"] for one in loaded["candidates"]]
    assert len(set(labels)) == len(labels)
    tried = {one["settings"]["weights"] for one in loaded["candidates"]}
    assert tried == {"f32", "int8:32", "int8:64", "bf16", "int4:64"}
    unfit = [one for one in loaded["candidates"] if one["settings"]["weights"] == "int8:64"]
    assert unfit[0]["reason"].startswith("groups of 64 do not divide the 96 columns")


@pytest.mark.parametrize("weights", ["f32", "bf16", "int8", "int8:32", "int4:32"])
@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_an_artefact_answers_bit_for_bit_as_what_was_measured(tiny_model, tmp_path, weights, kv):
    from hasten.optimize.publish import artefact_settings, staged

    candidate = Candidate(weights, kv, 1, (("lm_head.weight", "int8:32"),) if kv == "int8" else ())
    expected = logits(tiny_model, candidate.options(64))
    with staged(load_model(str(tiny_model)), candidate, tmp_path / "fast") as place:
        settings = artefact_settings(candidate)
        np.testing.assert_array_equal(
            logits(place, EngineOptions(**settings, max_context=64)), expected
        )
    assert list(tmp_path.iterdir()) == []


def test_an_artefact_runs_with_the_settings_of_its_recipe(made):
    output, recipe = made
    with Engine(load_model(str(output))) as engine:
        assert engine.options.kv == recipe["settings"]["kv"]
        assert engine.threads == recipe["settings"]["threads"]


def test_requests_side_by_side_run_with_sizes_of_a_step_and_a_prefix_cache(tiny_model):
    model, shape = load_model(str(tiny_model)), RequestShape(40, 8, 4, shared=32)
    material = prepare_material(model, default_corpus(), shape, tokens=256, quick=True, seed=0)
    base = Candidate("int8:32", "bf16", 1)
    field = [original(1), base, *settings_for(base, shape)]
    with EngineLaboratory(
        lambda steps: model,
        context=material.evaluation.context,
        material=material,
        threads=1,
        memory_limit=1 << 30,
        seed=0,
    ) as laboratory:
        for candidate in field:
            laboratory.screen(candidate)
        duels = laboratory.race(field, Effort(2, 1, 60), lambda share: None)
    assert duels.keys() == set(field)
    assert {one.chunk for one in field} == {None, 256, 1024}
    assert sum(one.prefix_cache for one in field) == 1
    for duel in duels.values():
        figures = duel.after.as_dict()
        assert figures["output_tokens_per_s"] > 0
        assert "decode_tokens_per_s" not in figures


def test_operators_computed_otherwise_are_the_same_model(tiny_model):
    model = load_model(str(tiny_model))
    fused = Candidate("int8:32", "bf16", 1)
    unfused, *others = operator_choices(fused, rival_isas())
    expected = logits(tiny_model, fused.options(64))
    np.testing.assert_array_equal(logits(tiny_model, unfused.options(64)), expected)
    for other in others:
        assert other.options(64).isa in _native.isas()
        found = logits(tiny_model, other.options(64))
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    plan = prepare_plan(model, Objective("as given", SHAPE), threads=1, quick=False, seed=0)
    assert plan.isas == tuple(rival_isas())


def test_an_impossible_budget_leaves_the_original_as_it_is(tiny_model, tmp_path):
    output = tmp_path / "fast"
    impossible = Budget(perplexity_percent=None, kl=0.0, top1_percent=None)
    recipe = run(tiny_model, output, budget=impossible)
    assert recipe["accuracy"] is None
    assert recipe["passes"] == []
    assert recipe["settings"]["weights"] == "f32"
    assert "KL divergence" in recipe["candidates"][1]["reason"]
    np.testing.assert_array_equal(
        logits(output), logits(tiny_model, EngineOptions(weights="f32", kv="f32", threads=1))
    )


def test_an_older_artefact_is_replaced_and_other_things_are_not(made, tmp_path):
    output, _ = made
    check_destination(output)
    check_destination(tmp_path / "new" / "deeper")
    (tmp_path / "notes").mkdir()
    check_destination(tmp_path / "notes")
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="not overwritten"):
        check_destination(tmp_path / "notes")
    with pytest.raises(UsageError, match="no directory"):
        check_destination(tmp_path / "notes" / "mine.txt")
    with pytest.raises(UsageError, match=r"cannot be written: Not a directory"):
        check_destination(tmp_path / "notes" / "mine.txt" / "below")
    assert {path.name for path in tmp_path.iterdir()} == {"notes"}


@pytest.mark.parametrize("moment", ["accuracy of", "race of", "writing"])
def test_ctrl_c_leaves_what_was_measured_and_no_artefact(tiny_model, tmp_path, moment):
    told = []

    def progress(doing, share):
        if doing.startswith(moment):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            tiny_model,
            tmp_path / "fast",
            progress=progress,
            stopped=lambda search: told.append(search.best_so_far()),
        )
    assert [path.name for path in tmp_path.iterdir()] == [".fast.search"]
    assert len(told) == 1


def estimates(accuracy):
    return accuracy and {
        name: figure["estimate"] if isinstance(figure, dict) else figure
        for name, figure in accuracy.items()
    }


def test_a_search_that_is_stopped_again_and_again_ends_as_one_that_is_not(
    tiny_model, tmp_path, monkeypatch, made
):
    measured = Counter()

    def counted(method):
        def call(self, about, *rest):
            found = method(self, about, *rest)
            # A candidate, or those of a race; what was interrupted does not count.
            measured[method.__name__, str(about)] += 1
            return found

        return call

    for name in ("screen", "glance", "prove", "race"):
        monkeypatch.setattr(EngineLaboratory, name, counted(getattr(EngineLaboratory, name)))
    chance = random.Random(3)
    stops = 0
    while True:
        left = chance.randrange(1, 12)

        def progress(*_):
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        try:
            recipe = run(
                tiny_model,
                tmp_path / "fast",
                formats=FORMATS,
                progress=progress if stops < 10 else lambda *_: None,
            )
        except KeyboardInterrupt:
            stops += 1
            continue
        break
    assert stops == 10
    # The last race is run twice, before and after the proofs.
    often = [about for (_, about), count in measured.items() if count > 1]
    assert set(measured.values()) <= {1, 2}
    assert all(("race", about) in measured for about in often)
    assert len(often) <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["fast"]
    _, whole = made
    labels = [one["label"] for one in whole["candidates"]]
    both = {one["label"]: one for one in recipe["candidates"]}
    assert set(labels) & set(both) >= {label for label in labels if "KV bf16, 1 thread" in label}
    for one in whole["candidates"]:
        other = both.get(one["label"])
        if other is not None and one["accuracy_text"] == other["accuracy_text"]:
            # How wide intervals are hangs on how many were proved, and that on the moment.
            assert estimates(other["accuracy"]) == estimates(one["accuracy"])


def test_a_journal_that_cannot_be_written_anew_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    with closing(Journal(path, {"seed": 0})) as journal:
        journal.measure("screen", "a", lambda: {"kl": 1})
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            Journal(path, {"seed": 0})
    assert path.read_bytes() == before


def test_what_another_search_measured_is_not_taken_over(tmp_path):
    path = tmp_path / "journal.jsonl"
    with closing(Journal(path, {"seed": 0})) as journal:
        assert journal.measure("screen", "a", lambda: {"kl": 1}) == {"kl": 1}
    with closing(Journal(path, {"seed": 0})) as journal:
        assert journal.found == 1
        assert journal.measure("screen", "a", lambda: {"kl": 2}) == {"kl": 1}
        assert journal.measure("screen", "a", lambda: {"kl": 3}) == {"kl": 3}
    with path.open("a") as file:
        file.write('{"key": "cut o')
    with closing(Journal(path, {"seed": 0})) as journal:
        assert journal.found == 2
    with closing(Journal(path, {"seed": 1})) as journal:
        assert journal.found == 0
        assert journal.measure("screen", "a", lambda: {"kl": 4}) == {"kl": 4}


def test_a_failed_exchange_keeps_the_older_artefact(tiny_model, tmp_path, monkeypatch):
    output = tmp_path / "fast"
    run(tiny_model, output)
    before = (output / "recipe.json").read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hasten.optimize.publish.render_report", fail)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, output)
    assert (output / "recipe.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".fast.search", "fast"]


def test_an_artefact_that_answers_otherwise_is_not_published():
    same = np.zeros((2, 3), np.float32)
    check_same(same, same.copy())
    with pytest.raises(HastenError, match="differ by up to 1"):
        check_same(same, same + 1)


def test_a_model_that_does_not_fit_beside_its_candidates_is_refused_at_once(
    tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr("hasten.optimize.pipeline.memory_limit", lambda: 100_000)
    with pytest.raises(CapacityError, match="more memory"):
        run(tiny_model, tmp_path / "fast")
    assert list(tmp_path.iterdir()) == []


def test_a_request_longer_than_the_context_is_refused_with_both_numbers(tiny_model):
    with pytest.raises(CapacityError, match=r"120 tokens in, 9 out.*128"):
        prepare_material(
            load_model(str(tiny_model)),
            default_corpus(),
            RequestShape(120, 9),
            tokens=256,
            quick=True,
            seed=0,
        )


def test_a_short_text_is_refused(tiny_model):
    with pytest.raises(UsageError, match="tokens to score"):
        prepare_material(
            load_model(str(tiny_model)),
            Corpus("note", "too short a text. " * 10),
            SHAPE,
            tokens=256,
            quick=True,
            seed=0,
        )


def test_the_vocabulary_and_every_format_are_candidates_of_the_full_search(tiny_model):
    model = load_model(str(tiny_model))
    objective = Objective("as given", SHAPE)
    plan = prepare_plan(model, objective, threads=2, quick=False, seed=0)
    names = {name for one in plan.candidates for name, _ in one.overrides}
    assert names == {"model.embed_tokens.weight", "lm_head.weight"}
    assert {"carried", "int8", "bf16", "int4:32"} <= {one.weights for one in plan.candidates}


def test_the_pass_keeps_codes_that_have_the_format_already(made):
    output, _ = made
    model = load_model(str(output))
    tensors = QuantizeWeights(Candidate("carried", "bf16", 1)).apply(model)
    assert tensors.keys() == model.weights.keys()
    for name, tensor in model.weights.items():
        codes = tensor.quantized()
        if codes is not None:
            np.testing.assert_array_equal(tensors[name].codes, codes.codes)
            np.testing.assert_array_equal(tensors[name].scales, codes.scales)
