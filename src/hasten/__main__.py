"""`python -m hasten` is the `hasten` command."""

import sys

from hasten.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
