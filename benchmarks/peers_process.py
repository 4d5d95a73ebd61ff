"""The side of the benchmark: a peer as a child process that answers calls."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
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
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives with it
        reading, writing = os.pipe()
        self._answers = os.fdopen(reading, encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python), str(WORKERS / f"{kind}_worker.py"), str(writing)],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[writing],
            encoding="utf-8",
        )
        os.close(writing)
        self._proc = Path("/proc") / str(self._process.pid)

    def call(self, name: str, **arguments: Any) -> Any:
        """Makes a call and waits for its answer.

        Raises:
            PeerError: The call failed or the process has died.
        """
        try:
            print(json.dumps({"call": name, **arguments}), file=self._process.stdin, flush=True)
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            status = self._process.wait()
            self._log.seek(0)
            last = self._log.read().strip().rpartition("\n")[2]
            raise PeerError(f"{self._kind} ended with status {status}: {last}")
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
            self._process.wait()
        self._answers.close()
        self._log.close()
