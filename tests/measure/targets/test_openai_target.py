"""OpenAI's protocol: what streams mean, and what a server of ours answers."""

import asyncio
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_server import CLOSE, HANG, chunk, head, odd_server, streamed, whole
from packets import broken, cut, cuts

from hasten.errors import UsageError
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.load import run_load
from hasten.measure.metrics import e2e, ttft
from hasten.measure.records import Answer
from hasten.measure.targets.http import HttpOptions
from hasten.measure.targets.openai import OpenAiStream, OpenAiTarget
from hasten.measure.targets.target import TargetError
from hasten.measure.workload import Chat, Item, Session, Tensors, Turn, Workload

SECONDS = 60
CHAT = Chat(({"role": "user", "content": "Hi"},))
DONE = b"data: [DONE]\n\n"


def event(choice=None, **fields):
    choices = [] if choice is None else [choice]
    return b"data: " + json.dumps({"choices": choices, **fields}).encode() + b"\n\n"


def delta(content=None, reason=None, usage=None, **fields):
    choice = {"index": 0, "delta": {"content": content, **fields}, "finish_reason": reason}
    return event(choice, usage=None if usage is None else {"completion_tokens": usage})


def said(*pieces):
    """Counted tokens of the events, and the answer."""
    answer = Answer(clock=lambda: 0.0, keep_text=True)
    stream = OpenAiStream(answer)
    for number, piece in enumerate(pieces):
        stream.feed(piece, float(number))
    stream.close(float(len(pieces)))
    return [(one.time, one.tokens) for one in answer.events], answer


def ask(answer, item=None, options=None, **settings):
    """What a scripted server's answer becomes, and what it was asked."""

    async def go():
        async with odd_server(answer) as server:
            made = Answer(keep_text=True)
            async with OpenAiTarget(server.url, "m", options=options, **settings) as target:
                async with asyncio.timeout(SECONDS):
                    await target.send(item or Item(CHAT, 4), made)
            return made, server.requests[0]

    return asyncio.run(go())


# What a stream means


def test_pieces_are_tokens_where_nobody_counts():
    events, answer = said(delta(""), delta("Hel"), delta("lo"), delta(reason="length"), DONE)
    assert events == [(1.0, 1), (2.0, 1)]
    assert (answer.text, answer.output_tokens, answer.stopped) == ("Hello", None, False)
    assert answer.counted_tokens == 2


def test_tokens_are_counted_by_the_usage():
    """What a piece without text took counts with the next one."""
    events, answer = said(
        delta("", usage=0),
        delta("a", usage=1),
        delta("", usage=2),
        delta("bcd", usage=5),
        delta(reason="stop", usage=6),
        event(usage={"prompt_tokens": 9, "completion_tokens": 6}),
        DONE,
    )
    assert events == [(1.0, 1), (3.0, 4)]
    assert (answer.prompt_tokens, answer.output_tokens, answer.stopped) == (9, 6, True)


def test_the_first_piece_is_a_token_however_late_the_usage_counts():
    events, _ = said(delta("a", usage=0), delta("b", usage=2), delta("c", usage=2), DONE)
    assert events == [(0.0, 1), (1.0, 1), (2.0, 0)]


def test_the_last_usage_counts_what_pieces_did_not():
    events, answer = said(
        delta("a"), delta("b"), delta(reason="stop"), event(usage={"completion_tokens": 7}), DONE
    )
    assert [tokens for _, tokens in events] == [1, 1]
    assert answer.counted_tokens == 7


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "a"},
        {"reasoning_content": "a"},
        {"reasoning": "a"},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
    ],
)
def test_the_first_output_is_text_reasoning_or_a_call(fields):
    nothing = delta("", role="assistant", reasoning_content="", tool_calls=[])
    events, _ = said(nothing, delta(**fields), delta(reason="stop"), DONE)
    assert events == [(1.0, 1)]


def test_completions_have_texts():
    choice = {"index": 0, "text": "a", "finish_reason": None, "logprobs": None}
    events, answer = said(
        event(choice), event({**choice, "text": "", "finish_reason": "stop"}), DONE
    )
    assert events == [(0.0, 1)]
    assert answer.text == "a"
    assert answer.stopped


def test_a_finish_reason_is_an_end_too():
    events, _ = said(delta("a", reason="length"))
    assert events == [(0.0, 1)]


def test_the_end_may_lack_its_blank_line():
    assert said(delta("a"), b"data: [DONE]")[0] == [(0.0, 1)]


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([delta("a")], "without"),
        ([], "without"),
        ([b"\n\n"], "without"),
        ([b'{"object":"chat.completion"}'], "without"),
        ([b"data: {]\n\n"], "not as its protocol"),
        ([b'data: "text"\n\n'], "not as its protocol"),
        ([b"data: \xff\n\n"], "not as its protocol"),
        ([b'data: {"choices": [{"text": "\xff"}]}\n\n'], "not as its protocol"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], "not as its protocol"),
        ([delta(content=5)], "not as its protocol"),
        ([delta("a", usage=-5)], "not as its protocol"),
        ([delta("a"), event(error={"message": "out of memory"})], "out of memory"),
        ([delta("a"), b'data: {"error": "overloaded"}\n\n'], "overloaded"),
        ([delta("a"), b'event: error\ndata: {"error": {"code": 5}}\n\n'], "5"),
    ],
)
def test_streams_that_are_none(pieces, words):
    with pytest.raises(TargetError, match=words):
        said(*pieces)


STREAM = b"".join([delta("Grüße"), delta("🎉", usage=2), b": ping\n\n", delta(reason="stop"), DONE])


@given(cuts)
def test_where_packets_are_cut_makes_no_difference(where):
    events, answer = said(*cut(STREAM, where))
    assert answer.text == "Grüße🎉"
    assert [tokens for _, tokens in events] == [1, 1]


@given(st.data())
def test_broken_streams_end_as_errors(data):
    with contextlib.suppress(TargetError):
        said(broken(data, STREAM, least=1))


NAMES = st.sampled_from(
    ["choices", "delta", "content", "text", "usage", "completion_tokens", "error", "tool_calls",
     "function", "finish_reason", "message", "detail"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(JSON, max_size=3))
def test_any_json_ends_as_an_answer_or_an_error(values):
    with contextlib.suppress(TargetError):
        said(*[b"data: " + json.dumps(one).encode() + b"\n\n" for one in values], DONE)


# What goes over the wire


def test_what_is_asked_of_a_chat():
    _, asked = ask(streamed(delta("a", reason="stop"), DONE), ignore_eos=True)
    assert asked.line == "POST /v1/chat/completions HTTP/1.1"
    assert json.loads(asked.body) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "ignore_eos": True,
    }


@pytest.mark.parametrize("prompt", [(1, 2, 3), "Hi"])
def test_what_is_asked_of_completions(prompt):
    answer = streamed(event({"text": "a", "finish_reason": "stop"}), DONE)
    _, asked = ask(answer, Item(prompt, 4))
    assert asked.line == "POST /v1/completions HTTP/1.1"
    body = json.loads(asked.body)
    assert body["prompt"] == (list(prompt) if isinstance(prompt, tuple) else prompt)
    assert "ignore_eos" not in body


def test_fields_are_added_replaced_and_left_out():
    extra = {"seed": 3, "max_tokens": None, "max_completion_tokens": 9}
    _, asked = ask(streamed(delta("a", reason="stop"), DONE), extra=extra)
    body = json.loads(asked.body)
    assert (body["seed"], body["max_completion_tokens"]) == (3, 9)
    assert "max_tokens" not in body


def test_texts_can_be_sent_as_a_chat():
    _, asked = ask(streamed(delta("a", reason="stop"), DONE), Item("Hi", 4), api="chat")
    assert json.loads(asked.body)["messages"] == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("item", "api"),
    [(Item((1, 2), 4), "chat"), (Item(CHAT, 4), "completions"), (Tensors({}), None)],
)
def test_what_cannot_be_sent(item, api):
    with pytest.raises(UsageError, match=r"cannot be sent|tensors"):
        ask(whole(b""), item, api=api)


def test_the_end_of_the_request_is_its_last_byte():
    answer, _ = ask(streamed(delta("a"), delta("b"), delta(reason="stop"), DONE))
    assert [one.tokens for one in answer.events] == [1, 1, 0]
    times = [one.time for one in answer.events]
    assert times == sorted(times)
    assert times[0] < times[-1]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            whole(b'{"error": {"message": "no such model"}}', status=404),
            "status 404: no such model",
        ),
        (whole(b'{"detail": "Not Found"}', status=404), "status 404: Not Found"),
        (whole(b"<html>Bad Gateway</html>", status=502), "status 502: <html>Bad Gateway"),
        (whole(b"", status=500), "status 500"),
        (whole(b"x" * 5000, status=400), r"status 400: x{500}\.\.\."),
        (whole(b"", status=302, location="/there"), "status 302"),
        (whole(b'{"object": "chat.completion"}'), "without"),
        ([head(transfer_encoding="chunked"), chunk(delta("a")), CLOSE], "in the middle"),
        (streamed(delta("a")), "without"),
        ([*streamed(delta("a"), event(error={"message": "lost"}), end=[]), HANG], "lost"),
    ],
)
def test_failures(answer, words):
    with pytest.raises(TargetError, match=words):
        ask(answer)


def test_a_stall_is_a_failure():
    with pytest.raises(TargetError, match="sent nothing"):
        ask(streamed(delta("a"), end=[HANG]), options=HttpOptions(quiet_seconds=0.1))


def test_a_load_goes_on_after_failures():
    async def go():
        answers = [
            streamed(delta("abcd", usage=4, reason="length"), DONE),
            [*whole(b'{"error": {"message": "busy"}}', status=429), CLOSE],
            [head(transfer_encoding="chunked"), chunk(delta("a")), CLOSE],
            streamed(delta("abcd", usage=4, reason="length"), DONE),
        ]
        ready = asyncio.get_running_loop().create_future()

        async def serve():
            async with odd_server(*answers) as server:
                ready.set_result(server.url)
                await asyncio.Event().wait()

        task = asyncio.create_task(serve())
        target = OpenAiTarget(await ready, "m")
        workload = Workload("made up", None, (), (Item(CHAT, 4),) * 4)
        result = await asyncio.to_thread(run_load, target, workload)
        task.cancel()
        return result

    records = asyncio.run(go()).records
    assert [one.status for one in records] == ["completed", "failed", "failed", "completed"]


# A server of ours


def target_of(served, model="chat", **settings):
    return OpenAiTarget(f"{served.url}/v1", model, options=HttpOptions(key=served.key), **settings)


def test_a_load_on_a_server_of_ours(served):
    items = [Item(CHAT, 8), Item("Once", 8), Item((5, 6, 7), 8)] * 3
    workload = Workload("made up", None, (), tuple(items))
    target = target_of(served, ignore_eos=True)
    for _ in range(2):
        result = run_load(target, workload, ClosedLoop(3))
        assert {one.status for one in result.records} == {"completed"}, result.records
        for record in result.records:
            assert record.output_tokens == 8
            assert sum(event.tokens for event in record.events) == 8
            assert 0 < ttft(record) <= e2e(record)
    assert {one.prompt_tokens for one in result.records} >= {3, 4}


def test_a_conversation_on_a_server_of_ours(served):
    session = Session("Be brief.", (Turn("Hi", 5), Turn("And?", 5)))
    workload = Workload("made up", None, (), (session,))
    first, second = run_load(target_of(served, ignore_eos=True), workload).records
    assert (first.status, second.status) == ("completed", "completed")
    assert second.prompt_tokens > first.prompt_tokens + 5


def test_reasoning_and_calls_of_a_server_of_ours(served):
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    extra = {"tools": [{"type": "function", "function": function}]}
    workload = Workload("made up", None, (), (Item(CHAT, 50),))
    (record,) = run_load(target_of(served, "recite", extra=extra), workload).records
    assert record.status == "completed"
    assert record.output_tokens == 7
    assert len(record.token_events) >= 4


@pytest.mark.parametrize(
    ("model", "item", "words"),
    [
        ("none", Item(CHAT, 5), "status 404.*none"),
        ("chat", Item("a" * 2000, 5), "status 400.*1024"),
        ("chat", Item((10**6,), 5), "status 400"),
    ],
)
def test_refusals_of_a_server_of_ours(served, model, item, words):
    async def go():
        async with target_of(served, model) as target:
            await target.send(item, Answer())

    with pytest.raises(TargetError, match=words):
        asyncio.run(go())


def test_a_wrong_key(served):
    async def go():
        async with OpenAiTarget(served.url, "chat") as target:
            await target.send(Item(CHAT, 1), Answer())

    with pytest.raises(TargetError, match="status 401"):
        asyncio.run(go())


def test_whoever_leaves_a_server_of_ours_is_noticed(served):
    async def go():
        async with target_of(served, ignore_eos=True) as target:
            answer = Answer()
            task = asyncio.create_task(target.send(Item("Once", 900), answer))
            async with asyncio.timeout(SECONDS):
                while not answer.events:
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                while served.metric("vllm:num_requests_running"):
                    await asyncio.sleep(0.05)

    asyncio.run(go())
