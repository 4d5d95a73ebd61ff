"""Makes helpers of tests/models importable, and those beside the tests."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for place in (HERE.parent.parent / "models", HERE):
    sys.path.insert(0, str(place))
