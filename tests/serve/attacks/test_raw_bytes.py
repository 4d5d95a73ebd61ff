"""Real requests, damaged at random, over sockets: each is answered with what is meant, or cut.

`HASTEN_FUZZ_EXAMPLES` sets how many are tried; with it they differ from run to run.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from contextlib import closing, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_client import Connection

EXAMPLES = os.environ.get("HASTEN_FUZZ_EXAMPLES")
MEANT = {100, 200, 201, 204, 400, 403, 404, 405, 408, 413, 415, 429, 431, 501, 503, 504, 505}
NO_BRACKETS = b"the structure cannot be followed"
"""What is said of JSON where a vocabulary, as that of the tiny model, has no brackets; a 500."""
GROWTH = 96 << 20
"""Bytes that caches may take; what leaked with each request would be more."""

ASKED = {"model": "tiny", "max_tokens": 2}
MESSAGES = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
TOOL = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
FORM = (
    b'--xx\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--xx\r\n'
    b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\n\r\n--xx--\r\n'
)
BODIES = {
    "POST /v1/chat/completions": ASKED
    | {"messages": MESSAGES, "stream": True, "tools": [{"type": "function", "function": TOOL}]},
    "POST /v1/completions": ASKED
    | {"prompt": ["a", "b"], "n": 2, "stop": ["x"], "logprobs": 2, "logit_bias": {"3": 1}},
    "POST /v1/embeddings": {"model": "vectors", "input": ["a", "b"], "dimensions": 4},
    "POST /v1/responses": {"model": "tiny", "input": "a", "max_output_tokens": 2, "stream": True},
    "POST /v1/responses/input_tokens": {"model": "tiny", "input": MESSAGES},
    "POST /v1/messages": ASKED | {"messages": MESSAGES, "system": "s", "temperature": 0.5},
    "POST /v1/messages/count_tokens": {"model": "tiny", "messages": MESSAGES},
    "POST /v1/batches": {"input_file_id": "file-0", "endpoint": "/v1/completions"}
    | {"completion_window": "24h", "metadata": {"a": "b"}},
    "POST /api/generate": {"model": "tiny", "prompt": "a", "options": {"num_predict": 2}},
    "POST /api/chat": {"model": "tiny", "messages": MESSAGES, "format": {"type": "object"}}
    | {"options": {"num_predict": 2}},
    "POST /api/embed": {"model": "vectors", "input": "a"},
    "POST /api/show": {"model": "tiny"},
    "POST /api/copy": {"source": "tiny", "destination": "copied"},
    "POST /api/create": {"model": "made", "from": "tiny", "parameters": {"top_k": 3}},
    "POST /api/pull": {"model": "smollm3"},
    "DELETE /api/delete": {"model": "copied"},
    f"POST /api/blobs/sha256:{hashlib.sha256(b'abc').hexdigest()}": b"abc",
    "POST /v1/files": FORM,
    "GET /v1/files?limit=3&order=asc&after=x": b"",
    "GET /v1/models/tiny": b"",
    "GET /api/ps": b"",
    "GET /metrics": b"",
}
HEADERS = st.sampled_from(
    [
        *("Content-Length: 3", "Transfer-Encoding: chunked", "Content-Encoding: gzip"),
        *("Content-Encoding: deflate", "Expect: 100-continue", "Connection: close", "Host: evil"),
        *("Origin: https://evil", "Authorization: Bearer x", "X-Api-Key: x", "Upgrade: websocket"),
        *("Cache-Control: no-cache", "Accept: application/openmetrics-text", "Traceparent: 00-x"),
        *("X-Request-Id: a", "X: " + "y" * 5000, "Content-Type: text/plain", "Range: bytes=0-"),
    ]
)
EDITS = st.tuples(
    st.sampled_from(["flip", "cut", "put", "double", "end"]),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(
        [b"\0", b"\xff", b"\r\n", b'"', b"[", b"{", b"-1", b"1e999", b"NaN", b"\\ud800"]
    )
    | st.binary(min_size=1, max_size=4),
)
FRAMES = st.sampled_from(["length", "chunked", "gzip", "deflate", "short", "long", "none"])


@st.composite
def requests(draw):
    """A request that was right, and what became of it: pieces to send one after another."""
    place = draw(st.sampled_from(list(BODIES)))
    body = BODIES[place] if isinstance(BODIES[place], bytes) else json.dumps(BODIES[place]).encode()
    body = edited(body, draw(st.lists(EDITS, max_size=2)))
    head = [f"{place} HTTP/1.1", "Host: 127.0.0.1", *draw(st.lists(HEADERS, max_size=2))]
    if body.startswith(b"--"):
        head.append("Content-Type: multipart/form-data; boundary=xx")
    frame = draw(FRAMES)
    if frame in ("gzip", "deflate"):
        head.append(f"Content-Encoding: {frame}")
        body = gzip.compress(body) if frame == "gzip" else zlib.compress(body)
    if frame == "chunked":
        head.append("Transfer-Encoding: chunked")
        size = draw(st.integers(1, 64))
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in [*pieces, b""])
    elif frame != "none":
        lie = {"short": -3, "long": 3}.get(frame, 0)
        head.append(f"Content-Length: {max(0, len(body) + lie)}")
    whole = "\r\n".join(head).encode() + b"\r\n\r\n" + body
    if draw(st.booleans()):
        whole = edited(whole, draw(st.lists(EDITS, max_size=2)))
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def edited(data, edits):
    """Bytes with some of them changed."""
    for how, place, new in edits:
        at = int(place * len(data))
        match how:
            case "flip" | "put":
                data = data[:at] + new + data[at + len(new) * (how == "flip") :]
            case "cut":
                data = data[:at] + data[at + len(new) :]
            case "double":
                data = data[:at] + data[max(0, at - 20) : at] + data[at:]
            case "end":
                data = data[:at]
    return data


@pytest.fixture(scope="module")
def hasty(start_server):
    """A server that soon gives up on what is incomplete."""
    seconds = dict.fromkeys(("header_seconds", "body_seconds", "idle_seconds"), 0.05)
    with start_server(limits=seconds, environment={"HF_HUB_OFFLINE": "1"}) as running:
        yield running


def statuses(received):
    """Those of the responses that came one after another."""
    found = []
    while received.startswith(b"HTTP/1.1 "):
        found.append(int(received[9:12]))
        received = (
            received[received.find(b"HTTP/1.1 ", 1) :] if b"HTTP/1.1 " in received[1:] else b""
        )
    return found


def exchange(server, pieces):
    """All that comes back until the server closes; it must."""
    received = b""
    with closing(Connection(server.port)) as connection:
        connection.socket.settimeout(60)
        with suppress(ConnectionError):
            for piece in pieces:
                connection.send(piece)
        with suppress(ConnectionError):
            while piece := connection.socket.recv(65536):
                received += piece
    return received


def test_damaged_requests(hasty):
    answered = []

    @settings(
        max_examples=int(EXAMPLES or 150),
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(requests())
    def damage(pieces):
        received = exchange(hasty, pieces)
        found = statuses(received)
        assert bool(found) == bool(received)
        assert set(found) <= MEANT or NO_BRACKETS in received, received
        answered.extend(found)

    assert hasty.well()
    descriptors, tasks, memory = hasty.descriptors(), hasty.tasks(), hasty.memory()
    damage()
    assert hasty.well()
    assert hasty.settled(descriptors, tasks)
    assert hasty.memory() < memory + GROWTH
    # Nothing would be learned of requests that all end at the front.
    assert answered.count(200) > len(answered) // 10
