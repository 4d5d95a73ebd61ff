"""Where the peers are installed, and how they get there."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from peers_process import PeerError

__all__ = ["ENVIRONMENT", "find_python", "install"]

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / "build" / "peers"
LLAMA_CPP = "llama-cpp-python==0.3.36"
TORCH = "torch==2.13.0"  # this spelling is a CPU build; others draw CUDA packages
MODULES = {
    "llama_cpp": ("llama_cpp",),
    "transformers": ("torch", "transformers"),
    "openvino": ("openvino_genai",),
}


def install(*, openvino: bool) -> None:
    """Makes the environment of the peers: some minutes, as llama.cpp is built for this machine."""
    venv.create(ENVIRONMENT, with_pip=True, clear=False)
    python = ENVIRONMENT / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "transformers>=5,<6"], check=True)
    native = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"}
    subprocess.run([*pip, "--no-binary", "llama-cpp-python", LLAMA_CPP], check=True, env=native)
    if openvino:
        packages = ["openvino", "openvino-genai", "openvino-tokenizers"]
        subprocess.run([*pip, *packages], check=True)


def find_python(kind: str, others: Sequence[Path]) -> Path:
    """The first interpreter that has a peer: those given, this one, then the peers' own.

    Raises:
        PeerError: None of them has it.
    """
    if kind == "hasten":
        return Path(sys.executable)
    for python in (*others, Path(sys.executable), ENVIRONMENT / "bin" / "python"):
        if python.exists() and _can_import(python, kind):
            return python
    raise PeerError(f"{', '.join(MODULES[kind])} not installed; run {sys.argv[0]} --install")


def _can_import(python: Path, kind: str) -> bool:
    names = ", ".join(repr(name) for name in MODULES[kind])
    probe = (
        "import sys; from importlib.util import find_spec; "
        f"sys.exit(not all(find_spec(name) for name in ({names},)))"
    )
    run = subprocess.run([str(python), "-c", probe], check=False, capture_output=True)
    return run.returncode == 0
