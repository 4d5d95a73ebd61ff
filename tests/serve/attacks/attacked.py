"""A real server in a process of its own, and what can be seen of it from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from raw_client import Connection, request_bytes

CHILD = Path(__file__).parent / "attacked_server.py"


class Attacked:
    """The server and clients of it; use it as a context manager.

    Args:
        model: Directory of the model.
        data: Directory of the server's own.
        limits: As in `Limits`.
        keys: Fields of `Client` by API key.
        environment: Further variables.
        others: As in `ServerSettings`.
    """

    def __init__(self, model, data, *, limits=None, keys=None, environment=None, **others):
        self.data, self.log = data, data.with_name(f"{data.name}.log")
        given = json.dumps({"limits": limits or {}, "keys": keys or {}, **others})
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, CHILD, model, data, given],
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | (environment or {}),
            )
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        self.port = int(line)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        try:
            assert self.process.wait(60) == 0
        finally:
            self.process.kill()
            self.process.stdout.close()
        if error[0] is None:
            assert "met a bug" not in self.log.read_text()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def request(self, method, path, body=b"", **headers):
        """Status, headers and body; a body that is no bytes goes as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with closing(Connection(self.port)) as connection:
            connection.socket.settimeout(60)
            connection.send(request_bytes(method, path, data, **headers))
            return connection.response(method)

    def post(self, path, body, **headers):
        return self.request("POST", path, body, **headers)

    def well(self):
        """Whether it lives and its engine still answers."""
        answer = self.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 1})
        return answer[0] == 200

    @property
    def workers(self):
        """Ids of the engines' processes."""
        pid = self.process.pid
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def memory(self):
        """Bytes that the server and its engines hold now."""
        return sum(in_status(pid, "VmRSS") for pid in (self.process.pid, *self.workers))

    def peak(self):
        """Bytes that the server itself ever held at once."""
        return in_status(self.process.pid, "VmHWM")

    def descriptors(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def tasks(self):
        self.process.send_signal(signal.SIGUSR1)
        return int(self.process.stdout.readline())

    def settled(self, descriptors, tasks, seconds=20.0):
        """Whether it holds no more than so much, be it a moment later."""
        end = time.monotonic() + seconds
        while self.descriptors() > descriptors or self.tasks() > tasks:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


def in_status(pid, name):
    """Bytes that the kernel tells of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().split(f"{name}:")[1].split()[0]) << 10
