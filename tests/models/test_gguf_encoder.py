"""Encoders from GGUF files, written as llama.cpp's converter does."""

import json
import re

import gguf
import numpy as np
import pytest
from tiny_tokenizers import HARD_TEXTS

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.generation.embedding import Embedder
from hasten.models import load_model
from hasten.models.gguf_encoder import _LAYER_NAMES, _WHOLE_MODEL_NAMES
from hasten.models.gguf_tokenizer import build
from hasten.models.tokenizer import Tokenizer

CONTROL, NORMAL = 3, 1
HIDDEN, INNER, LAYERS, POSITIONS = 64, 96, 2, 32
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "##b", "##c", ".", "[", "é", "the", "##m"]


def vocabulary_fields(tokens, *, old=False):
    """Metadata of a WordPiece vocabulary whose first five or four tokens are special."""
    control = {i for i, token in enumerate(tokens) if re.fullmatch(r"\[[A-Z]+\]", token)}

    def spelled(i, token):
        if (old and re.fullmatch(r"\[.*\]", token)) or (not old and i in control):
            return token
        return token[2:] if token.startswith("##") else "▁" + token

    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [spelled(i, token) for i, token in enumerate(tokens)],
        "tokenizer.ggml.token_type": [
            CONTROL if i in control else NORMAL for i in range(len(tokens))
        ],
        "tokenizer.ggml.unknown_token_id": tokens.index("[UNK]"),
        "tokenizer.ggml.seperator_token_id": tokens.index("[SEP]"),
        "tokenizer.ggml.cls_token_id": tokens.index("[CLS]"),
    }


def tensors(token_types=2):
    """Float32 tensors by their names in the file."""
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(WORDS), HIDDEN),
        "position_embd.weight": (POSITIONS, HIDDEN),
        "token_embd_norm.weight": (HIDDEN,),
        "token_embd_norm.bias": (HIDDEN,),
    }
    if token_types:
        shapes["token_types.weight"] = (token_types, HIDDEN)
    widths = {"ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
    for layer in range(LAYERS):
        for part in _LAYER_NAMES:
            rows, columns = widths.get(part, (HIDDEN, HIDDEN))
            name = f"blk.{layer}.{part}"
            shapes[f"{name}.bias"] = (rows,)
            shapes[f"{name}.weight"] = (rows,) if "norm" in part else (rows, columns)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


FIELDS = {
    "bert.context_length": POSITIONS,
    "bert.embedding_length": HIDDEN,
    "bert.feed_forward_length": INNER,
    "bert.block_count": LAYERS,
    "bert.attention.head_count": 4,
    "bert.attention.layer_norm_epsilon": 1e-12,
    "bert.attention.causal": False,
    "bert.pooling_type": 2,
}


def write(path, arrays, fields, kind=None):
    """A file by the gguf package; matrices of the layers in a block encoding if `kind` is given."""
    writer = gguf.GGUFWriter(path, "bert")
    for key, value in fields.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, values in arrays.items():
        if kind is not None and values.ndim == 2 and name.startswith("blk."):
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_directory(path, arrays, token_types):
    """The same model as a Hugging Face directory."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, processors

    def theirs(name):
        stem, _, suffix = name.rpartition(".")
        if stem in _WHOLE_MODEL_NAMES:
            return f"{_WHOLE_MODEL_NAMES[stem]}.{suffix}"
        _, layer, part = stem.split(".")
        return f"encoder.layer.{layer}.{_LAYER_NAMES[part]}.{suffix}"

    path.mkdir()
    save_file({theirs(name): values for name, values in arrays.items()}, path / "model.safetensors")
    config = {
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "vocab_size": len(WORDS),
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": token_types,
    }
    (path / "config.json").write_text(json.dumps(config))
    ids = {word: i for i, word in enumerate(WORDS)}
    backend = Backend(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.add_special_tokens(WORDS[:4])
    backend.save(str(path / "tokenizer.json"))
    return path


TEXTS = ["abc the b.", "É them [a] [SEP]", "nothing known", ""]


@pytest.mark.parametrize("token_types", [2, 0])
@pytest.mark.parametrize("old", [False, True])
def test_a_file_gives_what_the_directory_gives(tmp_path, token_types, old):
    arrays = tensors(token_types)
    fields = FIELDS | vocabulary_fields(WORDS, old=old)
    file = load_model(write(tmp_path / "tiny.gguf", arrays, fields))
    directory = load_model(write_directory(tmp_path / "tiny", arrays, token_types))
    assert file.config.max_position == POSITIONS
    with Embedder(file) as one, Embedder(directory, pooling="cls") as other:
        assert one.pooling == "cls"
        for got, want in zip(one.tokenize(TEXTS), other.tokenize(TEXTS), strict=True):
            np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(one.embed(TEXTS), other.embed(TEXTS))


@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_encodings(tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    arrays, fields = tensors(), FIELDS | vocabulary_fields(WORDS)
    exact = load_model(write(tmp_path / "exact.gguf", arrays, fields))
    small = load_model(write(tmp_path / "small.gguf", arrays, fields, kind))
    with Embedder(exact) as one, Embedder(small) as other:
        assert set(one.formats.values()) == {"f32"}
        assert set(other.formats.values()) == {"f32", "int8:32" if kind.name == "Q8_0" else "bf16"}
        cosines = (one.embed(TEXTS) * other.embed(TEXTS)).sum(axis=1)
    assert 0.99 < cosines.min() < cosines.max() < 1 - 1e-9


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"bert.attention.causal": True}, UnsupportedModelError, "attention.causal is true"),
        ({"bert.pooling_type": 4}, UnsupportedModelError, "pooling_type is 4"),
        ({"bert.attention.head_count": 0}, ModelFileError, "0 attention heads"),
        ({"bert.attention.head_count": 3}, ModelFileError, "3 attention heads in a width of 64"),
        ({"bert.block_count": 3}, ModelFileError, "encoder.layer.2"),
    ],
)
def test_files_that_do_not_fit(tmp_path, changes, error, words):
    fields = FIELDS | vocabulary_fields(WORDS) | changes
    with pytest.raises(error, match=words):
        Embedder(load_model(write(tmp_path / "tiny.gguf", tensors(), fields)))


@pytest.mark.parametrize(
    ("drop", "add", "words"),
    [
        ("position_embd.weight", None, "'position_embd.weight' is missing"),
        (None, "blk.0.attn_qkv.weight", "no place in a BERT encoder"),
        (None, "output_norm.weight", "no place in a BERT encoder"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, drop, add, words):
    arrays = tensors()
    arrays.pop(drop, None)
    if add is not None:
        arrays[add] = np.ones(HIDDEN, np.float32)
    with pytest.raises(ModelFileError, match=words):
        load_model(write(tmp_path / "tiny.gguf", arrays, FIELDS | vocabulary_fields(WORDS)))


def test_a_head_for_ranking_is_left_out(tmp_path):
    arrays = tensors() | {"cls.weight": np.ones((HIDDEN, HIDDEN), np.float32)}
    model = load_model(write(tmp_path / "tiny.gguf", arrays, FIELDS | vocabulary_fields(WORDS)))
    assert len(model.weights) == len(arrays) - 1


def test_case_and_accents_as_the_file_says():
    fields = vocabulary_fields([*WORDS, "A", "É"])
    plain = Tokenizer(build(fields))
    assert plain.encode("A É") == [2, 4, 1, 3]  # "a", and an "e" that the vocabulary lacks
    flags = {"normalizer.lowercase": False, "normalizer.strip_accents": False}
    fields |= {f"tokenizer.ggml.{name}": value for name, value in flags.items()}
    assert Tokenizer(build(fields)).encode("A É é") == [2, 13, 14, 10, 3]


def test_without_an_unknown_token_there_is_no_wordpiece():
    fields = vocabulary_fields(WORDS)
    del fields["tokenizer.ggml.unknown_token_id"]
    assert Tokenizer(build(fields)).encode("zzz") == [2, 1, 3]
    fields["tokenizer.ggml.tokens"][1] = "▁nothing"
    fields["tokenizer.ggml.token_type"][1] = NORMAL
    with pytest.raises(ModelFileError, match=r"there is no '\[UNK\]'"):
        build(fields)


@pytest.mark.model
def test_minilm_reads_text_alike_from_either_kind_of_file():
    directory = load_model("minilm")
    vocabulary = json.loads((directory.path / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    ours = Tokenizer(build(vocabulary_fields(tokens)))
    for text in [*HARD_TEXTS, "Ünïcödé naïve CAFÉ", "x" * 120, "日本語 text", "[unused3] ##s"]:
        for special in (False, True):
            got = ours.encode(text, parse_special=special)
            assert got == directory.tokenizer.encode(text, parse_special=special), text
