"""What is installed: its files, its requirements, its size, its public names."""

import importlib
import importlib.metadata
import re
from pathlib import Path

import pytest

import hasten

PACKAGE = Path(hasten.__file__).parent
LIMIT = 250 << 20  # bytes of an installation without the model

PUBLIC = {
    "hasten": {"__version__"},
    "hasten.models": {"Model", "load_model"},
    "hasten.generation": {"Engine", "engine_options"},
    "hasten.optimize": {"Budget", "optimize", "prepare_material", "prepare_plan", "prepare_tasks"},
    "hasten.types": {
        "Batch",
        "EngineOptions",
        "EngineStatistics",
        "FinishReason",
        "KvFormat",
        "Output",
        "Request",
        "SamplingParams",
        "Structure",
        "TokenLogprobs",
    },
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_these(module):
    imported = importlib.import_module(module)
    assert set(imported.__all__) == PUBLIC[module]
    assert all(hasattr(imported, name) for name in imported.__all__)


def modules():
    paths = [path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("[a-z]*.py")]
    return sorted(".".join(path.with_suffix("").parts) for path in paths)


@pytest.mark.parametrize("name", modules())
def test_each_module_says_what_it_offers(name):
    module = importlib.import_module(name)
    assert isinstance(module.__all__, list)
    assert [one for one in module.__all__ if not hasattr(module, one)] == []


def test_typed_with_stubs_for_the_extension():
    assert (PACKAGE / "py.typed").exists()
    assert "class Program" in (PACKAGE / "_native.pyi").read_text(encoding="utf-8")
    assert len(list(PACKAGE.glob("_native*.so"))) == 1


def test_version_is_that_of_the_metadata():
    try:
        installed = importlib.metadata.version("hasten")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from the sources")
    assert hasten.__version__ == installed


def requirements(name, seen):
    """The distributions that installing one brings, extras left out."""
    for line in importlib.metadata.requires(name) or ():
        requirement, _, marker = line.partition(";")
        needed = re.match(r"[\w.-]+", requirement).group()
        if needed in seen or "extra" in marker:
            continue
        try:
            importlib.metadata.distribution(needed)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or an older Python
        seen.add(needed)
        requirements(needed, seen)
    return seen


def test_requirements_are_small_and_without_torch():
    try:
        found = requirements("hasten", {"hasten"})
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("runs from the sources")
    assert "tokenizers" in found
    assert not {"torch", "transformers", "matplotlib", "scipy"} & found
    sizes = {name: size(name) for name in found}
    assert sum(sizes.values()) < LIMIT, sizes


def size(name):
    """Bytes of the files of a distribution."""
    files = importlib.metadata.distribution(name).files or ()
    paths = [Path(file.locate()) for file in files]
    return sum(path.stat().st_size for path in paths if path.exists())
