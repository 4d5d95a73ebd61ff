"""A process of its own for regular expressions, since one that runs wild cannot be stopped.

It imports nothing of Hasten: stdin holds a JSON list [pattern, text] a line, and for each a line
with 1 or 0 goes to stdout at once.
"""

import json
import re
import sys
import warnings

__all__ = ["main"]


def main() -> None:
    """Answers each line of stdin."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        pattern, text = json.loads(line)
        print(int(re.search(pattern, text) is not None), flush=True)


if __name__ == "__main__":
    main()
