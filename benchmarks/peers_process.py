"""The side of the benchmark: a peer as a child process that answers calls."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["PeerError", "PeerProcess", "check_room"]

WORKERS = Path(__file__).resolve().parent / "workers"
SPARE = 2 << 30  # bytes for caches, activations and the rest of the machine
PATIENCE = 900.0
"""Seconds after which a call counts as failed."""


class PeerError(Exception):
    """A peer that is missing, has failed or has died."""


def check_room(path: Path, *, widening: float) -> None:
    """Refuses to load a model that would push others out of memory.

    Args:
        path: The model's file or directory.
        widening: Bytes that a weight takes in memory over those in its file.

    Raises:
        PeerError: Too little memory is free.
    """
    files = [path] if path.is_file() else [one for one in path.iterdir() if one.is_file()]
    wanted = SPARE + int(widening * sum(one.stat().st_size for one in files))
    free = _available_memory()
    if free is not None and wanted > free:
        raise PeerError(f"needs about {wanted / 1e9:.1f} GB, and {free / 1e9:.1f} are free")


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

    @property
    def alive(self) -> bool:
        """Whether it can take calls."""
        return self._process.poll() is None

    def call(self, name: str, **arguments: Any) -> Any:
        """Makes a call and waits for its answer.

        Raises:
            PeerError: The call failed or took too long, or the process has died.
        """
        try:
            print(json.dumps({"call": name, **arguments}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            answer = ""
        else:
            answer = self._answer(name)
        if not answer:
            status = self._process.wait()
            raise PeerError(f"{self._kind} ended with status {status}: {self._last_words()}")
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

    def _answer(self, name: str) -> str:
        # A worker writes whole lines, so that the first byte says that the rest will come.
        if not select.select([self._answers], [], [], PATIENCE)[0]:
            self._process.kill()
            raise PeerError(f"{self._kind}: {name} took more than {PATIENCE:.0f} s")
        return self._answers.readline()

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().strip().rpartition("\n")[2]


def _available_memory() -> int | None:
    """Bytes, page cache included that can be given up; None where the kernel does not say."""
    file = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", file.read_text() if file.exists() else "")
    return None if found is None else int(found[1]) * 1024
