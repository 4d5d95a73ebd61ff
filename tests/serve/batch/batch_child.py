"""A batch in a process of its own, to be killed: python batch_child.py INPUT OUTPUT SEED DELAY."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from batch_fakes import echo, run_batch

if __name__ == "__main__":
    print("ready", flush=True)
    tally, _ = run_batch(
        Path(sys.argv[1]), Path(sys.argv[2]), echo(float(sys.argv[4]), int(sys.argv[3])), width=16
    )
    print(tally.answered, flush=True)
