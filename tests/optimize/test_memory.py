"""What is freed while a student learns."""

import ctypes
import resource
from pathlib import Path

import numpy as np
import pytest

from hasten.optimize.distillation.memory import kept_memory

MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc"
)


def step():
    """Takes and frees what a step does; returns the pages that the system had to find for it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(24 * MIB, np.int8) for _ in range(8)]
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again():
    step()
    usual = step()
    with kept_memory():
        step()
        assert step() <= usual / 10


def test_it_goes_back_in_the_end():
    def held():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    with kept_memory():
        before = held()
        step()
        assert held() - before > 96 * MIB
    assert held() - before < 64 * MIB
