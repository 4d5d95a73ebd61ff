"""What tests of the registry share."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hasten.serve.engine_process import EngineSpec
from hasten.serve.registry import ModelRegistry
from hasten.serve.settings import ServerSettings

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "models")]

from registry_fakes import OPTIONS, Floor  # noqa: E402


@pytest.fixture
def floor():
    return Floor()


@pytest.fixture
def registry(tmp_path, floor):
    """Makes registries over one data directory, with fake engines."""

    def make(*, hub=None, **settings):
        chosen = replace(ServerSettings(data=tmp_path / "data"), **settings)
        return ModelRegistry(chosen, start_engine=floor.engine, hub=hub)

    return make


@pytest.fixture
def spec(tiny_model):
    """Makes specs of the tiny model; those with other options are other engines."""

    def make(**options):
        return EngineSpec(str(tiny_model), "generate", replace(OPTIONS, **options))

    return make
