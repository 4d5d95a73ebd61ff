"""`hasten export`: what is written where, and what is said of it."""

import json

import pytest

from hasten.models import load_model


@pytest.fixture
def gguf(tiny_model, tmp_path):
    from tiny_models import write_gguf  # importable once `tiny_model` was made

    return write_gguf(tmp_path / "source.gguf", encoding="Q4_1")


def test_a_directory_from_a_gguf_file(hasten, gguf, tmp_path):
    result = hasten("export", str(gguf), "-o", str(tmp_path / "out"))
    assert (result.status, result.err) == (0, "")
    assert "its minimums are no integer multiples of its scales (model.layers.0" in result.out
    assert "MiB" in result.out or "KiB" in result.out
    found = load_model(tmp_path / "out")
    assert found.weights["lm_head.weight"].encoding == "F16"


def test_lossy_and_its_report(hasten, gguf, tmp_path):
    arguments = ("export", str(gguf), "-o", str(tmp_path / "out"), "--lossy", "--json", "-")
    document = json.loads(hasten(*arguments).out)
    assert document["schema"] == "hasten.export/1"
    assert document["format"] == "compressed-tensors"
    assert len(document["changed"]) == 16
    assert "zero points rounded" in document["changed"]["lm_head.weight"]
    assert document["written_bytes"] > 0
    found = load_model(tmp_path / "out")
    assert found.weights["lm_head.weight"].layout().group == 32


def test_gguf_by_the_suffix_and_dense_by_the_format(hasten, gguf, tmp_path):
    result = hasten("export", str(gguf), "-o", str(tmp_path / "out.gguf"))
    assert result.status == 0
    assert result.out.split("\n")[1].split() == ["Q4_1", "16", "as", "they", "were"]
    again = load_model(tmp_path / "out.gguf")
    assert again.weights["lm_head.weight"].encoding == "Q4_1"
    dense = str(tmp_path / "dense")
    form = ("--format", "safetensors", "--dtype", "bfloat16")
    assert hasten("export", str(gguf), "-o", dense, *form).status == 0
    assert load_model(dense).weights["lm_head.weight"].encoding == "BF16"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("out.gguf", "--format", "safetensors"), "is the name of a file, and safetensors"),
        (("out.gguf", "--lossy"), "--lossy with the format gguf; allowed: compressed-tensors"),
        (("out.gguf", "--activations", "int8"), "--activations int8 with the format gguf; allowed"),
        (("out", "--format", "onnx"), "'onnx' is not one of"),
    ],
)
def test_wrong_use(hasten, tiny_model, tmp_path, arguments, words):
    output, *rest = arguments
    result = hasten("export", str(tiny_model), "-o", str(tmp_path / output), *rest)
    assert result.status == 2
    assert words in result.err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said_in_a_line(hasten, tiny_model, tmp_path):
    result = hasten("export", str(tiny_model), "-o", str(tmp_path / "out.gguf"))
    assert result.status == 1
    assert "hold no 'WordLevel' tokenizer" in result.err
    assert result.err.count("\n") == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").write_text("")
    result = hasten("export", str(tiny_model), "-o", str(tmp_path / "mine"))
    assert result.status == 2
    assert "exists, so it is not overwritten" in result.err


def test_activations_in_8_bits_and_what_does_not_take_them(hasten, gguf, tmp_path):
    arguments = ("export", str(gguf), "-o", str(tmp_path / "out"), "--activations", "int8")
    result = hasten(*arguments)
    assert result.status == 0
    assert (
        "note: activations stay as they are: no matrix has symmetric codes of 8 bits" in result.out
    )
