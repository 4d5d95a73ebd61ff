"""`hasten run --lora` on a real, tiny model."""

import sys
from pathlib import Path

import pytest

from hasten.models import load_model

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
from tiny_adapters import random_pairs, save_pairs

ASK = ("--raw", "--max-tokens", "24", "--threads", "1")


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """Of a rank above what an engine takes unless it is told."""
    pairs = random_pairs(load_model(tiny_model).config, 70, 0)
    return save_pairs(tmp_path / "adapter", pairs, lora_alpha=280)


def test_an_adapter_changes_the_answer(hasten, tiny_model, adapter):
    plain = hasten("run", str(tiny_model), "hello", *ASK)
    adapted = hasten("run", str(tiny_model), "hello", *ASK, "--lora", str(adapter))
    assert (plain.status, adapted.status) == (0, 0)
    assert adapted.out != plain.out
    again = hasten("run", str(tiny_model), "hello", *ASK, "--lora", str(adapter), "--no-fuse")
    assert again.out == adapted.out


def test_an_adapter_that_is_none(hasten, tiny_model, tmp_path):
    result = hasten("run", str(tiny_model), "hello", *ASK, "--lora", str(tmp_path))
    assert result.status == 1
    assert result.err.startswith("error: ")
    assert "no adapter" in result.err
