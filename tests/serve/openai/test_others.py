"""Embeddings, models, and how errors are told."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse, Model
from openai_scripted import FakeService, ask

from hasten import errors
from hasten.serve.jobs import Client, Embeddings
from hasten.serve.protocols.openai.errors import DIALECT
from hasten.serve.protocols.reading import FieldError
from hasten.serve.status import status_of

VECTORS = np.array([[0.5, -1.0], [0.25, 3.0]], "<f4")


def embedded(**fields):
    made = Embeddings(tuple(row.tobytes() for row in VECTORS), 2, 9, 0.0, 0.1)
    service = FakeService(vectors=made)
    reply = ask(service, "/v1/embeddings", {"model": "m", **fields})
    return reply.json, service.jobs[0]


def test_vectors_as_numbers_and_as_base64():
    answer, job = embedded(input=["a", "b"], dimensions=2)
    CreateEmbeddingResponse.model_validate(answer, strict=True)
    assert [entry["embedding"] for entry in answer["data"]] == VECTORS.tolist()
    assert (answer["usage"]["prompt_tokens"], job.texts, job.dimensions) == (9, ["a", "b"], 2)
    assert not job.truncate
    answer, job = embedded(input=[[1], [2]], encoding_format="base64", truncate_prompt_tokens=-1)
    raw = [base64.b64decode(entry["embedding"]) for entry in answer["data"]]
    assert np.frombuffer(b"".join(raw), "<f4").tolist() == VECTORS.reshape(-1).tolist()
    assert (job.texts, job.truncate) == ([(1,), (2,)], True)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_what_is_refused_is_named(fields, field):
    with pytest.raises(FieldError) as caught:
        embedded(**fields)
    assert caught.value.field == field


def info(name):
    return SimpleNamespace(name=name, modified=5.5, parent=None, context=64)


def models(place="/v1/models", **options):
    known = {name: info(name) for name in ("a", "org/b:latest")}
    registry = SimpleNamespace(list=lambda: list(known.values()), describe=known.__getitem__)
    return ask(FakeService(registry=registry), place, method="GET", **options).json


def test_models():
    listed = models()
    for model in listed["data"]:
        Model.model_validate(model, strict=True)
    assert [model["id"] for model in listed["data"]] == ["a", "org/b:latest"]
    one = models("/v1/models/{model:path}", path={"model": "org/b:latest"})
    assert one == listed["data"][1]
    assert one["max_model_len"] == 64


def test_a_key_sees_its_own_models_only():
    client = Client(models=frozenset({"a"}))
    assert [model["id"] for model in models(client=client)["data"]] == ["a"]
    with pytest.raises(errors.NotFoundError):
        models("/v1/models/{model:path}", path={"model": "org/b:latest"}, client=client)


@pytest.mark.parametrize(
    ("error", "kind", "param", "code"),
    [
        (FieldError("n", "bad"), "invalid_request_error", "n", None),
        (FieldError("", "bad"), "invalid_request_error", None, None),
        (errors.CapacityError("long"), "invalid_request_error", None, None),
        (errors.AuthenticationError("who"), "authentication_error", None, "invalid_api_key"),
        (errors.AccessError("no"), "permission_error", None, None),
        (errors.NotFoundError("none"), "not_found_error", None, None),
        (
            errors.RateLimitError("slow", retry_after=1),
            "rate_limit_error",
            None,
            "rate_limit_exceeded",
        ),
        (errors.OverloadError("full", retry_after=1), "server_error", None, "server_overloaded"),
        (errors.EngineLostError("gone"), "server_error", None, "engine_lost"),
        (errors.DeadlineError("late"), "server_error", None, "timeout"),
    ],
)
def test_errors_are_told_as_openai_tells_them(error, kind, param, code):
    told = json.loads(DIALECT.error(status_of(error), error, "r1"))["error"]
    assert told == {"message": str(error), "type": kind, "param": param, "code": code}


def test_bugs_of_ours_are_not_told():
    told = DIALECT.error(500, ValueError("/etc/secret"), "r1").decode()
    assert "secret" not in told
    assert "r1" in told
