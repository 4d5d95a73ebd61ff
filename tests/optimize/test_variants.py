"""Models that passes make: made once, found again, and told of as they are made."""

import numpy as np
import pytest

from hasten.errors import ModelFileError, UsageError
from hasten.measure.corpus import cut_windows, default_corpus
from hasten.models import load_model
from hasten.optimize.candidates import Candidate
from hasten.optimize.passes import make_pass, pass_names
from hasten.optimize.passes.interface import parameters_of
from hasten.optimize.proposals import default_passes, parse_candidate
from hasten.optimize.variants import Variants


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def windows(model):
    return cut_windows(default_corpus(), model.tokenizer, tokens=256, context=64)


def variants(model, windows, directory, told=None):
    def progress(doing, share):
        if told is not None:
            told.append((doing, share))

    return Variants(model, windows, directory, progress, seed=0)


ROUND = make_pass({"pass": "round", "bits": 8, "group": 32, "vocabulary": "carried"})
PRUNE = make_pass({"pass": "prune_channels", "share": 0.3, "multiple": 32})


def test_no_pass_is_the_original(model, windows, tmp_path):
    assert variants(model, windows, tmp_path).model(()) is model
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_is_found_again_with_the_same_bits(model, windows, tmp_path):
    told = []
    first = variants(model, windows, tmp_path, told).model((PRUNE, ROUND))
    assert told
    assert all(0 <= share <= 1 for _, share in told)
    later = []
    second = variants(model, windows, tmp_path, later).model((PRUNE, ROUND))
    assert later == []
    assert first.config == second.config
    assert first.config.intermediate_size < model.config.intermediate_size
    for name, tensor in first.weights.items():
        np.testing.assert_array_equal(tensor.to_float32(), second.weights[name].to_float32())
    # The pass before the last was kept, too.
    assert variants(model, windows, tmp_path, later).model((PRUNE,)).config == first.config
    assert later == []


def test_a_model_that_was_not_finished_is_made_anew(model, windows, tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hasten.optimize.variants.write_artefact", fail)
        with pytest.raises(KeyboardInterrupt):
            variants(model, windows, tmp_path).model((ROUND,))
    made = variants(model, windows, tmp_path).model((ROUND,))
    assert made.weights.keys() == model.weights.keys()


def test_passes_are_read_as_users_write_them():
    found = parse_candidate("prune_layers:count=2 + gptq:bits=4,group=64,order=true", 2)
    assert [step.name for step in found.steps] == ["prune_layers", "gptq"]
    assert found.weights == "carried"
    assert found.steps[1].order is True
    assert parse_candidate("prune_layers:layers=[3,1]+int8:32", 1).weights == "int8:32"
    assert parse_candidate("prune_layers:layers=[3,1]", 1).steps[0].layers == (3, 1)


@pytest.mark.parametrize(
    "text", ["", "int8", "nothing:x=1", "gptq:bits", "gptq:bits=5", "gptq:colour=red", "gptq+gptq:"]
)
def test_what_is_no_pass_is_refused_with_what_there_is(text):
    if text == "gptq+gptq:":
        assert len(parse_candidate(text, 1).steps) == 2
        return
    with pytest.raises(UsageError):
        parse_candidate(text, 1)


def test_every_pass_is_made_again_from_its_parameters(model):
    for candidate in default_passes(model, 1):
        assert candidate.steps
        for step in candidate.steps:
            assert make_pass(parameters_of(step)) == step
            assert step.name in pass_names()
    with pytest.raises(ModelFileError, match="'magic'"):
        make_pass({"pass": "magic"})


def test_labels_name_the_passes():
    candidate = Candidate("carried", "bf16", 2, steps=(PRUNE, ROUND))
    assert candidate.label.startswith(f"{PRUNE.label}, {ROUND.label}, carried")
    assert [one["pass"] for one in candidate.passes()] == ["prune_channels", "round"]
    assert not Candidate("f32", "f32", 2, steps=(PRUNE,)).is_exact
