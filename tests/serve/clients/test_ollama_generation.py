"""Ollama's client and what generates or embeds."""

import asyncio
import json
from typing import Literal

import httpx
import numpy as np
import ollama
import pytest
from pydantic import BaseModel
from served_process import GUEST, SECONDS

from hasten.generation.embedding import Embedder
from hasten.models import load_model

QUESTION = [{"role": "user", "content": "Hello!"}]
GREEDY = {"temperature": 0, "num_predict": 16}
TEXTS = ["one text", "another"]


class Answer(BaseModel):
    city: Literal["Bern", "Oslo"]


def weather(city: str) -> str:
    """Tells the weather.

    Args:
        city: Where.
    """
    return city


@pytest.fixture
def chat(ollama_client):
    def chat(messages=QUESTION, *, options=None, **asked):
        return ollama_client.chat("chat", messages, options=GREEDY | (options or {}), **asked)

    return chat


@pytest.fixture
def generate(ollama_client):
    def generate(prompt="Hello!", *, options=None, **asked):
        return ollama_client.generate("chat", prompt, options=GREEDY | (options or {}), **asked)

    return generate


def check_figures(answer, prompt, tokens):
    """Counts are those of the engine; times are parts of the whole."""
    assert (answer.prompt_eval_count, answer.eval_count) == (prompt, tokens)
    assert answer.load_duration >= 0
    assert answer.prompt_eval_duration > 0
    assert answer.eval_duration > 0
    parts = answer.load_duration + answer.prompt_eval_duration + answer.eval_duration
    assert parts <= answer.total_duration


def test_chat(chat, expected):
    text, tokens, prompt = expected.chat(QUESTION, max_tokens=16)
    whole = chat()
    assert (whole.message.role, whole.message.content) == ("assistant", text)
    assert (whole.model, whole.done, whole.done_reason) == ("chat", True, "length")
    check_figures(whole, prompt, tokens)
    lines = list(chat(stream=True))
    assert "".join(line.message.content for line in lines) == text
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    check_figures(lines[-1], prompt, tokens)
    assert lines[0].created_at <= lines[-1].created_at


def test_generate(generate, expected):
    said = [{"role": "system", "content": "Be brief."}, *QUESTION]
    text, tokens, prompt = expected.chat(said, max_tokens=16)
    whole = generate(system="Be brief.")
    assert (whole.response, whole.done_reason) == (text, "length")
    check_figures(whole, prompt, tokens)
    lines = list(generate(system="Be brief.", stream=True))
    assert "".join(line.response for line in lines) == text
    check_figures(lines[-1], prompt, tokens)


def test_a_raw_prompt_is_continued(generate, expected):
    prompt = expected.tokens("Once upon")
    answer = generate("Once upon", raw=True)
    assert answer.response == expected.text(prompt, max_tokens=16)
    check_figures(answer, len(prompt), 16)


def test_options(generate, expected):
    prompt = expected.tokens("Once upon")
    text = expected.text(prompt, max_tokens=16)
    cut = generate("Once upon", raw=True, options={"stop": [text[5:7]]})
    assert (cut.response, cut.done_reason) == (text[: text.index(text[5:7])], "stop")
    asked = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    sampled = [generate("a", raw=True, options=asked | {"seed": seed}) for seed in (3, 3, 4)]
    first, second, third = (answer.response for answer in sampled)
    assert first == second != third
    wanted = expected.text(expected.tokens("a"), max_tokens=16, temperature=1.0, seed=3)
    assert first == wanted


def test_structures(chat, generate):
    for whole in (
        chat(format=Answer.model_json_schema(), options={"num_predict": 100}).message.content,
        generate(format=Answer.model_json_schema(), options={"num_predict": 100}).response,
        "".join(
            line.message.content
            for line in chat(
                format=Answer.model_json_schema(), options={"num_predict": 100}, stream=True
            )
        ),
    ):
        assert Answer.model_validate_json(whole).city in ("Bern", "Oslo")
    assert chat(format="json").message.content.startswith("{")


def test_tools_reach_the_model(chat, expected):
    # This protocol cannot demand a call, and a random model makes none by itself.
    tool = ollama._utils.convert_function_to_tool(weather).model_dump(exclude_none=True)
    text, tokens, prompt = expected.chat(QUESTION, [tool], max_tokens=16)
    answer = chat(tools=[weather])
    assert (answer.message.content, answer.prompt_eval_count) == (text, prompt)
    assert answer.eval_count == tokens


def test_calls_and_results_reach_the_model(chat, expected):
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    said = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "tool_name": "weather", "content": "rain"},
    ]
    text, _, prompt = expected.chat(said, max_tokens=16)
    answer = chat(said)
    assert (answer.message.content, answer.prompt_eval_count) == (text, prompt)


def test_thinking(chat, generate, expected):
    text, _, prompt = expected.chat(QUESTION, values={"enable_thinking": False}, max_tokens=16)
    for answer in (chat(think=False), generate(think=False)):
        assert answer.prompt_eval_count == prompt
    assert chat(think=False).message.content == text
    begun = [*QUESTION, {"role": "assistant", "content": "<think>\nI"}]
    thought = chat(begun, think=True).message
    rest = expected.chat(begun[:1], values={"enable_thinking": True}, max_tokens=16)
    assert rest[2] < chat(begun, think=True).prompt_eval_count
    assert (bool(thought.thinking), thought.content) == (True, "")


def test_logprobs(generate, expected):
    prompt = expected.tokens("Once upon")
    outputs = expected.run(prompt, max_tokens=16, logprobs=2)
    wanted = [entry.logprob for output in outputs for entry in output.logprobs]
    answer = generate("Once upon", raw=True, logprobs=True, top_logprobs=2)
    assert [entry.logprob for entry in answer.logprobs] == wanted
    assert "".join(entry.token for entry in answer.logprobs) == answer.response
    assert all(len(entry.top_logprobs) == 2 for entry in answer.logprobs)


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        *(({"suffix": "end"}, "suffix"), ({"template": "{{ .Prompt }}"}, "template")),
        *(({"images": [b"x"]}, "images"), ({"context": [1, 2]}, "context")),
        *(({"keep_alive": "soon"}, "keep_alive"), ({"options": {"top_k": "x"}}, "top_k")),
        *(({"raw": True, "system": "x"}, "system"), ({"prompt": "x" * 5000}, "context")),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_done_is_refused(generate, asked, word, stream):
    with pytest.raises(ollama.ResponseError, match=word) as caught:
        list(generate(**{"prompt": "Hello!", "stream": stream} | asked))
    assert caught.value.status_code == 400


def test_embeddings(ollama_client, models):
    with Embedder(load_model(models["embed"])) as embedder:
        wanted, tokens = embedder.embed(TEXTS), sum(map(len, embedder.tokenize(TEXTS)))
    made = ollama_client.embed("embed", TEXTS)
    np.testing.assert_allclose(made.embeddings, wanted, atol=1e-6)
    assert made.prompt_eval_count == tokens
    assert 0 <= made.load_duration < made.total_duration
    short = ollama_client.embed("embed", TEXTS[0], dimensions=8).embeddings[0]
    np.testing.assert_allclose(short, wanted[0, :8] / np.linalg.norm(wanted[0, :8]), atol=1e-6)
    old = ollama_client.embeddings("embed", TEXTS[1]).embedding
    np.testing.assert_allclose(old, wanted[1], atol=1e-6)
    long = "x" * 100
    assert len(ollama_client.embed("embed", long).embeddings) == 1  # cut, as Ollama does
    with pytest.raises(ollama.ResponseError, match="token"):
        ollama_client.embed("embed", long, truncate=False)
    with pytest.raises(ollama.ResponseError, match="chat"):
        ollama_client.embed("chat", "x")


def test_keys(ollama_options):
    def client(key):
        return ollama.Client(**ollama_options | {"headers": {"Authorization": f"Bearer {key}"}})

    with client("wrong") as wrong, pytest.raises(ollama.ResponseError) as caught:
        wrong.list()
    assert caught.value.status_code == 401
    with client(GUEST) as guest:
        assert [one.model for one in guest.list().models] == ["chat:latest"]
        for name in ("chat", "chat:latest"):
            assert guest.generate(name, "x", options=GREEDY).response
        for call in (
            lambda: guest.embed("embed", "x"),
            lambda: guest.delete("chat"),
            lambda: guest.chat("chat", [], keep_alive=0),
        ):
            with pytest.raises(ollama.ResponseError) as caught:
                call()
            assert caught.value.status_code == 403


def test_the_async_client(ollama_options, expected):
    text, *_ = expected.chat(QUESTION, max_tokens=16)

    async def go():
        async with ollama.AsyncClient(**ollama_options) as client:
            asked = {"model": "chat", "messages": QUESTION, "options": GREEDY}
            whole = await asyncio.gather(*(client.chat(**asked) for _ in range(6)))
            lines = [line async for line in await client.chat(**asked, stream=True)]
            one = await client.generate("chat", "Hello!", options=GREEDY)
            made = await client.embed("embed", TEXTS)
            listed = await client.list()
            streamed = "".join(line.message.content for line in lines)
            texts = [answer.message.content for answer in whole]
            return texts, streamed, one.response, len(made.embeddings), len(listed.models)

    assert asyncio.run(go())[:4] == ([text] * 6, text, text, 2)


def test_requests_without_stream_are_streams(server, ollama_options):
    body = {"model": "chat", "messages": QUESTION, "options": GREEDY}
    options = {"headers": ollama_options["headers"], "timeout": SECONDS}
    reply = httpx.post(f"{server.url}/api/chat", json=body, **options)
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert lines[-1]["done"]
    assert reply.headers["request-id"] == reply.headers["x-request-id"]
