"""From a URL or a file to a target: by its kind, or by asking the server."""

import asyncio
import json

import pytest
from odd_server import CLOSE, odd_server, whole

from hasten.errors import ModelFileError, UsageError
from hasten.measure.targets.choose import TargetSettings, find_target, names_target, open_target
from hasten.measure.targets.http import HttpOptions
from hasten.measure.targets.kserve_grpc import KServeGrpcTarget
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tfserving_grpc import TfServingGrpcTarget

SECONDS = 60
OPENAI = {"/v1/models": {"object": "list", "data": [{"id": "one", "object": "model"}]}}
OLLAMA = {
    "/api/version": {"version": "0.9"},
    "/api/tags": {"models": [{"name": "two:latest", "size": 5}]},
}
KSERVE = {
    "/v2": {"name": "triton", "version": "2", "extensions": ["binary_tensor_data"]},
    "/v2/repository/index": [{"name": "three", "version": "1", "state": "READY"}],
}
TFSERVING = {"/v1/models/four": {"model_version_status": [{"version": "1", "state": "AVAILABLE"}]}}


def find(routes, *, spec="{url}", model=None, **http):
    """The description of what is found, and the requests that it took."""

    def answer(asked):
        path = asked.line.split()[1]
        if path in routes:
            known = routes[path]
            return (
                known
                if isinstance(known, list) and CLOSE in known
                else whole(json.dumps(known).encode())
            )
        return whole(b'{"error":"unknown path"}', status=404)

    async def go():
        async with odd_server(answer, repeat=True) as server, asyncio.timeout(SECONDS):
            settings = TargetSettings(model=model, http=HttpOptions(**http))
            target = await find_target(spec.format(url=server.url), settings)
            return target.describe(), server.requests

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("routes", "model", "kind", "name"),
    [
        (OPENAI, None, "openai", "one"),
        (OPENAI, "other", "openai", "other"),
        (OLLAMA, None, "ollama", "two:latest"),
        (KSERVE, None, "kserve", "three"),
        (TFSERVING, "four", "tfserving", "four"),
        (OPENAI | OLLAMA, None, "openai", "one"),
    ],
)
def test_servers_are_asked_what_they_are(routes, model, kind, name):
    told, _ = find(routes, model=model)
    assert (told["kind"], told["model"]) == (kind, name)


@pytest.mark.parametrize("kind", ["openai", "ollama", "kserve", "tfserving"])
def test_a_kind_and_a_model_need_no_question(kind):
    told, requests = find({}, spec=kind + "+{url}", model="m")
    assert (told["kind"], told["model"]) == (kind, "m")
    assert requests == []


def test_a_kind_decides_among_several():
    told, _ = find(OPENAI | OLLAMA, spec="ollama+{url}")
    assert (told["kind"], told["model"]) == ("ollama", "two:latest")


@pytest.mark.parametrize("end", ["/v1", "/v1/", "/"])
def test_the_protocols_own_path_may_stand_at_the_end(end):
    told, requests = find(OPENAI, spec="{url}" + end)
    assert told["kind"] == "openai"
    assert requests[0].line == "GET /v1/models HTTP/1.1"


def test_a_base_path_is_kept():
    told, _ = find({"/base/v1/models": OPENAI["/v1/models"]}, spec="{url}/base/v1")
    assert told["url"].endswith("/base")


def test_nothing_fits():
    with pytest.raises(TargetError, match=r"/v1/models answered 404.*/v2 answered 404.*openai+"):
        find({})
    with pytest.raises(TargetError, match="/v1/models answered something else"):
        find({"/v1/models": ["what"], "/api/version": {}})
    with pytest.raises(TargetError, match="/v1/models/five answered 404"):
        find(TFSERVING, model="five")


@pytest.mark.parametrize(
    ("routes", "spec", "words"),
    [
        ({"/v1/models": {"data": [{"id": "a"}, {"id": "b"}]}}, "{url}", "2 models.*a, b"),
        ({"/v1/models": {"data": []}}, "{url}", "0 models.*name the model"),
        ({}, "tfserving+{url}", "does not list"),
        ({}, "other+{url}", "no kind of server.*openai, ollama"),
        ({}, "{url}/?q=1", "a query"),
        ({}, "file:///etc/passwd", "names no target"),
        ({}, "model", "names no target"),
    ],
)
def test_what_is_left_open(routes, spec, words):
    with pytest.raises(UsageError, match=words):
        find(routes, spec=spec)


@pytest.mark.parametrize(
    ("routes", "spec", "words"),
    [
        ({"/v1/models": [CLOSE]}, "{url}", "closed the connection"),
        ({}, "ollama+{url}", "/api/tags: status 404.*name the model"),
        ({}, "kserve+{url}", "/v2/repository/index: status 404"),
        ({"/v1/models": {"data": 5}}, "openai+{url}", "not as its protocol"),
    ],
)
def test_servers_that_do_not_tell(routes, spec, words):
    with pytest.raises(TargetError, match=words):
        find(routes, spec=spec)


def test_nobody_serves_there():
    async def free_port():
        async with odd_server() as server:
            return server.url

    url = asyncio.run(free_port())
    with pytest.raises(TargetError, match=r"no connection.*is the server running"):
        open_target(url)


def test_keys(monkeypatch):
    monkeypatch.setenv("HASTEN_API_KEY", "from-the-environment")
    _, (asked, _) = find(OPENAI)
    assert asked.headers["authorization"] == "Bearer from-the-environment"
    _, (asked, _) = find(OPENAI, key="given")
    assert asked.headers["authorization"] == "Bearer given"
    monkeypatch.delenv("HASTEN_API_KEY")
    _, (asked, _) = find(OPENAI)
    assert "authorization" not in asked.headers


def test_a_server_of_ours_asks_for_its_key(served):
    with pytest.raises(TargetError, match=r"status 401.*HASTEN_API_KEY"):
        open_target(served.url)
    settings = TargetSettings(http=HttpOptions(key=served.key))
    with pytest.raises(UsageError, match=r"2 models.*chat, recite"):
        open_target(served.url, settings)
    with pytest.raises(UsageError, match="chat:latest, recite:latest"):
        open_target("ollama+" + served.url, settings)


def test_grpc_urls():
    settings = TargetSettings(model="m", version="3")
    assert isinstance(open_target("kserve+grpc://h:1", settings), KServeGrpcTarget)
    assert isinstance(open_target("tfserving+grpcs://h:1", settings), TfServingGrpcTarget)


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [
        ("grpc://h:1", TargetSettings(model="m"), r"kserve\+grpc://h:1"),
        ("openai+grpc://h:1", TargetSettings(model="m"), r"tfserving\+grpc://h:1"),
        ("kserve+grpc://h:1", TargetSettings(), "name the model"),
        ("tfserving+grpc://h:1", TargetSettings(model="m", version="x"), "no number"),
    ],
)
def test_grpc_urls_that_lack_something(spec, settings, words):
    with pytest.raises(UsageError, match=words):
        open_target(spec, settings)


def test_files(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read"):
        open_target(str(tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("spec", "named"),
    [("http://h", True), ("ollama+http://h", True), ("a/b.onnx", True), ("org/name", False)],
)
def test_what_names_a_target(spec, named):
    assert names_target(spec) is named
