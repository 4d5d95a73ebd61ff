"""Adapters of the original do not run on a model whose layers or channels stand elsewhere."""

import pytest
from decoders import decoder, workshop
from tiny_adapters import random_pairs, save_pairs

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models import load_model
from hasten.models.artefact import write_artefact
from hasten.models.lora import load_adapter
from hasten.optimize.passes.awq import AwqWeights
from hasten.optimize.passes.prune_layers import PruneLayers
from hasten.optimize.passes.reorder import ReorderChannels
from hasten.optimize.passes.round import RoundWeights


@pytest.fixture
def adapter(tmp_path):
    """Of the first layer alone, so that its shapes fit models of fewer layers."""
    pairs = random_pairs(decoder().config, 4, 0, layers=[0])
    return save_pairs(tmp_path / "adapter", pairs, layers_to_transform=[0])


@pytest.mark.parametrize(
    "step",
    [
        ReorderChannels(),
        AwqWeights(group=32, steps=3),
        AwqWeights(group=32, steps=3, rounds=False),
        PruneLayers(layers=(1,)),
    ],
)
def test_a_rearranged_model_refuses_them(step, adapter, tmp_path):
    model = decoder()
    changed = step.apply(model, workshop(model, directory=tmp_path / "workshop"))
    write_artefact(tmp_path / "artefact", changed, changed.weights, {})
    for config in (changed.config, load_model(tmp_path / "artefact").config):
        with pytest.raises(UnsupportedModelError, match="merge the adapter"):
            load_adapter(adapter, config)


def test_a_model_that_was_only_rounded_takes_them(adapter, tmp_path):
    model = decoder()
    changed = RoundWeights(bits=8, group=32).apply(model, workshop(model))
    write_artefact(tmp_path / "artefact", changed, changed.weights, {})
    assert load_adapter(adapter, load_model(tmp_path / "artefact").config).weights


def test_a_file_that_says_it_wrongly_is_refused(tmp_path):
    model = decoder()
    write_artefact(tmp_path / "artefact", model, model.weights, {})
    path = tmp_path / "artefact" / "config.json"
    text = path.read_text()
    assert '"version"' in text
    path.write_text(text.replace('"version"', '"rearranged": 1, "version"', 1))
    with pytest.raises(ModelFileError, match="rearranged is 1"):
        load_model(tmp_path / "artefact")
