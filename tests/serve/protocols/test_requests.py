"""Whatever a client sends becomes a job that an engine can be given, or an error of ours."""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedService, call, model, respond, said

from hasten.errors import HastenError, UsageError
from hasten.generation.bounds import check_sampling
from hasten.serve.endpoint import Reply
from hasten.serve.jobs import Client
from hasten.serve.protocols import anthropic, ollama
from hasten.serve.protocols.ollama.options import read_keep_alive, read_options, read_sampling
from hasten.serve.protocols.reading import extra_headers, read

ROUTES = {
    route.path: route
    for route in [*ollama.ROUTES, *anthropic.ROUTES]
    if route.request is not None and not route.admin
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["tiny", "user", "assistant", "json", "text", "tool_use", "5m", "high"])
)


def objects(values):
    names = st.sampled_from(["type", "role", "content", "name", "function", "text", "id", "input"])
    return st.dictionaries(names | st.text(max_size=4), values, max_size=4)


values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | objects(inner), max_leaves=12
)


def bodies(route):
    """Objects with fields of the request, of the right types and of any."""
    fields = msgspec.structs.fields(route.request)
    anything = st.fixed_dictionaries({}, optional={f.encode_name: values for f in fields})
    return st.builds(lambda given, right: {**given, **right}, anything, _right(route))


def _right(route):
    base = {"model": st.just("tiny")}
    messages = st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant", "system", "tool"]),
                "content": st.text(max_size=5) | st.lists(values, max_size=3),
            }
        ),
        max_size=3,
    )
    options = st.fixed_dictionaries(
        {},
        optional={field.name: scalars for field in msgspec.structs.fields(ollama.schema.Options)},
    )
    more = {"messages": messages, "options": options, "prompt": st.text(max_size=5)}
    known = {field.encode_name for field in msgspec.structs.fields(route.request)}
    if "max_tokens" in known:
        base["max_tokens"] = st.integers(-1, 100)
    return st.fixed_dictionaries(
        base, optional={name: made for name, made in more.items() if name in known}
    )


def outcome(route, body):
    service = ScriptedService(*said("Hi"))
    try:
        reply = asyncio.run(route.endpoint(call(service, body)))
    except HastenError:
        return
    assert isinstance(reply, Reply)
    for job in service.jobs:
        msgspec.msgpack.encode(getattr(job, "sampling", None))
        try:
            check_sampling(getattr(job, "sampling", read_sampling(read_options({})[0], None, 0)), 9)
        except UsageError:
            continue


@pytest.mark.parametrize("path", ROUTES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_object(path, data):
    outcome(ROUTES[path], msgspec.json.encode(data.draw(bodies(ROUTES[path]))))


@pytest.mark.parametrize("path", ROUTES)
@settings(max_examples=30, deadline=None)
@given(body=st.binary(max_size=40) | values.map(msgspec.json.encode))
def test_any_bytes(path, body):
    outcome(ROUTES[path], body)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b"{", b"\xff", b'{"model":"tiny"}{}', b'{"model":"\\ud800"}'),
        *(b'{"model":"\xed\xa0\x80"}', b'{"model":1e999}', b"[" * 100_000),
        b'{"model":"tiny","options":' + b'{"a":' * 70 + b"1" + b"}" * 71,
        b'{"model":"tiny","options":{"seed":' + b"9" * 5000 + b"}}",
    ],
)
@pytest.mark.parametrize("path", ROUTES)
def test_bodies_that_cannot_be_read(path, body):
    with pytest.raises(UsageError):
        asyncio.run(ROUTES[path].endpoint(call(ScriptedService(), body)))


def test_errors_name_the_place():
    body = b'{"model":"tiny","messages":[{"role":"user","content":5}]}'
    with pytest.raises(UsageError, match=r"messages\[0\]\.content"):
        read(body, ollama.schema.ChatRequest)
    with pytest.raises(UsageError, match=r"options\.seed"):
        read_options({"seed": "x"})


def test_names_in_headers_are_plain():
    names = ["b", "a", "x\r\nset-cookie: y", "ü", "", "n" * 65]
    assert extra_headers(names) == {"x-hasten-ignored": "a, b"}
    assert extra_headers(["ü"]) == {}
    many = extra_headers([f"name{i}" for i in range(1000)])
    assert len(many["x-hasten-ignored"]) < 1024


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        *((None, None), (0, 0), (2.5, 2.5), (-1, -1), (-0.5, -1), (1e12, -1), ("0", 0), ("-1", -1)),
        *(("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("-1s", -1), ("300ms", 0.3), ("+2s", 2)),
        *((".5s", 0.5), ("9999999999h", -1), ("30", 30)),
    ],
)
def test_durations(given, seconds):
    assert read_keep_alive(given) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("given", ["", "soon", "5 m", "m", "5d", "nan", "inf", "1e9", "--1", "5m "])
def test_what_is_no_duration(given):
    with pytest.raises(UsageError, match="keep_alive"):
        read_keep_alive(given)


@given(st.text(max_size=12) | st.floats(allow_nan=False, allow_infinity=False))
def test_any_duration(given):
    try:
        seconds = read_keep_alive(given)
    except UsageError:
        return
    assert seconds == -1 or 0 <= seconds <= 1e9


PLAIN = Client("k", models=frozenset({"tiny"}), admin=False)


def ask(service, path, body, client=PLAIN, method="POST"):
    encoded = msgspec.json.encode(body)
    return asyncio.run(respond(ollama.ROUTES, service, method, path, encoded, client=client))


def test_clients_that_manage_nothing_do_not_say_how_long_a_model_stays():
    service = ScriptedService(*said("Hi"))
    body = {"model": "tiny", "prompt": "x", "keep_alive": 0}
    _, headers, _ = ask(service, "/api/generate", body)
    assert headers["x-hasten-ignored"] == "keep_alive"
    assert service.jobs[0].keep_alive is None
    assert ask(service, "/api/generate", {"model": "tiny", "keep_alive": 0})[0] == 403
    assert ask(service, "/api/generate", {"model": "tiny"})[0] == 200
    assert service.registry.done == [("load", "tiny", None)]


def test_clients_see_their_own_models():
    service = ScriptedService(models=[model(), model("secret")])
    for path in ("/api/tags", "/api/ps"):
        _, _, body = ask(service, path, None, method="GET")
        assert [one["name"] for one in msgspec.json.decode(body)["models"]] == ["tiny:latest"]
    status, _, body = ask(service, "/api/show", {"model": "secret"})
    assert status == 403
    assert ask(service, "/api/chat", {"model": "secret", "messages": []})[0] == 403
    assert ask(service, "/api/show", {"name": "tiny"})[0] == 200


def test_what_manages_models_is_for_administrators():
    admin = {(route.method, route.path) for route in ollama.ROUTES if route.admin}
    assert admin == {
        *(("POST", f"/api/{name}") for name in ("pull", "push", "create", "copy")),
        *(("DELETE", "/api/delete"), ("HEAD", "/api/blobs/{digest}")),
        ("POST", "/api/blobs/{digest}"),
    }
    assert not any(route.open for route in [*ollama.ROUTES, *anthropic.ROUTES])


def test_counts_are_bounded():
    service = ScriptedService(*said("Hi"))
    limits = service.settings.limits
    message = {"role": "user", "content": "x"}
    tool = {"function": {"name": "t"}}
    many = {"model": "tiny", "messages": [message] * (limits.messages + 1)}
    tools = {"model": "tiny", "messages": [message], "tools": [tool] * (limits.tools + 1)}
    texts = {"model": "tiny", "input": ["x"] * (limits.prompts + 1)}
    assert ask(service, "/api/chat", many)[0] == 400
    assert ask(service, "/api/chat", tools)[0] == 400
    assert ask(service, "/api/embed", texts)[0] == 400
    asked = call(service, msgspec.json.encode({**many, "max_tokens": 1}))
    with pytest.raises(UsageError, match="messages"):
        asyncio.run(anthropic.messages.messages(asked))
    assert not service.jobs
