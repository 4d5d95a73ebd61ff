"""Makes helpers of tests/models importable, and those beside the tests."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for place in (HERE.parents[1] / "models", HERE.parents[1] / "generation", HERE):
    sys.path.insert(0, str(place))
