from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys

import click
import pytest

import hasten as package
from hasten.cli.main import BROKEN_PIPE, COMMANDS
from hasten.errors import UsageError

LATER = {"numpy", "rich", "torch", "tokenizers", "jinja2", "matplotlib", "hasten._native"}


def modules_after(*arguments: str) -> set[str]:
    """The modules that a call of `hasten` imported, in a process of its own."""
    code = (
        "import sys\n"
        "from hasten.cli.main import main\n"
        f"status = main({list(arguments)!r})\n"
        "print(*sys.modules, sep='\\n', file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines())


def test_help_lists_every_command_and_imports_none():
    loaded = modules_after("--help")
    assert not LATER & loaded
    assert not {entry.module for entry in COMMANDS.values()} & loaded


def test_help_text(hasten):
    result = hasten("--help")
    assert result.status == 0
    for name, entry in COMMANDS.items():
        assert f"  {name}" in result.out
        assert entry.summary in result.out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_with_an_example(hasten, name):
    result = hasten(name, "--help")
    assert result.status == 0
    assert f"hasten {name}" in result.out
    assert "Examples:" in result.out
    command = importlib.import_module(COMMANDS[name].module).command
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_no_command_shows_help_and_is_wrong_use(hasten):
    result = hasten()
    assert result.status == 2
    assert "Commands:" in result.out + result.err


def test_version(hasten):
    assert hasten("--version").out == f"hasten, version {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["--fly"],
        ["run"],
        ["run", "fake", "hi", "--fly"],
        ["run", "fake", "hi", "extra"],
        ["run", "fake", "hi", "--max-tokens", "-1"],
        ["run", "fake", "hi", "--max-tokens", "many"],
        ["run", "fake", "hi", "--top-p", "2"],
        ["run", "fake", "hi", "--top-p", "0"],
        ["run", "fake", "hi", "--top-p", "nan"],
        ["run", "fake", "hi", "--min-p", "1"],
        ["run", "fake", "hi", "--top-k", "-1"],
        ["run", "fake", "hi", "--temperature", "-0.1"],
        ["run", "fake", "hi", "--temperature", "inf"],
        ["run", "fake", "hi", "--seed", "-1"],
        ["run", "fake", "hi", "--seed", str(2**64)],
        ["run", "fake", "hi", "--stop", ""],
        ["run", "fake", "hi", "--weights", "int4"],
        ["run", "fake", "hi", "--weights", "int4:33"],
        ["run", "fake", "hi", "--weights", "int8:0"],
        ["run", "fake", "hi", "--kv", "int4"],
        ["run", "fake", "hi", "--threads", "0"],
        ["run", "fake", "hi", "--executor", "gpu"],
        ["run", "fake", "hi", "--json", "/no/such/directory/x.json"],
        ["run", "fake", "hi", "--json", "/"],
        ["run", "fake", "--raw", "--system", "be brief", "hi"],
        ["bench", "fake", "--requests", "0"],
        ["bench", "fake", "--duration", "0"],
        ["bench", "fake", "--input-len", "0"],
        ["info", "fake", "--context", "0"],
        ["doctor", "fake"],
    ],
)
def test_wrong_use_is_one_line_and_status_2(hasten, world, arguments):
    result = hasten(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert not world.engines


@pytest.mark.parametrize("command", ["run", "bench", "info"])
def test_a_missing_model_is_one_line_and_status_1(hasten, world, command):
    result = hasten(command, "missing.gguf", *(["hi"] if command == "run" else []))
    assert (result.status, result.out) == (1, "")
    assert result.err == "error: model 'missing.gguf' does not exist; allowed: 'fake'\n"


def raising(error: BaseException):
    def load(name: str) -> None:
        raise error

    return load


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("two\nlines", do="do this"), 2, "error: two lines; do this\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (MemoryError(), 1, "error: out of memory; use a smaller --max-context or model\n"),
        (
            ImportError("cannot import name '_native' from 'hasten'"),
            1,
            (
                "error: the C++ extension cannot be loaded (cannot import name '_native' from "
                "'hasten'); install Hasten again\n"
            ),
        ),
    ],
)
def test_what_a_user_can_cause_has_no_traceback(hasten, monkeypatch, error, status, message):
    monkeypatch.setattr("hasten.models.load_model", raising(error))
    result = hasten("run", "fake", "hi")
    assert (result.status, result.err) == (status, message)


@pytest.mark.parametrize("error", [ZeroDivisionError(), ImportError("No module named 'x'")])
def test_a_bug_keeps_its_traceback(hasten, monkeypatch, error):
    monkeypatch.setattr("hasten.models.load_model", raising(error))
    with pytest.raises(type(error)):
        hasten("run", "fake", "hi")


def test_a_reader_that_leaves_is_quiet():
    """The pipe is closed before anything is written, as `| head -0` would do it."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "hasten", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == BROKEN_PIPE
    assert done.stderr == ""


def test_the_table_names_modules_that_exist():
    for name, entry in COMMANDS.items():
        assert entry.module == f"hasten.cli.{name}"
        assert importlib.util.find_spec(entry.module) is not None
