"""OpenAI's client and chat completions."""

import asyncio
import json
import math
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from hasten.types import Structure

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Tells the {name}.",
            "parameters": {
                "type": "object",
                "properties": {key: {"enum": values}},
                "required": [key],
            },
        },
    }
    for name, key, values in (
        ("weather", "city", ["Bern", "Oslo"]),
        ("time", "zone", ["CET", "UTC"]),
    )
]
THOUGHTS = r"<think>\n[a-z]{5}\n</think>\n\n[a-z]{4}"


class Answer(BaseModel):
    city: Literal["Bern", "Oslo"]
    warm: bool


@pytest.fixture
def create(openai_client):
    def create(**asked):
        defaults = {"model": "chat", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
        return openai_client.chat.completions.create(**defaults | asked)

    return create


def joined(chunks, index=0):
    """The content that the chunks of a stream carry for one choice."""
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_an_answer_is_the_engines_own(create, expected):
    text, tokens, prompt = expected.chat(QUESTION, max_tokens=24)
    answer = create()
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", text)
    assert (choice.finish_reason, choice.index) == ("length", 0)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, tokens) == (prompt, 24)
    assert usage.total_tokens == prompt + tokens
    assert (answer.object, answer.model) == ("chat.completion", "chat")
    assert answer._request_id == answer.id.removeprefix("chatcmpl-")


def test_a_prompt_that_was_read_before_is_counted_as_cached(create, expected):
    asked = [{"role": "user", "content": "count me " * 20}]
    first, second = create(messages=asked).usage, create(messages=asked).usage
    assert first.prompt_tokens == second.prompt_tokens == len(expected.prompt(asked))
    cached = [usage.prompt_tokens_details.cached_tokens for usage in (first, second)]
    assert cached[0] < cached[1] < second.prompt_tokens


def test_a_stream_says_the_same(create):
    whole = create()
    chunks = list(create(stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) == {None}
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    counts = [(u.prompt_tokens, u.completion_tokens) for u in (chunks[-1].usage, whole.usage)]
    assert counts[0] == counts[1]
    assert [chunk.usage for chunk in create(stream=True)] == [None] * (len(chunks) - 1)


def test_the_helper_for_streams(openai_client, create):
    stop = create().choices[0].message.content[20:]
    with openai_client.chat.completions.stream(
        model="chat", messages=QUESTION, temperature=0, max_tokens=24, stop=stop
    ) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    whole = create(stop=stop)
    assert "".join(texts) == whole.choices[0].message.content == final.choices[0].message.content


def test_several_outputs(create):
    asked = {"n": 3, "temperature": 1.0, "seed": 5, "logprobs": True}
    answer = create(**asked)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3
    counted = sum(len(choice.logprobs.content) for choice in answer.choices)
    assert answer.usage.completion_tokens == counted
    chunks = list(create(**asked, stream=True))
    assert [joined(chunks, index) for index in range(3)] == texts


def test_seeds(create):
    def sampled(seed):
        return create(temperature=1.0, seed=seed).choices[0].message.content

    assert sampled(7) == sampled(7) != sampled(8)


def test_stop(create, expected):
    text, *_ = expected.chat(QUESTION, max_tokens=24)
    stop = text[10:13]
    answer = create(stop=["never", stop])
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(create(stop=stop, stream=True))
    assert joined(chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_logprobs(create, expected):
    outputs = expected.run(expected.prompt(QUESTION), max_tokens=24, logprobs=3)
    wanted = [entry for output in outputs for entry in output.logprobs]
    choice = create(logprobs=True, top_logprobs=3).choices[0]
    got = choice.logprobs.content
    assert "".join(entry.token for entry in got) == choice.message.content
    assert [entry.logprob for entry in got] == [entry.logprob for entry in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert [top.logprob for top in one.top_logprobs] == [value for _, value in other.top]
        assert one.top_logprobs[0].token == one.token  # greedy
        assert bytes(one.bytes).decode() == one.token
        assert sum(math.exp(top.logprob) for top in one.top_logprobs) <= 1
    chunks = list(create(logprobs=True, top_logprobs=3, stream=True))
    streamed = [chunk.choices[0].logprobs for chunk in chunks]
    assert [entry for one in streamed if one for entry in one.content] == got


def test_a_tool_that_must_be_called(create, expected):
    forced = {"type": "function", "function": {"name": "weather"}}
    # A model that may reason first may do so for long.
    asked = {"tools": TOOLS, "tool_choice": forced, "max_tokens": 200, "reasoning_effort": "none"}
    answer = create(**asked)
    (choice,) = answer.choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content, call.type, call.function.name) == (None, "function", "weather")
    assert json.loads(call.function.arguments)["city"] in ("Bern", "Oslo")
    wanted = expected.prompt(QUESTION, TOOLS, enable_thinking=False)
    assert answer.usage.prompt_tokens == len(wanted)

    chunks = list(create(**asked, stream=True))
    deltas = [one.delta.tool_calls[0] for c in chunks for one in c.choices if one.delta.tool_calls]
    assert (deltas[0].function.name, bool(deltas[0].id)) == ("weather", True)
    assert [delta.id for delta in deltas[1:]] == [None] * (len(deltas) - 1)
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_any_tool_and_its_result(create, expected):
    answer = create(tools=TOOLS, tool_choice="required", max_tokens=400, reasoning_effort="none")
    message = answer.choices[0].message
    assert message.tool_calls
    told = [
        {"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in message.tool_calls
    ]
    after = create(messages=[*QUESTION, message, *told], tools=TOOLS)
    calls = [call.model_dump() for call in message.tool_calls]
    for call in calls:
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    said = {"role": "assistant", "content": None, "tool_calls": calls}
    text, tokens, prompt = expected.chat([*QUESTION, said, *told], TOOLS, max_tokens=24)
    assert after.choices[0].message.content == text
    assert (after.usage.prompt_tokens, after.usage.completion_tokens) == (prompt, tokens)


def test_tools_that_may_be_called(create, expected):
    text, _, prompt = expected.chat(QUESTION, TOOLS, max_tokens=24)
    answer = create(tools=TOOLS, tool_choice="auto")
    assert (answer.choices[0].message.content, answer.usage.prompt_tokens) == (text, prompt)
    assert answer.choices[0].message.tool_calls is None
    hidden = create(tools=TOOLS, tool_choice="none")
    assert hidden.usage.prompt_tokens == len(expected.prompt(QUESTION))


def test_structured_answers(create, openai_client):
    anything = create(response_format={"type": "json_object"}, max_tokens=100, logprobs=True)
    if anything.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(anything.choices[0].message.content), dict)
    assert anything.choices[0].message.content.startswith("{")
    answer = openai_client.chat.completions.parse(
        model="chat", messages=QUESTION, temperature=0, max_tokens=200, response_format=Answer
    )
    assert isinstance(answer.choices[0].message.parsed, Answer)
    assert answer.choices[0].finish_reason == "stop"


def test_reasoning(create, expected):
    asked = {"extra_body": {"structured_outputs": {"regex": THOUGHTS}}, "max_tokens": 80}
    text, tokens, _ = expected.chat(QUESTION, max_tokens=80, structure=Structure("regex", THOUGHTS))
    answer = create(**asked)
    message = answer.choices[0].message
    assert message.reasoning_content == text[8:13]
    assert message.content == text[-4:]
    usage = answer.usage
    assert usage.completion_tokens == tokens
    spent = usage.completion_tokens_details.reasoning_tokens
    assert len("<think>\n" + text[8:13]) <= spent <= len(text) - 4
    chunks = list(create(**asked, stream=True))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert (thought, joined(chunks)) == (message.reasoning_content, message.content)


def test_no_thinking_reaches_the_template(create, expected):
    text, _, prompt = expected.chat(QUESTION, values={"enable_thinking": False}, max_tokens=24)
    answer = create(reasoning_effort="none")
    assert (answer.choices[0].message.content, answer.usage.prompt_tokens) == (text, prompt)
    assert prompt > len(expected.prompt(QUESTION))


def test_the_async_client(openai_options, expected):
    text, *_ = expected.chat(QUESTION, max_tokens=24)
    asked = {"model": "chat", "messages": QUESTION, "temperature": 0, "max_tokens": 24}

    async def go():
        async with openai.AsyncOpenAI(**openai_options) as client:
            create = client.chat.completions.create
            whole = await asyncio.gather(*(create(**asked) for _ in range(6)))
            streamed = [chunk async for chunk in await create(**asked, stream=True)]
            return [one.choices[0].message.content for one in whole], joined(streamed)

    assert asyncio.run(go()) == ([text] * 6, text)
