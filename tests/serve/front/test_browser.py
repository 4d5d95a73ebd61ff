"""Web pages that the server was not started for get nothing from it."""

from __future__ import annotations

import pytest

PAGE = "https://page.example"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "localhost",
        "LOCALHOST:1",
        "[::1]:80",
        "192.168.1.5:8000",
        "good.example",
        "GOOD.example:8000",
        "[fe80::1]",
    ],
)
def test_hosts_that_are_this_one(front, host):
    running = front(hosts=frozenset({"good.example"}))
    assert running.request("GET", "/v1/models", host=host)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 403),
        ("good.example.evil.example", 403),
        ("xgood.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("2130706433", 403),
        ("good.example.", 403),
        ("", 400),
        ("good.example@evil.example", 400),
        ("good.example, evil.example", 400),
        ("good.example:port", 400),
        ("::1", 400),
        ("[good.example]", 400),
        ("good.example/x", 400),
    ],
)
def test_hosts_that_are_not(front, host, status):
    running = front(hosts=frozenset({"good.example"}))
    assert running.request("GET", "/health/live", host=host)[0] == status


def test_localhost_is_no_name_of_a_public_address():
    from hasten.errors import AccessError
    from hasten.serve.browser import BrowserGuard
    from hasten.serve.settings import ServerSettings

    guard = BrowserGuard(ServerSettings(host="10.0.0.1"))
    guard.check_host("10.0.0.1:8000")
    with pytest.raises(AccessError, match="--allow-host localhost"):
        guard.check_host("localhost")
    BrowserGuard(ServerSettings(host="10.0.0.1", hosts=frozenset("*"))).check_host("any.example")


def test_pages_are_refused(shared):
    for origin in (PAGE, "null", "http://127.0.0.1", "http://localhost", "", "file://"):
        status, headers, _ = shared.request("POST", "/v1/echo", b"x", origin=origin)
        assert status == 403
        assert not [name for name in headers if name.startswith("access-control")]
    assert shared.request("OPTIONS", "/v1/echo", origin=PAGE, access_control_request_method="POST")[
        0
    ] == (403)


def test_pages_that_are_allowed(front):
    from hasten.serve.auth import client_keys

    running = front(origins=frozenset({PAGE}), keys=client_keys(["key"]))
    question = {"access_control_request_method": "POST", "access_control_request_headers": "x-y"}
    status, headers, body = running.request("OPTIONS", "/v1/echo", origin=PAGE, **question)
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == PAGE
    assert headers["access-control-allow-headers"] == "x-y"
    assert headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in headers
    # The answer to the question is for nobody else, and is the same everywhere.
    assert running.request("OPTIONS", "/v1/echo", origin=PAGE + ".evil", **question)[0] == 403
    assert running.request("OPTIONS", "/nothing", origin=PAGE, **question)[0] == 204
    assert running.request("OPTIONS", "/v1/echo", **question)[0] == 401
    status, headers, _ = running.request("POST", "/v1/echo", b"x", origin=PAGE)
    assert (status, headers["access-control-allow-origin"]) == (401, PAGE)
    status, headers, _ = running.request("POST", "/v1/echo", b"x", origin=PAGE, x_api_key="key")
    assert (status, headers["access-control-allow-origin"]) == (200, PAGE)
