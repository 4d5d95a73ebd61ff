"""The variances that the benchmark of spreads tells apart are those that were put in."""

import numpy as np
import pytest
from speed_spread import components


@pytest.mark.parametrize("sizes", [(0.1, 0.0, 0.0), (0.0, 0.2, 0.0), (0.05, 0.1, 0.2)])
def test_variances_are_told_apart(sizes):
    generator = np.random.default_rng(0)
    process, block, one = sizes
    shape = (400, 6, 4)
    logs = process * generator.normal(size=(400, 1, 1)) + block * generator.normal(size=(400, 6, 1))
    found = components(logs + one * generator.normal(size=shape))
    assert found["process"] == pytest.approx(process**2, abs=0.15 * sum(sizes) ** 2)
    assert found["block"] == pytest.approx(block**2, abs=0.1 * sum(sizes) ** 2)
    assert found["round"] == pytest.approx(one**2, rel=0.1, abs=1e-12)
