"""Anthropic's own client against the endpoints; its pydantic models check every shape."""

from dataclasses import replace

import anthropic
import httpx2
import pytest
from pydantic import BaseModel
from scripted import USAGE, ScriptedService, handler, model, said

from hasten import errors
from hasten.serve.jobs import CallPiece, Ended, Piece, ToolChoice
from hasten.serve.protocols import openai
from hasten.serve.protocols.anthropic import ROUTES
from hasten.types import Structure

QUESTION = [{"role": "user", "content": "hello"}]
TOOL = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = [
    Piece(reasoning="Let me ", tokens=(1,)),
    Piece(reasoning="see.", content="I ask.", tokens=(2,)),
    Piece(calls=(CallPiece(0, "call-a", "weather", '{"city":'),)),
    Piece(calls=(CallPiece(0, "call-a", "weather", ' "Oslo"}'), CallPiece(1, "b", "time", ""))),
    Piece(calls=(CallPiece(1, "b", "time", "{}"),)),
    Ended(0, "tool_calls"),
    USAGE,
]


@pytest.fixture
def ask():
    """Makes a client of a service, and closes it."""
    clients = []

    def client(service):
        routes = [*ROUTES, *openai.ROUTES]
        http = httpx2.Client(
            transport=httpx2.MockTransport(handler(routes, service, httpx2.Response))
        )
        made = anthropic.Anthropic(
            base_url="http://server", api_key="k", http_client=http, max_retries=0
        )
        clients.append(made)
        return made

    yield client
    for made in clients:
        made.close()


def create(reached, **asked):
    return reached.messages.create(
        **{"model": "tiny", "max_tokens": 9, "messages": QUESTION, **asked}
    )


def blocks(message):
    return [block.model_dump(exclude_none=True) for block in message.content]


def test_a_whole_message(ask):
    service = ScriptedService(*said("Hi", " there"))
    message = create(ask(service))
    assert blocks(message) == [{"type": "text", "text": "Hi there"}]
    assert (message.role, message.type, message.model) == ("assistant", "message", "tiny")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_")
    usage = message.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens) == (4, 3)
    assert (usage.output_tokens, usage.output_tokens_details.thinking_tokens) == (5, 2)
    assert service.generations[0].closed


def test_defaults(ask):
    service = ScriptedService(*said("Hi"))
    create(ask(service))
    job = service.jobs[0]
    sampling = job.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 1, 1)
    assert (sampling.top_k, sampling.stop, sampling.structure) == (0, (), None)
    assert job.prompt.extra == {"enable_thinking": False}
    assert not job.prompt.continue_last
    assert job.prompt.tool_choice == ToolChoice()


def test_a_streamed_message(ask):
    service = ScriptedService(*said("Hi", "", " there"))
    with ask(service).messages.stream(model="tiny", max_tokens=9, messages=QUESTION) as stream:
        assert list(stream.text_stream) == ["Hi", " there"]
        message = stream.get_final_message()
    assert blocks(message) == [{"type": "text", "text": "Hi there"}]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 5)
    assert service.generations[0].closed


def test_events_come_in_order(ask):
    events = list(create(ask(ScriptedService(*CALL)), stream=True))
    told = [event.type.removeprefix("content_block_") for event in events]
    assert told == [
        *("message_start", "start", "delta", "delta", "delta", "stop", "start", "delta", "stop"),
        *("start", "delta", "delta", "stop", "start", "delta", "stop"),
        *("message_delta", "message_stop"),
    ]
    assert events[0].message.usage.input_tokens == 7
    indices = [event.index for event in events if event.type.startswith("content")]
    assert indices == sorted(indices)


def test_a_message_is_the_same_in_a_stream(ask):
    whole = create(ask(ScriptedService(*CALL)))
    with ask(ScriptedService(*CALL)).messages.stream(
        model="tiny", max_tokens=9, messages=QUESTION
    ) as stream:
        streamed = stream.get_final_message()
    assert blocks(whole) == blocks(streamed)
    assert [block["type"] for block in blocks(whole)] == [
        *("thinking", "text", "tool_use", "tool_use"),
    ]
    assert blocks(whole)[2]["input"] == {"city": "Oslo"}
    assert blocks(whole)[0]["signature"]
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    assert whole.usage == streamed.usage


@pytest.mark.parametrize(
    ("end", "tokens", "reason"),
    [
        (Ended(0, "stop"), 5, ("end_turn", None)),
        (Ended(0, "stop", "END"), 5, ("stop_sequence", "END")),
        (Ended(0, "length"), 9, ("max_tokens", None)),
        (Ended(0, "length"), 8, ("model_context_window_exceeded", None)),
        (Ended(0, "tool_calls"), 5, ("tool_use", None)),
    ],
)
def test_why_a_message_ended(ask, end, tokens, reason):
    events = [Piece(content="a"), end, replace(USAGE, output_tokens=tokens)]
    whole = create(ask(ScriptedService(*events)))
    assert (whole.stop_reason, whole.stop_sequence) == reason
    *_, delta, _ = create(ask(ScriptedService(*events)), stream=True)
    assert (delta.delta.stop_reason, delta.delta.stop_sequence) == reason


def test_what_is_asked_for(ask):
    service = ScriptedService(*said("Hi"))
    create(
        ask(service),
        system=[{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}],
        stop_sequences=["END"],
        extra_body={"temperature": 0.5, "top_p": 0.25, "top_k": 3},
        thinking={"type": "enabled", "budget_tokens": 2048, "display": "omitted"},
        tools=[TOOL],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        metadata={"user_id": "u"},
        service_tier="auto",
        output_config={
            "effort": "xhigh",
            "format": {"type": "json_schema", "schema": {"type": "object"}},
        },
    )
    job = service.jobs[0]
    sampling = job.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 3)
    assert sampling.stop == ("END",)
    assert sampling.structure == Structure("json_schema", '{"type":"object"}')
    assert job.prompt.messages[0] == {"role": "system", "content": "be\nbrief"}
    assert job.prompt.extra == {
        "enable_thinking": True,
        "thinking_budget": 2048,
        "reasoning_effort": "high",
    }
    assert job.prompt.tools[0]["function"]["parameters"] == TOOL["input_schema"]
    assert job.prompt.tool_choice == ToolChoice("required", "weather", parallel=False)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({"type": "auto"}, ToolChoice()),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "none"}, ToolChoice("none")),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            ToolChoice("auto", parallel=False),
        ),
    ],
)
def test_choices_of_tools(ask, asked, meant):
    service = ScriptedService(*said("Hi"))
    create(ask(service), tools=[TOOL], tool_choice=asked)
    assert service.jobs[0].prompt.tool_choice == meant


def test_a_conversation_with_tools(ask):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I ask."},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "c2", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no clock"}],
                },
                {"type": "text", "text": "well?"},
            ],
        },
        {"role": "system", "content": "hurry"},
    ]
    service = ScriptedService(*said("Rain."))
    create(ask(service), messages=messages)
    assert service.jobs[0].prompt.messages == [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "I ask.",
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": {"city": "Oslo"}},
                },
                {
                    "id": "c2",
                    "type": "function",
                    "function": {"name": "time", "arguments": {}},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain", "name": "weather"},
        {"role": "tool", "tool_call_id": "c2", "content": "Error: no clock", "name": "time"},
        {"role": "user", "content": "well?"},
        {"role": "system", "content": "hurry"},
    ]


def test_the_last_answer_is_continued(ask):
    service = ScriptedService(*said("B)"))
    create(ask(service), messages=[*QUESTION, {"role": "assistant", "content": "("}])
    assert service.jobs[0].prompt.continue_last


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "video"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"temperature": 2}}, "temperature"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"thinking": {"type": "sometimes"}}, "sometimes"),
        ({"extra_body": {"mcp_servers": [{}]}}, "mcp_servers"),
    ],
)
def test_what_cannot_be_done_is_refused(ask, asked, told):
    service = ScriptedService(*said("Hi"))
    with pytest.raises(anthropic.BadRequestError) as caught:
        create(ask(service), **asked)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    assert told in caught.value.body["error"]["message"]
    assert caught.value.body["request_id"] == "req-1"
    assert not service.jobs


@pytest.mark.parametrize(
    ("error", "raised", "kind"),
    [
        (errors.UsageError("x"), anthropic.BadRequestError, "invalid_request_error"),
        (errors.AuthenticationError("x"), anthropic.AuthenticationError, "authentication_error"),
        (errors.AccessError("x"), anthropic.PermissionDeniedError, "permission_error"),
        (errors.NotFoundError("x"), anthropic.NotFoundError, "not_found_error"),
        (errors.RateLimitError("x", retry_after=1), anthropic.RateLimitError, "rate_limit_error"),
        (errors.OverloadError("x", retry_after=1), anthropic.APIStatusError, "overloaded_error"),
        (errors.DeadlineError("x"), anthropic.APIStatusError, "timeout_error"),
        (ZeroDivisionError("secret"), anthropic.InternalServerError, "api_error"),
    ],
)
def test_errors(ask, error, raised, kind):
    with pytest.raises(raised) as caught:
        create(ask(ScriptedService(error)))
    assert caught.value.body["error"]["type"] == kind
    assert "secret" not in str(caught.value.body)


def test_errors_inside_a_stream(ask):
    service = ScriptedService(Piece(content="Hi"), errors.DeadlineError("out of time"))
    events = iter(create(ask(service), stream=True))
    assert [next(events).type for _ in range(3)][-1] == "content_block_delta"
    with pytest.raises(anthropic.APIStatusError, match="out of time"):
        next(events)
    assert service.generations[0].closed


def test_bugs_inside_a_stream_are_not_told(ask):
    service = ScriptedService(Piece(content="Hi"), ZeroDivisionError("secret"))
    with pytest.raises(anthropic.APIStatusError, match="api_error") as caught:
        list(create(ask(service), stream=True))
    assert "secret" not in str(caught.value)


def test_counting(ask):
    service = ScriptedService()
    counted = ask(service).messages.count_tokens(
        model="tiny", messages=QUESTION, system="be brief", tools=[TOOL]
    )
    assert counted.input_tokens == 11
    assert len(service.jobs[0].prompt.messages) == 2


def test_what_has_no_effect_is_named(ask):
    service = ScriptedService(*said("Hi"))
    raw = ask(service).messages.with_raw_response.create(
        model="tiny",
        max_tokens=9,
        messages=QUESTION,
        thinking={"type": "adaptive", "display": "omitted"},
        extra_body={"wish": 1},
    )
    assert raw.headers["x-hasten-ignored"] == "thinking.display, wish"
    assert raw.headers["x-hasten-cache"] == "miss"


def test_streamed_events_are_those_of_the_plain_way(ask):
    """Deltas are put together from parts; a plain encoder yields the same."""
    nasty = 'a "quoted"\n\u2028 \\ text\x00'
    events = [
        Piece(reasoning=nasty),
        Piece(content=nasty),
        Piece(calls=(CallPiece(0, "c", nasty, nasty),)),
        *(Ended(0, "stop"), USAGE),
    ]
    told = list(create(ask(ScriptedService(*events)), stream=True))
    deltas = [event.delta.model_dump() for event in told if event.type == "content_block_delta"]
    assert deltas == [
        {"type": "thinking_delta", "thinking": nasty},
        {"type": "signature_delta", "signature": "unsigned"},
        {"type": "text_delta", "text": nasty},
        {"type": "input_json_delta", "partial_json": nasty},
    ]
    starts = [event.content_block for event in told if event.type == "content_block_start"]
    assert starts[2].name == nasty


def test_parsed_output(ask):
    class City(BaseModel):
        name: str

    service = ScriptedService(*said('{"name":"Oslo"}'))
    message = ask(service).messages.parse(
        model="tiny", max_tokens=9, messages=QUESTION, output_format=City
    )
    assert message.parsed_output == City(name="Oslo")
    assert '"name"' in service.jobs[0].sampling.structure.text


def test_the_beta_client(ask):
    message = ask(ScriptedService(*CALL)).beta.messages.create(
        model="tiny", max_tokens=9, messages=QUESTION, betas=["something-2026"]
    )
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]


def test_models_are_listed_as_both_protocols_have_it(ask):
    service = ScriptedService(models=[model(), model("other")])
    page = ask(service).models.list()
    listed = list(page)
    assert [one.id for one in listed] == ["tiny", "other"]
    assert (page.first_id, page.last_id, page.has_more) == ("tiny", "other", False)
    assert listed[0].type == "model"
    assert listed[0].display_name == "tiny"
    assert listed[0].lifecycle == "active"
    assert listed[0].created_at.timestamp() == 1_700_000_000.5
    assert ask(service).models.retrieve("other").max_input_tokens == 2048
