"""OpenAI's client and responses, which the server remembers."""

import asyncio
import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

TOOL = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Bern", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
FUNCTION = {
    "type": "function",
    "function": {name: TOOL[name] for name in ("name", "description", "parameters")},
}
NO_THINKING = {"effort": "none"}


class Answer(BaseModel):
    city: Literal["Bern", "Oslo"]


@pytest.fixture
def create(openai_client):
    def create(said="Hello!", **asked):
        defaults = {"model": "chat", "temperature": 0, "max_output_tokens": 20}
        return openai_client.responses.create(input=said, **defaults | asked)

    return create


def user(text):
    return {"role": "user", "content": text}


def test_a_response_is_kept_until_it_is_deleted(create, openai_client, expected):
    conversation = [{"role": "system", "content": "Be brief."}, user("Hello!")]
    text, tokens, prompt = expected.chat(conversation, max_tokens=20)
    made = create(instructions="Be brief.", metadata={"a": "b"})
    assert made.output_text == text
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    usage = made.usage
    assert (usage.input_tokens, usage.output_tokens) == (prompt, tokens)
    assert usage.total_tokens == prompt + tokens
    kept = openai_client.responses.retrieve(made.id)
    assert kept.model_dump() == made.model_dump()
    (item,) = openai_client.responses.input_items.list(made.id)
    assert (item.role, item.content[0].text) == ("user", "Hello!")
    openai_client.responses.delete(made.id)
    for call in (openai_client.responses.retrieve, openai_client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    forgotten = create(store=False)
    with pytest.raises(openai.NotFoundError):
        openai_client.responses.retrieve(forgotten.id)


def test_one_goes_on_from_another(create, expected):
    first = create()
    second = create("And then?", previous_response_id=first.id)
    said = [user("Hello!"), {"role": "assistant", "content": first.output_text}, user("And then?")]
    text, _, prompt = expected.chat(said, max_tokens=20)
    assert (second.output_text, second.usage.input_tokens) == (text, prompt)
    with pytest.raises(openai.NotFoundError):
        create(previous_response_id="resp_none")


def test_a_stream_builds_the_same_response(create):
    whole = create()
    events = list(create(stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[2:4] == ["response.output_item.added", "response.content_part.added"]
    ends = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert kinds[-4:] == [*ends, "response.incomplete"]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events[4:-4]) == whole.output_text
    final = events[-1].response
    assert (final.output_text, final.usage) == (whole.output_text, whole.usage)


def test_the_helper_for_streams(openai_client):
    with openai_client.responses.stream(
        model="chat",
        input="Where?",
        text_format=Answer,
        temperature=0,
        max_output_tokens=100,
        reasoning=NO_THINKING,
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert final.status == "completed"
    assert isinstance(final.output_parsed, Answer)
    assert "".join(deltas) == final.output_text


def test_formats(create, openai_client):
    parsed = openai_client.responses.parse(
        model="chat", input="Where?", text_format=Answer, temperature=0, max_output_tokens=100
    )
    assert isinstance(parsed.output_parsed, Answer)
    anything = create(text={"format": {"type": "json_object"}})
    assert anything.output_text.startswith("{")


def test_tools(create, expected):
    asked = {"tools": [TOOL], "max_output_tokens": 100, "reasoning": NO_THINKING}
    forced = {"type": "function", "name": "weather"}
    made = create("Rain?", tool_choice=forced, **asked)
    (call,) = made.output
    assert (call.type, call.name, made.status) == ("function_call", "weather", "completed")
    arguments = json.loads(call.arguments)
    assert arguments["city"] in ("Bern", "Oslo")
    events = list(create("Rain?", tool_choice=forced, stream=True, **asked))
    deltas = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments
    assert events[-1].type == "response.completed"

    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    after = create([result], previous_response_id=made.id, **asked)
    function = {"name": "weather", "arguments": arguments}
    calls = [{"id": call.call_id, "type": "function", "function": function}]
    said = [
        user("Rain?"),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": call.call_id, "content": "rain"},
    ]
    values = {"enable_thinking": False}
    text, _, prompt = expected.chat(said, [FUNCTION], values=values, max_tokens=100)
    assert (after.output_text, after.usage.input_tokens) == (text, prompt)


def test_tokens_are_counted_before(openai_client, expected):
    counted = openai_client.responses.input_tokens.count(model="chat", input="Hello!")
    assert counted.input_tokens == len(expected.prompt([user("Hello!")]))


def test_logprobs(create):
    made = create(top_logprobs=2, include=["message.output_text.logprobs"])
    (part,) = made.output[0].content
    assert "".join(entry.token for entry in part.logprobs) == part.text
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


@pytest.mark.parametrize(
    "asked",
    [
        {"background": True},
        {"tools": [{"type": "web_search"}]},
        {"temperature": 1000},
        {"said": [{"type": "item_reference", "id": "x"}]},
    ],
)
def test_what_cannot_be_done_is_refused(create, asked):
    with pytest.raises(openai.BadRequestError) as caught:
        create(**asked)
    assert caught.value.request_id


def test_the_async_client(openai_options, create):
    async def go():
        async with openai.AsyncOpenAI(**openai_options) as client:
            asked = {"model": "chat", "input": "Hello!", "temperature": 0}
            stream = await client.responses.create(**asked, max_output_tokens=20, stream=True)
            events = [event async for event in stream]
            kept = await client.responses.retrieve(events[-1].response.id)
            return kept.output_text

    assert asyncio.run(go()) == create().output_text
