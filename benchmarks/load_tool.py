"""GuideLLM against `hasten serve`: a load tool that others use must run to its report.

    .venv/bin/python benchmarks/load_tool.py --install --json build/load_tool.json

Exit status 1 if a request of it failed, or none ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from parts import Texts
from peers_environment import find_python, install
from served import HOST, serving

PROMPTS = 2000
WORDS = 60
OUTPUT = 32


def main() -> int:
    """Runs the tool, prints its tables and keeps its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--install", action="store_true", help="install the tool first, if need be")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.install and (failed := install(["guidellm"])):
        raise SystemExit(f"cannot be installed: {failed}")
    with tempfile.TemporaryDirectory() as folder, serving(options.model) as server:
        report = _run(Path(folder), options, server.port)
    (benchmark,) = report["benchmarks"]
    figures = _figures(benchmark["metrics"])
    print(json.dumps(figures, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    requests = figures["requests"]
    return int(requests["errored"] > 0 or requests["successful"] == 0)


def _run(folder: Path, options: argparse.Namespace, port: int) -> dict[str, Any]:
    texts = Texts(9)
    rows = [{"prompt": texts.draw(WORDS), "output_tokens_count": OUTPUT} for _ in range(PROMPTS)]
    prompts, output = folder / "prompts.jsonl", folder / "report.json"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = [str(find_python("guidellm", ()).parent / "guidellm"), "run", "--disable-progress"]
    command += ["--backend", f"kind=openai_http,target=http://{HOST}:{port},model={options.model}"]
    command += ["--profile", f"kind=concurrent,streams={options.streams}"]
    command += ["--constraint", f"kind=max_duration,seconds={options.seconds}"]
    command += ["--data", f"kind=json_file,path={prompts}"]
    command += ["--output", "kind=console", "--output", f"kind=json,path={output}"]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return report


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    def median(name: str) -> float:
        value: float = metrics[name]["successful"]["median"]
        return value

    return {
        "requests": metrics["request_totals"],
        "requests_per_s": metrics["requests_per_second"]["successful"]["mean"],
        "output_tokens_per_s": metrics["output_tokens_per_second"]["successful"]["mean"],
        "ttft_ms": median("time_to_first_token_ms"),
        "itl_ms": median("inter_token_latency_ms"),
    }


if __name__ == "__main__":
    sys.exit(main())
