"""What the server adds to the engine, and what it stands.

    .venv/bin/python benchmarks/serving.py throughput latency
    .venv/bin/python benchmarks/serving.py disconnects overload kills --json build/serving.json

throughput   16 streaming clients through HTTP, and 16 requests in an engine alone, in turns
latency      time to the first token and gaps between tokens, both ways, in turns
disconnects  10,000 requests over 200 connections, of which a third leave at random
overload     requests at four times the capacity for two minutes
kills        the engine killed 50 times under load
"""

from __future__ import annotations

import argparse
from pathlib import Path

from parts import Part, run_parts
from serving_load import disconnects, kills, overload
from serving_speed import latency, throughput

PARTS: dict[str, Part] = {
    "throughput": throughput,
    "latency": latency,
    "disconnects": disconnects,
    "overload": overload,
    "kills": kills,
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of one turn")
    parser.add_argument("--pairs", type=int, default=300, help="of latency")
    parser.add_argument("--requests", type=int, default=10_000, help="of disconnects")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--peak-seconds", type=float, default=30.0)
    parser.add_argument("--overload-seconds", type=float, default=120.0)
    parser.add_argument(
        "--json", type=Path, help="to put results into, beside those of other parts"
    )
    options = parser.parse_args()
    run_parts(PARTS, options)


if __name__ == "__main__":
    main()
