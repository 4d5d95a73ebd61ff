"""A Hasten server as a process of its own, and what can be seen of it from outside."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Server", "serving"]

HOST = "127.0.0.1"
READY_SECONDS = 120.0


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        process: Its HTTP side; the engines are its children.
        port: Where it listens.
    """

    process: subprocess.Popen[bytes]
    port: int

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a reply."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """Sum of a metric's samples, whatever their labels."""
        _, text = self.get("/metrics")
        found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def engines(self) -> list[int]:
        """Process ids of the engines."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def memory(self) -> dict[str, int]:
        """Resident bytes of the HTTP side and of the engines."""
        return {
            "http": _resident(self.process.pid),
            "engines": sum(_resident(pid) for pid in self.engines()),
        }

    def descriptors(self) -> int:
        """Open files and sockets of the HTTP side."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


@contextmanager
def serving(model: str, *options: str, log: Path | None = None) -> Iterator[Server]:
    """Runs `hasten serve` on a free port of the loopback while the block runs."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hasten", "serve", model, "--port", str(port), *options]
    with (log or Path(os.devnull)).open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        server = Server(process, port)
        try:
            _wait_ready(server)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_ready(server: Server) -> None:
    limit = time.monotonic() + READY_SECONDS
    while time.monotonic() < limit:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.process.returncode}")
        try:
            if server.get("/health/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the server did not become ready")


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
