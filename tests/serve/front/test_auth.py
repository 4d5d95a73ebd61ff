"""Who may ask what: keys, deny by default, and what holds without keys."""

from __future__ import annotations

import hashlib
import json

import pytest

from hasten.errors import AccessError, AuthenticationError, UsageError
from hasten.serve.auth import (
    Authenticator,
    client_keys,
    is_loopback,
    key_digest,
    read_keys,
    refuse_open,
)
from hasten.serve.endpoint import Route
from hasten.serve.jobs import Client
from hasten.serve.settings import ServerSettings

KEYS = {key_digest("alice-key"): Client("alice", "alice", admin=False)} | {
    key_digest("root-key"): Client("root", "root")
}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer alice-key"},
        {"authorization": "bearer  alice-key "},
        {"x-api-key": "alice-key"},
        {"authorization": "Bearer alice-key", "x-api-key": "something"},
    ],
)
def test_a_key_names_its_client(headers):
    assert Authenticator(KEYS).client(headers, "127.0.0.1").name == "alice"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer alice-key2"},
        {"authorization": "Bearer alice-ke"},
        {"authorization": "Bearer ALICE-KEY"},
        {"authorization": "Bearer alice-key, Bearer root-key"},
        {"authorization": "Basic alice-key"},
        {"authorization": "alice-key"},
        {"authorization": "Bearer x", "x-api-key": "alice-key"},
        {"x-api-key": "Bearer alice-key"},
        {"x-api-key": key_digest("alice-key")},
        {"authorization": "Bearer Ā"},
        {"authorization": "Bearer \xe4"},
    ],
)
def test_anything_else_is_refused(headers):
    with pytest.raises(AuthenticationError) as caught:
        Authenticator(KEYS).client(headers, "127.0.0.1")
    assert "alice" not in str(caught.value)


def test_all_keys_are_compared(monkeypatch):
    """The time that it takes does not tell which one is alike."""
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    keys = client_keys(f"key{number}" for number in range(10))
    for key in ("key0", "key9"):
        assert Authenticator(keys).client({"x-api-key": key}, None).name.startswith("key-")
    assert len(compared) == 20


def test_managing_models_takes_an_admin():
    route = Route("POST", "/", None, None, "", admin=True)
    keyed, free = Authenticator(KEYS), Authenticator({})
    keyed.check(Client("root"), route)
    with pytest.raises(AccessError, match="'alice' may not manage"):
        keyed.check(Client("alice", admin=False), route)
    free.check(free.client({}, "127.0.0.1"), route)
    free.check(free.client({}, "::1"), route)
    passed_on = free.client({"x-forwarded-for": "9.9.9.9"}, "127.0.0.1")
    for client in (free.client({}, "192.168.1.1"), free.client({}, None), passed_on):
        with pytest.raises(AccessError, match="own machine"):
            free.check(client, route)


def write(tmp_path, document):
    path = tmp_path / "keys.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_file_of_keys(tmp_path):
    digest = hashlib.sha256(b"two").hexdigest()
    path = write(
        tmp_path,
        [
            {"name": "one", "key": "one-key", "admin": True},
            {"name": "two", "sha256": digest.upper(), "tenant": "both", "priority": -5}
            | {"concurrency": 2, "requests_per_minute": 60, "tokens_per_minute": 1000}
            | {"models": ["a", "b"]},
        ],
    )
    assert read_keys(path) == {
        key_digest("one-key"): Client("one", "one", admin=True),
        digest: Client("two", "both", -5, 2, 60, 1000, frozenset({"a", "b"}), admin=False),
    }


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ("", "are wrong"),
        ("{}", "are wrong"),
        ("[]", "holds no key"),
        ([{"key": "x"}], "name"),
        ([{"name": "a b", "key": "x"}], "name"),
        ([{"name": "a"}], "either 'key' or 'sha256'"),
        ([{"name": "a", "key": "x", "sha256": "0" * 64}], "either 'key' or 'sha256'"),
        ([{"name": "a", "sha256": "0" * 63}], "64 hexadecimal"),
        ([{"name": "a", "key": ""}], "of 0 characters"),
        ([{"name": "a", "key": "has space"}], "of 9 characters"),
        ([{"name": "a", "key": "x", "admn": True}], "admn"),
        ([{"name": "a", "key": "x", "concurrency": 0}], "concurrency"),
        ([{"name": "a", "key": "x", "priority": 1.5}], "priority"),
        ([{"name": "a", "key": "x"}, {"name": "a", "key": "y"}], "the same name"),
        ([{"name": "a", "key": "x"}, {"name": "b", "key": "x"}], "the same key"),
    ],
)
def test_wrong_files_of_keys(tmp_path, document, error):
    with pytest.raises(UsageError) as caught:
        read_keys(write(tmp_path, document))
    assert error in str(caught.value)
    assert "has space" not in str(caught.value)


def test_a_file_of_keys_that_is_no_text(tmp_path):
    path = tmp_path / "keys.json"
    path.write_bytes(b'[{"name": "\xff", "key": "x"}]')
    with pytest.raises(UsageError, match="are wrong"):
        read_keys(path)


def test_a_missing_file_of_keys(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_keys(tmp_path / "none.json")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.org", ""])
def test_a_server_for_others_needs_keys(host):
    with pytest.raises(UsageError, match="--no-auth"):
        refuse_open(ServerSettings(host=host), accepted=False)
    refuse_open(ServerSettings(host=host), accepted=True)
    refuse_open(ServerSettings(host=host, keys=KEYS), accepted=False)


def test_loopback():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "::ffff:127.0.0.1"):
        refuse_open(ServerSettings(host=host), accepted=False)
        assert is_loopback(host)


SPELLINGS = [
    "/", "//", "/v1/models", "//v1/models", "/V1/models", "/v1/models/", "/v1//models", "/%2e/v1",
    "/v1/%2e%2e/v1/models", "/v1%2fmodels", "/%76%31/models", "/v1/models%00", "/v1/models?x=1",
    "/v1/models;a", "/./v1/models", "/health/live/../../v1/models", "/health/live/",
    "/health/liveX", "/health//live", "/health%2flive", "/health/live%00", "/HEALTH/LIVE",
    "/health/live;/v1/models", "/openapi.json", "/metrics", "/docs", "/favicon.ico",
    "/robots.txt", "/.env", "/admin",
]  # fmt: skip
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


def places(routes):
    for listed in routes.values():
        for route in listed:
            path = route.path.replace("{model:path}", "org/name").replace("{digest}", "sha256:0")
            assert "{" not in path or path.count("{") == route.path.count("{")
            yield route, path.replace("{", "").replace("}", "")


def denied(running, method, path, **headers):
    status, replied, _ = running.request(method, path, **headers)
    return status == 401 and replied["www-authenticate"] == "Bearer"


def test_everything_needs_a_key(front):
    running = front(keys=KEYS)
    for path in SPELLINGS:
        for method in METHODS:
            assert denied(running, method, path), (method, path)
    assert running.request("GET", "/health/live")[0] == 200
    assert running.request("HEAD", "/health/live")[0] == 200
    assert denied(running, "GET", "/health/live", x_api_key="wrong")
    assert denied(running, "GET", "/v1/models", x_api_key="wrong")
    assert running.request("GET", "/v1/models", x_api_key="alice-key")[0] == 200
    assert running.request("POST", "/v1/models", x_api_key="alice-key")[0] == 405
    assert running.request("POST", "/api/delete", x_api_key="alice-key")[0] == 403
    assert running.request("POST", "/api/delete", x_api_key="root-key")[0] == 200


def test_every_route_of_the_server_needs_a_key(front):
    from hasten.serve.assemble import all_routes

    routes = all_routes()
    running = front(routes=routes, keys=KEYS)
    opened = set()
    for route, path in places(routes):
        for method in METHODS:
            for spelling in (path, "/" + path, path + "/", path.upper(), path + "?key=alice-key"):
                known = spelling.split("?")[0] == route.path
                if known and route.open and method in ("GET", "HEAD"):
                    opened.add(route.path)
                    continue
                assert denied(running, method, spelling), (method, spelling)
        if route.admin:
            assert running.request(route.method, path, x_api_key="alice-key")[0] == 403, path
    assert opened == {"/health", "/health/live", "/health/ready"}


def test_nobody_without_a_key_makes_the_server_read(front):
    running = front(keys=KEYS)
    connection = running.connect()
    connection.send(b"POST /v1/echo HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 1000000\r\n\r\n")
    status, headers, _ = connection.response()
    assert (status, headers["connection"]) == (401, "close")
    assert not running.service.calls
