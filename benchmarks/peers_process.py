"""The side of the benchmark: a peer as a child process that answers calls."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["PeerError", "PeerProcess"]

WORKERS = Path(__file__).resolve().parent / "workers"


class PeerError(Exception):
    """A peer that is missing, has failed or has died."""


class PeerProcess:
    """One peer; see workers/protocol.py for what it understands.

    Args:
        kind: Worker to run.
        python: Interpreter that has the peer installed.
    """

    def __init__(self, kind: str, python: Path) -> None:
        self.description: dict[str, Any] = {}
        self._kind = kind
        self._process = subprocess.Popen(
            [str(python), str(WORKERS / f"{kind}_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise PeerError("no pipes")
        self._calls, self._answers = self._process.stdin, self._process.stdout
        self._proc = Path("/proc") / str(self._process.pid)

    def call(self, name: str, **arguments: Any) -> Any:
        """Makes a call and waits for its answer.

        Raises:
            PeerError: The call failed or the process has died.
        """
        try:
            print(json.dumps({"call": name, **arguments}), file=self._calls, flush=True)
        except BrokenPipeError:
            answer = ""
        else:
            answer = self._answers.readline()
        if not answer:
            last = self._process.communicate()[1].strip().rpartition("\n")[2]
            raise PeerError(f"{self._kind} ended with status {self._process.wait()}: {last}")
        document = json.loads(answer)
        if "error" in document:
            raise PeerError(f"{self._kind}: {document['error']}")
        return document["ok"]

    def cpu_seconds(self) -> float:
        """Processor time it has used."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        """Resident memory, mapped files included."""
        return int((self._proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """Ends the process: it stops when its stdin does."""
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
