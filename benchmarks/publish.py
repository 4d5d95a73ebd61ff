"""Puts measured figures where people read them: the README's tables and docs/peers.svg.

    python benchmarks/publish.py        # from build/peers.json and demo/recipe.json

So no figure in the README is typed by hand. A source that is missing leaves its place as it is, and
a run during which other processes took much of the cores is refused.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from peers_report import markdown

from hasten.optimize.report import before_and_after, headline

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SHOWN = ("hasten artefact", "llama.cpp Q4_0", "llama.cpp Q4_1 as carried", "transformers fp32")
PICTURE = "![Decode and prefill rates of Hasten and its peers](docs/peers.svg)"
MOST_OTHERS = 0.1
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#1f2328}.ours{fill:#0a7f5a}.peer{fill:#9aa4b1}"
    ".title{font-weight:600}@media(prefers-color-scheme:dark){text{fill:#e6edf3}"
    ".ours{fill:#2fbf8f}.peer{fill:#5b6673}}"
)


def main() -> int:
    """Publishes what there is."""
    text = README.read_text(encoding="utf-8")
    peers, recipe = ROOT / "build" / "peers.json", ROOT / "demo" / "recipe.json"
    if peers.exists():
        report = json.loads(peers.read_text(encoding="utf-8"))
        others = report["conditions"]["other_processes_share"]["median"]
        if others is None or others > MOST_OTHERS:
            raise SystemExit(f"other processes used {others} of the cores; measure again")
        text = fill(text, "peers", f"{PICTURE}\n\n{markdown(report)}")
        (ROOT / "docs" / "peers.svg").write_text(draw(report), encoding="utf-8")
    if recipe.exists():
        text = fill(text, "demo", demo_table(json.loads(recipe.read_text(encoding="utf-8"))))
    README.write_text(text, encoding="utf-8")
    print(f"published: {', '.join(str(path) for path in (peers, recipe) if path.exists())}")
    return 0


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


def draw(report: Mapping[str, Any]) -> str:
    """Bars of decode and prefill rates as SVG."""
    names = [name for name in SHOWN if name in report["results"]]
    parts, y = [], 0
    for what, title in (("decode", "decode, tokens/s"), ("prefill", "prefill, tokens/s")):
        rates = {name: report["results"][name][f"{what}_tokens_per_s"] for name in names}
        y += 24
        parts.append(f'<text class="title" x="0" y="{y}">{title}</text>')
        for name, rate in rates.items():
            y += 24
            width = 330 * rate / max(rates.values())
            kind = "ours" if name.startswith("hasten") else "peer"
            parts.append(
                f'<text x="0" y="{y}">{escape(name)}</text>'
                f'<rect class="{kind}" x="190" y="{y - 13}" width="{width:.1f}" height="17"/>'
                f'<text x="{196 + width:.1f}" y="{y}">{rate:.0f}</text>'
            )
        y += 12
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 580 {y}" width="580" role="img">'
        f"<title>Rates of Hasten and its peers on the same two cores</title>"
        f"<style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
