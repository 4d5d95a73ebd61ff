"""POST /v1/chat/completions: what is asked becomes a job, what happens becomes an answer."""

import asyncio
import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai_scripted import USAGE, FakeService, ask, call_of, events_of, said

from hasten.errors import AccessError, DeadlineError, HastenError, OverloadError
from hasten.serve.jobs import MAX_OUTPUT, CallPiece, Client, Ended, Piece
from hasten.serve.protocols.openai.answer import AnswerForm
from hasten.serve.protocols.openai.chat import chat
from hasten.serve.protocols.openai.chat_answer import ChatChunks
from hasten.serve.protocols.reading import FieldError
from hasten.types import Structure, TokenLogprobs

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "Hi"}
WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": WEATHER}


def job_of(messages=(USER,), **fields):
    service = FakeService([said("ok")])
    ask(service, PATH, {"model": "m", "messages": list(messages), **fields})
    return service.jobs[0]


def answer_of(events, **fields):
    reply = ask(FakeService([events]), PATH, {"model": "m", "messages": [USER], **fields})
    ChatCompletion.model_validate(reply.json, strict=True)
    return reply.json


def chunks_of(events, **fields):
    body = {"model": "m", "messages": [USER], "stream": True, **fields}
    *chunks, done = events_of(ask(FakeService([events]), PATH, body).body)
    assert done == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return chunks


def refused(**fields):
    with pytest.raises(FieldError) as caught:
        job_of(**fields)
    return caught.value


def test_a_plain_question():
    job = job_of()
    assert job.prompt.messages == [{"role": "user", "content": "Hi"}]
    assert (job.sampling.temperature, job.sampling.max_tokens) == (1.0, MAX_OUTPUT)
    assert (job.id, job.model, job.received, job.cache, job.split) == ("r1", "m", 100.0, True, True)


def test_sampling_is_taken_over():
    job = job_of(
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        n=2,
        seed=-2,
        stop="END",
        stop_token_ids=[3],
        presence_penalty=1,
        frequency_penalty=-1,
        repetition_penalty=1.1,
        logit_bias={"5": -100},
        max_tokens=3,
        max_completion_tokens=9,
        logprobs=True,
        top_logprobs=4,
        ignore_eos=True,
        priority=2,
        timeout=5,
    )
    sampling = job.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (sampling.min_p, sampling.n, sampling.seed) == (0.1, 2, 2**64 - 2)
    assert (sampling.stop, sampling.stop_tokens) == (("END",), (3,))
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.1, {5: -100})
    assert (sampling.max_tokens, sampling.logprobs, sampling.ignore_eos) == (9, 4, True)
    assert (job.priority, job.timeout) == (2, 5)


@pytest.mark.parametrize(
    ("field", "value", "attribute", "expected"),
    [
        ("seed", -1, "seed", None),
        ("top_k", -1, "top_k", 0),
        ("max_tokens", 2**40, "max_tokens", MAX_OUTPUT),
        ("stop", ["a", "b"], "stop", ("a", "b")),
        ("logprobs", True, "logprobs", 0),
        ("logprobs", False, "logprobs", None),
        ("temperature", None, "temperature", 1.0),
        ("temperature", 0, "temperature", 0),
    ],
)
def test_values_with_a_meaning_of_their_own(field, value, attribute, expected):
    assert getattr(job_of(**{field: value}).sampling, attribute) == expected


def test_messages_of_every_role():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"at": 1}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]},
    ]
    function = {"name": "weather", "arguments": {"at": 1}}
    assert job_of(messages).prompt.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a", "name": "Ann"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "sun", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "a\nb"},
    ]


@pytest.mark.parametrize(
    ("choice", "mode", "name", "tools"),
    [
        (None, "auto", None, 2),
        ("none", "none", None, 2),
        ("required", "required", None, 2),
        ({"type": "function", "function": {"name": "time"}}, "required", "time", 2),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "time"}}],
                },
            },
            "required",
            None,
            1,
        ),
    ],
)
def test_tools_and_their_choice(choice, mode, name, tools):
    other = {"type": "function", "function": {"name": "time"}}
    prompt = job_of(tools=[TOOL, other], tool_choice=choice, parallel_tool_calls=False).prompt
    assert (prompt.tool_choice.mode, prompt.tool_choice.name) == (mode, name)
    assert not prompt.tool_choice.parallel
    assert len(prompt.tools) == tools
    empty = {"type": "object", "properties": {}}
    declared = {"name": "time", "description": "", "parameters": empty}
    assert prompt.tools[-1] == {"type": "function", "function": declared}


def test_functions_of_old():
    prompt = job_of(functions=[WEATHER], function_call={"name": "weather"}).prompt
    assert list(prompt.tools) == [TOOL]
    assert (prompt.tool_choice.mode, prompt.tool_choice.name) == ("required", "weather")
    pieces = [Piece(calls=(CallPiece(0, "c", "weather", text),)) for text in ('{"a"', ":1}")]
    events = [*pieces, Ended(0, "tool_calls"), USAGE]
    choice = answer_of(events, functions=[WEATHER])["choices"][0]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": '{"a":1}'}
    deltas = [c["choices"][0]["delta"] for c in chunks_of(events, functions=[WEATHER])]
    assert deltas[1:] == [
        {"function_call": {"name": "weather", "arguments": '{"a"'}},
        {"function_call": {"arguments": ":1}"}},
        {},
    ]


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            Structure("json_schema", '{"type": "object"}'),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"b": 1}}}},
            Structure("json_schema", '{"b":1}'),
        ),
        ({"guided_json": '{"type": "null"}'}, Structure("json_schema", '{"type": "null"}')),
        ({"guided_regex": "a+"}, Structure("regex", "a+")),
        ({"guided_choice": ["a", 'b"']}, Structure("grammar", 'start: "a" | "b\\""')),
        ({"structured_outputs": {"grammar": "start: A"}}, Structure("grammar", "start: A")),
    ],
)
def test_structures(fields, structure):
    assert job_of(**fields).sampling.structure == structure


def test_values_for_the_template():
    asked = {"reasoning_effort": "low", "chat_template_kwargs": {"thinking_budget": 5}}
    assert job_of(**asked).prompt.extra == {"reasoning_effort": "low", "thinking_budget": 5}
    off = job_of(reasoning_effort="none").prompt.extra
    assert off == {"enable_thinking": False, "thinking": False}
    begun = [USER, {"role": "assistant", "content": "We"}]
    assert job_of(begun, continue_final_message=True, add_generation_prompt=False).prompt == (
        job_of(begun, continue_final_message=True).prompt
    )
    assert job_of(begun, continue_final_message=True).prompt.continue_last


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "a", "arguments": "[1]"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 10**30}, "n"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"guided_regex": "a", "guided_json": {}}, ""),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_refused_is_named(fields, field):
    assert refused(**fields).field == field


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{", b"null", b'{"model": "m"}', b"\xff", b'{"model": NaN}'),
        b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "m", "tools": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "m", "x": ' + b"[" * 70 + b"]" * 70 + b"}",
        b'{"model": "m", "messages": [{"role": "user", "content": ""}], "seed": 1e999}',
    ],
)
def test_what_is_no_request_at_all(body):
    with pytest.raises(HastenError):
        asyncio.run(chat(call_of(FakeService(), body)))


# Other work on the machine must not fail them.
patiently = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *("messages", "model", "n", "stop", "tools", "tool_choice", "response_format", "stream"),
        *("logit_bias", "logprobs", "top_logprobs", "functions", "function_call", "documents"),
        *("chat_template_kwargs", "structured_outputs", "guided_json", "guided_choice", "seed"),
        *("max_tokens", "stream_options", "audio", "bad_words", "min_tokens", "timeout"),
    ]
)


@patiently
@given(st.dictionaries(FIELDS, JSON))
def test_nothing_but_an_answer_or_an_error_comes_of_any_json(fields):
    body = {"model": "m", "messages": [USER], **fields}
    with contextlib.suppress(HastenError):
        ask(FakeService([said("ok")]), PATH, body)


@patiently
@given(st.lists(JSON, min_size=1, max_size=3))
def test_nothing_but_an_answer_or_an_error_comes_of_any_message(messages):
    near = [{"role": "assistant", **m} if isinstance(m, dict) else m for m in messages]
    with contextlib.suppress(HastenError):
        ask(FakeService([said("ok")]), PATH, {"model": "m", "messages": near})


def test_only_administrators_overtake():
    body = {"model": "m", "messages": [USER], "priority": -1}
    with pytest.raises(AccessError):
        ask(FakeService([said("a")]), PATH, body, client=Client(admin=False))
    ask(FakeService([said("a")]), PATH, body)


def test_headers_say_what_was_ignored_and_what_the_cache_is_for():
    service = FakeService([said("a")])
    body = {"model": "m", "messages": [USER], "wibble": 1, "user": "u", "x\n": 2, "audio": None}
    reply = ask(service, PATH, body, headers={"cache-control": "no-cache"})
    assert reply.headers == {"x-hasten-ignored": "wibble"}
    assert not service.jobs[0].cache


def test_a_whole_answer():
    answer = answer_of(said("Hel", "lo", reason="length"))
    assert answer["id"] == "chatcmpl-r1"
    assert (answer["object"], answer["model"]) == ("chat.completion", "m")
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert choice["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


def called():
    return [
        Piece(reasoning="hm"),
        Piece(calls=(CallPiece(0, "c0", "weather", '{"a"'),)),
        Piece(calls=(CallPiece(0, "c0", "weather", ":1}"), CallPiece(1, "c1", "time", "{}"))),
        Ended(0, "tool_calls"),
        USAGE,
    ]


def test_an_answer_that_calls_tools():
    choice = answer_of(called())["choices"][0]
    message = choice["message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", None)
    assert (message["reasoning_content"], message["reasoning"]) == ("hm", "hm")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"a":1}'},
        {"name": "time", "arguments": "{}"},
    ]


def test_a_streamed_answer_that_calls_tools():
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks_of(called())]
    first = {"name": "weather", "arguments": '{"a"'}
    second = {"name": "time", "arguments": "{}"}
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"tool_calls": [{"index": 0, "id": "c0", "type": "function", "function": first}]},
        {
            "tool_calls": [
                {"index": 0, "function": {"arguments": ":1}"}},
                {"index": 1, "id": "c1", "type": "function", "function": second},
            ]
        },
        {},
    ]


def entry(token, logprob=-0.5, top=()):
    return TokenLogprobs(token, logprob, 1, top)


def test_log_probabilities():
    pieces = [
        Piece(content="a", tokens=(97,), logprobs=(entry(97, -0.25, ((97, -0.25), (98, -2.0))),)),
        Piece(tokens=(0xC3,), logprobs=(entry(0xC3, float("-inf")),)),
    ]
    events = [*pieces, Ended(0, "stop"), USAGE]
    expected = [
        {
            "token": "a",
            "logprob": -0.25,
            "bytes": [97],
            "top_logprobs": [
                {"token": "a", "logprob": -0.25, "bytes": [97]},
                {"token": "b", "logprob": -2.0, "bytes": [98]},
            ],
        },
        {"token": "\\xc3", "logprob": -9999.0, "bytes": [0xC3], "top_logprobs": []},
    ]
    whole = answer_of(events, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]
    assert whole == {"content": expected}
    streamed = chunks_of(events, logprobs=True, top_logprobs=2)
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    assert [e for part in parts if part for e in part["content"]] == expected
    assert answer_of(events)["choices"][0]["logprobs"] is None


def test_the_usage_of_a_stream():
    *chunks, last = chunks_of(said("a", "b"), stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 12)
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        c["usage"]["completion_tokens"] for c in chunks_of(said("a", "b"), stream_options=options)
    ]
    assert counts == [0, 1, 2, 2, 5]
    assert all("usage" not in chunk for chunk in chunks_of(said("a")))


def test_an_error_inside_a_stream_is_told_and_ends_it():
    service = FakeService([[Piece(content="a"), DeadlineError("too late")]])
    body = {"model": "m", "messages": [USER], "stream": True}
    *_, told, done = events_of(ask(service, PATH, body).body)
    assert told["error"]["message"] == "too late"
    assert (told["error"]["type"], told["error"]["code"], done) == (
        "server_error",
        "timeout",
        "[DONE]",
    )
    assert service.generations[0].closed


def test_an_error_before_the_stream_is_no_stream():
    body = {"model": "m", "messages": [USER], "stream": True}
    with pytest.raises(OverloadError):
        ask(FakeService([OverloadError("full", retry_after=1)]), PATH, body)


def test_leaving_a_stream_cancels_even_before_it_began():
    service = FakeService([said("a", "b")])
    body = {"model": "m", "messages": [USER], "stream": True}

    async def leave():
        reply = await chat(call_of(service, body))
        await reply.body.aclose()
        return [chunk async for chunk in reply.body]

    assert asyncio.run(leave())[1:] == []
    assert service.generations[0].closed


# The plain way to make chunks; the fast one must say the same.


def plain_chunks(form, events):
    head = {"id": form.id, "object": "chat.completion.chunk", "created": form.created}
    head["model"] = form.model
    usage = {"usage": None} if form.include_usage else {}
    begun = set()

    def chunk(index, delta, logprobs=None, reason=None, **extra):
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [{**choice, **extra}], **usage}

    for event in events:
        if event is USAGE:
            break
        if event.index not in begun:
            begun.add(event.index)
            yield chunk(event.index, {"role": "assistant", "content": ""})
        if isinstance(event, Ended):
            yield chunk(event.index, {}, None, event.reason, stop_reason=event.stop)
            continue
        delta = {}
        if event.reasoning:
            delta = {"reasoning_content": event.reasoning, "reasoning": event.reasoning}
        if event.content:
            delta["content"] = event.content
        if delta:
            yield chunk(event.index, delta)


TEXTS = st.text(
    st.characters(codec="utf-8") | st.sampled_from('\x85\u2028\u2029\x1c\n"'), max_size=4
)
PIECES = st.builds(
    Piece,
    index=st.integers(0, 3),
    content=TEXTS,
    reasoning=TEXTS | st.just(""),
    tokens=st.just((1,)),
)
ENDS = st.builds(Ended, st.integers(0, 3), st.sampled_from(["stop", "length"]), TEXTS | st.none())


@patiently
@given(st.lists(PIECES | ENDS), st.booleans())
def test_prepared_chunks_say_what_plain_ones_say(events, include_usage):
    form = AnswerForm("i", "r", 5, "m", include_usage=include_usage)
    renderer = ChatChunks(form)
    made = b"".join(renderer.event(event) for event in [*events, USAGE])
    *chunks, done = events_of(made)
    assert done == "[DONE]"
    if include_usage:
        assert chunks.pop()["choices"] == []
    assert chunks == list(plain_chunks(form, events))
    assert json.dumps(chunks)
