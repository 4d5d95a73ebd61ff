"""The examples run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hasten

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.model
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example):
    environment = os.environ | {"PYTHONPATH": str(Path(hasten.__file__).parent.parent)}
    command = [sys.executable, str(example)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 40
