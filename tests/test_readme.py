"""The README's commands do what it says, in the order in which they stand there."""

import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import hasten

ROOT = Path(__file__).parent.parent
# What the README leaves to the defaults, cut down to seconds.
SHORT = {
    "hasten optimize": "--quick --weights carried --tokens 256 --input-len 8 --output-len 8",
    "hasten info": "--no-probe",
}


def blocks():
    """The commands of each block of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block.strip().splitlines() for block in found]


def commands():
    return [line for block in blocks() for line in block]


def test_make_targets_exist_and_ci_runs_the_test_command():
    used = [line for line in commands() if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {f"make {name}" for name in re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE)}
    assert set(used) == {"make demo", "make test"} <= targets
    ran = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert {"make test", "make check"} <= set(ran)


def test_all_other_commands_are_hasten():
    others = [line for line in commands() if not line.startswith("make ")]
    assert others
    assert all(re.search(r"(^|\| )hasten [a-z]+", line) for line in others)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts `hasten` on the path."""
    program = tmp_path / "bin" / "hasten"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hasten "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(Path(hasten.__file__).parent.parent))


@pytest.mark.model
def test_commands_run(tmp_path, installed):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for line in commands():
        if line.startswith(("make ", "hasten serve ")):
            continue
        short = next((more for start, more in SHORT.items() if line.startswith(start)), "")
        command = ["bash", "-o", "pipefail", "-c", f"{line} {short}"]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stdout.strip(), f"{line} printed nothing"
    made = {path.name for path in tmp_path.iterdir()} - {"bin", "examples"}
    assert made == {"fast-smollm2", "bench.json", "answers.jsonl", "answers.jsonl.state"}
    answers = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert len(answers) == len((ROOT / "examples" / "requests.jsonl").read_text().splitlines())
    assert (tmp_path / "fast-smollm2" / "report.html").exists()


@pytest.mark.model
def test_the_client_is_served(tmp_path, installed):
    (line,) = [line for line in commands() if line.startswith("hasten serve ")]
    (client,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*shlex.split(line), "--port", str(port), "--data", str(tmp_path / "data")]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        log = ""
        while "serving at" not in log:
            text = server.stderr.readline()
            assert text, f"the server ended: {log}"
            log += text
        done = subprocess.run(
            [sys.executable, "-c", client.replace("127.0.0.1:8000", f"127.0.0.1:{port}")],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert len(done.stdout.split()) > 10
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    assert server.returncode == 0
