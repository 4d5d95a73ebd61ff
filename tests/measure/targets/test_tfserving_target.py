"""TensorFlow Serving's protocol over HTTP, against a server that adds, by rows and by columns."""

import asyncio
import base64
import json

import numpy as np
import pytest
from odd_server import odd_server, whole

from hasten.errors import UsageError
from hasten.measure.records import Answer
from hasten.measure.targets.target import TargetError
from hasten.measure.targets.tensors import TensorSpec, random_workload
from hasten.measure.targets.tfserving import TfServingTarget
from hasten.measure.workload import Item, Tensors

SECONDS = 60


def info(dtype, *sizes):
    shape = {"dim": [{"size": str(size), "name": ""} for size in sizes], "unknown_rank": False}
    return {"dtype": dtype, "tensor_shape": shape, "name": "x:0"}


METADATA = {
    "model_spec": {"name": "add", "signature_name": "", "version": "1"},
    "metadata": {
        "signature_def": {
            "signature_def": {
                "serving_default": {
                    "inputs": {"a": info("DT_FLOAT", -1, 2), "s": info("DT_STRING", -1)},
                    "outputs": {"y": info("DT_FLOAT", -1, 2)},
                    "method_name": "tensorflow/serving/predict",
                },
                "odd": {
                    "inputs": {"a": {"dtype": "DT_FLOAT", "tensor_shape": {"unknown_rank": True}}}
                },
            }
        }
    },
}


def add(asked):
    """What TensorFlow Serving would answer: a + the length of s."""
    if asked.line.startswith("GET /v1/models/add/metadata HTTP"):
        return whole(json.dumps(METADATA).encode())
    assert asked.line.startswith("POST /v1/models/add:predict HTTP")
    request = json.loads(asked.body)
    assert request["signature_name"] == "serving_default"
    if "instances" in request:
        rows = request["instances"]
        a, s = [row["a"] for row in rows], [row["s"] for row in rows]
    else:
        a, s = request["inputs"]["a"], request["inputs"]["s"]
    lengths = [len(base64.b64decode(one["b64"])) for one in s]
    assert set(lengths) == {16}
    y = (np.array(a, np.float32) + 16).tolist()
    answer = {"predictions": y} if "instances" in request else {"outputs": y}
    return whole(json.dumps(answer).encode())


def serving(answer, use, **settings):
    async def go():
        async with (
            asyncio.timeout(SECONDS),
            odd_server(answer, repeat=True) as server,
            TfServingTarget(server.url, "add", **settings) as target,
        ):
            return await use(target), server

    return asyncio.run(go())


@pytest.mark.parametrize("form", ["rows", "columns"])
def test_predictions(form):
    async def use(target):
        signature = await target.signature()
        assert signature == (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("s", "BYTES", (-1,)))
        for work in random_workload(signature, 3, shapes={"a": (4, 2), "s": (4,)}).items:
            answer = Answer()
            await target.send(work, answer)
            assert len(answer.events) == 1

    _, server = serving(add, use, form=form)
    assert server.connections == 1


def asked_with(inputs, **settings):
    async def use(target):
        await target.send(Tensors(inputs), Answer())

    answer = whole(b'{"predictions":[1,2],"outputs":[1]}')
    return json.loads(serving(answer, use, **settings)[1].requests[0].body)


def test_one_input_loses_its_name():
    a = np.array([[1, 2], [3, 4]])
    assert asked_with({"a": a})["instances"] == [[1, 2], [3, 4]]
    assert asked_with({"a": a}, form="columns")["inputs"] == {"a": [[1, 2], [3, 4]]}


def test_texts_of_any_shape():
    words = np.array([[b"a", b"\xff"]], object)
    a, b = ({"b64": base64.b64encode(word).decode()} for word in (b"a", b"\xff"))
    assert asked_with({"s": words}, form="columns")["inputs"]["s"] == [[a, b]]


def test_versions_and_signatures():
    async def use(target):
        with pytest.raises(TargetError, match=r"'other'.*serving_default"):
            await target.signature()

    _, server = serving(
        whole(json.dumps(METADATA).encode()), use, version="3", signature_name="other"
    )
    assert server.requests[0].line == "GET /v1/models/add/versions/3/metadata HTTP/1.1"


def test_an_unknown_rank():
    async def use(target):
        await target.signature()

    with pytest.raises(TargetError, match="does not say the shape"):
        serving(add, use, signature_name="odd")


@pytest.mark.parametrize(
    "inputs",
    [
        {"a": np.zeros((2, 1)), "b": np.zeros((3, 1))},
        {"a": np.zeros(()), "b": np.zeros(())},
        {},
    ],
)
def test_what_are_no_rows(inputs):
    with pytest.raises(UsageError, match="columns"):
        asked_with(inputs)


def test_prompts_are_refused():
    async def use(target):
        await target.send(Item("Hi", 1), Answer())

    with pytest.raises(UsageError, match="not prompts"):
        serving(add, use)


@pytest.mark.parametrize(
    ("answer", "form", "words"),
    [
        (whole(b'{"error":"Servable not found"}', status=404), "rows", "404: Servable not found"),
        (whole(b'{"predictions":[1]}'), "rows", "1 predictions of 2"),
        (whole(b'{"outputs":[1, 2]}'), "rows", "0 predictions of 2"),
        (whole(b'{"predictions":[1]}'), "columns", "no outputs"),
        (whole(b"[]"), "rows", "not as its protocol"),
    ],
)
def test_failures(answer, form, words):
    async def use(target):
        await target.send(Tensors({"a": np.zeros((2, 1))}), Answer())

    with pytest.raises(TargetError, match=words):
        serving(answer, use, form=form)
