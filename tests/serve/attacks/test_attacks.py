"""The whole server, with real engines and over real sockets, survives what other servers did not.

| attack | held by |
|---|---|
| code in a model repository | here; registry/test_pulling.py, models/test_reader_fuzz.py |
| a chat template that escapes | here; models/test_chat.py |
| chat_template_kwargs | here; openai/test_chat.py |
| a GGUF file that lies | here; models/test_gguf.py, models/test_reader_fuzz.py |
| traversal in names, ids, digests, uploads | here; registry/test_names.py, registry/test_blobs.py |
| pickle on a socket | here; test_imports.py, test_wire.py |
| floods, giant heads and bodies, bombs | here; front/test_http.py, front/test_app.py |
| unbounded and nonsensical values | here; generation/test_bounds.py, openai/, protocols/ |
| structures that take for ever | here; generation/test_structured.py |
| keys, spellings of paths, timing, other web pages | test_tenants.py; front/ |
| answers and prefixes of other tenants | test_tenants.py; cache/test_answers.py |
| resources out of proportion | here, test_raw_bytes.py |
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pickle
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from fake_hub import FakeHub
from raw_client import Connection, request_bytes
from tiny_models import raw_gguf, tensor_info

MIB = 1 << 20
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@pytest.fixture(scope="module")
def hub():
    fake = FakeHub()
    with fake.running() as url:
        fake.url = url
        yield fake


@pytest.fixture(scope="module")
def server(start_server, hub):
    """One server for the module; it must be well after each test."""
    environment = {"HF_ENDPOINT": hub.url}
    with start_server(limits={"upload": 64 * MIB}, environment=environment) as running:
        running.engines = set(running.workers)
        yield running


@pytest.fixture(autouse=True)
def _still_well(server):
    yield
    assert server.well()
    assert server.engines <= set(server.workers), "an engine was lost"


@pytest.fixture(scope="module")
def files(chat_model):
    return {path.name: path.read_bytes() for path in chat_model.iterdir()}


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def ask(text="a", **fields):
    return {"model": "tiny", "messages": [{"role": "user", "content": text}]} | fields


def uploaded(server, content):
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert server.post(f"/api/blobs/{digest}", content)[0] in (200, 201)
    return digest


def create(server, name, files):
    """The answer to making a model of uploaded files."""
    digests = {file: uploaded(server, content) for file, content in files.items()}
    return server.post("/api/create", {"model": name, "files": digests, "stream": False})


def everything(folder):
    """Paths below a folder; what vanishes meanwhile is not among them (`rglob` would raise)."""
    return {
        Path(place, name) for place, *names in os.walk(folder) for name in itertools.chain(*names)
    }


def kept_files(server, *parts):
    """Files of models that the server keeps, be it a moment later."""
    end = time.monotonic() + 10
    while found := [
        path for part in parts for path in everything(server.data / part) if "." in path.name
    ]:
        if time.monotonic() > end:
            break
        time.sleep(0.02)
    return found


def test_code_in_a_repository_is_neither_fetched_nor_run(server, hub, files, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')".encode()
    config = json.loads(files["config.json"]) | {
        "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "evil.Config"}
    }
    evil = {"config.json": json.dumps(config).encode(), "modeling_evil.py": code, "evil.py": code}
    evil["pytorch_model.bin"] = pickle.dumps(Evil(mark))
    hub.publish("org/evil", files | evil)
    assert server.post("/api/pull", {"model": "org/evil", "stream": False})[0] == 200
    answer = server.post(CHAT, ask(max_tokens=2) | {"model": "org/evil"})
    assert answer[0] == 200
    fetched = {path.rsplit("/", 1)[1] for method, path in hub.asked if "resolve" in path}
    assert "config.json" in fetched
    assert not any(name.endswith((".py", ".bin")) for name in fetched)
    assert server.request("DELETE", "/api/delete", b'{"model": "org/evil"}')[0] == 200
    assert not mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "model.gguf"])
def test_pickles_are_no_models(server, hub, files, tmp_path, name):
    mark = tmp_path / "ran"
    evil = {k: v for k, v in files.items() if not k.endswith(".safetensors")}
    evil[name] = pickle.dumps(Evil(mark))
    status, _, body = create(server, "evil", evil)
    assert (status, b"error" in body) == (400, True)
    hub.publish("org/pickled", evil)
    assert server.post("/api/pull", {"model": "org/pickled", "stream": False})[0] == 400
    assert server.post("/api/show", {"model": "evil"})[0] == 404
    assert not mark.exists()
    assert not kept_files(server, "models")


@pytest.mark.parametrize(
    "source",
    [
        "{{ cycler.__init__.__globals__.os.popen('touch MARK').read() }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_chat_template_stays_in_its_sandbox(server, files, tmp_path, source):
    mark = tmp_path / "ran"
    config = {"eos_token": "</s>", "chat_template": source.replace("MARK", str(mark))}
    made = create(server, "caged", files | {"tokenizer_config.json": json.dumps(config).encode()})
    assert made[0] == 200
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(server.post, CHAT, ask() | {"model": "caged"})
        assert server.request("GET", "/health/live")[0] == 200
        status, _, body = asked.result()
    assert status in (400, 500)
    assert b"chat template" in body
    assert not any(word in body for word in (b"<class", b"root:", b"internal"))
    assert not mark.exists()
    assert server.request("DELETE", "/api/delete", b'{"model": "caged"}')[0] == 200


@pytest.mark.parametrize(
    "name", ["tokenize", "chat_template", "messages", "add_generation_prompt", "__class__", "self"]
)
def test_values_for_the_template_have_allowed_names_only(server, name):
    status, _, body = server.post(CHAT, ask(chat_template_kwargs={name: "x"}))
    assert status == 400
    assert name.encode() in body


HUGE = 1 << 62
LIES = {
    "offset past the end": raw_gguf(tensors=[tensor_info("a", offset=1 << 40)], data=bytes(128)),
    "counts overflow": raw_gguf(counts=(HUGE, HUGE)),
    "dimensions overflow": raw_gguf(tensors=[tensor_info("a", (1 << 32, 1 << 32))]),
    "a string without end": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE),
    "encoding -1": raw_gguf(tensors=[tensor_info("a", kind=0xFFFFFFFF)], data=bytes(128)),
    "nothing": b"GGUF",
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_a_gguf_file_that_lies_is_refused_and_forgotten(server, hub, content):
    before = server.peak()
    status, _, body = create(server, "liar", {"liar.gguf": content})
    assert (status, b"internal" in body) == (400, False)
    hub.publish("org/liar", {"liar.gguf": content})
    status, _, body = server.post("/api/pull", {"model": "org/liar", "stream": False})
    assert (status, b"internal" in body) == (400, False)
    assert server.peak() < before + 32 * MIB
    assert not kept_files(server, "models")


ELSEWHERE = [
    *("../../etc/passwd", "/etc/passwd", "..", "a/../../b", "file:///etc/passwd", "a\\..\\b"),
    *("org/../../x", "~/x", "a\0b", "%2e%2e/x", "hf.co/../x", "x" * 5000, ".hidden", "a:../b"),
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_lead_nowhere_else(server, name):
    before = everything(server.data.parent)
    tiny = {"source": "tiny", "destination": name}
    for method, path, body in [
        ("POST", CHAT, ask() | {"model": name}),
        ("POST", "/v1/embeddings", {"model": name, "input": "a"}),
        ("POST", "/v1/messages", ask(max_tokens=1) | {"model": name}),
        ("POST", "/api/generate", {"model": name, "prompt": "a"}),
        ("POST", "/api/show", {"model": name}),
        ("POST", "/api/pull", {"model": name}),
        ("POST", "/api/create", {"model": name, "from": "tiny"}),
        ("POST", "/api/create", {"model": "x", "from": name}),
        ("POST", "/api/create", {"model": "x", "files": {name: "sha256:" + "0" * 64}}),
        ("POST", "/api/create", {"model": "x", "files": {"x.gguf": name}}),
        ("POST", "/api/copy", tiny),
        ("DELETE", "/api/delete", {"model": name}),
        ("POST", "/v1/batches", {"input_file_id": name, "endpoint": "/v1/embeddings"}
         | {"completion_window": "24h"}),
        ("POST", "/v1/responses", {"model": "tiny", "input": "a", "previous_response_id": name}),
    ]:  # fmt: skip
        status, _, answer = server.request(method, path, body)
        assert status in (400, 404), (method, path, status)
        assert b"root:" not in answer
    for place in ("v1/models", "v1/files", "v1/batches", "v1/responses", "api/blobs"):
        for spelled in (quote(name, safe=""), quote(name, safe="/%")):
            status, _, answer = server.request("GET", f"/{place}/{spelled}")
            assert status in (400, 404, 405, 431), (place, spelled, status)
            assert b"root:" not in answer
    assert everything(server.data.parent) <= before  # what went before may be removed late


def test_the_name_of_an_upload_is_no_path(server):
    form = (
        '--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
        'Content-Disposition: form-data; name="file"; filename="../../../escaped"\r\n\r\n'
        "{}\r\n--x--\r\n"
    )
    status, _, body = server.post(
        "/v1/files", form.encode(), content_type="multipart/form-data; boundary=x"
    )
    assert status == 200
    name = json.loads(body)["id"]
    places = [path for path in everything(server.data.parent) if "escaped" in path.name]
    assert not places
    assert server.request("DELETE", f"/v1/files/{name}")[0] == 200


def test_nothing_but_the_server_listens(server):
    """Engines talk over a pair of sockets that nobody else can open."""
    listening = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            listening[fields[9]] = int(fields[1].split(":")[1], 16)
    named = {
        fields[6]: fields[7]
        for fields in map(str.split, Path("/proc/net/unix").read_text().splitlines()[1:])
        if len(fields) > 7
    }
    for pid in (server.process.pid, *server.workers):
        links = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                links.append(str(entry.readlink()))
        sockets = {link[8:-1] for link in links if link.startswith("socket:[")}
        ports = [listening[inode] for inode in sockets if inode in listening]
        assert ports == ([server.port] if pid == server.process.pid else [])
        assert not [named[inode] for inode in sockets if inode in named]


def send(server, *pieces):
    """The status of what comes back; None where nothing does."""
    with closing(Connection(server.port)) as connection:
        connection.socket.settimeout(60)
        with suppress(ConnectionError):
            for piece in pieces:
                connection.send(piece)
        with suppress(ConnectionError):
            answer = connection.response()
            return answer and answer[0]
    return None


def chunked(path, chunks, **headers):
    yield request_bytes("POST", path, content_length=None, transfer_encoding="chunked", **headers)
    for chunk in chunks:
        yield b"%x\r\n%b\r\n" % (len(chunk), chunk)


def bomb(size, *, header):
    """Zeros, packed; without an end, which nobody should read for."""
    packer = zlib.compressobj(9, wbits=-15)
    unit = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return header + unit * (size // MIB)


GZIP, ZLIB = b"\x1f\x8b\x08" + bytes(6) + b"\xff", b"\x78\xda"
FLOODS = {
    "a head without end": lambda: [b"GET / HTTP/1.1\r\n", *([b"X: " + b"y" * 8000 + b"\r\n"] * 50)],
    "a path without end": lambda: [b"GET /" + b"a" * MIB + b" HTTP/1.1\r\n\r\n"],
    "many headers": lambda: [b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n"],
    "a body that is too long": lambda: [request_bytes("POST", CHAT, content_length=str(1 << 40))],
    "chunks without end": lambda: chunked(CHAT, [b"a" * MIB] * 40),
    "tiny chunks": lambda: [
        *chunked(CHAT, []), *[b"1\r\na\r\n" * 100_000] * 3, b"0\r\n\r\n",
    ],
    "long extensions of chunks": lambda: [*chunked(CHAT, []), b"1;" + b"x" * MIB],
    "a chunk that overflows": lambda: [*chunked(CHAT, []), b"ffffffffffffffffff\r\n"],
    "a bomb": lambda: [
        request_bytes("POST", CHAT, bomb(4096 * MIB, header=GZIP), content_encoding="gzip")
    ],
    "a bomb in chunks": lambda: chunked(
        CHAT, [bomb(4096 * MIB, header=ZLIB)], content_encoding="deflate"
    ),
    "a bomb to keep": lambda: [
        request_bytes(
            *("POST", f"/api/blobs/sha256:{'0' * 64}", bomb(4096 * MIB, header=GZIP)),
            content_encoding="gzip",
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FLOODS)
def test_floods_are_cut_short(server, name):
    before = server.peak()
    status = send(server, *FLOODS[name]())
    assert status in (400, 413, 431, None)
    assert server.peak() < before + 64 * MIB
    assert not list(server.data.glob("blobs/.upload-*"))


def nested(depth, value="1"):
    return b'{"a":' * depth + value.encode() + b"}" * depth


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
NONSENSE = {
    "n": [{"n": one} for one in (0, -1, 129, 1 << 31, 1 << 62, 1 << 70, 1.5, True, "1")],
    "max_tokens": [{"max_tokens": one} for one in (0, -1, -(1 << 63), 1 << 70, "a")],
    "logprobs": [{"logprobs": True, "top_logprobs": one} for one in (-1, 21, 1 << 40)],
    "temperature": [{"temperature": one} for one in (-1, 1e308, "NaN")],
    "top_k": [{"top_k": -2}, {"top_k": 1 << 70}, {"top_p": 0}, {"top_p": -1}, {"min_p": 1}],
    "penalties": [{"repetition_penalty": 0}, {"presence_penalty": 99}],
    "biases": [{"logit_bias": {"-1": 1}}, {"logit_bias": {"99999": 1}}, {"logit_bias": {"3": 1e9}}],
    "stops": [{"stop": ""}, {"stop": ["a"] * 65}, {"stop": "a" * 1025}, {"stop_token_ids": [-1]}],
    "messages": [{"messages": []}, {"messages": [{}]}, {"messages": [ask()["messages"][0]] * 4097}],
    "tools": [{"tools": [TOOL] * 129}, {"tools": [{**TOOL, "function": {"name": "a b"}}]}],
    "a tool's pattern": [
        {"tools": [{**TOOL, "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"x": {"type": "string", "pattern": "(((("}}}}}],
            "tool_choice": "required"}
    ],
    "schemas": [
        {"response_format": {**SCHEMA, "json_schema": {"schema": {"type": "nothing"}}}},
        {"response_format": {**SCHEMA, "json_schema": {"schema": {"$ref": "file:///etc/passwd"}}}},
        {"response_format": {**SCHEMA, "json_schema": {"schema": {"$ref": "#/x"}}}},
        {"guided_json": "{"},
        {"guided_json": {"a": ["b" * 70_000]}},
        {"guided_choice": []},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsensical_values_are_refused_before_they_cost_anything(server, name):
    before = server.memory()
    for fields in NONSENSE[name]:
        began = time.monotonic()
        status, _, body = server.post(CHAT, {**ask(max_tokens=2), **fields})
        assert status in (400, 413), (fields, body)
        assert b"internal" not in body
        assert time.monotonic() - began < 20
    assert server.memory() < before + 64 * MIB


ENDLESS = [
    {"guided_regex": "(a{1,999}){1,999}b"},
    {"guided_regex": "(a|b|ab)*" * 2000},
    {"guided_regex": "(" * 30_000},
    {"guided_grammar": "start: start"},
    {"guided_grammar": "start: " + "a? " * 9000 + "\na: /(b|c){0,900}/"},
    {"guided_json": {"type": "string", "minLength": 1 << 40}},
    {"guided_json": {"type": "array", "minItems": 1 << 30, "items": {"type": "string"}}},
]


@pytest.mark.parametrize("fields", ENDLESS, ids=range(len(ENDLESS)))
def test_structures_that_take_for_ever_end_and_hold_nobody_up(server, fields):
    before = server.memory()
    with ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        asked = threads.submit(server.post, CHAT, ask(max_tokens=2, **fields))
        assert server.well()
        status, _, body = asked.result()
    # The tiny model's vocabulary has no brackets.
    assert status in (200, 400) or b"the structure cannot be followed" in body, body
    assert time.monotonic() - began < 20
    assert server.memory() < before + 256 * MIB


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"model": "tiny", "prompt": ""}),
        (COMPLETIONS, {"model": "tiny", "prompt": []}),
        (COMPLETIONS, {"model": "tiny", "prompt": [[]]}),
        (COMPLETIONS, {"model": "tiny", "prompt": [-1]}),
        (COMPLETIONS, {"model": "tiny", "prompt": [1 << 40]}),
        (COMPLETIONS, {"model": "tiny", "prompt": ["a"] * 100, "n": 100}),
        (COMPLETIONS, {"model": "tiny", "prompt": ["a"] * 3000}),
        (COMPLETIONS, {"model": "tiny", "prompt": "a" * 127, "max_tokens": -5}),
        (COMPLETIONS, {"model": "tiny", "prompt": "a" * 129}),
        ("/v1/embeddings", {"model": "vectors", "input": ""}),
        ("/v1/embeddings", {"model": "vectors", "input": ["a", ""]}),
        ("/v1/embeddings", {"model": "vectors", "input": [[]]}),
        ("/v1/embeddings", {"model": "vectors", "input": ["a"] * 3000}),
        ("/v1/embeddings", {"model": "vectors", "input": "a", "dimensions": 1 << 20}),
        ("/v1/embeddings", {"model": "tiny", "input": "a"}),
        ("/api/embed", {"model": "vectors", "input": ["", "a"]}),
        ("/v1/responses", {"model": "tiny", "input": []}),
        ("/v1/messages", {"model": "tiny", "messages": [], "max_tokens": 1}),
        ("/api/chat", ask(format={"type": "nothing"})),
    ],
)
def test_prompts_that_are_none(server, path, body):
    status, _, answer = server.post(path, body)
    assert status in (400, 413), answer


def test_numbers_that_json_does_not_have(server):
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 100_000):
        for path, fields in [
            (CHAT, b'"messages":[{"role":"user","content":"a"}]'),
            (COMPLETIONS, b'"prompt":"a"'),
            ("/v1/messages", b'"max_tokens":1,"messages":[{"role":"user","content":"a"}]'),
        ]:
            body = b'{"model":"tiny",' + fields + b',"temperature":' + number + b"}"
            assert server.post(path, body)[0] == 400, (path, number[:10])
        body = b'{"model":"tiny","prompt":"a","options":{"temperature":' + number + b"}}"
        assert server.post("/api/generate", body)[0] == 400


@pytest.mark.parametrize(
    "path", [CHAT, "/v1/responses", "/v1/messages", "/api/chat", "/api/create"]
)
def test_deep_nesting(server, path):
    for body in (b"[" * 5_000_000, nested(100_000), b'{"model":"tiny","x":' + nested(70) + b"}"):
        assert server.post(path, body)[0] in (400, 413)


COSTLY = {
    "lists": b'{"model":"tiny","x":[' + b"[]," * 5_400_000 + b"[]]}",
    "numbers": b'{"model":"tiny","prompt":[' + b"9999," * 3_200_000 + b"0]}",
    "letters": b'{"model":"tiny","prompt":"' + b"a" * (16 * MIB - 100) + b'"}',
    "objects for the template": b'{"model":"tiny","messages":[{"role":"user","content":"a"}],'
    b'"documents":[' + b"{}," * 200_000 + b"{}]}",
    "no end": b'{"model":"tiny","prompt":"' + b"a" * (16 * MIB - 100),
    "not known here": b'{"model":"tiny","prompt":"a","stop_token_ids":[999],"x":"'
    + b"a" * (16 * MIB - 100) + b'"}',
}  # fmt: skip


def test_no_request_costs_out_of_proportion(server):
    """A request of 16 MiB may be held once, and little more; failed ones are forgotten at once."""
    before = server.memory()
    for name, body in COSTLY.items():
        path = CHAT if b"messages" in body[:60] else COMPLETIONS
        for _ in range(3):
            began = time.monotonic()
            assert server.post(path, body)[0] in (200, 400, 413), name
            assert time.monotonic() - began < 20, name
        assert server.peak() < 256 * MIB, name
    assert server.memory() < before + 128 * MIB


def test_letters_to_embed_cost_no_more_than_they_can_mean(server):
    body = {"model": "vectors", "input": "a" * (15 * MIB)}
    before = server.memory()
    assert server.post("/v1/embeddings", body)[0] == 400
    assert server.post("/v1/embeddings", {**body, "truncate_prompt_tokens": -1})[0] == 200
    assert server.memory() < before + 256 * MIB


def test_a_flood_of_everything_leaves_nothing(server):
    """Many clients at once, most of which want too much or leave."""
    descriptors, tasks = server.descriptors(), server.tasks()
    bodies = [
        json.dumps(ask("a" * 50, max_tokens=100, n=4, stream=True)).encode(),
        json.dumps(ask(max_tokens=5, guided_regex="(a|b){1,9}")).encode(),
        COSTLY["letters"][: 4 * MIB],
        b"[" * MIB,
        bomb(256 * MIB, header=GZIP),
    ]

    def attack(number):
        body = bodies[number % len(bodies)]
        packed = {"content_encoding": "gzip"} if body[:2] == b"\x1f\x8b" else {}
        with closing(Connection(server.port)) as connection, suppress(ConnectionError):
            connection.socket.settimeout(60)
            connection.send(request_bytes("POST", CHAT, body, **packed))
            if number % 3:
                return connection.response()[0]
        return None

    with ThreadPoolExecutor(24) as threads:
        found = set(threads.map(attack, range(150)))
    assert found <= {None, 200, 400, 413, 503}
    assert 200 in found
    assert server.settled(descriptors, tasks)
    assert server.peak() < 600 * MIB
