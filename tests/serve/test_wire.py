"""Messages between server and worker: what goes in comes out, and what is broken is an error."""

import dataclasses
import math
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten import errors
from hasten.errors import HastenError, OverloadError, UsageError
from hasten.serve.wire import (
    Accepted,
    Cancel,
    Embed,
    Embedded,
    EngineInfo,
    EngineSpec,
    Fault,
    Frames,
    Open,
    Ping,
    Pong,
    Progress,
    Ready,
    Refused,
    Step,
    Submit,
    WireError,
    decode_from_worker,
    decode_request,
    decode_to_worker,
    encode,
    encode_request,
)
from hasten.types import (
    EngineOptions,
    EngineStatistics,
    Output,
    Request,
    SamplingParams,
    Structure,
    TokenLogprobs,
)

TEXTS = st.text(max_size=20)  # of Unicode characters, without halves of surrogate pairs
TOKENS = st.integers(0, 2**31 - 1)
FLOATS = st.floats(allow_nan=False)
STATISTICS = EngineStatistics(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, {"stop": 11, "deadline": 12})

structures = st.builds(Structure, st.sampled_from(["json_schema", "regex", "grammar"]), TEXTS)
samplings = st.builds(
    SamplingParams,
    max_tokens=TOKENS,
    temperature=FLOATS,
    top_p=FLOATS,
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=st.lists(TEXTS).map(tuple),
    ignore_eos=st.booleans(),
    stop_tokens=st.lists(TOKENS).map(tuple),
    logit_bias=st.dictionaries(TOKENS, FLOATS),
    n=st.integers(-(2**31), 2**31),
    logprobs=st.none() | st.integers(0, 20),
    structure=st.none() | structures,
)
requests = st.builds(
    Request,
    TEXTS,
    st.lists(TOKENS).map(tuple),
    samplings,
    priority=st.integers(-(2**31), 2**31),
    deadline=st.none() | FLOATS,
    tenant=TEXTS,
    adapter=st.none() | TEXTS,
)
logprobs = st.builds(
    TokenLogprobs,
    TOKENS,
    st.none() | FLOATS,
    st.none() | TOKENS,
    st.lists(st.tuples(TOKENS, FLOATS), max_size=3).map(tuple),
)
outputs = st.builds(
    Output,
    st.just("the request"),
    st.lists(TOKENS, max_size=3).map(tuple),
    TEXTS,
    st.sampled_from([None, "stop", "length", "cancelled", "deadline", "error"]),
    FLOATS,
    index=st.integers(0, 127),
    cached_tokens=TOKENS,
    logprobs=st.lists(logprobs, max_size=3).map(tuple),
    prompt_logprobs=st.lists(logprobs, max_size=3).map(tuple),
    error=st.none() | TEXTS,
    stop=st.none() | TEXTS,
)


def sent(message):
    """A message after its way to the other side."""
    (frame,) = Frames().feed(encode(message))
    to_worker = isinstance(message, Open | Submit | Embed | Cancel | Ping)
    return (decode_to_worker if to_worker else decode_from_worker)(frame)


@given(requests)
def test_requests_arrive_as_they_were(request):
    arrived = sent(Submit(7, encode_request(request)))
    assert arrived.number == 7
    assert decode_request(arrived.request) == request


@given(st.lists(outputs, max_size=3))
def test_outputs_arrive_as_they_were(sent_outputs):
    numbered = [
        Progress.of(dataclasses.replace(output, request_id=str(number)))
        for number, output in enumerate(sent_outputs)
    ]
    step = sent(Step(numbered, STATISTICS))
    assert [progress.number for progress in step.outputs] == [*range(len(sent_outputs))]
    assert [progress.output("the request") for progress in step.outputs] == sent_outputs
    assert step.statistics == STATISTICS


@pytest.mark.parametrize(
    "message",
    [
        Open(EngineSpec("m", "embed", EngineOptions(prefill_stretch=math.inf), {"a": "/path"})),
        Open(EngineSpec("m")),
        Embed(3, ["one", "två"], 16, True),
        Embed(3, [[1, 2], [3]]),
        Cancel(2**40),
        Ping(),
        Ready(EngineInfo(1, 2, 3, None, 4, {"weights": 5}, "avx2", 1, "files", 0.5), STATISTICS),
        Accepted(1),
        Refused(1, Fault("UsageError", "what", "allowed", "do")),
        Fault("NoSuchError", "what"),
        Embedded(1, b"\0\1", 1, 2),
        Pong(2, working=True),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_arrive_as_they_were(message):
    assert sent(message) == message


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_keep_their_class_and_text(name):
    kind = getattr(errors, name)
    more = {"retry_after": 2.5} if issubclass(kind, OverloadError) else {}
    error = kind("what was wrong", allowed="this", do="that", **more)
    (arrived,) = Frames().feed(encode(Refused(1, Fault.of(error))))
    back = decode_from_worker(arrived).fault.error()
    assert type(back) is kind
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("kind", ["Exception", "KeyError", "__all__", "annotations", ""])
def test_errors_of_an_unknown_class(kind):
    error = Fault(kind, "what").error()
    assert type(error) is HastenError
    assert str(error) == "what"


@pytest.mark.parametrize(
    "request_",
    [
        Request("a", (1 << 64,)),
        Request("a", (1,), SamplingParams(seed=1 << 64)),
        Request("\ud800", (1,)),
        Request("a", (object(),)),
    ],
    ids=["token", "seed", "surrogate", "object"],
)
def test_what_cannot_be_sent(request_):
    with pytest.raises(WireError):
        encode_request(request_)


def test_a_request_of_wrong_types_says_where():
    data = msgspec.Raw(msgspec.msgpack.encode({"id": "a", "prompt": [1, "two"]}))
    with pytest.raises(WireError, match=r"prompt\[1\]"):
        decode_request(data)


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_frames_come_out_however_the_stream_is_cut(contents, data):
    stream = b"".join(len(one).to_bytes(4, "little") + one for one in contents)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    frames = Frames()
    found = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += frames.feed(stream[begin:end])
    assert found == contents


def test_a_frame_that_is_too_large_is_refused_before_it_comes():
    frames = Frames(largest=100)
    assert frames.feed((100).to_bytes(4, "little") + bytes(100)) == [bytes(100)]
    with pytest.raises(WireError, match="a frame of 101 bytes came; 100 are allowed"):
        frames.feed((101).to_bytes(4, "little"))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error(data):
    for decode in (decode_to_worker, decode_from_worker, decode_request):
        with suppress(WireError):
            decode(data)


@given(
    st.sampled_from(
        [
            encode(Submit(1, encode_request(Request("a", (1, 2, 3))))),
            encode(Open(EngineSpec("m", options=EngineOptions()))),
            encode(Step([Progress(1, (2,), "x", None, 0.5)], STATISTICS)),
            encode(Refused(1, Fault.of(UsageError("x")))),
        ]
    ),
    st.lists(st.tuples(st.integers(4, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_messages_are_messages_or_errors(frame, changes):
    damaged = bytearray(frame)
    for at, value in changes:
        damaged[4 + (at - 4) % (len(damaged) - 4)] = value
    for decode in (decode_to_worker, decode_from_worker):
        with suppress(WireError):
            message = decode(bytes(damaged[4:]))
            if isinstance(message, Submit):
                decode_request(message.request)


@pytest.mark.parametrize(
    "head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
)
def test_lengths_inside_a_message_that_lie(head):
    body = b"\x92\xa4Step" + head
    for data in (head, body, b"\x93\xa6Submit\x01" + head, b"\x92" * 100_000):
        with pytest.raises(WireError):
            decode_from_worker(data)
        with pytest.raises(WireError):
            decode_request(decode_to_worker(data).request)
