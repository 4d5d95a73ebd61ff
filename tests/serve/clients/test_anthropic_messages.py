"""Anthropic's client and messages."""

import asyncio
from typing import Literal

import anthropic
import pytest
from pydantic import BaseModel
from served_process import GUEST, RARE

QUESTION = [{"role": "user", "content": "Hello!"}]
NO_THINKING = {"enable_thinking": False}
TOOLS = [
    {
        "name": name,
        "description": f"Tells the {name}.",
        "input_schema": {
            "type": "object",
            "properties": {key: {"enum": values}},
            "required": [key],
        },
    }
    for name, key, values in (
        ("weather", "city", ["Bern", "Oslo"]),
        ("time", "zone", ["CET", "UTC"]),
    )
]
FUNCTIONS = [
    {
        "type": "function",
        "function": {
            "name": tool["name"],
            "description": tool["description"],
            "parameters": tool["input_schema"],
        },
    }
    for tool in TOOLS
]


class Answer(BaseModel):
    city: Literal["Bern", "Oslo"]


@pytest.fixture
def asked():
    # The client has given up the temperature, which the protocol knows.
    greedy = {"temperature": 0}
    return {"model": "chat", "messages": QUESTION, "max_tokens": 16, "extra_body": greedy}


@pytest.fixture
def create(anthropic_client, asked):
    def create(**more):
        return anthropic_client.messages.create(**asked | more)

    return create


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def prompt_tokens(usage):
    return usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens


def test_a_message(create, expected):
    said = [{"role": "system", "content": "Be brief."}, *QUESTION]
    text, tokens, prompt = expected.chat(said, values=NO_THINKING, max_tokens=16)
    message = create(system="Be brief.")
    assert [block.type for block in message.content] == ["text"]
    assert text_of(message) == text
    assert (message.role, message.model, message.stop_reason) == ("assistant", "chat", "max_tokens")
    assert (prompt_tokens(message.usage), message.usage.output_tokens) == (prompt, tokens)
    assert message._request_id == message.id.removeprefix("msg_")
    listed = create(system=[{"type": "text", "text": "Be brief."}])
    assert text_of(listed) == text


def test_a_stream_builds_the_same_message(create, anthropic_client, asked):
    whole = create()
    events = list(create(stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert prompt_tokens(events[0].message.usage) == prompt_tokens(whole.usage)
    assert events[-2].usage.output_tokens == whole.usage.output_tokens
    assert events[-2].delta.stop_reason == "max_tokens"
    with anthropic_client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
        assert stream.request_id
    assert text == text_of(final) == text_of(whole)
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_stop_sequences(create, anthropic_client, asked):
    text = text_of(create())
    stop = text[6:8]
    message = create(stop_sequences=["never", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert text_of(message) == text[: text.index(stop)]
    with anthropic_client.messages.stream(**asked, stop_sequences=[stop]) as stream:
        final = stream.get_final_message()
    assert (final.stop_sequence, text_of(final)) == (stop, text_of(message))


def test_a_tool_that_must_be_called(create, anthropic_client, asked, expected):
    more = {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "time"}, "max_tokens": 200}
    message = create(**more)
    (call,) = message.content
    assert (call.type, call.name, message.stop_reason) == ("tool_use", "time", "tool_use")
    assert call.input["zone"] in ("CET", "UTC")
    with anthropic_client.messages.stream(**asked | more) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(parts) > 1
    assert (final.content[0].input, final.stop_reason) == (call.input, "tool_use")

    result = {"type": "tool_result", "tool_use_id": call.id, "content": "noon"}
    said = [
        *QUESTION,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    after = create(messages=said, tools=TOOLS)
    function = {"name": "time", "arguments": call.input}
    wanted = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "noon", "tool_call_id": call.id},
        {"role": "user", "content": "So?"},
    ]
    text, _, prompt = expected.chat(wanted, FUNCTIONS, values=NO_THINKING, max_tokens=16)
    assert (text_of(after), prompt_tokens(after.usage)) == (text, prompt)


def test_any_tool_or_none(create, expected):
    calls = create(tools=TOOLS, tool_choice={"type": "any"}, max_tokens=500).content
    assert {call.type for call in calls} == {"tool_use"}
    assert {call.name for call in calls} <= {"weather", "time"}
    alone = {"type": "any", "disable_parallel_tool_use": True}
    assert len(create(tools=TOOLS, tool_choice=alone, max_tokens=500).content) == 1
    text, _, prompt = expected.chat(QUESTION, FUNCTIONS, values=NO_THINKING, max_tokens=16)
    auto = create(tools=TOOLS)
    assert (text_of(auto), prompt_tokens(auto.usage)) == (text, prompt)
    hidden = create(tools=TOOLS, tool_choice={"type": "none"})
    assert prompt_tokens(hidden.usage) == len(expected.prompt(QUESTION, **NO_THINKING))


def test_structures(anthropic_client, asked):
    parsed = anthropic_client.messages.parse(**asked | {"max_tokens": 100}, output_format=Answer)
    assert isinstance(parsed.parsed_output, Answer)
    assert parsed.stop_reason == "end_turn"


def test_thinking(create, expected):
    wanted = expected.prompt(QUESTION, enable_thinking=True)
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = create(thinking=thinking)
    assert prompt_tokens(message.usage) == len(wanted)
    begun = [*QUESTION, {"role": "assistant", "content": "<think>\nI"}]
    thought = create(messages=begun, thinking=thinking)
    assert thought.content[0].type == "thinking"
    assert thought.usage.output_tokens_details.thinking_tokens > 0


def test_tokens_are_counted_before(anthropic_client, asked, expected):
    count = anthropic_client.messages.count_tokens
    counted = count(model="chat", messages=QUESTION)
    assert counted.input_tokens == len(expected.prompt(QUESTION, **NO_THINKING))
    assert counted._request_id
    counted = count(model="chat", messages=QUESTION, tools=TOOLS, system="Be brief.")
    said = [{"role": "system", "content": "Be brief."}, *QUESTION]
    assert counted.input_tokens == len(expected.prompt(said, FUNCTIONS, **NO_THINKING))


def test_models(anthropic_client):
    page = anthropic_client.models.list()
    assert [one.id for one in page] == ["chat", "embed", "recite"]
    assert page._request_id
    one = anthropic_client.models.retrieve("chat:latest")
    assert (one.id, one.type) == ("chat", "model")
    assert one._request_id
    with pytest.raises(anthropic.NotFoundError) as caught:
        anthropic_client.models.retrieve("nothing")
    assert caught.value.request_id


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "error", "kind"),
    [
        ({"model": "nothing"}, anthropic.NotFoundError, "not_found_error"),
        ({"messages": []}, anthropic.BadRequestError, "invalid_request_error"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
        ({"model": "embed"}, anthropic.BadRequestError, "invalid_request_error"),
        (
            {"messages": [{"role": "user", "content": "x" * 5000}]},
            anthropic.BadRequestError,
            "invalid_request_error",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "none"}},
            anthropic.BadRequestError,
            "invalid_request_error",
        ),
    ],
)
def test_errors(create, more, error, kind, stream):
    with pytest.raises(error) as caught:
        create(**more, stream=stream)
    assert caught.value.request_id == caught.value.body["request_id"]
    assert caught.value.body["error"]["type"] == kind


def test_keys(anthropic_options, asked):
    def ask(key, **more):
        with anthropic.Anthropic(**anthropic_options | {"api_key": key}) as client:
            return client.messages.create(**asked | more)

    with pytest.raises(anthropic.AuthenticationError) as caught:
        ask("wrong")
    assert caught.value.request_id
    assert ask(GUEST, model="chat:latest").model == "chat:latest"
    with pytest.raises(anthropic.PermissionDeniedError):
        ask(GUEST, model="embed")
    ask(RARE["anthropic"])
    with pytest.raises(anthropic.RateLimitError) as caught:
        ask(RARE["anthropic"])
    assert 1 <= float(caught.value.response.headers["retry-after"]) <= 60


def test_the_async_client(anthropic_options, asked, create):
    async def go():
        async with anthropic.AsyncAnthropic(**anthropic_options) as client:
            whole = await asyncio.gather(*(client.messages.create(**asked) for _ in range(6)))
            async with client.messages.stream(**asked) as stream:
                text = "".join([part async for part in stream.text_stream])
                final = await stream.get_final_message()
            counted = await client.messages.count_tokens(model="chat", messages=QUESTION)
            models = [one.id async for one in client.models.list()]
            return {text_of(one) for one in (*whole, final)} | {text}, counted.input_tokens, models

    texts, counted, models = asyncio.run(go())
    message = create()
    assert texts == {text_of(message)}
    assert counted == prompt_tokens(message.usage)
    assert models == ["chat", "embed", "recite"]
