"""What a model's files say about embeddings."""

import json

import pytest

from hasten.errors import ModelFileError, UnsupportedModelError
from hasten.models import load_model
from hasten.models.embedding_settings import EmbeddingSettings, embedding_settings, gguf_settings

TRANSFORMER = {
    "idx": 0,
    "name": "0",
    "path": "",
    "type": "sentence_transformers.models.Transformer",
}
POOLING = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


@pytest.fixture
def write(tmp_path):
    """Writes JSON files into a directory, and reads them as settings."""

    def written(files):
        for name, value in files.items():
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(value))
        return embedding_settings(tmp_path)

    return written


def test_an_empty_directory_says_nothing(write):
    assert write({}) == EmbeddingSettings()


@pytest.mark.parametrize(
    ("values", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 8}, "last"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({}, "mean"),
    ],
)
def test_pooling(write, values, pooling):
    files = {"modules.json": [TRANSFORMER, POOLING], "1_Pooling/config.json": values}
    assert write(files) == EmbeddingSettings(pooling=pooling, normalize=False)


def test_everything(write):
    prompts = {"query": "query: ", "document": "passage: "}
    moved = POOLING | {"type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"}
    files = {
        "modules.json": [TRANSFORMER, moved, NORMALIZE],
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "include_prompt": False},
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": prompts, "default_prompt_name": "query"},
    }
    assert write(files) == EmbeddingSettings("cls", True, 512, prompts, "query", False, True)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"modules.json": {}}, ModelFileError, "not a JSON list"),
        ({"modules.json": ["Pooling"]}, ModelFileError, "no module"),
        ({"modules.json": [POOLING | {"path": "../1_Pooling"}]}, ModelFileError, "plain name"),
        ({"modules.json": [POOLING | {"path": ".."}]}, ModelFileError, "plain name"),
        ({"modules.json": [POOLING | {"path": "/etc"}]}, ModelFileError, "plain name"),
        ({"modules.json": [POOLING | {"type": None}]}, ModelFileError, "of type None"),
        ({"modules.json": [POOLING]}, ModelFileError, "cannot be read"),
        (
            {"modules.json": [{"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]},
            UnsupportedModelError,
            "a step 'Dense'",
        ),
        (
            {
                "modules.json": [POOLING],
                "1_Pooling/config.json": {
                    "pooling_mode_cls_token": True,
                    "pooling_mode_max_tokens": True,
                },
            },
            UnsupportedModelError,
            r"pooling \['cls', 'max'\]; allowed: mean, cls, lasttoken",
        ),
        (
            {"modules.json": [POOLING], "1_Pooling/config.json": {"pooling_mode": "max"}},
            UnsupportedModelError,
            "'max'",
        ),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, ModelFileError, "length is 0"),
        ({"sentence_bert_config.json": {"max_seq_length": "8"}}, ModelFileError, "'8'"),
        ({"config_sentence_transformers.json": {"prompts": {"a": 1}}}, ModelFileError, "prompts"),
        (
            {"config_sentence_transformers.json": {"default_prompt_name": "a"}},
            ModelFileError,
            "default 'a'",
        ),
    ],
)
def test_files_that_cannot_be_followed(write, files, error, words):
    with pytest.raises(error, match=words):
        write(files)


@pytest.mark.parametrize(("number", "pooling"), [(0, None), (1, "mean"), (2, "cls"), (3, "last")])
def test_gguf(number, pooling):
    metadata = {"general.architecture": "qwen3", "qwen3.pooling_type": number}
    assert gguf_settings(metadata) == EmbeddingSettings(pooling)
    assert gguf_settings({"general.architecture": "qwen3"}) == EmbeddingSettings()
    with pytest.raises(UnsupportedModelError, match="pooling_type is 4"):
        gguf_settings(metadata | {"qwen3.pooling_type": 4})


@pytest.mark.model
def test_minilm():
    assert load_model("minilm").embedding == EmbeddingSettings("mean", True, 256)
