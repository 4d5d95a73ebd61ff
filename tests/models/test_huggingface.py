"""Hugging Face directories: single and sharded, as transformers writes them, and hostile ones."""

import json
import os
import pickle
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_models import CONFIG, HIDDEN, tiny_tensors, write_directory

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models import load_model


def write_shards(directory, tensors, parts=2, **index):
    """Two safetensors files and their index; `index` changes entries of the weight map."""
    write_directory(directory, tensors)
    (directory / "model.safetensors").unlink()
    places = {}
    for part in range(parts):
        name = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        names = sorted(tensors)[part::parts]
        save_file({one: tensors[one] for one in names}, directory / name)
        places |= dict.fromkeys(names, name)
    content = {"metadata": {"total_size": 1}, "weight_map": places | index}
    (directory / "model.safetensors.index.json").write_text(json.dumps(content))
    return directory


def check_weights(model, tensors):
    assert model.weights.keys() == tensors.keys()
    for name, values in tensors.items():
        assert np.array_equal(model.weights[name].to_float32(), values)


def test_reads_one_file_and_shards(tmp_path):
    tensors = tiny_tensors()
    model = load_model(write_directory(tmp_path / "one", tensors))
    check_weights(model, tensors)
    assert (model.name, model.path, model.recipe) == ("one", tmp_path / "one", None)
    check_weights(load_model(str(write_shards(tmp_path / "two", tensors))), tensors)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["Llama", "Mistral"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_reads_what_transformers_writes(tmp_path, family, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        import transformers

        sizes = {key: value for key, value in CONFIG.items() if key != "model_type"}
        config = getattr(transformers, f"{family}Config")(**sizes, tie_word_embeddings=True)
        theirs = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
        theirs.save_pretrained(tmp_path / "one")
        theirs.save_pretrained(tmp_path / "many", max_shard_size="30KB")
        state = {name: values.float().numpy() for name, values in theirs.state_dict().items()}
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    encoding = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    del state["lm_head.weight"]
    for directory in ("one", "many"):
        model = load_model(tmp_path / directory)
        assert {tensor.encoding for tensor in model.weights.values()} == {encoding}
        check_weights(model, state)


def test_a_tied_output_and_old_buffers_are_left_out(tmp_path):
    tensors = tiny_tensors()
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32)}
    model = load_model(write_directory(tmp_path, tensors | buffer, tie_word_embeddings=True))
    assert model.weights.keys() == tensors.keys() - {"lm_head.weight"}


def test_end_tokens_of_the_generation_config_count(tmp_path):
    write_directory(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert load_model(tmp_path).config.eos_ids == (2, 5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "two"}')
    with pytest.raises(ModelFileError, match=r"generation_config.json: eos_token_id is 'two'"):
        load_model(tmp_path)


def test_reads_the_links_of_the_hubs_cache(tmp_path):
    """A snapshot holds links to ../../blobs; the entries themselves are plain names."""
    tensors = tiny_tensors()
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc"
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir(parents=True)
    write_shards(snapshot, tensors)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / f"blob{number}")
        path.symlink_to(f"../../blobs/blob{number}")
    check_weights(load_model(snapshot), tensors)


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "sub/inside.safetensors",
        "/etc/passwd.safetensors",
        "..",
        "",
        ".safetensors",
        "a\0.safetensors",
        "..\\outside.safetensors",
        "weights.bin",
        7,
        None,
        ["a.safetensors"],
    ],
)
def test_shards_cannot_leave_the_directory(tmp_path, shard):
    tensors = tiny_tensors()
    save_file(tensors, tmp_path / "outside.safetensors")
    directory = write_shards(tmp_path / "model", tensors, **{"model.norm.weight": shard})
    (directory / "sub").mkdir()
    save_file(tensors, directory / "sub" / "inside.safetensors")
    with pytest.raises(ModelFileError, match=r"names the file|missing"):
        load_model(directory)


def test_refuses_an_index_that_lies(tmp_path):
    tensors = tiny_tensors()
    more = write_shards(tmp_path / "more", tensors, extra="model-00001-of-00002.safetensors")
    with pytest.raises(ModelFileError, match="'extra' is missing, though indexed"):
        load_model(more)
    gone = write_shards(tmp_path / "gone", tensors)
    (gone / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"00002.safetensors: missing"):
        load_model(gone)
    for content in ("{}", '{"weight_map": [1]}', "[]", "nonsense", ""):
        (more / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ModelFileError, match=r"index.json"):
            load_model(more)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused_unread(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    write_directory(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsupportedModelError, match="can run code"):
        load_model(tmp_path)
    with pytest.raises(UnsupportedModelError, match="can run code"):
        load_model(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_code_of_a_directory_is_never_run(tmp_path):
    marker = tmp_path / "ran"
    write_directory(tmp_path / "model", auto_map={"AutoConfig": "evil.Config"})
    (tmp_path / "model" / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    load_model(tmp_path / "model")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": None}, "'model.norm.weight' is missing"),
        (
            {"model.norm.weight": np.zeros(63, np.float32)},
            r"'model.norm.weight' has shape \[63\], but the configuration implies \[64\]",
        ),
        ({"model.norm.weight": np.zeros((64, 1), np.float32)}, r"\[64, 1\]"),
        ({"model.embed_tokens.weight": np.zeros((HIDDEN, 48), np.float32)}, r"\[64, 48\]"),
        ({"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}, "no place"),
        ({"model.layers.2.mlp.up_proj.weight": np.zeros((96, 64), np.float32)}, "no place"),
    ],
)
def test_refuses_tensors_that_the_config_contradicts(tmp_path, change, words):
    tensors = {name: one for name, one in (tiny_tensors() | change).items() if one is not None}
    with pytest.raises(ModelFileError, match=words) as caught:
        load_model(write_directory(tmp_path, tensors))
    assert str(caught.value).startswith(str(tmp_path))


def test_names_the_type_that_is_not_read(tmp_path):
    tensors = tiny_tensors() | {"model.norm.weight": np.zeros(HIDDEN, np.float64)}
    with pytest.raises(UnsupportedModelError, match=r"'model.norm.weight' is stored as F64"):
        load_model(write_directory(tmp_path, tensors))


def test_names_what_is_missing_from_the_directory(tmp_path):
    write_directory(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"no weights.*allowed: model.safetensors"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"config.json: not valid JSON"):
        load_model(tmp_path)


def test_the_digest_covers_every_file(tmp_path):
    first = load_model(write_directory(tmp_path / "a")).digest()
    assert len(first) == 64
    assert load_model(write_directory(tmp_path / "b")).digest() == first
    digests = {first}
    digests.add(load_model(write_directory(tmp_path / "b", rms_norm_eps=2e-5)).digest())
    (tmp_path / "a" / "tokenizer_config.json").write_text("{}")
    digests.add(load_model(tmp_path / "a").digest())
    digests.add(load_model(write_directory(tmp_path / "c", tiny_tensors(seed=1))).digest())
    assert len(digests) == 4
