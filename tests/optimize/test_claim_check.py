"""Steps of an old artefact that say they change nothing are held to that again."""

import json
import shutil

import numpy as np
import pytest
from artefacts import BRIEF, make_artefact

from hasten.models.weights import DenseTensor
from hasten.optimize.passes.reorder import ReorderChannels
from hasten.optimize.verify import verify

QUIET = {"progress": lambda *_: None}


@pytest.fixture(scope="module")
def made(tiny_model, tmp_path_factory):
    place = tmp_path_factory.mktemp("claims")
    make_artefact(tiny_model, place, (ReorderChannels(),), tokens=1024)
    return place


def test_a_claim_that_is_kept_has_the_figures_of_then(made):
    told = []
    found = verify(
        str(made / "fast"), progress=lambda doing, share: told.append((doing, share)), effort=BRIEF
    )
    (check,) = found.claims
    assert check.verdict == "kept"
    assert check.now.as_dict() == check.was
    assert check.was["steps"] == ["channels reordered"]
    assert len(check.was["float32"]) == 1
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["claims"][0]["verdict"] == "kept"
    assert "KL that channels reordered adds" in [row[0] for row in found.rows()]
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert any(doing.startswith("claim of") for doing, _ in told)


def test_a_step_that_changes_something_now_does_not_hold(made, monkeypatch):
    apply = ReorderChannels.apply

    def scramble(step, model, workshop):
        changed = apply(step, model, workshop)
        name = "model.layers.0.mlp.down_proj.weight"
        values = changed.weights[name].to_float32()[:, ::-1]
        torn = DenseTensor(name, "F32", np.ascontiguousarray(values))
        return changed.derive({**changed.weights, name: torn})

    monkeypatch.setattr(ReorderChannels, "apply", scramble)
    found = verify(str(made / "fast"), effort=BRIEF, **QUIET)
    assert found.weights == "same"
    assert [check.verdict for check in found.claims] == ["worse"]
    assert not found.holds


def test_a_claim_for_which_a_model_would_have_to_learn_again_is_left_with_a_remark(made, tmp_path):
    shutil.copytree(made / "fast", tmp_path / "fast")
    recipe = json.loads((tmp_path / "fast" / "recipe.json").read_text())
    recipe["passes"].insert(1, {"pass": "heal", "steps": 1000})
    (tmp_path / "fast" / "recipe.json").write_text(json.dumps(recipe))
    found = verify(str(tmp_path / "fast"), effort=BRIEF, **QUIET)
    assert found.claims == ()
    (said,) = (one for one in found.remarks if "channels reordered" in one)
    assert "would have to learn again" in said
