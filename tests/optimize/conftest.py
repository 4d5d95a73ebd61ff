"""Makes helpers importable: those beside the tests here, and the tiny models of generation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "generation"))
