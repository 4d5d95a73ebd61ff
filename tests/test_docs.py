"""The documents say what the program does."""

import importlib.util
import re
from pathlib import Path

import click
import pytest

from hasten.cli.main import COMMANDS, cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
names = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def options():
    """Every option of every command."""
    context = click.Context(cli)
    commands = [cli, *(cli.get_command(context, name) for name in COMMANDS)]
    found = {"--version", "--help"}
    for command in commands:
        for parameter in command.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def test_commands_are_as_help_prints_them():
    spec = importlib.util.spec_from_file_location("write_commands", ROOT / "docs/write_commands.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    written, wanted = script.TARGET.read_text(encoding="utf-8"), script.render()
    up_to_date = written.split() == wanted.split()  # click's versions set spaces otherwise
    assert up_to_date, "run: python docs/write_commands.py"


@names
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing


@names
def test_options_of_hasten_exist(page):
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(
        r"hasten (?:run|bench|profile|eval|optimize|export|info|doctor)\b[^`\n|]*", text
    )
    used = {option for line in quoted for option in re.findall(r"(?<!\S)--[a-z][\w-]*", line)}
    assert used <= options()


@names
def test_targets_of_make_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    used = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", text, re.MULTILINE))
    assert used <= targets


@pytest.mark.model
def test_the_example_of_the_engine_runs(capsys):
    text = (ROOT / "docs/engine.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    exec(compile(example, "docs/engine.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "r0" in printed
    assert printed.count("length") == 2


@names
def test_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:src|tests|docs|benchmarks|csrc|examples)/[\w./-]+\w)`", text))
    assert not [name for name in named if not (ROOT / name).exists()]
