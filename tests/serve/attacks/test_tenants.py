"""A server with keys: nothing without one, and nothing of another tenant's."""

from __future__ import annotations

import json
import time

import pytest

from hasten.serve.assemble import all_routes

KEYS = {
    "alice-key": {"name": "alice", "tenant": "first", "admin": False},
    "alex-key": {"name": "alex", "tenant": "first", "admin": False},
    "bob-key": {"name": "bob", "tenant": "second", "admin": False},
    "carol-key": {"name": "carol", "tenant": "third", "admin": False, "models": ["vectors"]},
    "root-key": {"name": "root", "tenant": "root"},
}
OPEN = {"/health", "/health/live", "/health/ready"}
ROUTES = [route for listed in all_routes().values() for route in listed]


@pytest.fixture(scope="module")
def server(start_server):
    with start_server(keys=KEYS, response_cache=1 << 20) as running:
        yield running


def place(route):
    return route.path.replace("{model:path}", "tiny").replace("{", "").replace("}", "")


def test_every_route_wants_a_key(server):
    opened = set()
    for route in ROUTES:
        status = server.request(route.method, place(route), b"{}")[0]
        opened |= {route.path} if status != 401 else set()
        assert server.request(route.method, place(route), b"{}", x_api_key="bob")[0] in (200, 401)
    assert opened == OPEN


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/V1/models",
            "//v1/models",
            "/v1/models/",
            "/v1//models",
            "/v1/./models",
            "/v1%2fmodels",
        ),
        *("/%76%31/models", "/health/live/../../v1/models", "/health/live%2f..%2f..%2fv1/models"),
        *("/health/live;/v1/models", "/health/live%00/v1/models", "/v1/models?key=root-key"),
        *("/health/live?/../v1/models", "/health/live/", "/HEALTH/LIVE", "/api/tags%20"),
    ],
)
def test_no_spelling_of_a_path_gets_around_the_key(server, path):
    for method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS"):
        status, _, body = server.request(method, path)
        if path.startswith("/health/live?") and method in ("GET", "HEAD"):
            assert status == 200
            assert b"tiny" not in body
        else:
            assert status == 401


def test_managing_models_wants_an_administrator(server):
    admin = [route for route in ROUTES if route.admin]
    assert len(admin) >= 7
    for route in admin:
        status = server.request(route.method, place(route), b"{}", x_api_key="alice-key")[0]
        assert status == 403, route.path


def test_web_pages_of_others_reach_nothing(server):
    """DNS rebinding (the page's own name in Host), and plain requests from a page (Origin)."""
    for route in ROUTES:
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            for key in (None, "root-key"):
                found = server.request(route.method, place(route), b"{}", x_api_key=key, **headers)
                assert found[0] == 403, (route.path, headers)
                assert "access-control-allow-origin" not in found[1]


def as_json(answer):
    assert answer[0] == 200, answer
    return json.loads(answer[2])


def test_nothing_of_another_tenant_can_be_seen(server):
    form = (
        '--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
        'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n{}\n\r\n--x--\r\n'
    )
    kind = "multipart/form-data; boundary=x"
    alice, bob = {"x_api_key": "alice-key"}, {"x_api_key": "bob-key"}
    upload = server.post("/v1/files", form.encode(), content_type=kind, **alice)
    file = as_json(upload)["id"]
    asked = {"input_file_id": file, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = as_json(server.post("/v1/batches", asked, **alice))["id"]
    response = {"model": "tiny", "input": "a", "max_output_tokens": 2}
    made = as_json(server.post("/v1/responses", response, **alice))["id"]
    places = [f"/v1/files/{file}", f"/v1/files/{file}/content", f"/v1/batches/{batch}"]
    places += [f"/v1/responses/{made}", f"/v1/responses/{made}/input_items"]
    for path in places:
        assert server.request("GET", path, **alice)[0] == 200
        assert server.request("GET", path, x_api_key="alex-key")[0] == 200
        found = server.request("GET", path, **bob)
        assert found[0] == 404
        wrong = path.replace(file, "file-" + "0" * 32).replace(batch, "batch_0").replace(made, "r")
        assert server.request("GET", wrong, **bob)[0] == 404
    assert server.request("DELETE", places[0], **bob)[0] == 404
    assert server.request("DELETE", places[3], **bob)[0] == 404
    assert server.post(f"/v1/batches/{batch}/cancel", b"", **bob)[0] == 404
    assert server.post("/v1/batches", asked, **bob)[0] == 404
    assert server.post("/v1/responses", response | {"previous_response_id": made}, **bob)[0] in (
        400,
        404,
    )
    for path in ("/v1/files", "/v1/batches"):
        assert as_json(server.request("GET", path, **bob))["data"] == []
        assert as_json(server.request("GET", path, **alice))["data"]


def test_prefixes_are_shared_within_a_tenant_only(server):
    """Else the time that an answer takes would tell what others have asked."""
    prompt = "a secret that is long enough to fill a whole block, and then some more of it"

    def cached(key):
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 1}
        usage = as_json(server.post("/v1/completions", body, x_api_key=key))["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert cached("alice-key") == 0
    assert cached("alice-key") > 0
    assert cached("alex-key") > 0
    assert cached("bob-key") == 0


def test_answers_are_shared_within_a_tenant_only(server):
    body = {"model": "tiny", "prompt": "another secret", "max_tokens": 3, "temperature": 0}

    def cache(key):
        status, headers, _ = server.post("/v1/completions", body, x_api_key=key)
        assert status == 200
        return headers["x-hasten-cache"]

    assert [cache(f"{name}-key") for name in ("alice", "alice", "alex")] == ["miss", "hit", "hit"]
    assert cache("bob-key") == "miss"


def test_a_key_sees_and_uses_its_own_models_only(server):
    carol = {"x_api_key": "carol-key"}
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 1, "messages": []}
    for path in ("/v1/completions", "/api/generate"):
        assert server.post(path, asked, **carol)[0] in (403, 404)
    assert server.post("/api/show", {"model": "tiny"}, **carol)[0] in (403, 404)
    names = [one["id"] for one in as_json(server.request("GET", "/v1/models", **carol))["data"]]
    assert names == ["vectors"]
    for path in ("/api/tags", "/api/ps"):
        assert "tiny" not in server.request("GET", path, **carol)[2].decode()


def test_keys_are_in_no_log_and_no_answer(server):
    for key in KEYS:
        server.request("GET", f"/nothing/{time.time()}", x_api_key=key)
        assert key.encode() not in server.request("GET", "/metrics", x_api_key=key)[2]
        assert key not in server.log.read_text()
