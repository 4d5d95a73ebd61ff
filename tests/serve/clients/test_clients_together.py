"""What holds for the clients of all protocols at one server."""

import asyncio

import anthropic
import httpx
import ollama
import openai
import pytest
from served_process import SECONDS, until

QUESTION = [{"role": "user", "content": "Hello!"}]
LONG = '"[a-z]{3500}"'
SCHEMA = {"type": "string", "minLength": 3500}
TOOL_CALL = {
    "name": "say",
    "input_schema": {
        "type": "object",
        "properties": {"text": SCHEMA},
        "required": ["text"],
    },
}


def openai_stream(clients):
    """A long answer."""
    asked = {"structured_outputs": {"regex": LONG}}
    return clients["openai"].chat.completions.create(
        model="chat", messages=QUESTION, max_tokens=3600, stream=True, extra_body=asked
    )


def ollama_stream(clients):
    """The same."""
    options = {"num_predict": 3600}
    return clients["ollama"].chat("chat", QUESTION, format=SCHEMA, options=options, stream=True)


def anthropic_stream(clients):
    """A long call, for this protocol has no other way to demand length."""
    forced = {"type": "tool", "name": "say"}
    return clients["anthropic"].messages.create(
        model="chat",
        messages=QUESTION,
        max_tokens=3600,
        stream=True,
        tools=[TOOL_CALL],
        tool_choice=forced,
    )


@pytest.fixture
def clients(openai_client, ollama_client, anthropic_client):
    return {"openai": openai_client, "ollama": ollama_client, "anthropic": anthropic_client}


@pytest.mark.parametrize("stream_of", [openai_stream, ollama_stream, anthropic_stream])
def test_who_leaves_frees_its_place(server, clients, stream_of):
    left = server.metric("hasten_disconnects_total")
    made = server.metric("hasten_engine_output_tokens_total", model_name="chat")
    stream = stream_of(clients)
    lines = iter(stream)
    for _ in range(5):
        next(lines)
    assert server.metric("vllm:num_requests_running", model_name="chat") == 1
    stream.close()
    until(lambda: server.metric("vllm:num_requests_running", model_name="chat") == 0)
    until(lambda: server.metric("hasten_disconnects_total") == left + 1)
    spent = server.metric("hasten_engine_output_tokens_total", model_name="chat") - made
    assert 0 < spent < 3500
    assert server.metric("vllm:kv_cache_usage_perc", model_name="chat") == 0


def test_more_clients_than_places(server, openai_options, ollama_options, anthropic_options):
    """Each gets what it would get alone, whoever else is there."""

    async def go():
        async with (
            openai.AsyncOpenAI(**openai_options) as one,
            ollama.AsyncClient(**ollama_options) as other,
            anthropic.AsyncAnthropic(**anthropic_options) as third,
        ):
            said = [{"role": "user", "content": f"Say {n}."} for n in range(3)]
            asked = [
                (
                    one.chat.completions.create(
                        model="chat",
                        messages=[message],
                        temperature=0,
                        max_tokens=30,
                        reasoning_effort="none",
                    ),
                    other.chat(
                        "chat",
                        [message],
                        think=False,
                        options={"temperature": 0, "num_predict": 30},
                    ),
                    third.messages.create(
                        model="chat",
                        messages=[message],
                        max_tokens=30,
                        extra_body={"temperature": 0},
                    ),
                )
                for message in said * 3
            ]
            return await asyncio.gather(*(asyncio.gather(*three) for three in asked))

    answers = asyncio.run(go())
    texts = [
        (a.choices[0].message.content, b.message.content, c.content[0].text) for a, b, c in answers
    ]
    assert all(len(set(three)) == 1 for three in texts)
    assert texts[:3] == texts[3:6] == texts[6:]
    assert len({three[0] for three in texts}) == 3


def test_health_schema_and_figures(server, openai_client):
    with httpx.Client(base_url=server.url, timeout=SECONDS) as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").json()["status"] == "ready"
        assert client.get("/metrics").status_code == 401
        headers = {"Authorization": f"Bearer {server.key}"}
        paths = client.get("/openapi.json", headers=headers).json()["paths"]
    assert {"/v1/chat/completions", "/v1/batches", "/v1/messages", "/api/chat"} <= set(paths)
    prompts = server.metric("hasten_prompt_tokens_total")
    outputs = server.metric("hasten_output_tokens_total")
    asked = {"model": "chat", "messages": QUESTION, "max_tokens": 7}
    usage = openai_client.chat.completions.create(**asked).usage
    until(lambda: server.metric("hasten_output_tokens_total") == outputs + usage.completion_tokens)
    assert server.metric("hasten_prompt_tokens_total") == prompts + usage.prompt_tokens
