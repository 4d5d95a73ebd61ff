"""Puts measured figures where people read them: the README's tables and docs/peers.svg.

    python benchmarks/publish.py   # from build/{peers,serving,batches}.json and demo/recipe.json

So no figure in the README is typed by hand. A source that is missing leaves its place as it is, and
a run during which other processes took much of the cores is refused.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peers_chart import draw_ratios
from peers_report import markdown
from serving_report import markdown as serving_table

from hasten.optimize.report import before_and_after, headline

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = "![Rates of Hasten over those of its fastest peers](docs/peers.svg)"
MOST_OTHERS = 0.1


def main() -> int:
    """Publishes what there is."""
    text = README.read_text(encoding="utf-8")
    peers, recipe = ROOT / "build" / "peers.json", ROOT / "demo" / "recipe.json"
    if peers.exists():
        report = json.loads(peers.read_text(encoding="utf-8"))
        for name, model in report["models"].items():
            others = model["other_processes_share"]["median"]
            if others is None or others > MOST_OTHERS:
                raise SystemExit(f"{name}: others used {others} of the cores; measure again")
        text = fill(text, "peers", f"{PICTURE}\n\n{markdown(report)}")
        (ROOT / "docs" / "peers.svg").write_text(draw_ratios(report), encoding="utf-8")
    if recipe.exists():
        text = fill(text, "demo", demo_table(json.loads(recipe.read_text(encoding="utf-8"))))
    serving, batches = (_results(ROOT / "build" / f"{n}.json") for n in ("serving", "batches"))
    if serving:
        text = fill(text, "serving", serving_table(serving, batches))
    README.write_text(text, encoding="utf-8")
    print(f"published: {', '.join(str(path) for path in (peers, recipe) if path.exists())}")
    return 0


def _results(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    results: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["results"]
    return results


def fill(text: str, name: str, content: str) -> str:
    """Replaces what stands between the two comments of a place."""
    place = re.compile(rf"(<!-- {name}: begin[^>]*-->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    filled, count = place.subn(lambda found: f"{found[1]}{content}\n{found[2]}", text)
    if count != 1:
        raise SystemExit(f"the README has {count} places named {name!r}, not one")
    return filled


def demo_table(recipe: Mapping[str, Any]) -> str:
    """Before and after as a table."""
    lines = ["| | before | after | |", "|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in before_and_after(recipe)]
    machine = recipe["machine"]
    return "\n".join(
        [*lines, "", f"{headline(recipe)} ({machine['cpu']}, {machine['cores']} cores.)"]
    )


if __name__ == "__main__":
    sys.exit(main())
