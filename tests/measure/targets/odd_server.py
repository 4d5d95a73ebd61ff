"""A server that answers as a test tells it, byte by byte if need be."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

CLOSE, RESET, HANG = "close", "reset", "hang"
PAUSE = 0.01
"""Seconds between the parts of an answer, so that each is a packet of its own."""


@dataclass
class Asked:
    """A request as it came.

    Attributes:
        line: Method, path and version.
        headers: Names in lower case.
        body: All of it.
        connection: Its number, from 1.
    """

    line: str
    headers: dict
    body: bytes
    connection: int


@dataclass
class OddServer:
    """What the server noted.

    Attributes:
        url: Where it is.
        port: Of it.
        connections: How many there were.
        left: How many of them the client has closed.
        requests: In order.
    """

    port: int = 0
    connections: int = 0
    left: int = 0
    requests: list = field(default_factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def odd_server(*answers, ssl=None, repeat=False):
    """Gives each request the next answer, or always the first.

    An answer is what a function makes of a request, or a list of parts: bytes, seconds to wait,
    CLOSE, RESET (without a word), or HANG (until the client leaves).
    """
    waiting = list(answers)
    noted = OddServer()
    writers, tasks = [], []

    async def serve(reader, writer):
        noted.connections += 1
        number = noted.connections
        try:
            while (asked := await read_request(reader, number)) is not None:
                noted.requests.append(asked)
                answer = waiting[0] if repeat else waiting.pop(0)
                parts = answer(asked) if callable(answer) else answer
                if not await say(parts, reader, writer):
                    break
            noted.left += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            noted.left += 1
        finally:
            writer.close()

    def begin(reader, writer):
        writers.append(writer)
        tasks.append(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", 0, ssl=ssl)
    noted.port = server.sockets[0].getsockname()[1]
    try:
        yield noted
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def read_request(reader, number):
    line = await reader.readline()
    if not line:
        return None
    headers = {}
    while (one := await reader.readline()).strip():
        name, _, value = one.decode().partition(":")
        headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(line.decode().strip(), headers, body, number)


async def say(parts, reader, writer):
    """Sends an answer; False if the connection is to be closed."""
    for part in parts:
        if part == CLOSE:
            return False
        if part == RESET:
            writer.transport.abort()
            return False
        if part == HANG:
            await reader.read()
            return False
        if isinstance(part, bytes):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(PAUSE if len(parts) > 1 else 0)
        else:
            await asyncio.sleep(part)
    return True


def whole(body, status=200, **headers):
    """An answer in one packet."""
    return [head(status, content_length=len(body), **headers) + body]


def head(status=200, **headers):
    """The head of an answer."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} So\r\n{lines}\r\n".encode()


def chunk(data):
    """A chunk of a body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST = b"0\r\n\r\n"


def streamed(*pieces, end=(LAST,)):
    """An answer in chunks, each a packet."""
    return [head(transfer_encoding="chunked"), *map(chunk, pieces), *end]
