"""Offline batches: files of requests, answered line by line, that survive being killed.

`source` reads the input, `request` finds out what a line asks for, `caller` has it answered,
`answer` writes what came of it, `journal` keeps that, and `run` is the loop around them all.
docs/batch.md says why no line is lost or answered twice.
"""

__all__: list[str] = []
