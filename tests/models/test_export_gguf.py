"""What is exported as GGUF is read back as the same model, by us and by the gguf package."""

import errno
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from exported import FAMILIES, make_model, quantised, tiny_backend
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import write_gguf
from tiny_tokenizers import (
    HARD_TEXTS,
    byte_level_metadata,
    sentencepiece_metadata,
    tiny_byte_level,
    tiny_sentencepiece,
)
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from hasten.errors import ModelFileError, UnsupportedModelError, UsageError
from hasten.kernels.quantization import QuantizedMatrix, dequantize, quantize_rtn
from hasten.models import architectures, load_model, pretokenizers
from hasten.models.export import gguf as export_module
from hasten.models.export.checkpoint import dense_values, require_decoder
from hasten.models.export.ggml_rows import encode_rows
from hasten.models.export.gguf import export_gguf
from hasten.models.export.gguf_file import PlannedTensor
from hasten.models.export.gguf_file import write_gguf as write_container
from hasten.models.export.gguf_vocabulary import vocabulary_keys
from hasten.models.ggml_blocks import dequantize_rows
from hasten.models.gguf import read_gguf
from hasten.models.tokenizer import Tokenizer
from hasten.models.weights import DenseTensor, GgmlTensor, QuantizedTensor


def same_ops(one, two):
    """Whether two graphs compute the same, floats in single precision."""
    ours, theirs = (architectures.build(config).ops for config in (one, two))
    return len(ours) == len(theirs) and all(
        type(a) is type(b) and repr(rounded(a)) == repr(rounded(b))
        for a, b in zip(ours, theirs, strict=True)
    )


def rounded(op):
    fields = {name: getattr(op, name) for name in op.__dataclass_fields__}
    return {
        name: f"{value:.5g}" if isinstance(value, float) else str(value)[:30]
        for name, value in fields.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back(tmp_path, family):
    model = make_model(tmp_path / "source", family)
    report = export_gguf(model, tmp_path / "out.gguf")
    assert (set(report.kept), report.changed) == ({"F32"}, {})
    unwindowed = family in ("mistral", "phi3")
    assert [line[:9] for line in report.remarks] == ["llama.cpp"] * unwindowed
    found = load_model(tmp_path / "out.gguf")
    assert same_ops(model.config, found.config)
    assert found.config.max_position == model.config.max_position
    assert (found.config.bos_id, found.config.eos_ids) == (1, (0, 2))
    assert found.weights.keys() == model.weights.keys()
    for name, tensor in model.weights.items():
        # Gemma's norms are stored plus one, which rounds.
        bound = 2e-7 if name.endswith("norm.weight") and family.startswith("gemma") else 0
        assert np.abs(found.weights[name].to_float32() - tensor.to_float32()).max() <= bound, name
    assert found.chat_template.source == "{{ messages[0].content }}"
    for text in HARD_TEXTS:
        assert found.tokenizer.encode(text) == model.tokenizer.encode(text)


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3"])
def test_codes_go_over_as_they_are(tmp_path, family):
    whole = make_model(tmp_path / "source", family)
    # All projections that may be joined have one format: the other matrices differ.
    model = quantised(whole, (4, 64)) if family == "phi3" else quantised(whole, (4, 64), (8, None))
    report = export_gguf(model, tmp_path / "out.gguf")
    assert report.changed == {}
    found = load_model(tmp_path / "out.gguf")
    for name, tensor in model.weights.items():
        assert np.array_equal(found.weights[name].to_float32(), tensor.to_float32()), name
        if tensor.quantized() is not None:
            ours, theirs = tensor.quantized(), found.weights[name].quantized()
            assert theirs.group == 32
            assert np.array_equal(theirs.codes, ours.codes)
            repeats = ours.group // 32
            assert np.array_equal(theirs.scales, np.repeat(ours.scales, repeats, axis=1))


def test_parts_of_a_joint_projection_with_unlike_codes_become_dense(tmp_path):
    model = quantised(make_model(tmp_path / "source", "phi3"), (4, 32), (8, 32))
    report = export_gguf(model, tmp_path / "out.gguf")
    joint = "model.layers.0.self_attn.qkv_proj.weight"
    assert report.changed[joint] == "F16: its parts have different encodings"
    found = load_model(tmp_path / "out.gguf").weights
    for name, tensor in model.weights.items():
        np.testing.assert_allclose(found[name].to_float32(), tensor.to_float32(), atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi4"])
def test_the_gguf_package_reads_the_file(tmp_path, family):
    import gguf

    model = quantised(make_model(tmp_path / "source", family), (4, 32))
    export_gguf(model, tmp_path / "out.gguf")
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    ours = read_gguf(tmp_path / "out.gguf")
    assert reader.get_field("tokenizer.ggml.pre").contents() == "smollm"
    assert reader.get_field("general.file_type").contents() == 3
    assert [tensor.name for tensor in reader.tensors] == list(ours.tensors)
    for tensor in reader.tensors:
        assert tuple(tensor.shape.tolist()[::-1]) == ours.tensors[tensor.name].shape
        assert tensor.data_offset == ours.tensors[tensor.name].offset
        assert tensor.tensor_type.name == ours.tensors[tensor.name].kind.name


ODD = {
    "an.int8": struct.pack("<Ib", 1, -3),
    "a.uint64": struct.pack("<IQ", 10, 1 << 63),
    "a.float64": struct.pack("<Id", 12, 0.1),
    "some.bools": struct.pack("<IIQ3B", 9, 7, 3, 1, 0, 1),
    "some.int16": struct.pack("<IIQ2h", 9, 3, 2, -1, 7),
    "no.strings": struct.pack("<IIQ", 9, 8, 0),
    "general.alignment": struct.pack("<II", 4, 64),
}


@pytest.fixture(params=["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def source(request, tmp_path):
    """A GGUF file with metadata of every type."""
    texts = [("general.name", "Ä name"), ("tokenizer.ggml.eos_token_id", 2)]
    plain = write_gguf(tmp_path / "plain.gguf", encoding=request.param, metadata=texts)
    file = read_gguf(plain)
    tensors = [
        PlannedTensor(name, one.shape, one.kind, lambda name=name: file.rows(name))
        for name, one in file.tensors.items()
    ]
    metadata = {key: file.encoded(key) for key in file.metadata} | ODD
    write_container(tmp_path / "source.gguf", metadata, tensors, 64)
    return tmp_path / "source.gguf"


def test_a_gguf_file_is_written_again_as_it_was(tmp_path, source):
    report = export_gguf(load_model(source), tmp_path / "again.gguf")
    assert report.changed == {}
    one, two = read_gguf(source), read_gguf(tmp_path / "again.gguf")
    assert list(one.metadata) == list(two.metadata)
    assert all(one.encoded(key) == two.encoded(key) for key in one.metadata)
    assert two.metadata["a.uint64"] == 1 << 63
    assert one.tensors.keys() == two.tensors.keys()
    for name in one.tensors:
        assert one.tensors[name].kind == two.tensors[name].kind
        assert np.array_equal(one.rows(name), two.rows(name)), name
        assert two.tensors[name].offset % 64 == 0


def test_a_changed_model_keeps_what_its_file_says_else(tmp_path):
    source = write_gguf(tmp_path / "source.gguf", encoding="Q8_0", metadata=[("a.b", "c")])
    model = load_model(source)
    fewer = {name: one for name, one in model.weights.items() if ".layers.1." not in name}
    half = model.derive(fewer, replace(model.config, num_layers=1))
    export_gguf(half, tmp_path / "half.gguf")
    found = read_gguf(tmp_path / "half.gguf").metadata
    assert (found["llama.block_count"], found["a.b"]) == (1, "c")
    assert found["general.file_type"] == 7
    assert load_model(tmp_path / "half.gguf").config.num_layers == 1


def test_an_artefact_of_a_gguf_file_becomes_one_again(tmp_path):
    from hasten.models.artefact import write_artefact

    model = quantised(make_model(tmp_path / "source"), (4, 32), (8, 32))
    export_gguf(model, tmp_path / "one.gguf")
    one = load_model(tmp_path / "one.gguf")
    write_artefact(tmp_path / "artefact", one, one.weights, {})
    export_gguf(load_model(tmp_path / "artefact"), tmp_path / "two.gguf")
    a, b = read_gguf(tmp_path / "one.gguf"), read_gguf(tmp_path / "two.gguf")
    names = {"general.name"}
    assert {k: v for k, v in a.metadata.items() if k not in names} == {
        k: v for k, v in b.metadata.items() if k not in names
    }
    assert all(np.array_equal(a.rows(name), b.rows(name)) for name in a.tensors)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 200),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 96, None]),
    minimum=st.sampled_from(["none", "kept", "small codes"]),
    seed=st.integers(0, 99),
)
def test_rows_of_any_shape_keep_their_values_or_say_why_not(
    rows, columns, bits, group, minimum, seed
):
    rng = np.random.default_rng(seed)
    padded = -(-columns // 32) * 32
    group = group if group is not None and padded % group == 0 else padded
    codes = rng.integers(0, 256, (rows, padded if bits == 8 else padded // 2)).astype(np.uint8)
    if minimum == "small codes":
        codes &= np.uint8(31)
    shape = (rows, padded // group)
    scales = rng.standard_normal(shape).astype(np.float16)
    lows = None if minimum == "none" else rng.standard_normal(shape).astype(np.float16)
    codes = codes.view(np.int8) if bits == 8 else codes
    matrix = QuantizedMatrix(bits, (rows, columns), group, codes, scales, lows)
    encoded = encode_rows("w", [QuantizedTensor("w", matrix)], "F16")
    made = encoded.make().reshape(rows, -1)
    found = dequantize_rows(encoded.kind, made)
    if encoded.same:
        assert np.array_equal(found, dequantize(matrix))
    else:
        unfit = padded != columns or (bits == 8 and minimum == "kept")
        assert unfit
        assert encoded.kind.name == "F16"
        np.testing.assert_allclose(found, dequantize(matrix), rtol=1e-3, atol=1e-4)


def test_an_order_of_columns_becomes_dense():
    values = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    order = np.arange(64, dtype=np.int32)[::-1].copy()
    matrix = replace(quantize_rtn(values, 4, 32), order=order)
    encoded = encode_rows("w", [QuantizedTensor("w", matrix)], "BF16")
    assert (encoded.kind.name, encoded.same) == ("BF16", False)
    assert "order of columns" in encoded.reason
    np.testing.assert_allclose(
        dequantize_rows(encoded.kind, encoded.make()), dequantize(matrix), rtol=0.01
    )


def test_values_that_no_half_holds_are_named():
    from hasten.models.ggml_blocks import GGML_TYPES

    blocks = np.zeros((1, 210), np.uint8)
    blocks[:, :192], blocks[:, 192:208], blocks[:, 208:] = 255, 127, [0, 0x7B]
    sixth = GgmlTensor("w", (1, 256), GGML_TYPES[14], blocks)
    with pytest.raises(UnsupportedModelError, match=r"up to 65504 in float16.*--dtype bfloat16"):
        dense_values("w", [sixth], "F16")
    dense, same = dense_values("w", [sixth], "BF16")
    assert (dense.encoding, same) == ("BF16", False)
    half = DenseTensor("w", "F16", np.ones((1, 4), np.float16))
    assert dense_values("w", [half], "BF16") == (half, True)


REFUSED = {
    "window of qwen2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0},
        "cannot hold this model of type 'qwen2': instead of Attention",
    ),
    "dynamic scaling": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "Rope"),
    "another pattern": ("gemma3", {"sliding_window_pattern": 3}, "Rope"),
    "gemma2 without caps": (
        "gemma2",
        {"final_logit_softcapping": None},
        "instead of nothing its readers would compute Softcap",
    ),
    "other factors": (
        "llama",
        {"rope_scaling": FAMILIES["llama 3"][1]["rope_scaling"] | {"high_freq_factor": 5.0}},
        "RoPE factors other than those of Llama 3.1",
    ),
}


@pytest.mark.parametrize(("family", "changes", "words"), REFUSED.values(), ids=REFUSED)
def test_refuses_what_readers_would_compute_otherwise(tmp_path, family, changes, words):
    model = make_model(tmp_path / "source", family, **changes)
    with pytest.raises(UnsupportedModelError, match=words):
        export_gguf(model, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_refuses_encoders_and_files_that_are_there(tmp_path):
    model = make_model(tmp_path / "source")
    (tmp_path / "mine.gguf").write_text("mine")
    with pytest.raises(UsageError, match=r"mine.gguf exists"):
        export_gguf(model, tmp_path / "mine.gguf")
    assert (tmp_path / "mine.gguf").read_text() == "mine"
    headless = {k: v for k, v in model.weights.items() if k != "lm_head.weight"}
    hidden = model.derive(headless, replace(model.config, output="hidden"))
    with pytest.raises(UnsupportedModelError, match="gives hidden states"):
        export_gguf(hidden, tmp_path / "out.gguf")
    factored = (("model.layers.0.mlp.down_proj", 8),)
    with pytest.raises(UnsupportedModelError, match="two products of low rank"):
        require_decoder(SimpleNamespace(config=replace(model.config, factored=factored)))
    (tmp_path / "source" / "tokenizer.json").unlink()
    with pytest.raises(ModelFileError, match="holds no tokenizer"):
        export_gguf(model, tmp_path / "out.gguf")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def fill(path, *_):
        path.write_bytes(b"GGUF")
        raise OSError(errno.ENOSPC, "No space left on device")

    model = make_model(tmp_path / "source")
    monkeypatch.setattr(export_module, "write_gguf", fill)
    with pytest.raises(UsageError, match=r"out.gguf: cannot be written \(No space left on device"):
        export_gguf(model, tmp_path / "out.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        export_gguf(model, tmp_path / "file" / "out.gguf")


def from_files(directory, backend):
    return make_model(directory, backend=backend).tokenizer


@pytest.mark.parametrize("pre", pretokenizers.BY_NAME)
def test_the_cut_is_found_by_its_content(tmp_path, pre):
    metadata = byte_level_metadata(tiny_byte_level(), pre)
    Tokenizer.from_gguf(metadata).save(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    keys = vocabulary_keys(tokenizer, 1500, [2])
    found = pretokenizers.BY_NAME[keys["tokenizer.ggml.pre"]]
    assert replace(found, add_bos=True) == replace(pretokenizers.BY_NAME[pre], add_bos=True)
    assert keys["tokenizer.ggml.add_bos_token"] == bool(tokenizer.prefix)
    for key in ("tokens", "merges", "token_type"):
        assert keys[f"tokenizer.ggml.{key}"] == metadata[f"tokenizer.ggml.{key}"]


def test_digits_and_tokens_beyond_the_vocabulary(tmp_path):
    backend = tiny_backend()
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.add_tokens(["whole words"])
    keys = vocabulary_keys(from_files(tmp_path, backend), 303, [2, 0])
    assert keys["tokenizer.ggml.pre"] == "smollm"
    assert keys["tokenizer.ggml.tokens"][300:] == ["whole words", "[PAD301]", "[PAD302]"]
    assert keys["tokenizer.ggml.token_type"][300:] == [4, 5, 5]
    assert keys["tokenizer.ggml.eot_token_id"] == 0
    again = Tokenizer.from_gguf(keys)
    assert (
        again.encode("some whole words 12")[-4:]
        == from_files(tmp_path, backend).encode("some whole words 12")[-4:]
    )


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_comes_back(tmp_path, prefix):
    metadata = sentencepiece_metadata(tiny_sentencepiece("bpe"), "llama")
    metadata["tokenizer.ggml.add_space_prefix"] = prefix
    Tokenizer.from_gguf(metadata).save(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    keys = vocabulary_keys(tokenizer, 800, [2])
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.token_type"] == metadata["tokenizer.ggml.token_type"].tolist()
    again = Tokenizer.from_gguf(keys)
    for text in HARD_TEXTS:
        assert again.encode(text) == tokenizer.encode(text)


def unheard_of(backend):
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def lowercase(backend):
    backend.normalizer = normalizers.Lowercase()


def prefixed(backend):
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def too_many(backend):
    backend.add_tokens([f"extra {i}" for i in range(30)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unheard_of, "pre-tokenizer has the step .*Whitespace"),
        (lowercase, "its normalizer is Lowercase"),
        (prefixed, "ByteLevel"),
        (too_many, r"'extra 20' has the id 320, and the embedding has 320 rows"),
    ],
)
def test_refuses_tokenizers_that_the_file_cannot_describe(tmp_path, change, words):
    backend = tiny_backend()
    change(backend)
    model = make_model(tmp_path / "source", backend=backend)
    with pytest.raises(UnsupportedModelError, match=words):
        export_gguf(model, tmp_path / "out.gguf")


def test_refuses_a_tokenizer_of_words(tmp_path):
    backend = Backend(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    with pytest.raises(UnsupportedModelError, match="hold no 'WordLevel' tokenizer"):
        export_gguf(make_model(tmp_path / "source", backend=backend), tmp_path / "out.gguf")
