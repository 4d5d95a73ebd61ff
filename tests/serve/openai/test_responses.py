"""/v1/responses: items become a conversation, events become items, and clients come back."""

import asyncio
import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList
from openai_scripted import USAGE, FakeService, ask, call_of, events_of, said, spell
from pydantic import TypeAdapter

from hasten.errors import EngineLostError, HastenError, NotFoundError
from hasten.serve.jobs import MAX_OUTPUT, CallPiece, Client, Ended, Piece
from hasten.serve.protocols.openai.responses import create_response
from hasten.serve.protocols.reading import FieldError
from hasten.serve.response_store import ResponseStore, StoredResponse
from hasten.types import Structure, TokenLogprobs

PATH = "/v1/responses"
ONE = "/v1/responses/{response}"
EVENTS = TypeAdapter(ResponseStreamEvent)
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"at":1}'}
CALLED = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"at": 1}},
}


def job_of(asked="Hi", **fields):
    service = FakeService([said("ok")])
    ask(service, PATH, {"model": "m", "input": asked, **fields})
    return service.jobs[0]


def answer_of(events, service=None, **fields):
    service = service or FakeService()
    service.script = [events]
    reply = ask(service, PATH, {"model": "m", "input": "Hi", **fields})
    Response.model_validate(reply.json)
    return reply.json


def stream_of(events, **fields):
    body = {"model": "m", "input": "Hi", "stream": True, **fields}
    told = list(events_of(ask(FakeService([events]), PATH, body).body))
    for event in told:
        EVENTS.validate_python(event)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    return told


def test_a_text_and_its_settings():
    job = job_of(
        instructions="Be brief.",
        max_output_tokens=9,
        temperature=0,
        top_p=0.5,
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": {"type": "json_schema", "name": "x", "schema": {"a": 1}}},
    )
    assert job.prompt.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert (job.sampling.max_tokens, job.sampling.temperature, job.sampling.top_p) == (9, 0, 0.5)
    assert job.sampling.structure == Structure("json_schema", '{"a":1}')
    assert job.prompt.extra == {"reasoning_effort": "low"}
    assert (job_of().sampling.max_tokens, job_of().sampling.logprobs) == (MAX_OUTPUT, None)


def test_items_become_messages():
    items = [
        {"role": "developer", "content": "Rule."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Q"}]},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        CALL,
        {**CALL, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"role": "assistant", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x"}]},
    ]
    assert job_of(items, instructions="Be brief.").prompt.messages == [
        {"role": "system", "content": "Be brief.\n\nRule."},
        {"role": "user", "content": "Q"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "hm",
            "tool_calls": [CALLED, {**CALLED, "id": "c2"}],
        },
        {"role": "tool", "content": "sun", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "assistant", "content": "", "reasoning_content": "x"},
    ]


def test_tools_and_their_choice():
    other = {"type": "function", "name": "time", "parameters": None, "strict": True}
    prompt = job_of(tools=[WEATHER, other], tool_choice={"type": "function", "name": "time"}).prompt
    assert [tool["function"]["name"] for tool in prompt.tools] == ["weather", "time"]
    assert (prompt.tool_choice.mode, prompt.tool_choice.name) == ("required", "time")
    allowed = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "time"}],
    }
    prompt = job_of(tools=[WEATHER, other], tool_choice=allowed, parallel_tool_calls=False).prompt
    assert [tool["function"]["name"] for tool in prompt.tools] == ["time"]
    assert not prompt.tool_choice.parallel


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "message", "content": "a"}]}, "input[0].role"),
        ({"input": [{"content": "a"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{**CALL, "arguments": "{"}]}, "input[0].arguments"),
        ({"input": [{**CALL, "call_id": None}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": "a"}] * 5000}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"metadata": {"a": 1}}, "metadata[...]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 30}, "top_logprobs"),
    ],
)
def test_what_is_refused_is_named(fields, field):
    with pytest.raises(FieldError) as caught:
        ask(FakeService([said("ok")]), PATH, {"model": "m", "input": "Hi", **fields})
    assert caught.value.field == field


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ITEM_FIELDS = st.sampled_from(
    ["role", "content", "type", "summary", "call_id", "name", "arguments", "output", "text"]
)
KINDS = st.sampled_from(["message", "reasoning", "function_call", "function_call_output"])
ITEMS = st.dictionaries(ITEM_FIELDS, JSON | st.just("user")) | st.fixed_dictionaries(
    {"type": KINDS, "role": st.just("assistant"), "content": JSON}
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ITEMS, max_size=3), st.dictionaries(st.sampled_from(["tools", "text"]), JSON))
def test_nothing_but_an_answer_or_an_error_comes_of_any_items(items, fields):
    with contextlib.suppress(HastenError):
        ask(FakeService([said("ok")]), PATH, {"model": "m", "input": items, **fields})


def test_a_whole_answer():
    answer = answer_of(said("Hel", "lo"), metadata={"a": "b"}, user="u", tools=[WEATHER])
    (message,) = answer["output"]
    part = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
    assert (message["role"], message["status"], message["content"]) == (
        "assistant",
        "completed",
        [part],
    )
    assert (answer["status"], answer["metadata"], answer["user"]) == ("completed", {"a": "b"}, "u")
    assert answer["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 12,
    }
    cut = answer_of(said("Hel", reason="length"))
    assert (cut["status"], cut["output"][0]["status"]) == ("incomplete", "incomplete")
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}


def called():
    return [
        Piece(reasoning="h"),
        Piece(reasoning="m", content="So"),
        Piece(calls=(CallPiece(0, "c0", "weather", '{"a"'),)),
        Piece(calls=(CallPiece(0, "c0", "weather", ":1}"), CallPiece(1, "c1", "time", ""))),
        Ended(0, "tool_calls"),
        USAGE,
    ]


def test_a_stream_of_reasoning_text_and_calls():
    told = stream_of(called(), tools=[WEATHER])
    assert [event["type"].removeprefix("response.") for event in told] == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert told[-1]["response"]["output"] == done
    assert [item["type"] for item in done] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert [(i["call_id"], i["name"], i["arguments"]) for i in done[2:]] == [
        ("c0", "weather", '{"a":1}'),
        ("c1", "time", ""),
    ]
    assert done[0]["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert len({item["id"] for item in done}) == 4
    whole = answer_of(called(), tools=[WEATHER])
    strip = [{k: v for k, v in item.items() if k != "id"} for item in done]
    assert [{k: v for k, v in item.items() if k != "id"} for item in whole["output"]] == strip


def test_deltas_join_to_the_text_whatever_is_in_it():
    texts = ["a", '"\n', "é\u2028", ""]
    told = stream_of(said(*texts))
    deltas = [event["delta"] for event in told if event["type"] == "response.output_text.delta"]
    assert (
        "".join(deltas) == "".join(texts) == told[-1]["response"]["output"][0]["content"][0]["text"]
    )


def test_log_probabilities():
    def entry(letter):
        return TokenLogprobs(ord(letter), -0.5, 1, ((ord(letter), -0.5),))

    pieces = [
        Piece(reasoning="r", tokens=(114,), logprobs=(entry("r"),)),
        Piece(tokens=(97,), logprobs=(entry("a"),)),
        Piece(content="ab", tokens=(98,), logprobs=(entry("b"),)),
    ]
    events = [*pieces, Ended(0, "stop"), USAGE]
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    told = stream_of(events, **fields)
    delta = next(event for event in told if event["type"] == "response.output_text.delta")
    assert [one["token"] for one in delta["logprobs"]] == ["a", "b"]
    assert told[-1]["response"]["output"][1]["content"][0]["logprobs"] == delta["logprobs"]
    assert job_of(**fields).sampling.logprobs == 1
    assert delta["logprobs"][0]["bytes"] == list(spell(97))


def test_an_error_inside_a_stream_is_a_failed_response():
    service = FakeService([[Piece(content="a"), EngineLostError("gone")]])
    told = list(events_of(ask(service, PATH, {"model": "m", "input": "Hi", "stream": True}).body))
    assert told[-1]["type"] == "response.failed"
    EVENTS.validate_python(told[-1])
    assert told[-1]["response"]["error"] == {"code": "server_error", "message": "gone"}
    assert told[-1]["response"]["output"][0]["status"] == "incomplete"
    with pytest.raises(NotFoundError):
        ask(service, ONE, method="GET", path={"response": told[-1]["response"]["id"]})


def test_a_response_goes_on_from_another():
    service = FakeService()
    first = answer_of(called(), service, instructions="Not carried over.", tools=[WEATHER])
    result = [{"type": "function_call_output", "call_id": "c0", "output": "sun"}]
    second = answer_of(said("Sun."), service, input=result, previous_response_id=first["id"])
    answer_of(said("Yes."), service, input="Sure?", previous_response_id=second["id"])
    roles = [message["role"] for message in service.jobs[-1].prompt.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
    turn = service.jobs[-1].prompt.messages[1]
    assert (turn["reasoning_content"], turn["content"], len(turn["tool_calls"])) == ("hm", "So", 2)


@pytest.mark.parametrize(
    ("arguments", "reason"), [('{"a', "length"), ('{"a":@}', "tool_calls"), ("[1]", "tool_calls")]
)
def test_a_call_that_is_broken_is_left_out_afterwards(arguments, reason):
    service = FakeService()
    pieces = [Piece(content="So"), Piece(calls=(CallPiece(0, "c0", "weather", arguments),))]
    first = answer_of([*pieces, Ended(0, reason), USAGE], service)
    assert first["output"][1]["status"] == "incomplete"
    answer_of(said("ok"), service, previous_response_id=first["id"])
    assert service.jobs[-1].prompt.messages[1] == {"role": "assistant", "content": "So"}


def test_responses_are_shown_listed_and_forgotten():
    service = FakeService()
    answer = answer_of(said("ok"), service, input=[{"role": "user", "content": "Q"}, CALL])
    name = {"path": {"response": answer["id"]}}
    assert ask(service, ONE, method="GET", **name).json == answer
    listed = ask(service, f"{ONE}/input_items", method="GET", **name).json
    ResponseItemList.model_validate(listed)
    assert [item["type"] for item in listed["data"]] == ["function_call", "message"]
    with pytest.raises(NotFoundError):
        ask(service, ONE, method="GET", client=Client(tenant="other"), **name)
    with pytest.raises(NotFoundError):
        ask(service, ONE, method="DELETE", client=Client(tenant="other"), **name)
    assert ask(service, ONE, method="DELETE", **name).json["deleted"]
    with pytest.raises(NotFoundError):
        answer_of(said("ok"), service, previous_response_id=answer["id"])


def test_what_is_not_to_be_stored_is_not():
    service = FakeService()
    answer = answer_of(said("ok"), service, store=False)
    with pytest.raises(NotFoundError):
        ask(service, ONE, method="GET", path={"response": answer["id"]})


def test_a_client_does_not_choose_the_id():
    service = FakeService()
    assert answer_of(said("a"), service)["id"] != answer_of(said("b"), service)["id"]


def test_the_length_of_an_input():
    service = FakeService()
    reply = ask(service, "/v1/responses/input_tokens", {"model": "m", "input": "Hi"})
    assert reply.json == {"object": "response.input_tokens", "input_tokens": 7}


def test_leaving_a_stream_cancels():
    service = FakeService([said("a")])

    async def leave():
        reply = await create_response(
            call_of(service, {"model": "m", "input": "Hi", "stream": True})
        )
        begun = await anext(reply.body)
        await reply.body.aclose()
        return begun

    assert b"response.created" in asyncio.run(leave())
    assert service.generations[0].closed


def stored(name, size):
    return StoredResponse(name, None, b"", b"x" * size)


def test_the_store_is_bounded_and_no_tenant_pushes_out_another():
    store = ResponseStore(limit=20_000)
    store.keep("a", stored("mine", 1000))
    for number in range(100):
        store.keep("b", stored(str(number), 1000))
    assert store.get("a", "mine").id == "mine"
    with pytest.raises(NotFoundError):
        store.get("b", "0")
    store.get("b", "99")
    store.keep("b", stored("big", 16_000))
    store.keep("b", stored("huge", 30_000))
    with pytest.raises(NotFoundError):
        store.get("b", "huge")
    assert store.get("b", "big").id == "big"


def test_every_event_has_a_name_of_its_type():
    body = {"model": "m", "input": "Hi", "stream": True}
    text = ask(FakeService([called()]), PATH, body).body.decode()
    for event in text.split("\n\n")[:-1]:
        name, data = event.splitlines()
        assert json.loads(data.removeprefix("data: "))["type"] == name.removeprefix("event: ")
