"""Imports go one way through the rooms of the house, and heavy modules wait until they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hasten

PACKAGE = Path(hasten.__file__).parent
ROOMS = ["base", "kernels", "models", "generation", "measure", "optimize", "plan", "serve", "cli"]
"""Each may import itself and those before it."""
STRANGERS = {"serve": {"measure", "optimize", "plan"}}
"""A server neither measures nor optimises."""
HEAVY = {
    "gguf",
    "google",
    "grpc",
    "huggingface_hub",
    "jinja2",
    "llguidance",
    "matplotlib",
    "mlperf_loadgen",
    "msgspec",
    "onnxruntime",
    "opentelemetry",
    "prometheus_client",
    "redis",
    "rich",
    "safetensors",
    "starlette",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
}
NEVER = {"gguf", "onnx", "sentencepiece", "transformers"}
"""Only tests may import these."""
TRAINS = {
    "generation.torch_executor",
    "generation.torch_graph",
    "generation.torch_ops",
    "optimize.distillation.distill",
    "optimize.distillation.follow",
    "optimize.distillation.loss",
    "optimize.distillation.state",
    "optimize.distillation.train",
    "optimize.quantization.fisher",
}
"""What the extra `torch` is for; whoever loads these modules has asked for it."""


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), ast.parse(path.read_text())


def room(module):
    """Where a module under `hasten` lives: types, errors and machine are the base."""
    first = module.split(".")[0]
    return first if first in ROOMS else "base"


def imported(node):
    """Full names that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        # `from hasten import _native` imports the module hasten._native.
        if node.module == "hasten":
            return [f"hasten.{alias.name}" for alias in node.names]
        return [node.module]
    return []


def all_imports(tree):
    return [name for node in ast.walk(tree) for name in imported(node)]


def imports_at_load(tree):
    """Imports that run when the module is loaded: outside functions and TYPE_CHECKING."""
    found, waiting = [], list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        found += imported(node)
        waiting += ast.iter_child_nodes(node)
    return found


RUNS_WHAT_IT_READS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
"""Whoever reads with these what others wrote runs what they want."""
MODULES = dict(modules())


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    if module in ("__main__", "__init__"):
        return
    own = ROOMS.index(room(module))
    for name in all_imports(MODULES[module]):
        if name.startswith("hasten."):
            other = room(name.removeprefix("hasten."))
            allowed = ROOMS.index(other) <= own and other not in STRANGERS.get(ROOMS[own], ())
            assert allowed, f"{module} ({ROOMS[own]}) imports {name} ({other})"


def loaded_with(roots):
    """Modules under `hasten` that are loaded when the roots are, and what loads each."""
    seen, waiting = {}, [(root, "a command") for root in roots]
    while waiting:
        module, parent = waiting.pop()
        if module not in MODULES or module in seen:
            continue
        seen[module] = parent
        names = [n.removeprefix("hasten.") for n in imports_at_load(MODULES[module])]
        waiting += [(n, module) for name in names for n in (name, f"{name}.__init__")]
    return seen


def test_heavy_modules_wait():
    """No command loads one before it needs it, and neither does running a model."""
    commands = [name for name in MODULES if name.startswith("cli.")]
    start = loaded_with([*commands, "generation.engine", "models.loading"])
    for module, parent in start.items():
        heavy = {name.split(".")[0] for name in imports_at_load(MODULES[module])} & HEAVY
        assert not heavy, f"{module}, which {parent} loads, imports {heavy}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_that_only_tests_need(module):
    never = NEVER if module in TRAINS else NEVER | {"torch"}
    assert not {name.split(".")[0] for name in all_imports(MODULES[module])} & never


def test_what_trains_waits():
    """All else runs without torch: it is loaded inside functions that ask for it."""
    assert set(MODULES) >= TRAINS
    start = loaded_with([name for name in MODULES if name not in TRAINS])
    assert not TRAINS & set(start)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled(module):
    tree = MODULES[module]
    heads = {name.split(".")[0] for name in all_imports(tree)}
    assert not heads & (RUNS_WHAT_IT_READS | {"multiprocessing"})
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("eval", "exec", "torch.load", "compile")
            values = {one.arg: ast.unparse(one.value) for one in node.keywords}
            assert values.get("allow_pickle", "False") == "False"


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_listed(module):
    body = MODULES[module].body
    assigned = [ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)]
    if any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in body):
        assert assigned.count("__all__") == 1


def loaded_by(statement):
    """Top-level names of the modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_hasten_loads_nothing_else():
    assert not loaded_by("import hasten") & (HEAVY | {"numpy", "click", "psutil"})


def test_the_command_line_starts_without_numpy():
    assert not loaded_by("import hasten.cli.main") & (HEAVY | {"numpy"})


def test_the_engine_loads_no_heavy_module():
    assert not loaded_by("import hasten.generation, hasten.models") & HEAVY
