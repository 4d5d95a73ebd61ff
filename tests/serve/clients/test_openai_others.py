"""OpenAI's client and completions, embeddings, models and errors."""

import asyncio
import base64
import time

import httpx
import numpy as np
import openai
import pytest
from served_process import GUEST, RARE

from hasten.generation.embedding import Embedder
from hasten.models import load_model

QUESTION = [{"role": "user", "content": "Hello!"}]
TEXTS = ["one text", "another"]


@pytest.fixture
def complete(openai_client):
    def complete(prompt="Once upon", **asked):
        defaults = {"model": "chat", "temperature": 0, "max_tokens": 12}
        return openai_client.completions.create(prompt=prompt, **defaults | asked)

    return complete


@pytest.fixture(scope="module")
def vectors(models):
    """What the embedding model gives for `TEXTS` in this process, and their tokens."""
    with Embedder(load_model(models["embed"])) as embedder:
        return embedder.embed(TEXTS), [list(map(int, one)) for one in embedder.tokenize(TEXTS)]


def test_completions(complete, expected):
    prompt = expected.tokens("Once upon")
    answer = complete()
    (choice,) = answer.choices
    assert choice.text == expected.text(prompt, max_tokens=12)
    assert choice.finish_reason == "length"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), 12)
    chunks = list(complete(stream=True, stream_options={"include_usage": True}))
    assert "".join(one.text for chunk in chunks for one in chunk.choices) == choice.text
    assert chunks[-1].usage.total_tokens == usage.total_tokens
    assert complete(prompt=prompt).choices[0].text == choice.text


def test_several_prompts(complete, expected):
    prompts = ["Once", "Twice upon"]
    tokens = list(map(expected.tokens, prompts))
    for asked in (prompts, tokens):
        answer = complete(asked)
        wanted = [expected.text(prompt, max_tokens=12) for prompt in tokens]
        assert [choice.text for choice in answer.choices] == wanted
        assert [choice.index for choice in answer.choices] == [0, 1]
        usage = answer.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (sum(map(len, tokens)), 24)
    chunks = [choice for chunk in complete(prompts, stream=True) for choice in chunk.choices]
    for index in range(2):
        assert "".join(one.text for one in chunks if one.index == index) == wanted[index]


def test_echo_and_logprobs(complete, expected):
    (choice,) = complete(echo=True, logprobs=2).choices
    outputs = expected.run(
        expected.tokens("Once upon"), max_tokens=12, logprobs=2, prompt_logprobs=2
    )
    entries = [entry for one in outputs for entry in (*one.prompt_logprobs, *one.logprobs)]
    assert choice.text.startswith("Once upon")
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text
    assert told.text_offset == list(range(len(choice.text)))
    assert told.token_logprobs == [entry.logprob for entry in entries]
    assert told.token_logprobs[0] is None
    assert all(2 <= len(top) <= 3 for top in told.top_logprobs[1:])
    silent = complete(echo=True, logprobs=0, max_tokens=0)
    assert silent.choices[0].text == "Once upon"
    assert silent.choices[0].logprobs.token_logprobs == told.token_logprobs[:9]
    assert (silent.usage.prompt_tokens, silent.usage.completion_tokens) == (9, 0)


def test_embeddings(openai_client, vectors):
    wanted, tokens = vectors
    create = openai_client.embeddings.create
    made = create(model="embed", input=TEXTS)  # the client asks for Base64 by itself
    plain = create(model="embed", input=TEXTS, encoding_format="float")
    of_tokens = create(model="embed", input=tokens)
    for answer in (made, plain, of_tokens):
        got = np.array([one.embedding for one in answer.data], np.float32)
        np.testing.assert_allclose(got, wanted, atol=1e-6)
        assert [one.index for one in answer.data] == [0, 1]
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))
    raw = create(model="embed", input=TEXTS[0], encoding_format="base64").data[0].embedding
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(raw), "<f4"), made.data[0].embedding
    )
    short = np.array(create(model="embed", input=TEXTS[0], dimensions=8).data[0].embedding)
    np.testing.assert_allclose(short, wanted[0, :8] / np.linalg.norm(wanted[0, :8]), atol=1e-6)


def test_models(openai_client, server):
    page = openai_client.models.list()
    assert [one.id for one in page] == ["chat", "embed", "recite"]
    assert openai_client.models.retrieve("chat:latest").id == "chat"
    with pytest.raises(openai.NotFoundError, match="nothing"):
        openai_client.models.retrieve("nothing")


def test_every_reply_carries_its_request_id(openai_client):
    raw = openai_client.models.with_raw_response.list()
    assert raw.headers["x-request-id"] == raw.headers["request-id"]
    named = openai_client.models.with_raw_response.list(extra_headers={"x-request-id": "mine-1"})
    assert named.headers["request-id"] == "mine-1"


@pytest.mark.parametrize(
    ("asked", "error", "param"),
    [
        ({"model": "nothing"}, openai.NotFoundError, None),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"max_tokens": "many"}, openai.BadRequestError, "max_tokens"),
        ({"model": "embed"}, openai.BadRequestError, None),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, openai.BadRequestError, None),
        ({"extra_body": {"logits_processors": ["x"]}}, openai.BadRequestError, "logits_processors"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                }
            },
            openai.BadRequestError,
            None,
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(openai_client, asked, error, param, stream):
    with pytest.raises(error) as caught:
        openai_client.chat.completions.create(
            **{"model": "chat", "messages": QUESTION, "max_tokens": 5, "stream": stream} | asked
        )
    assert caught.value.request_id
    assert caught.value.param == param
    assert caught.value.body["message"]


def test_keys(openai_options):
    with openai.OpenAI(**openai_options | {"api_key": "wrong"}) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.request_id
        assert caught.value.code == "invalid_api_key"
    with openai.OpenAI(**openai_options | {"api_key": GUEST}) as client:
        assert [one.id for one in client.models.list()] == ["chat"]
        for name in ("chat", "chat:latest"):
            client.models.retrieve(name)
            client.completions.create(model=name, prompt="x", max_tokens=1)
        with pytest.raises(openai.PermissionDeniedError, match="may not use 'embed'"):
            client.embeddings.create(model="embed", input="x")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("embed:latest")


def test_retries_wait_as_long_as_they_are_told(openai_options, monkeypatch):
    asked, waited = [], []
    monkeypatch.setattr(time, "sleep", waited.append)
    http = httpx.Client(event_hooks={"request": [asked.append]})
    options = openai_options | {"api_key": RARE["openai"], "max_retries": 2, "http_client": http}
    with openai.OpenAI(**options) as client:
        client.completions.create(model="chat", prompt="x", max_tokens=1)
        assert len(asked) == 1
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="chat", prompt="x", max_tokens=1)
    assert len(asked) == 4
    assert len(waited) == 2
    assert all(50 < seconds <= 60 for seconds in waited)
    assert caught.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"max_tokens": 0}, openai.BadRequestError),
        # What took too long once would take as long again.
        (
            {"max_tokens": 3600, "extra_body": {"timeout": 0.01, "ignore_eos": True}},
            openai.InternalServerError,
        ),
    ],
)
def test_what_is_wrong_is_not_tried_again(openai_options, wrong, error):
    asked = []
    http = httpx.Client(event_hooks={"request": [asked.append]})
    with (
        openai.OpenAI(**openai_options | {"max_retries": 2, "http_client": http}) as client,
        pytest.raises(error),
    ):
        client.completions.create(model="chat", prompt="x", **wrong)
    assert len(asked) == 1


def test_the_async_client(openai_options, complete, vectors):
    async def go():
        async with openai.AsyncOpenAI(**openai_options) as client:
            made = await client.embeddings.create(model="embed", input=TEXTS)
            asked = {"model": "chat", "prompt": "Once upon", "temperature": 0, "max_tokens": 12}
            stream = await client.completions.create(**asked, stream=True)
            text = "".join([chunk.choices[0].text async for chunk in stream])
            with pytest.raises(openai.NotFoundError):
                await client.models.retrieve("nothing")
            return text, [one.embedding for one in made.data]

    text, got = asyncio.run(go())
    assert text == complete().choices[0].text
    np.testing.assert_allclose(got, vectors[0], atol=1e-6)
