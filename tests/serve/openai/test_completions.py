"""POST /v1/completions: prompts of every kind, echoes, and log probabilities of old."""

import asyncio

import pytest
from openai.types import Completion
from openai_scripted import USAGE, FakeService, ask, call_of, events_of, said

from hasten.errors import OverloadError
from hasten.serve.jobs import Ended, Piece
from hasten.serve.protocols.openai.completions import completions
from hasten.serve.protocols.reading import FieldError
from hasten.types import TokenLogprobs

PATH = "/v1/completions"


def answer_of(*scripts, **fields):
    service = FakeService(list(scripts))
    reply = ask(service, PATH, {"model": "m", **fields})
    if not fields.get("echo"):  # a prompt's first token has none, though the client's type says so
        Completion.model_validate(reply.json, strict=True)
    return reply.json, service.jobs


def chunks_of(*scripts, **fields):
    body = {"model": "m", "stream": True, **fields}
    *chunks, done = events_of(ask(FakeService(list(scripts)), PATH, body).body)
    assert done == "[DONE]"
    return chunks


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        ("", [""]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_prompts_of_every_kind(prompt, expected):
    answer, jobs = answer_of(said("x"), prompt=prompt)
    assert [job.prompt for job in jobs] == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))
    assert len({job.id for job in jobs}) == len(jobs)
    assert all(job.sampling.max_tokens == 16 and not job.split for job in jobs)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [[1.5]]}, "prompt[0][0]"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": ["a"] * 129}, "n"),
        ({"prompt": ["a"] * 3000}, "prompt"),
        ({"prompt": ["a", "b"], "n": 100}, "n"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "echo": True, "logprobs": 1, "n": 2, "stream": True}, "echo"),
        ({}, "prompt"),
    ],
)
def test_what_is_refused_is_named(fields, field):
    with pytest.raises(FieldError) as caught:
        answer_of(said("x"), **fields)
    assert caught.value.field == field


def test_a_refused_prompt_takes_the_others_back():
    service = FakeService([said("a"), OverloadError("full", retry_after=1)])
    with pytest.raises(OverloadError):
        ask(service, PATH, {"model": "m", "prompt": ["a", "b"]})
    assert [generation.closed for generation in service.generations] == [1]


def test_several_prompts_and_outputs_run_on():
    script = [Piece(1, "B"), Piece(0, "A"), Ended(1, "stop"), Ended(0, "length"), USAGE]
    answer, _ = answer_of(script, prompt=["x", "y"], n=2, best_of=2)
    assert [choice["text"] for choice in answer["choices"]] == ["A", "B", "A", "B"]
    assert answer["usage"]["total_tokens"] == 24
    streamed = dict.fromkeys(range(4), "")
    for chunk in chunks_of(script, prompt=["x", "y"], n=2):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == {0: "A", 1: "B", 2: "A", 3: "B"}


def entry(letter, logprob, **top):
    return TokenLogprobs(ord(letter), logprob, 1, tuple((ord(k), v) for k, v in top.items()))


ECHO = {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 1}
ECHOED = [
    Piece(
        content="c",
        tokens=(99,),
        logprobs=(entry("c", -0.5, d=-0.25),),
        prompt_logprobs=(entry("a", None), entry("b", -2.0, b=-2.0)),
    ),
    Ended(0, "length"),
    USAGE,
]
SHOWN = {
    "tokens": ["a", "b", "c"],
    "token_logprobs": [None, -2.0, -0.5],
    "top_logprobs": [None, {"b": -2.0}, {"d": -0.25, "c": -0.5}],
    "text_offset": [0, 1, 2],
}


def test_an_echo_with_log_probabilities():
    answer, jobs = answer_of(ECHOED, **ECHO)
    assert answer["choices"][0]["text"] == "abc"
    assert answer["choices"][0]["logprobs"] == SHOWN
    assert (jobs[0].sampling.logprobs, jobs[0].sampling.prompt_logprobs) == (1, 1)
    chunks = chunks_of(ECHOED, **ECHO)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abc"
    assert chunks[0]["choices"][0]["logprobs"] == SHOWN


def test_an_echo_alone():
    wanted = {name: values[:2] for name, values in SHOWN.items()}
    answer, jobs = answer_of(ECHOED, **{**ECHO, "max_tokens": 0})
    choice = answer["choices"][0]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == ("ab", wanted, "length")
    assert (answer["usage"]["completion_tokens"], jobs[0].sampling.max_tokens) == (0, 1)
    options = {"include_usage": True}
    *chunks, last = chunks_of(ECHOED, **{**ECHO, "max_tokens": 0}, stream_options=options)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "ab"
    assert last["usage"]["completion_tokens"] == 0


def test_an_echo_of_tokens_and_of_silent_outputs():
    answer, _ = answer_of([Ended(0, "stop"), USAGE], prompt=[0x61, 0xC3, 0xA9], echo=True)
    assert answer["choices"][0]["text"] == "aé"
    chunks = chunks_of([Ended(0, "stop"), USAGE], prompt="ab", echo=True)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["ab", ""]


def test_offsets_count_characters():
    pieces = [Piece(tokens=(0xC3, 0xA9, 98), logprobs=tuple(map(_byte, (0xC3, 0xA9, 98))))]
    answer, _ = answer_of([*pieces, Ended(0, "stop"), USAGE], prompt="", logprobs=0)
    assert answer["choices"][0]["logprobs"]["text_offset"] == [0, 1, 1]
    assert answer["choices"][0]["logprobs"]["tokens"] == ["\\xc3", "\\xa9", "b"]


def _byte(token):
    return TokenLogprobs(token, -1.0, 1, ())


def test_chunks_of_a_plain_stream():
    *chunks, last = chunks_of(
        said("a", "", "b"), prompt="p", stream_options={"include_usage": True}
    )
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert (texts, chunks[-1]["choices"][0]["finish_reason"]) == (["a", "b", ""], "stop")
    assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], 7)


def test_leaving_a_stream_of_several_prompts_cancels_all():
    service = FakeService([said("a", "b")])

    async def leave():
        body = {"model": "m", "prompt": ["x", "y"], "stream": True}
        reply = await completions(call_of(service, body))
        await anext(reply.body)
        await reply.body.aclose()

    asyncio.run(leave())
    assert all(generation.closed for generation in service.generations)
