"""Ollama's protocol: what streams mean, and what a server of ours answers."""

import asyncio
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_server import CLOSE, chunk, head, odd_server, streamed, whole
from packets import broken, cut, cuts

from hasten.errors import UsageError
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import run_load
from hasten.measure.records import Answer
from hasten.measure.targets.http import HttpOptions
from hasten.measure.targets.ollama import OllamaStream, OllamaTarget
from hasten.measure.targets.target import TargetError
from hasten.measure.workload import Chat, Item, Tensors, Workload

SECONDS = 60
CHAT = Chat(({"role": "user", "content": "Hi"},))
END = {
    "done": True,
    "done_reason": "length",
    "total_duration": 9_000_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_count": 5,
    "prompt_eval_duration": 500_000_000,
    "eval_count": 3,
    "eval_duration": 2_500_000_000,
}


def line(content="", **fields):
    message = {"message": {"role": "assistant", "content": content}, "done": False}
    return json.dumps({**message, **fields}).encode() + b"\n"


def said(*pieces):
    answer = Answer(clock=lambda: 0.0, keep_text=True)
    stream = OllamaStream(answer)
    for number, piece in enumerate(pieces):
        stream.feed(piece, float(number))
    stream.close(float(len(pieces)))
    return [(one.time, one.tokens) for one in answer.events], answer


def ask(answer, item=None, **settings):
    async def go():
        async with odd_server(answer) as server:
            made = Answer(keep_text=True)
            async with OllamaTarget(server.url, "m", **settings) as target:
                async with asyncio.timeout(SECONDS):
                    await target.send(item or Item(CHAT, 4), made)
            return made, server.requests[0]

    return asyncio.run(go())


def test_a_stream():
    events, answer = said(line("Hel"), line(""), line("lo"), line(**END))
    assert events == [(0.0, 1), (2.0, 1)]
    assert answer.text == "Hello"
    assert (answer.prompt_tokens, answer.output_tokens, answer.stopped) == (5, 3, False)
    assert answer.parts == {"total": 9.0, "load": 1.0, "prefill": 0.5, "decode": 2.5}


def test_what_a_server_does_not_tell():
    _, answer = said(line("a"), line(done=True, done_reason="stop"))
    assert (answer.prompt_tokens, answer.output_tokens, answer.stopped) == (None, None, True)
    assert answer.counted_tokens == 1
    assert answer.parts == {}


@pytest.mark.parametrize(
    "message",
    [
        {"content": "a"},
        {"content": "", "thinking": "a"},
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
    ],
)
def test_the_first_output_is_text_thinking_or_a_call(message):
    events, _ = said(line(""), line(message=message), line(**END))
    assert events == [(1.0, 1)]


def test_generations():
    first = b'{"response":"","thinking":"hm","done":false}\n'
    events, answer = said(first, b'{"response":"a","done":false}\n', b'{"response":"","done":true}')
    assert events == [(0.0, 1), (1.0, 1)]
    assert answer.text == "a"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([], "without"),
        ([line("a")], "without"),
        ([line("a"), b'{"error":"out of memory"}\n'], "out of memory"),
        ([b"[1]\n"], "not as its protocol"),
        ([b"{\n"], "not as its protocol"),
        ([line(content=7)], "not as its protocol"),
        ([line(**END | {"eval_count": -1})], "not as its protocol"),
        ([line(**END | {"eval_duration": 1e400})], "not as its protocol"),
        ([b'{"response":"\xff"}\n'], "not as its protocol"),
    ],
)
def test_streams_that_are_none(pieces, words):
    with pytest.raises(TargetError, match=words):
        said(*pieces)


STREAM = line("Grüße") + line("🎉") + line(**END)


@given(cuts)
def test_where_packets_are_cut_makes_no_difference(where):
    events, answer = said(*cut(STREAM, where))
    assert answer.text == "Grüße🎉"
    assert len(events) == 2


@given(st.data())
def test_broken_streams_end_as_errors(data):
    with contextlib.suppress(TargetError):
        said(broken(data, STREAM, least=1))


def test_what_is_asked_of_a_chat():
    _, asked = ask(
        streamed(line("a"), line(**END)), extra={"options": {"num_ctx": 9}, "think": False}
    )
    assert asked.line == "POST /api/chat HTTP/1.1"
    assert json.loads(asked.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "think": False,
        "options": {"num_predict": 4, "temperature": 0, "num_ctx": 9},
    }


def test_what_is_asked_of_a_text():
    _, asked = ask(streamed(b'{"response":"a"}\n', b'{"done":true}\n'), Item("Once", 4))
    assert asked.line == "POST /api/generate HTTP/1.1"
    body = json.loads(asked.body)
    assert (body["prompt"], body["raw"]) == ("Once", True)


def test_a_number_that_no_clock_could_tell():
    with pytest.raises(TargetError, match="eval_duration"):
        said(line("a"), line(**END | {"eval_duration": 10**400}))


@pytest.mark.parametrize("work", [Item((1, 2), 4), Tensors({})])
def test_what_cannot_be_sent(work):
    with pytest.raises(UsageError, match="not t"):
        ask(whole(b""), work)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            whole(b'{"error":"model \'m\' not found"}', status=404),
            "status 404: model 'm' not found",
        ),
        (whole(line("a")), "without"),
        ([head(transfer_encoding="chunked"), chunk(line("a")), CLOSE], "in the middle"),
    ],
)
def test_failures(answer, words):
    with pytest.raises(TargetError, match=words):
        ask(answer)


def test_a_load_on_a_server_of_ours(served):
    items = [Item(CHAT, 8), Item("Once", 8)] * 3
    target = OllamaTarget(served.url, "chat", options=HttpOptions(key=served.key))
    workload = Workload("made up", None, (), tuple(items))
    for record in run_load(target, workload, ClosedLoop(2)).records:
        assert record.status == "completed", record.reason
        assert record.output_tokens == 8
        assert record.prompt_tokens > 3
        assert set(record.parts) == {"total", "load", "prefill", "decode"}
        within = sum(record.parts[part] for part in ("load", "prefill", "decode"))
        assert within <= record.parts["total"] <= record.end - record.sent


def test_a_model_that_a_server_of_ours_has_not(served):
    async def go():
        options = HttpOptions(key=served.key)
        async with OllamaTarget(served.url, "none", options=options) as target:
            await target.send(Item(CHAT, 1), Answer())

    with pytest.raises(TargetError, match=r"status 404.*none"):
        asyncio.run(go())
