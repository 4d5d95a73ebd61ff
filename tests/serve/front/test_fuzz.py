"""Random bytes as requests: the server answers each with what is meant for it, or closes.

`HASTEN_FUZZ_EXAMPLES` sets how many examples are tried; with it they differ from run to run.
"""

from __future__ import annotations

import gzip
import os
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = os.environ.get("HASTEN_FUZZ_EXAMPLES")
fuzzed = settings(
    max_examples=int(EXAMPLES or 150),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
MEANT = {100, 200, 400, 403, 404, 405, 408, 413, 415, 429, 431, 501, 505}

LINES = st.sampled_from(
    [
        b"POST /v1/echo HTTP/1.1", b"GET /v1/models HTTP/1.1", b"POST /v1/files HTTP/1.1",
        b"GET /v1/stream?count=2&pause=0 HTTP/1.1", b"HEAD / HTTP/1.1", b"POST /v1/small HTTP/1.0",
        b"GET /v1/models/%ff%00 HTTP/1.1", b"OPTIONS * HTTP/1.1", b"GET / HTTP/1.1", b"",
        b"Host: 127.0.0.1", b"Host: x", b"Content-Length: 5", b"Content-Length: 0",
        b"Content-Length: 99999999", b"Content-Length: x", b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip", b"Content-Encoding: gzip", b"Content-Encoding: deflate",
        b"Content-Encoding: br", b"Connection: close", b"Connection: keep-alive, Upgrade",
        b"Upgrade: h2c", b"Upgrade: websocket", b"Expect: 100-continue", b"Origin: x",
        b"Authorization: Bearer x", b" folded", b"X: \xff\xfe", b"5", b"hello", b"0", b"0;x=y",
        b"ffffffffffffffff", b"-1", b"\x1f\x8b\x08",
    ]
)  # fmt: skip
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b""])
TEXTS = st.lists(st.one_of(LINES, ENDS, st.binary(max_size=20)), max_size=30).map(b"".join)
RIGHT = st.lists(st.tuples(LINES, ENDS), max_size=25).map(
    lambda pairs: b"".join(line + end for line, end in pairs)
)


@pytest.fixture(scope="module")
def hasty(request):
    """A server that soon gives up on what is incomplete."""
    seconds = dict.fromkeys(("header_seconds", "body_seconds", "idle_seconds"), 0.05)
    with request.getfixturevalue("run_front")(limits=seconds) as front:
        yield front


def check(front, pieces):
    """Send pieces one after another; what comes back, if anything, is meant, and then it ends."""
    connection = front.connect()
    received = b""
    try:
        for piece in pieces:
            connection.send(piece)
        while piece := connection.socket.recv(65536):
            received += piece
    except ConnectionError:
        pass
    connection.close()
    if received:
        assert received.startswith(b"HTTP/1.1 ")
        assert int(received[9:12]) in MEANT, received
    assert b"nternal" not in received


@fuzzed
@given(data=st.one_of(RIGHT, TEXTS, st.binary(max_size=200)), cuts=st.lists(st.integers(1, 50)))
def test_any_bytes(hasty, data, cuts):
    pieces = []
    for cut in cuts:
        pieces.append(data[:cut])
        data = data[cut:]
    check(hasty, [*pieces, data])
    assert hasty.request("GET", "/v1/models")[0] == 200


@fuzzed
@given(body=st.binary(max_size=300), sizes=st.lists(st.integers(-1, 40), max_size=10))
def test_any_chunks(shared, body, sizes):
    """Chunks whose sizes are true come out whole; others are refused."""
    head = b"POST /v1/files HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks, at, honest = [], 0, True
    for size in sizes:
        honest = honest and size > 0 and at + size <= len(body)
        chunks.append(b"%x\r\n%b\r\n" % (abs(size), body[at : at + max(size, 0)]))
        at += max(size, 0)
    connection = shared.connect()
    connection.send(head + b"".join(chunks) + b"0\r\n\r\n")
    connection.socket.shutdown(1) if not honest else None
    response = connection.response()
    if honest:
        assert response[0] == 200
        assert response[2] == b"%d" % at
    elif response is not None:
        assert response[0] in (200, 400)
    connection.close()


@fuzzed
@given(
    content=st.binary(max_size=400),
    encoding=st.sampled_from(["gzip", "deflate"]),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
    cut=st.integers(0, 30),
)
def test_any_packed_body(shared, content, encoding, changes, cut):
    packed = bytearray(gzip.compress(content) if encoding == "gzip" else zlib.compress(content))
    for place, value in changes:
        packed[place % len(packed)] = value
    del packed[len(packed) - min(cut, len(packed)) :]
    status, _, body = shared.request("POST", "/v1/files", bytes(packed), content_encoding=encoding)
    if not changes and not cut:
        assert (status, body) == (200, b"%d" % len(content))
    assert status in (200, 400)
