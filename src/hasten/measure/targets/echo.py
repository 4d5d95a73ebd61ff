"""A server that sends back what it gets, to learn how many requests a client can make at all.

`python -m hasten.measure.targets.echo PORT` serves on the loopback; port 0 takes a free one. It
prints the port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self, cast

import httptools

from hasten.measure.records import Answer
from hasten.measure.targets.http import HttpClient, HttpOptions
from hasten.measure.targets.replies import expect_success
from hasten.measure.targets.target import TargetError
from hasten.measure.workload import Item, Tensors

__all__ = ["EchoTarget", "serve"]

HOST = "127.0.0.1"
BODY = b'{"prompt":"Are you there?","max_tokens":1}'
START_SECONDS = 30.0
"""For the process to start, on a busy machine."""


class EchoTarget:
    """Starts the server as a process and sends it small requests, whatever work it gets.

    Attributes:
        pid: Of the process, while it is open.
    """

    def __init__(self) -> None:
        self.pid = 0
        self._process: asyncio.subprocess.Process | None = None
        self._client: HttpClient | None = None

    def describe(self) -> Mapping[str, object]:
        """That it is an echo."""
        return {"kind": "echo", "model": "echo"}

    async def send(self, work: Item | Tensors, answer: Answer) -> None:
        """Makes one request and notes its answer as a token."""
        if self._client is None:
            raise TargetError("the echo is not open")
        reply = await self._client.request("POST", "/", BODY, clock=answer.clock)
        expect_success(reply)
        if reply.body != BODY:
            raise TargetError("the echo is not what was sent")
        answer.stopped = True
        answer.arrive(1, at=reply.at)

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            "0",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        self.pid = self._process.pid
        try:
            output = cast(asyncio.StreamReader, self._process.stdout)
            async with asyncio.timeout(START_SECONDS):
                port = int(await output.readline())
        except (TimeoutError, ValueError) as error:
            await self._end()
            raise TargetError("the echo did not start") from error
        except BaseException:
            await self._end()
            raise
        self._client = HttpClient(f"http://{HOST}:{port}", HttpOptions(quiet_seconds=30))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None
        await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.communicate()


class _Echo(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._transport.abort()

    def on_body(self, body: bytes) -> None:
        """As the parser calls it."""
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        """As the parser calls it."""
        body = b"".join(self._pieces)
        self._pieces.clear()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def serve(port: int) -> None:
    """Serves until standard input ends, and prints the port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Echo, HOST, port)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(4096):
        pass
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
