"""Artefacts with their evidence, without a search."""

import shutil

from hasten.machine import detect_machine
from hasten.measure.corpus import default_corpus
from hasten.models import load_model
from hasten.optimize import Budget, prepare_material
from hasten.optimize.candidates import Candidate, original
from hasten.optimize.laboratory import EngineLaboratory
from hasten.optimize.objective import Objective
from hasten.optimize.publish import publish, staged
from hasten.optimize.recipe import Evidence
from hasten.optimize.speed import Effort, RequestShape, speedup
from hasten.optimize.trial import Trial
from hasten.optimize.variants import Variants

BRIEF = Effort(rounds=2, least=2, seconds=0)
_SHAPE = RequestShape(16, 8)


def make_artefact(model, place, steps, tokens=256):
    """Copies a model to `source`, and makes the artefact `fast` of it, as if a search had."""
    shutil.copytree(model, place / "source")
    model = load_model(str(place / "source"))
    material = prepare_material(model, default_corpus(), _SHAPE, tokens=tokens, quick=True, seed=3)
    chosen = Candidate("int8:32", "bf16", 1, steps=steps)
    variants = Variants(model, material.calibration, place / "variants", lambda *_: None, seed=3)
    with EngineLaboratory(
        variants.model,
        context=128,
        material=material,
        threads=1,
        memory_limit=1 << 30,
        seed=3,
    ) as laboratory:
        before, after = Trial(original(1), status="original"), Trial(chosen, status="chosen")
        after.proved = laboratory.prove(chosen, 0.95)
        if any(step.exact for step in steps):
            after.claim = laboratory.hold(chosen, 0.95)
        duel = laboratory.race([before.candidate, chosen], BRIEF, lambda share: None)[chosen]
    before.timings, after.timings = duel.before, duel.after
    after.speedup = speedup(duel, seed=3)
    evidence = Evidence(
        model=model,
        winner=after,
        original=before,
        trials=[after],
        remarks=[],
        budget=Budget(perplexity_percent=None, kl=1e6, top1_percent=None),
        objective=Objective("as given", _SHAPE),
        material=material,
        machine=detect_machine(),
        memory={side: {"weights": 1, "kv_cache": 1, "buffers": 1} for side in ("before", "after")},
        seed=3,
        seconds=1.0,
        arguments=(),
    )
    with staged(variants.model(chosen.steps), chosen, place / "fast") as stage:
        publish(stage, place / "fast", evidence, "fast")
