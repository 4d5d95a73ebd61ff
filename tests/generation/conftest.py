"""Makes helpers importable (here and in tests/models), and runs tests on every ISA."""

import sys
from pathlib import Path

import pytest

from hasten import _native

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=_native.isas())
def isa(request) -> str:
    """Each instruction set that this machine can run."""
    return request.param
