"""Requests and replies as clients see them."""

from __future__ import annotations

import gzip
import json
import time
import zlib

import pytest

HOST = b"Host: 127.0.0.1\r\n"


def told(body):
    return json.loads(body)["error"]["message"]


def test_a_request_and_its_reply(shared):
    status, headers, body = shared.request("POST", "/v1/echo", b"12345")
    assert (status, json.loads(body)) == (200, {"length": 5, "model": None})
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert "date" in headers
    assert "server" not in headers
    assert "connection" not in headers


def test_connections_are_kept(shared):
    connection = shared.connect()
    for _ in range(3):
        connection.send(b"POST /v1/echo HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\nab")
        assert json.loads(connection.response()[2])["length"] == 2


def test_pipelined_requests_are_answered_in_order(shared):
    connection = shared.connect()
    one = b"POST /v1/echo HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n%b"
    connection.send(b"".join(one % (size, b"x" * size) for size in range(6)))
    assert [json.loads(connection.response()[2])["length"] for _ in range(6)] == list(range(6))


def test_a_chunked_body(shared):
    head = b"POST /v1/echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    chunks = b"3\r\nabc\r\n2;name=value\r\nde\r\n0\r\nHost: elsewhere\r\n\r\n"
    assert json.loads(shared.ask(head + chunks)[2])["length"] == 5
    assert shared.service.calls[-1].headers["host"] == "127.0.0.1"  # trailers are no headers


def test_expect_continue(shared):
    connection = shared.connect()
    connection.send(
        b"POST /v1/echo HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert connection.response()[0] == 100
    connection.send(b"ab")
    assert connection.response()[0] == 200
    assert (
        shared.request("POST", "/v1/nothing", expect="100-continue", content_length="2")[0] == 404
    )


def test_request_ids(shared):
    wait = shared.connect()
    assert shared.request("GET", "/v1/models", x_request_id="my-1.2:3_4")[1]["x-request-id"] == (
        "my-1.2:3_4"
    )
    for bad in ("a b", "x" * 129, "ä", "", '"'):
        headers = shared.request("GET", "/v1/models", x_request_id=bad)[1]
        assert len(headers["x-request-id"]) == 24
        assert headers["request-id"] == headers["x-request-id"]
    # An id that is in use is not given twice.
    shared.service.release.clear()
    wait.send(b"GET /v1/wait HTTP/1.1\r\nx-request-id: same\r\n" + HOST + b"\r\n")
    assert shared.service.saw("waiting")
    assert shared.request("GET", "/v1/models", x_request_id="same")[1]["x-request-id"] != "same"
    shared.service.release.set()
    assert wait.response()[1]["x-request-id"] == "same"


def test_unknown_paths_and_methods(shared):
    status, _, body = shared.request("GET", "/v1/nothing")
    assert (status, told(body)) == (404, "there is nothing at '/v1/nothing'; see /openapi.json")
    status, headers, body = shared.request("DELETE", "/v1/models")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert "other" in json.loads(shared.request("GET", "/api/nothing")[2])
    assert "other" in json.loads(shared.request("PUT", "/api/delete")[2])
    assert shared.request("GET", "/")[0] == 404


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/V1/models",
        "/v1%2fmodels",
        "/v1/./models",
        "/%761/models",
        "/v1//models",
        "/v1/models/",
        "/v1/models/x/..",
        "/v1/echo/..%2fmodels",
        "/v1/models;x",
        "/v1/models%00",
    ],
)
def test_paths_are_not_normalised(shared, path):
    status, _, body = shared.request("GET", path)
    # What is behind /v1/models/ is the name of a model, whatever it looks like.
    assert status == 404 or json.loads(body)["model"] == "x/.."


def test_values_in_paths_are_decoded(shared):
    answer = json.loads(shared.request("GET", "/v1/models/org%2Fname%20%C3%A4")[2])
    assert answer["model"] == "org/name ä"


def test_the_query(shared):
    shared.request("POST", "/v1/echo?a=1&b=%20x&a=2&c=")
    assert shared.service.calls[-1].query == {"a": "2", "b": " x", "c": ""}
    fields = "&".join(f"f{number}=1" for number in range(65))
    assert shared.request("POST", f"/v1/echo?{fields}")[0] == 400


def test_head_is_get_without_a_body(shared):
    connection = shared.connect()
    connection.send(b"HEAD /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
    status, headers, _ = connection.response("HEAD")
    assert (status, headers["content-length"]) == (200, "28")
    connection.send(b"HEAD /v1/stream HTTP/1.1\r\n" + HOST + b"\r\n")
    assert connection.response("HEAD")[0] == 200
    connection.send(b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n")
    assert connection.response()[0] == 200


def test_a_stream(shared):
    status, headers, body = shared.request("GET", "/v1/stream?count=3")
    assert (status, body) == (200, b"data: 0\n\ndata: 1\n\ndata: 2\n\n")
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache"


def test_http_1_0_gets_no_chunks(shared):
    connection = shared.connect()
    connection.send(b"GET /v1/stream?count=2 HTTP/1.0\r\n\r\n")
    status, headers, body = connection.response()
    assert (status, body) == (200, b"data: 0\n\ndata: 1\n\n")
    assert headers["content-length"] == str(len(body))
    assert connection.closed()


def test_errors(shared):
    status, headers, body = shared.request("GET", "/v1/fail")
    assert (status, told(body)) == (400, "wrong; allowed: right")
    assert "retry-after" not in headers
    status, headers, _ = shared.request("GET", "/v1/fail?how=full")
    assert (status, headers["retry-after"], headers["retry-after-ms"]) == (503, "1", "250")


def test_bugs_are_told_to_the_log_alone(shared, caplog):
    status, _, body = shared.request("GET", "/v1/fail?how=bug")
    assert (status, told(body)) == (500, "internal error")
    assert "RuntimeError: secret" in caplog.text


def test_a_stream_that_breaks_is_cut(shared):
    connection = shared.connect()
    connection.send(b"GET /v1/stream?break=1 HTTP/1.1\r\n" + HOST + b"\r\n")
    received = b""
    while piece := connection.socket.recv(65536):
        received += piece
    assert b"data: 1" in received
    assert not received.endswith(b"0\r\n\r\n")
    assert b"secret" not in received


def test_headers_stay_in_their_line(front):
    from hasten.serve.app import PlainDialect
    from hasten.serve.endpoint import Reply, Route

    async def evil(call):
        return Reply(b"", headers={"x-hasten-ignored": "a\r\nset-cookie: ä"})

    running = front(routes={"test": [Route("GET", "/", evil, PlainDialect(), "Evil")]})
    headers = running.request("GET", "/")[1]
    assert headers["x-hasten-ignored"] == "a??set-cookie: ?"


def test_bodies_within_limits(front):
    running = front(limits={"body": 1000, "upload": 2000})
    for path, limit in [("/v1/echo", 1000), ("/v1/small", 10), ("/v1/files", 2000)]:
        assert running.request("POST", path, b"x" * limit)[0] == 200
        status, headers, body = running.request("POST", path, b"x" * (limit + 1))
        assert (status, headers["connection"]) == (413, "close")
        assert str(limit) in told(body)
        # Without a length, as much is read as may be.
        head = f"POST {path} HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\n\r\n"
        chunks = b"1\r\nx\r\n" * (limit + 1)
        assert running.ask(head.encode() + chunks)[0] == 413
    # A length is refused before the body comes, even where the client would send it never.
    assert running.request("POST", "/v1/echo", content_length="1001")[0] == 413


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "GZIP"])
def test_packed_bodies(shared, encoding):
    pack = zlib.compress if encoding == "deflate" else gzip.compress
    for size in (0, 1, 100_000, 1_000_000):
        body = pack(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
        answer = shared.request("POST", "/v1/echo", body, content_encoding=encoding)
        assert json.loads(answer[2])["length"] == size
    raw = zlib.compressobj(wbits=-15)
    body = raw.compress(b"abc") + raw.flush()
    assert shared.request("POST", "/v1/echo", body, content_encoding="deflate")[0] == 200


def test_a_packed_upload(shared):
    assert shared.request(
        "POST", "/v1/files", gzip.compress(b"x" * 70_000), content_encoding="gzip"
    )[2] == (b"70000")


def test_a_bomb_is_small_when_it_is_refused(front):
    running = front(limits={"body": 1 << 20})
    bomb = gzip.compress(b"\0" * (200 << 20))
    assert len(bomb) < 1 << 20
    status, _, body = running.request("POST", "/v1/echo", bomb, content_encoding="gzip")
    assert status == 413
    assert "1048576 bytes, unpacked" in told(body)


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("br", b"x", 415),
        ("zstd", b"x", 415),
        ("gzip, gzip", gzip.compress(gzip.compress(b"x")), 415),
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(b"x")[:-1], 400),
        ("gzip", gzip.compress(b"x") + b"more", 400),
        ("gzip", gzip.compress(b"x") + gzip.compress(b"y"), 400),
        ("gzip", gzip.compress(b"x" * 100)[:-6] + b"123456", 400),
        ("deflate", b"not deflate", 400),
        ("identity", b"x", 200),
    ],
)
def test_bodies_that_cannot_be_unpacked(shared, encoding, body, status):
    assert shared.request("POST", "/v1/echo", body, content_encoding=encoding)[0] == status


def test_all_bodies_together_are_bounded(front):
    running = front(limits={"body": 1000})
    running.service.release.clear()
    waiting = [running.connect() for _ in range(8)]
    for connection in waiting:
        connection.send(
            b"POST /v1/wait HTTP/1.1\r\nContent-Length: 1000\r\n" + HOST + b"\r\n" + b"x" * 1000
        )
    while running.service.events.count("waiting") < 8:
        running.service.saw("never", 0.01)
    status, headers, _ = running.request("POST", "/v1/echo", b"x")
    assert (status, headers["retry-after"]) == (503, "1")
    running.service.release.set()
    assert [connection.response()[0] for connection in waiting] == [200] * 8
    assert running.request("POST", "/v1/echo", b"x" * 1000)[0] == 200


def test_access_is_logged_without_secrets(front, caplog):
    caplog.set_level("INFO", "hasten.serve.access")
    running = front()
    running.request("POST", "/v1/echo?api_key=secret1", b"secret2", authorization="Bearer secret3")
    running.request("GET", "/v1/nothing")
    end = time.monotonic() + 5
    while len(lines := [one for one in caplog.records if one.name == "hasten.serve.access"]) < 2:
        assert time.monotonic() < end  # a line is written after its reply
    assert [line.getMessage() for line in lines] == ["POST /v1/echo 200", "GET /v1/nothing 404"]
    assert not any("secret" in str(vars(line)) for line in lines)


def test_a_silent_stream_shows_that_it_is_alive(front):
    one = front(limits={"beat_seconds": 0.02})
    _, _, body = one.request("GET", "/v1/stream?count=3&pause=0.2&beat=%3A+still%0A%0A")
    for number in range(3):
        assert body.count(b"data: %d\n\n" % number) == 1
    assert body.index(b": still\n\n") < body.index(b"data: 0") < body.rindex(b": still\n\n")
    assert not body.replace(b": still\n\n", b"").replace(b"data: ", b"").strip(b"012\n")
    _, _, body = one.request("GET", "/v1/stream?count=30&pause=0.001&beat=%3A+still%0A%0A")
    assert body.count(b"data: ") == 30
    _, _, body = one.request("GET", "/v1/stream?count=1&pause=0.2")
    assert body == b"data: 0\n\n"
