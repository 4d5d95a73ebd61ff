"""The benchmark in small: a tiny model instead of SmolLM2."""

import json
from argparse import Namespace

import pruning
import pytest

from hasten.measure.corpus import default_corpus
from hasten.models import load_model


def test_figures_of_each_variant(tiny_model, tmp_path):
    passes = [
        {"pass": "prune_channels", "share": 0.3, "multiple": 32},
        {"pass": "prune_channels", "share": 0.3, "multiple": 32, "reconstruct": False},
        {"pass": "prune_heads", "groups": 1},
    ]
    path = tmp_path / "pruning.json"
    options = Namespace(
        json=path,
        tokens=200,
        calibration=200,
        context=64,
        format="int8:32",
        rounds=6,
        output=4,
        threads=1,
        seed=0,
    )
    found = pruning.measure(load_model(str(tiny_model)), passes, default_corpus(), options)
    assert json.loads(path.read_text())["results"] == found
    channels, plain, heads = found.values()
    assert channels["accuracy"]["kl_divergence"]["estimate"] > 0
    assert channels["accuracy"] != plain["accuracy"]
    assert "decode" not in plain
    for one in (channels, heads):
        bytes_left = one["decode"]["weight_bytes"] / one["decode"]["original_weight_bytes"]
        assert bytes_left == pytest.approx(one["predicted"]["weight_bytes"], rel=0.1)
        assert one["decode"]["ratio_of_bytes"] == pytest.approx(1 / bytes_left)
        assert one["decode"]["speedup"]["low"] <= one["decode"]["speedup"]["high"]
