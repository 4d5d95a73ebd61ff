"""What passes that train may read, and that a recipe with one of them can be replayed."""

import numpy as np
import pytest

from hasten.errors import ModelFileError
from hasten.measure.corpus import Corpus, cut_windows, default_corpus
from hasten.measure.overlap import shared_runs
from hasten.models import load_model
from hasten.optimize import Budget, optimize, prepare_material, prepare_plan
from hasten.optimize.objective import Objective
from hasten.optimize.proposals import parse_candidate
from hasten.optimize.replay import replay, with_candidate
from hasten.optimize.speed import RequestShape
from hasten.optimize.training_text import cut_training_text

QUIET = {"progress": lambda *_: None}


def test_windows_that_share_a_run_with_the_proof_are_left_out(tiny_model):
    model = load_model(str(tiny_model))
    first, second = default_corpus().halves()
    proof = cut_windows(second, model.tokenizer, tokens=512, context=128)
    clean = cut_training_text(model, Corpus("first", first.text[:20000]), proof)
    # The text of the proof itself, at the end of the text to learn from.
    mixed = Corpus("mixed", first.text[:20000] + second.text[:600])
    found = cut_training_text(model, mixed, proof)
    assert shared_runs(proof.ids, found.ids) == []
    whole = cut_windows(mixed, model.tokenizer, tokens=1 << 19, context=128)
    assert len(found.ids) < len(whole.ids)
    assert len(found.ids) >= len(clean.ids) - 1
    assert found.digest != clean.digest


@pytest.mark.parity
def test_a_recipe_with_a_pass_that_trains_is_replayed_bit_for_bit(tiny_model, tmp_path):
    pytest.importorskip("torch")
    model, shape = load_model(str(tiny_model)), RequestShape(16, 4)
    material = prepare_material(
        model, default_corpus(), shape, tokens=256, quick=True, seed=0, train=True
    )
    asked = [parse_candidate("heal:steps=2,batch=1,length=32,held_out=0.1+int8:32", 1)]
    plan = prepare_plan(
        model,
        Objective("as given", shape),
        threads=1,
        formats=("int8:32",),
        asked=asked,
        quick=True,
        seed=0,
    )
    recipe = optimize(
        model,
        tmp_path / "fast",
        budget=Budget(perplexity_percent=None, kl=1e6, top1_percent=None),
        material=material,
        plan=plan,
        stopped=lambda search: None,
        **QUIET,
    )
    # Which candidates beside it have passes hangs on what is fast at the moment.
    number = next(n for n, one in enumerate(recipe["candidates"]) if one["passes"])
    chosen = with_candidate(recipe, number)
    for name in ("once", "twice"):
        replay(chosen, tmp_path / name, **QUIET)
    once, twice = (load_model(str(tmp_path / name)) for name in ("once", "twice"))
    changed = False
    for name, tensor in once.weights.items():
        np.testing.assert_array_equal(tensor.to_float32(), twice.weights[name].to_float32())
        changed = changed or not np.allclose(
            tensor.to_float32(), model.weights[name].to_float32(), atol=1e-3
        )
    assert changed
    untold = {**chosen, "texts": {**chosen["texts"]}}
    del untold["texts"]["training"]
    with pytest.raises(ModelFileError, match="trained on"):
        replay(untold, tmp_path / "none", **QUIET)
