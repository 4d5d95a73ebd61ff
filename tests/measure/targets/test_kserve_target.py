"""KServe's protocol over HTTP, against a server that adds, as text and as bytes."""

import asyncio
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_server import CLOSE, odd_server, whole

from hasten.errors import UsageError
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import run_load
from hasten.measure.records import Answer
from hasten.measure.targets.http import Reply
from hasten.measure.targets.kserve import KServeTarget, _check
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import TensorSpec, random_workload
from hasten.measure.workload import Item, Tensors

SECONDS = 60
METADATA = {
    "name": "add",
    "versions": ["1"],
    "platform": "none",
    "inputs": [
        {"name": "a", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "b", "datatype": "INT64", "shape": [1]},
        {"name": "s", "datatype": "BYTES", "shape": [1]},
    ],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
}


def add(asked):
    """What Triton would answer: a + b, and s as it came."""
    if asked.line.startswith("GET /v2/models/add HTTP"):
        return whole(json.dumps(METADATA).encode())
    if not asked.line.startswith("POST /v2/models/add/infer HTTP"):
        return whole(b'{"error":"unknown model"}', status=404)
    length = int(asked.headers.get("inference-header-content-length", len(asked.body)))
    request, blob = json.loads(asked.body[:length]), asked.body[length:]
    tensors = {}
    for one in request["inputs"]:
        size = one.get("parameters", {}).get("binary_data_size")
        if size is None:
            assert not blob
            values = one["data"]
        elif one["datatype"] == "BYTES":
            (n,) = struct.unpack("<I", blob[:4])
            values, blob = [blob[4 : 4 + n].decode()], blob[4 + n :]
        else:
            code = {"FP32": "<f4", "INT64": "<i8"}[one["datatype"]]
            values, blob = np.frombuffer(blob[:size], code).tolist(), blob[size:]
        tensors[one["name"]] = (one["datatype"], one["shape"], values)
    assert not blob
    assert tensors["s"][0] == "BYTES"
    assert len(tensors["s"][2][0]) == 16
    y = np.array(tensors["a"][2], np.float32) + tensors["b"][2][0]
    out = {"name": "y", "datatype": "FP32", "shape": tensors["a"][1]}
    if not request.get("parameters", {}).get("binary_data_output"):
        return whole(json.dumps({"outputs": [{**out, "data": y.tolist()}]}).encode())
    out["parameters"] = {"binary_data_size": y.nbytes}
    header = json.dumps({"model_name": "add", "outputs": [out]}).encode()
    return whole(header + y.tobytes(), inference_header_content_length=len(header))


def serving(answer, use, **settings):
    async def go():
        async with (
            asyncio.timeout(SECONDS),
            odd_server(answer, repeat=True) as server,
            KServeTarget(server.url, "add", **settings) as target,
        ):
            return await use(target), server

    return asyncio.run(go())


def infer(answer):
    async def use(target):
        made = Answer()
        await target.send(Tensors({"a": np.zeros((1, 2), np.float32)}), made)
        return made

    return serving(answer, use)[0]


@pytest.mark.parametrize("binary", [True, False])
def test_inferences(binary):
    async def use(target):
        signature = await target.signature()
        assert signature[0] == TensorSpec("a", "FP32", (-1, 2))
        workload = random_workload(signature, 4, shapes={"a": (3, 2)})
        for work in workload.items:
            answer = Answer()
            await target.send(work, answer)
            assert len(answer.events) == 1
        return signature

    _, server = serving(add, use, binary=binary)
    assert server.connections == 1
    assert len(server.requests) == 5


def sent_as_json(array):
    async def use(target):
        await target.send(Tensors({"x": array}), Answer())

    reply = whole(b'{"outputs":[{"name":"y","datatype":"BOOL","shape":[1],"data":[true]}]}')
    _, server = serving(reply, use, binary=False)
    return json.loads(server.requests[0].body)["inputs"]


@pytest.mark.parametrize(
    ("array", "datatype", "data"),
    [
        (np.array([[1, 2], [3, 4]], np.uint8), "UINT8", [1, 2, 3, 4]),
        (np.array([True]), "BOOL", [True]),
        (np.array([0.5], np.float16), "FP16", [0.5]),
        (np.array([b"ab", "ü"], object), "BYTES", ["ab", "ü"]),
        (np.array([b"ab"]), "BYTES", ["ab"]),
        (np.array(["ü"]), "BYTES", ["ü"]),
    ],
)
def test_tensors_as_json(array, datatype, data):
    (sent,) = sent_as_json(array)
    assert sent == {"name": "x", "datatype": datatype, "shape": list(array.shape), "data": data}


def test_bytes_that_are_no_text_are_not_sent_as_json():
    with pytest.raises(UsageError, match="no text"):
        sent_as_json(np.array([b"\xff"], object))


def test_a_load():
    async def use(target):
        workload = random_workload(await target.signature(), 20, shapes={"a": (1, 2)})
        await target.client.close()
        return await asyncio.to_thread(run_load, target, workload, ClosedLoop(4))

    result, _ = serving(add, use)
    assert [one.status for one in result.records] == ["completed"] * 20


def test_names_and_versions_are_quoted():
    async def go():
        async with odd_server(whole(json.dumps(METADATA).encode())) as server:
            async with KServeTarget(server.url, "a/b c", version="1") as target:
                await target.signature()
            return server.requests[0].line

    assert asyncio.run(go()) == "GET /v2/models/a%2Fb%20c/versions/1 HTTP/1.1"


def test_prompts_are_refused():
    async def use(target):
        await target.send(Item("Hi", 1), Answer())

    with pytest.raises(UsageError, match="not prompts"):
        serving(add, use)


def reply_of(outputs, blob=b"", length=None):
    header = json.dumps({"outputs": outputs}).encode()
    length = len(header) if length is None else length
    return whole(header + blob, inference_header_content_length=length)


Y = {"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (whole(b'{"error":"wrong shape"}', status=400), "status 400: wrong shape"),
        (whole(b"{}"), "not as its protocol"),
        (whole(b"[]"), "not as its protocol"),
        (whole(b'{"outputs":[]}'), "no outputs"),
        (whole(b'{"outputs":[{"name":"y","datatype":"FP32","shape":[2]}]}'), "'y' has no data"),
        (reply_of([Y], b"1234567"), "differ by 1 bytes"),
        (reply_of([Y], b"123456789"), "differ by 1 bytes"),
        (reply_of([{**Y, "shape": [3]}], b"12345678"), "8 bytes, not 12"),
        (reply_of([{**Y, "parameters": {"binary_data_size": -8}}]), "not as its protocol"),
        (reply_of([Y], b"12345678", length=10**6), "content-length is 1000000"),
        (reply_of([Y], b"12345678", length=-1), "content-length is -1"),
        ([CLOSE], "before its answer"),
    ],
)
def test_failures(answer, words):
    with pytest.raises(TargetError, match=words):
        infer(answer)


def test_outputs_of_unknown_datatypes_pass():
    y = {"name": "y", "datatype": "BF16", "shape": [2], "parameters": {"binary_data_size": 4}}
    assert len(infer(reply_of([y], b"1234")).events) == 1


@given(st.binary(max_size=100), st.none() | st.text(max_size=4) | st.integers(0, 100).map(str))
def test_any_reply_passes_or_is_an_error(body, length):
    headers = {} if length is None else {"inference-header-content-length": length}
    with pytest.raises(TargetError):
        _check(Reply(200, headers, body, 0.0))


def test_metadata_that_is_none():
    async def use(target):
        await target.signature()

    with pytest.raises(TargetError, match="metadata is not as"):
        serving(whole(b'{"inputs":[{"name":"a"}]}'), use)
    with pytest.raises(TargetError, match="status 404"):
        serving(whole(b'{"error":"x"}', status=404), use)
