"""Makes helpers importable: those beside the tests, of tiny models and of their adapters."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
for room in ("generation", "models"):
    sys.path.insert(0, str(Path(__file__).parent.parent / room))


@pytest.fixture
def one_thread(monkeypatch):
    """What trains takes one thread: small products only wait for a second."""
    torch = pytest.importorskip("torch")
    for name in ("distill", "follow"):
        module = f"hasten.optimize.distillation.{name}"
        monkeypatch.setattr(f"{module}.available_cores", lambda: 1)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
