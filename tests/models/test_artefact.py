"""Artefacts: what is written is read back, and nothing else is overwritten or believed."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import LAYERS, write_directory, write_gguf

from hasten.errors import ModelFileError, UnsupportedModelError, UsageError
from hasten.kernels.quantization import QuantizedMatrix, dequantize, quantize_rtn
from hasten.models import artefact as artefact_module
from hasten.models import load_model
from hasten.models.artefact import write_artefact
from hasten.models.ggml_blocks import GGML_TYPES
from hasten.models.weights import GgmlTensor

DOWN = "model.layers.0.mlp.down_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"
PARTS = ("codes", "scales", "minimums", "order")
RECIPE = {"passes": [{"name": "quantize", "weights": "int4:32"}], "speed-up": 2.5, "ä": None}


def mixed_weights(model):
    """Every format that an artefact can hold, one after another."""
    formats = [(4, 32), (8, 32), (8, None), (4, 96)]
    weights = {}
    for number, (name, tensor) in enumerate(model.weights.items()):
        if len(tensor.shape) == 1:
            weights[name] = tensor
            continue
        bits, group = formats[number % len(formats)]
        if group == 96 and tensor.shape[1] != 96:
            group = 64
        weights[name] = quantize_rtn(tensor.to_float32(), bits, group)
    order = np.random.default_rng(0).permutation(64).astype(np.int32)
    weights[QUERY] = replace(weights[QUERY], order=order)
    weights["lm_head.weight"] = model.weights["lm_head.weight"].to_float32().astype(np.float16)
    return weights


@pytest.fixture
def model(tmp_path):
    return load_model(write_directory(tmp_path / "source"))


@pytest.fixture
def artefact(tmp_path, model):
    write_artefact(tmp_path / "fast", model, mixed_weights(model), RECIPE)
    return tmp_path / "fast"


def same(a: QuantizedMatrix, b: QuantizedMatrix) -> bool:
    parts = [(getattr(a, part), getattr(b, part)) for part in PARTS]
    return (a.bits, a.group, a.shape) == (b.bits, b.group, b.shape) and all(
        (x is None and y is None) or (x.dtype == y.dtype and np.array_equal(x, y)) for x, y in parts
    )


def test_comes_back_as_it_was_written(tmp_path, model, artefact):
    written = mixed_weights(model)
    found = load_model(artefact)
    assert (found.name, found.path, found.config) == ("fast", artefact, model.config)
    digest = hashlib.sha256((artefact / "model.safetensors").read_bytes()).hexdigest()
    assert found.recipe == {**RECIPE, "weights_sha256": digest}
    assert list(found.weights) == list(model.weights)
    formats = set()
    for name, weight in written.items():
        tensor = found.weights[name]
        formats.add(tensor.encoding)
        if isinstance(weight, QuantizedMatrix):
            assert same(tensor.quantized(), weight)
            assert np.array_equal(tensor.to_float32(), dequantize(weight))
        else:
            expected = weight if isinstance(weight, np.ndarray) else weight.to_float32()
            assert np.array_equal(tensor.to_float32(), expected)
    assert formats == {"int4:32", "int4:64", "int8:32", "int8", "F16", "F32"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast", "source"]
    assert found.digest() != model.digest()


def test_other_tools_can_read_the_files(artefact):
    arrays = load_file(artefact / "model.safetensors")
    assert arrays[DOWN + ".scales"].dtype == np.float16
    config = json.loads((artefact / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["quantization_config"]["quant_method"] == "hasten"
    assert config["quantization_config"]["tensors"].keys() == {
        name.removesuffix(".codes") for name in arrays if name.endswith(".codes")
    }


@pytest.mark.parametrize("encoding", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_carries_the_codes_of_a_gguf_file(tmp_path, encoding):
    source = load_model(write_gguf(tmp_path / "source.gguf", encoding=encoding))
    write_artefact(tmp_path / "out", source, source.weights, {})
    found = load_model(tmp_path / "out")
    for name, tensor in source.weights.items():
        assert np.array_equal(found.weights[name].to_float32(), tensor.to_float32())
        if tensor.quantized() is not None:
            assert same(found.weights[name].quantized(), tensor.quantized())
        else:
            assert found.weights[name].encoding == tensor.encoding
    again = tmp_path / "again"
    write_artefact(again, found, found.weights, {"from": "an artefact"})
    assert load_model(again).recipe["from"] == "an artefact"


def test_refuses_what_it_cannot_store(tmp_path, model):
    rows = np.zeros((64, 210), np.uint8)
    sixth = GgmlTensor(QUERY, (64, 256), GGML_TYPES[14], rows)
    with pytest.raises(UsageError, match="cannot be stored as Q6_K"):
        write_artefact(tmp_path / "out", model, model.weights | {QUERY: sixth}, {})
    double = model.weights | {NORM: np.zeros(64)}
    with pytest.raises(UsageError, match=r"'model.norm.weight' cannot be stored as float64"):
        write_artefact(tmp_path / "out", model, double, {})
    short = np.zeros(63, np.float32)
    with pytest.raises(ModelFileError, match=r"\[63\]"):
        write_artefact(tmp_path / "out", model, model.weights | {NORM: short}, {})
    with pytest.raises(ModelFileError, match="is missing"):
        write_artefact(tmp_path / "out", model, {}, {})
    assert not (tmp_path / "out").exists()


def test_replaces_an_artefact_and_nothing_else(tmp_path, model, artefact):
    (artefact / "note.txt").write_text("of the old one")
    write_artefact(artefact, model, model.weights, {"second": True})
    assert load_model(artefact).recipe["second"]
    assert not (artefact / "note.txt").exists()

    (tmp_path / "empty").mkdir()
    write_artefact(tmp_path / "empty", model, model.weights, {})

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(artefact)
    for name in ("photos", "source", "file", "link"):
        with pytest.raises(UsageError, match="exists and is no artefact"):
            write_artefact(tmp_path / name, model, model.weights, {})
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "cat"
    assert load_model(artefact).recipe["second"]


def test_an_interrupted_write_leaves_the_old_artefact(tmp_path, model, artefact, monkeypatch):
    def fail(path: Path, values: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(artefact_module, "_write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        write_artefact(artefact, model, model.weights, {})
    assert load_model(artefact).recipe["speed-up"] == RECIPE["speed-up"]
    with pytest.raises(KeyboardInterrupt):
        write_artefact(tmp_path / "fresh", model, model.weights, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast", "source"]


def test_says_where_it_cannot_write(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_artefact(tmp_path / "file" / "out", model, model.weights, {})


def test_text_files_travel_along(tmp_path):
    source = write_directory(tmp_path / "source")
    texts = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": '{"a": 1}',
        "generation_config.json": '{"eos_token_id": [2, 9]}',
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    }
    (source / "additional_chat_templates").mkdir()
    for name, text in texts.items():
        (source / name).write_text(text)
    (source / "modeling_evil.py").write_text("boom")
    model = load_model(source)
    write_artefact(tmp_path / "out", model, model.weights, {})
    for name, text in texts.items():
        assert (tmp_path / "out" / name).read_text() == text
    assert not (tmp_path / "out" / "modeling_evil.py").exists()
    assert load_model(tmp_path / "out").config.eos_ids == (2, 9)


def change_config(artefact, change):
    path = artefact / "config.json"
    values = json.loads(path.read_text())
    change(values["quantization_config"])
    path.write_text(json.dumps(values))


CONFIG_LIES = {
    "no version": lambda q: q.pop("version"),
    "version a text": lambda q: q.update(version="1"),
    "no tensors": lambda q: q.pop("tensors"),
    "tensors a list": lambda q: q.update(tensors=[1]),
    "layout a number": lambda q: q["tensors"].update({QUERY: 4}),
    "no bits": lambda q: q["tensors"][QUERY].pop("bits"),
    "3 bits": lambda q: q["tensors"][QUERY].update(bits=3),
    "other bits": lambda q: q["tensors"][QUERY].update(bits=12 - q["tensors"][QUERY]["bits"]),
    "group of 0": lambda q: q["tensors"][QUERY].update(group=0),
    "group of -32": lambda q: q["tensors"][QUERY].update(group=-32),
    "group of 48": lambda q: q["tensors"][QUERY].update(group=48),
    "group of 2**70": lambda q: q["tensors"][QUERY].update(group=1 << 70),
    "a vector": lambda q: q["tensors"].update({NORM: {"bits": 8, "group": 64}}),
    "an unknown tensor": lambda q: q["tensors"].update({"x": {"bits": 8, "group": 64}}),
}


@pytest.mark.parametrize("change", CONFIG_LIES.values(), ids=CONFIG_LIES)
def test_refuses_a_config_that_lies(artefact, change):
    change_config(artefact, change)
    with pytest.raises(ModelFileError) as caught:
        load_model(artefact)
    assert "\n" not in str(caught.value)


def test_refuses_codes_that_the_config_does_not_list(artefact):
    change_config(artefact, lambda q: q["tensors"].pop(QUERY))
    with pytest.raises(UnsupportedModelError, match=r"q_proj.weight.[a-z]+' is stored as I"):
        load_model(artefact)


def test_names_a_version_that_is_not_read(artefact):
    change_config(artefact, lambda q: q.update(version=2))
    with pytest.raises(UnsupportedModelError, match=r"version 2; allowed: 1"):
        load_model(artefact)


@pytest.mark.parametrize("part", ["codes", "scales", "minimums"])
@pytest.mark.parametrize("lie", ["shape", "type", "absent"])
def test_refuses_tensors_that_lie(tmp_path, model, part, lie):
    matrix = quantize_rtn(model.weights[QUERY].to_float32(), 4, 32)
    write_artefact(tmp_path / "out", model, model.weights | {QUERY: matrix}, {})
    path = tmp_path / "out" / "model.safetensors"
    arrays = dict(load_file(path))
    name = f"{QUERY}.{part}"
    if lie == "shape":
        arrays[name] = np.ascontiguousarray(arrays[name][:-1])
    elif lie == "type":
        arrays[name] = arrays[name].astype(np.float64)
    else:
        del arrays[name]
    save_file(arrays, path)
    if (part, lie) == ("minimums", "absent"):  # int4 without minimums is a format of its own
        assert load_model(tmp_path / "out").weights[QUERY].quantized().minimums is None
        return
    with pytest.raises(ModelFileError, match=name if lie == "absent" else "allowed"):
        load_model(tmp_path / "out")


@pytest.mark.parametrize("order", [[0, 0], [64, 1], [-1, 1]])
def test_refuses_an_order_that_is_no_permutation(artefact, order):
    path = artefact / "model.safetensors"
    arrays = dict(load_file(path))
    changed = np.arange(64, dtype=np.int32)
    changed[:2] = order
    save_file(arrays | {QUERY + ".order": changed}, path)
    with pytest.raises(ModelFileError, match=r"q_proj.weight.order' is no permutation"):
        load_model(artefact)


@pytest.mark.parametrize("name", ["recipe.json", "model.safetensors"])
def test_names_a_missing_file(artefact, name):
    (artefact / name).unlink()
    with pytest.raises(ModelFileError, match=name):
        load_model(artefact)


@pytest.mark.model
def test_smollm2_keeps_tokenizer_and_template(tmp_path):
    model = load_model("smollm2")
    write_artefact(tmp_path / "out", model, model.weights, {})
    found = load_model(tmp_path / "out")
    text = "Hello, naïve 🙂 world!\n\n  def f(x): return x"
    assert found.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert found.tokenizer.eos_ids == model.tokenizer.eos_ids
    messages = [{"role": "user", "content": "Hi"}]
    assert found.chat_template.render(messages) == model.chat_template.render(messages)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        assert same(found.weights[name].quantized(), model.weights[name].quantized())
