"""Streams end what they began, and say each event as a plain encoder would."""

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import USAGE, ScriptedGeneration, said

from hasten.errors import DeadlineError
from hasten.serve.jobs import CallPiece, Ended, Piece
from hasten.serve.protocols.anthropic.rendering import MessageWriter
from hasten.serve.protocols.ollama.rendering import ChatWriter
from hasten.serve.protocols.streaming import EventStream, encode


def chat_writer():
    return ChatWriter("tiny", "req-1", lambda token: b"")


def message_writer():
    return MessageWriter("tiny", "req-1", 7, 100)


async def read(stream):
    return [piece async for piece in stream]


def test_a_stream_that_never_began_closes_its_generation():
    generation = ScriptedGeneration(said("Hi"))

    async def leave():
        stream = EventStream(generation, chat_writer())
        await stream.aclose()
        assert await read(stream) == []

    asyncio.run(leave())
    assert generation.closed


@pytest.mark.parametrize("writer", [chat_writer, message_writer])
def test_a_stream_that_is_left_closes_its_generation(writer):
    generation = ScriptedGeneration(said("Hi", "there"))

    async def leave():
        stream = EventStream(generation, writer())
        assert await anext(stream)
        assert not generation.closed
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(leave())
    assert generation.closed


@pytest.mark.parametrize("writer", [chat_writer, message_writer])
def test_an_error_ends_a_stream(writer):
    generation = ScriptedGeneration([Piece(content="Hi"), DeadlineError("late")])
    *_, last = asyncio.run(read(EventStream(generation, writer())))
    assert b"late" in last
    assert generation.closed


@pytest.mark.parametrize("writer", [chat_writer, message_writer])
def test_a_bug_is_raised_after_the_client_was_told(writer):
    async def scenario():
        stream = EventStream(ScriptedGeneration([ZeroDivisionError("secret")]), writer())
        told = await anext(stream)
        if writer is message_writer:  # which begins before anything happens
            told = await anext(stream)
        assert b"error" in told
        assert b"secret" not in told
        with pytest.raises(ZeroDivisionError):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    asyncio.run(scenario())


def test_every_line_end_is_escaped():
    text = "".join(map(chr, range(0x2100)))
    encoded = encode(text).decode()
    assert len(encoded.splitlines()) == 1
    assert json.loads(encoded) == text


texts = st.text(max_size=6)
ids = st.integers(0, 2)
pieces = st.builds(
    Piece,
    content=texts,
    reasoning=texts,
    calls=st.lists(st.builds(CallPiece, ids, texts, texts, texts), max_size=2).map(tuple),
)


def plain_events(events):
    """What `MessageWriter` means, put down as it is: the events of a message as objects."""
    told, kind, index = [], None, -1

    def delta(**added):
        told.append({"type": "content_block_delta", "index": index, "delta": added})

    def close():
        if kind == "thinking":
            delta(type="signature_delta", signature="unsigned")
        if kind is not None:
            told.append({"type": "content_block_stop", "index": index})

    def grow(wanted, block, added):
        nonlocal kind, index
        if kind != wanted:
            close()
            kind, index = wanted, index + 1
            told.append({"type": "content_block_start", "index": index, "content_block": block})
        if added:
            delta(**added)

    for event in events:
        if event.reasoning:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            grow("thinking", block, {"type": "thinking_delta", "thinking": event.reasoning})
        if event.content:
            block = {"type": "text", "text": ""}
            grow("text", block, {"type": "text_delta", "text": event.content})
        for one in event.calls:
            block = {"type": "tool_use", "id": one.id, "name": one.name, "input": {}}
            added = {"type": "input_json_delta", "partial_json": one.arguments}
            grow(one.number, block, added if one.arguments else None)
    close()
    return told


@settings(max_examples=100, deadline=None)
@given(st.lists(pieces, max_size=6))
def test_events_are_those_of_the_plain_way(events):
    writer = message_writer()
    text = b"".join(map(writer.event, [*events, Ended(0, "stop")])).decode()
    told = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    assert told == plain_events(events)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.builds(Piece, content=texts, reasoning=texts), max_size=6))
def test_lines_join_to_the_answer(events):
    writer = chat_writer()
    lines = b"".join(map(writer.event, [*events, Ended(0, "stop"), USAGE])).decode()
    told = [json.loads(line) for line in lines.splitlines()]
    content = "".join(line["message"]["content"] for line in told)
    thinking = "".join(line["message"].get("thinking", "") for line in told)
    assert content == "".join(event.content for event in events)
    assert thinking == "".join(event.reasoning for event in events)
    assert [line["done"] for line in told] == [False] * (len(told) - 1) + [True]
