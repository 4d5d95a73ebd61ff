"""What clients send that is no request, or is one too slowly, too often, or in two readings."""

from __future__ import annotations

import json
import time

import pytest

HOST = b"Host: 127.0.0.1\r\n"
GET = b"GET /v1/models HTTP/1.1\r\n" + HOST
POST = b"POST /v1/echo HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

BROKEN = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60) + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
    "small letters": b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 in words": b"GET / HTTP/0.9\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": GET + HOST + b"\r\n",
    "whole URL": b"GET http://127.0.0.1/v1/models HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT 127.0.0.1:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "bytes in the path": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in the path": b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "space in the path": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "fragment": b"GET /v1/models#x HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in a header": GET + b"X: a\0b\r\n\r\n",
    "header without colon": GET + b"X\r\n\r\n",
    "space before colon": GET + b"X : y\r\n\r\n",
    "empty name": GET + b": y\r\n\r\n",
    "folded header": GET + b"X: a\r\n b\r\n\r\n",
    "folded at once": GET + b" X: a\r\n\r\n",
    "CR in a header": GET + b"X: a\rY: b\r\n\r\n",
    "LF after a header": GET + b"X: a\nY: b\r\n\r\n",
    "LF alone": b"GET /v1/models HTTP/1.1\nHost: 127.0.0.1\n\n",
    "length and coding": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "two equal lengths": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "list of lengths": POST + b"Content-Length: 1, 1\r\n\r\na",
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "signed length": POST + b"Content-Length: +1\r\n\r\na",
    "hexadecimal length": POST + b"Content-Length: 0x1\r\n\r\na",
    "no length": POST + b"Content-Length:\r\n\r\n",
    "huge length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "length of 19 digits": POST + b"Content-Length: 1000000000000000000\r\n\r\n",
    "two codings": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "coding before chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding after chunked": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding with a tab": POST + b"Transfer-Encoding:\tchunked\x0b\r\n\r\n0\r\n\r\n",
    "coding in 1.0": b"POST /v1/echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad chunk size": CHUNKED + b"x\r\nabc\r\n0\r\n\r\n",
    "signed chunk size": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "0x chunk size": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "huge chunk size": CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "no chunk size": CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "space after chunk size": CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n",
    "chunk size ends with LF": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "chunk too long": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "chunk without end": CHUNKED + b"3\r\nabc0\r\n\r\n",
    "bad trailer": CHUNKED + b"0\r\nX\r\n\r\n",
    "websocket": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "unknown upgrade": POST + b"Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\na",
    "two keys": GET + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("cut", [0, 1, 7], ids=["whole", "in bytes", "in pieces"])
def test_what_can_be_read_in_two_ways_is_refused(shared, name, cut):
    """Nothing after it is read either: who sent it may mean it to be another request."""
    connection = shared.connect()
    data = BROKEN[name] + b"\r\n" * 2 + GET + b"x-request-id: smuggled\r\n\r\n"
    try:
        for start in range(0, len(data), cut or len(data)):
            connection.send(data[start : start + (cut or len(data))])
    except ConnectionError:
        pass  # it had read enough
    status, headers, body = connection.response()
    assert 400 <= status <= 505
    assert headers["connection"] == "close"
    assert json.loads(body)["error"]["message"]
    assert connection.response() is None


def test_a_broken_request_behind_others(shared):
    """Those before it are answered first, each once."""
    shared.service.release.clear()
    connection = shared.connect()
    wait = b"GET /v1/wait HTTP/1.1\r\n" + HOST + b"\r\n"
    connection.send(wait + GET + b"\r\n" + BROKEN["two lengths"] + GET + b"\r\n")
    time.sleep(0.05)
    shared.service.release.set()
    assert [connection.response()[0] for _ in range(3)] == [200, 200, 400]
    assert connection.response() is None


def test_a_broken_body_behind_others(shared):
    shared.service.release.clear()
    connection = shared.connect()
    connection.send(b"GET /v1/wait HTTP/1.1\r\n" + HOST + b"\r\n" + CHUNKED + b"3\r\nab")
    time.sleep(0.05)
    connection.send(b"cd\r\n")
    time.sleep(0.05)
    shared.service.release.set()
    assert [connection.response()[0] for _ in range(2)] == [200, 400]
    assert connection.response() is None


def test_java_offers_http_2(shared):
    """As its client does with every request; the body must not get lost over it."""
    connection = shared.connect()
    head = (
        b"POST /v1/echo HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        + HOST
        + b"Content-Length: 5\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
        b"Upgrade: h2c\r\n\r\n"
    )
    for _ in range(2):
        connection.send(head + b"12345")
        assert json.loads(connection.response()[2])["length"] == 5
    connection.send(CHUNKED + b"e\r\n\r\nUpgrade: h2c\r\n0\r\n\r\n")  # a body stays as it is
    assert json.loads(connection.response()[2])["length"] == 14


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X: " + b"y" * 40_000,
        GET + b"X" * 40_000,
        GET + b"".join(b"X-%d: y\r\n" % number for number in range(200)),
        GET + b"X: y\r\n" * 10_000,
        b"GET /" + b"x" * 40_000,
        b"GET /v1/models?" + b"x" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"\r\n" * 20_000,
        CHUNKED + b"0\r\nX: " + b"y" * 40_000,
        CHUNKED + b"0\r\n" + b"X: y\r\n" * 10_000,
        CHUNKED + b"3;" + b"x" * 400_000,
    ],
    ids=[
        "value",
        "name",
        "many",
        "flood",
        "path",
        "query",
        "lines",
        "trailer",
        "trailers",
        "chunk",
    ],
)
@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_heads_are_bounded(shared, head, size):
    connection = shared.connect()
    try:
        for start in range(0, len(head), size):
            connection.send(head[start : start + size])
    except ConnectionError:
        pass
    if head.startswith(b"\r\n"):
        connection.send(b"x")
    assert connection.response()[0] in (431, 400)
    assert connection.closed()


def test_heads_that_just_fit(shared):
    assert shared.ask(GET + b"X: " + b"y" * 32_000 + b"\r\n\r\n")[0] == 200
    assert shared.ask(GET + b"X: y\r\n" * 127 + b"\r\n")[0] == 200
    assert shared.ask(GET + b"X: y\r\n" * 128 + b"\r\n")[0] == 431


def test_slow_heads(front):
    running = front(limits={"header_seconds": 0.3})
    connection = running.connect()
    started = time.monotonic()
    connection.send(b"GET /v1/models HT")
    for letter in (b"T", b"P", b"/"):
        time.sleep(0.05)
        connection.send(letter)
    assert connection.response()[0] == 408
    assert time.monotonic() - started < 5
    assert connection.closed()
    again = running.connect()  # the second request of a connection has no more time
    again.send(GET + b"\r\nGET")
    assert again.response()[0] == 200
    assert again.response()[0] == 408


def test_slow_bodies(front):
    running = front(limits={"body_seconds": 0.3})
    for path in ("echo", "files"):
        connection = running.connect()
        connection.send(b"POST /v1/%b HTTP/1.1\r\n" % path.encode() + HOST)
        connection.send(b"Content-Length: 100\r\n\r\nabc")
        status, headers, _ = connection.response()
        assert (status, headers["connection"]) == (408, "close")
        assert connection.closed()
    drip = running.connect()
    drip.send(POST + b"Content-Length: 100\r\n\r\n")
    try:
        for _ in range(20):
            time.sleep(0.05)
            drip.send(b"x")
    except ConnectionError:
        pass
    assert drip.response()[0] == 408


def test_idle_connections_are_closed(front):
    running = front(limits={"idle_seconds": 0.2})
    silent = running.connect()
    assert silent.closed()
    connection = running.connect()
    connection.send(GET + b"\r\n")
    assert connection.response()[0] == 200
    assert connection.closed()


def test_a_client_that_leaves_cancels_its_request(shared):
    for method in ("GET", "POST"):
        shared.service.events.clear()
        shared.service.release.clear()
        connection = shared.connect()
        connection.send(f"{method} /v1/wait HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode())
        connection.send(b"Content-Length: 3\r\n\r\nabc")
        assert shared.service.saw("waiting")
        connection.close()
        assert shared.service.saw("cancelled")


def test_a_client_that_leaves_cancels_its_stream(shared):
    for query in ("", "?pause=1000"):  # one that flows, one that waits for the model
        shared.service.events.clear()
        connection = shared.connect()
        connection.send(f"GET /v1/stream{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert connection.file.readline() == b"HTTP/1.1 200 OK\r\n"
        connection.close()
        assert shared.service.saw("stream closed")


def test_a_client_that_leaves_while_others_wait_behind(shared):
    shared.service.events.clear()
    shared.service.release.clear()
    connection = shared.connect()
    wait = b"GET /v1/wait HTTP/1.1\r\n" + HOST + b"\r\n"
    connection.send(wait)
    assert shared.service.saw("waiting")
    connection.send(wait * 3)
    time.sleep(0.05)
    connection.close()
    assert shared.service.saw("cancelled")
    time.sleep(0.05)
    assert shared.service.events == ["waiting", "cancelled"]
    shared.service.release.set()


def test_a_client_that_leaves_in_its_body(front, caplog):
    caplog.set_level("INFO", "hasten.serve.access")
    running = front()
    for path in ("echo", "files"):
        connection = running.connect()
        connection.send(b"POST /v1/%b HTTP/1.1\r\n" % path.encode() + HOST)
        connection.send(b"Content-Length: 100\r\n\r\nabc")
        time.sleep(0.05)
        connection.close()
    end = time.monotonic() + 5
    while len(caplog.records) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert [record.disconnected for record in caplog.records] == [True, True]
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]


def test_a_reader_that_stalls_is_cut(front):
    running = front(limits={"write_seconds": 0.3})
    connection = running.connect()
    connection.send(b"GET /v1/stream?pause=0&size=60000 HTTP/1.1\r\n" + HOST + b"\r\n")
    assert running.service.saw("stream closed", 10)


def test_a_slow_reader_is_not_cut(front):
    running = front(limits={"write_seconds": 0.5})
    connection = running.connect()
    connection.send(b"GET /v1/stream?pause=0&size=200000&count=100 HTTP/1.1\r\n" + HOST + b"\r\n")
    total = 0
    while total < 20_000_000:
        time.sleep(0.02)
        piece = connection.socket.recv(1 << 18)
        assert piece
        total += len(piece)


def test_a_whole_answer_that_nobody_reads(front):
    """It is complete for the application, and still does not hold its connection for ever."""
    from hasten.serve.app import PlainDialect
    from hasten.serve.endpoint import Reply, Route

    async def large(call):
        return Reply(b"x" * (20 << 20))

    routes = {"test": [Route("GET", "/", large, PlainDialect(), "Large")]}
    running = front(routes=routes, limits={"write_seconds": 0.3, "idle_seconds": 0.3})
    connection = running.connect()
    connection.send(b"GET / HTTP/1.1\r\n" + HOST + b"\r\n")
    end = time.monotonic() + 10
    time.sleep(0.1)
    while running.server.connections and time.monotonic() < end:
        time.sleep(0.01)
    assert not running.server.connections


def test_connections_are_bounded(front):
    running = front(limits={"connections": 3})
    held = [running.connect() for _ in range(3)]
    for connection in held:
        connection.send(GET + b"\r\n")
        assert connection.response()[0] == 200
    refused = running.connect()
    status, headers, _ = refused.response()  # before it has asked anything
    assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
    assert refused.closed()
    held[0].close()
    end = time.monotonic() + 5
    while running.server.connections >= 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert running.request("GET", "/v1/models")[0] == 200


def test_requests_behind_one_another_are_bounded(shared):
    shared.service.release.clear()
    connection = shared.connect()
    wait = b"GET /v1/wait HTTP/1.1\r\n" + HOST + b"\r\n"
    connection.send(wait + (GET + b"\r\n") * 10_000)
    time.sleep(0.1)
    shared.service.release.set()
    statuses = []
    while (response := connection.response()) is not None:
        statuses.append(response[0])
    assert statuses == [200] * 9 + [429]


def test_a_refused_body_is_not_read_for_ever(front):
    running = front(limits={"body": 1000})
    connection = running.connect()
    connection.send(POST + b"Content-Length: 100000000\r\n\r\n")
    started = time.monotonic()

    def go_on():
        for _ in range(10_000):
            connection.send(b"x" * 10_000)
            time.sleep(0.001)

    with pytest.raises(ConnectionError):
        go_on()
    assert time.monotonic() - started < 8


def test_nothing_is_left_of_clients_that_leave(front):
    """Whenever they do; 200 connections at once, each cut at another place."""
    running = front()
    requests = [
        POST + b"Content-Length: 2000\r\n\r\n" + b"x" * 2000,
        CHUNKED + b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n",
        b"GET /v1/stream HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /v1/wait HTTP/1.1\r\n" + HOST + b"\r\n",
        b"POST /v1/files HTTP/1.1\r\nContent-Length: 900\r\n" + HOST + b"\r\n" + b"x" * 900,
        GET + b"\r\n" + GET + b"\r\n",
    ]
    for part in range(1, 6):
        connections = [running.connect() for _ in range(200)]
        for number, connection in enumerate(connections):
            data = requests[number % len(requests)]
            connection.send(data[: len(data) * part // 5])
        for connection in connections:
            connection.close()
    app, tasks = running.server._app, running.server._state.tasks
    end = time.monotonic() + 10
    while (running.server.connections or tasks) and time.monotonic() < end:
        time.sleep(0.01)
    assert (running.server.connections, len(tasks)) == (0, 0)
    assert (len(app._ids), app._bodies.held) == (0, 0)
    assert running.request("GET", "/v1/models")[0] == 200
