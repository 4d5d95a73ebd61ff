"""Ollama's own client against the endpoints; its pydantic models check every shape."""

from dataclasses import replace

import httpx
import ollama
import pytest
from pydantic import BaseModel
from scripted import USAGE, ScriptedService, handler, model, said

from hasten.errors import DeadlineError, HastenError, OverloadError
from hasten.serve.jobs import MAX_OUTPUT, CallPiece, Conversation, Ended, Piece
from hasten.serve.protocols.ollama import ROUTES
from hasten.serve.registry import BlobStore, PullProgress
from hasten.types import Structure, TokenLogprobs


def client(service):
    transport = httpx.MockTransport(handler(ROUTES, service, httpx.Response))
    return ollama.Client("http://server", transport=transport)


QUESTION = [{"role": "user", "content": "hello"}]
CALL = [
    Piece(reasoning="Let me ", tokens=(1,)),
    Piece(reasoning="see.", content="I ask.", tokens=(2,)),
    Piece(calls=(CallPiece(0, "call-a", "weather", '{"city":'),)),
    Piece(calls=(CallPiece(0, "call-a", "weather", ' "Oslo"}'),)),
    Piece(calls=(CallPiece(1, "call-b", "time", "{}"),)),
    Ended(0, "tool_calls"),
    USAGE,
]


def test_chat_as_a_whole():
    service = ScriptedService(*said("Hi", " there"))
    answer = client(service).chat("tiny", QUESTION)
    assert answer.message.content == "Hi there"
    assert answer.message.role == "assistant"
    assert (answer.model, answer.done, answer.done_reason) == ("tiny", True, "stop")
    assert (answer.total_duration, answer.load_duration) == (1_500_000_000, 250_000_000)
    assert (answer.prompt_eval_count, answer.prompt_eval_duration) == (7, 500_000_000)
    assert (answer.eval_count, answer.eval_duration) == (5, 625_000_000)
    assert service.generations[0].closed


def test_chat_as_a_stream():
    service = ScriptedService(*said("Hi", "", "\u2028there\x85", reason="length"))
    lines = list(client(service).chat("tiny", QUESTION, stream=True))
    assert [line.message.content for line in lines] == ["Hi", "\u2028there\x85", ""]
    assert [line.done for line in lines] == [False, False, True]
    assert lines[0].total_duration is None
    assert lines[-1].done_reason == "length"
    assert lines[-1].eval_count == 5
    assert service.generations[0].closed


def test_defaults_are_those_of_ollama():
    service = ScriptedService(*said("Hi"))
    client(service).chat("tiny", QUESTION)
    job = service.jobs[0]
    sampling = job.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 40, 0.9)
    assert (sampling.max_tokens, sampling.seed, sampling.n) == (MAX_OUTPUT, None, 1)
    assert sampling.repetition_penalty == 1
    assert job.keep_alive is None
    assert job.prompt.extra == {}


def test_options():
    service = ScriptedService(*said("Hi"))
    options = {
        "num_predict": 9,
        "temperature": 0,
        "top_k": 3.0,
        "top_p": 0.5,
        "min_p": 0.1,
        "seed": 4,
        "stop": ["x", "y"],
        "repeat_penalty": 1.2,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "num_ctx": 512,
    }
    client(service).generate("tiny", "hello", options=options, keep_alive="5m")
    job = service.jobs[0]
    sampling = job.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (9, 0, 3)
    assert (sampling.top_p, sampling.min_p, sampling.seed) == (0.5, 0.1, 4)
    assert (sampling.stop, sampling.repetition_penalty) == (("x", "y"), 1.2)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert job.keep_alive == 300


def test_tools_and_reasoning_as_a_whole():
    def weather(city: str) -> str:
        """Tells the weather.

        Args:
            city: Where.
        """
        return city

    service = ScriptedService(*CALL)
    answer = client(service).chat("tiny", QUESTION, tools=[weather], think=True)
    assert (answer.message.thinking, answer.message.content) == ("Let me see.", "I ask.")
    calls = [(c.function.name, c.function.arguments) for c in answer.message.tool_calls]
    assert calls == [("weather", {"city": "Oslo"}), ("time", {})]
    assert answer.done_reason == "stop"
    prompt = service.jobs[0].prompt
    assert prompt.extra == {"enable_thinking": True}
    function = prompt.tools[0]["function"]
    assert function["name"] == "weather"
    assert function["parameters"]["properties"]["city"]["description"] == "Where."


def test_tools_and_reasoning_as_a_stream():
    lines = list(client(ScriptedService(*CALL)).chat("tiny", QUESTION, stream=True))
    assert [line.message.thinking for line in lines[:2]] == ["Let me ", "see."]
    calls = [call for line in lines for call in line.message.tool_calls or ()]
    assert [call.function.name for call in calls] == ["weather", "time"]
    assert calls[0].function.arguments == {"city": "Oslo"}
    assert lines[-1].done


def test_a_call_that_was_cut_off_is_left_out():
    cut = [
        *(Piece(calls=(CallPiece(0, "a", "weather", '{"ci'),)), Ended(0, "length"), USAGE),
    ]
    answer = client(ScriptedService(*cut)).chat("tiny", QUESTION)
    assert answer.message.tool_calls is None
    assert answer.done_reason == "length"


def test_earlier_calls_and_results():
    messages = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "thinking": "hm",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "tool_name": "weather", "content": "rain"},
    ]
    service = ScriptedService(*said("Rain."))
    client(service).chat("tiny", messages)
    _, assistant, tool = service.jobs[0].prompt.messages
    assert assistant["reasoning_content"] == "hm"
    (call,) = assistant["tool_calls"]
    assert call["type"] == "function"
    assert call["id"]
    assert call["function"] == {"name": "weather", "arguments": {"city": "Oslo"}}
    assert tool == {"role": "tool", "content": "rain", "name": "weather"}


def test_the_last_answer_is_continued():
    service = ScriptedService(*said("!"))
    client(service).chat("tiny", [*QUESTION, {"role": "assistant", "content": "Hel"}])
    assert service.jobs[0].prompt.continue_last


def test_structures():
    class City(BaseModel):
        name: str

    service = ScriptedService(*said("{}"))
    client(service).chat("tiny", QUESTION, format="json")
    client(service).generate("tiny", "x", format=City.model_json_schema())
    client(service).generate("tiny", "x", format="")
    anything, city, free = [job.sampling.structure for job in service.jobs]
    assert anything == Structure("json_schema", '{"type":"object"}')
    assert '"required":["name"]' in city.text
    assert free is None


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(stream):
    told = TokenLogprobs(1, -0.5, 1, ((1, -0.5), (0, -2.0)))
    events = [Piece(content="a", tokens=(1,), logprobs=(told,)), Ended(0, "stop"), USAGE]
    service = ScriptedService(*events)
    answer = client(service).generate("tiny", "x", logprobs=True, top_logprobs=2, stream=stream)
    (first, *_) = next(iter(answer)).logprobs if stream else answer.logprobs
    assert (first.token, first.logprob) == ("a", -0.5)
    assert [one.token for one in first.top_logprobs] == ["a", "\ufffd"]
    assert service.jobs[0].sampling.logprobs == 2


def test_generate():
    service = ScriptedService(Piece(reasoning="hm"), *said("Hi", " there"))
    whole = client(service).generate("tiny", "hello", system="be brief", think="low")
    assert (whole.response, whole.thinking, whole.done) == ("Hi there", "hm", True)
    lines = list(client(service).generate("tiny", "hello", stream=True, raw=True))
    assert "".join(line.response for line in lines) == "Hi there"
    asked, raw = [job.prompt for job in service.jobs]
    assert isinstance(asked, Conversation)
    assert [message["role"] for message in asked.messages] == ["system", "user"]
    assert asked.extra == {"enable_thinking": True, "reasoning_effort": "low"}
    assert raw == "hello"


@pytest.mark.parametrize(
    "asked",
    [
        *({"suffix": "x"}, {"template": "{{ .Prompt }}"}, {"context": [1]}, {"images": [b"x"]}),
        *({"raw": True, "system": "x"}, {"raw": True, "think": True}, {"think": "hard"}),
        *({"keep_alive": "soon"}, {"options": {"top_k": "x"}}, {"format": "yaml"}),
        *({"top_logprobs": 21}, {"options": {"num_predict": 1 << 70}}),
    ],
)
def test_what_cannot_be_done_is_refused(asked):
    service = ScriptedService(*said("Hi"))
    body = {"model": "tiny", "prompt": "hello", "stream": False}
    if "images" in asked:
        asked = {"images": ["aGk="]}
    response = client(service)._client.post("/api/generate", json={**body, **asked})
    assert response.status_code == 400
    assert set(response.json()) == {"error"}
    assert next(iter(asked)) in response.json()["error"]
    assert not service.jobs


def test_what_has_no_effect_is_named():
    service = ScriptedService(*said("Hi"))
    body = {
        "model": "tiny",
        "messages": QUESTION,
        "wish": 1,
        "evil\r\nname": 2,
        "stream": False,
        "options": {"num_ctx": 4096, "mirostat": 1, "repeat_penalty": 1.1, "repeat_last_n": 64},
    }
    response = client(service)._client.post("/api/chat", json=body)
    assert response.status_code == 200
    assert response.headers["x-hasten-ignored"] == (
        "options.mirostat, options.num_ctx, options.repeat_last_n, wish"
    )
    assert response.headers["x-hasten-cache"] == "miss"


def test_created_models_bring_defaults():
    overrides = {
        "system": "be a pirate",
        "parameters": {"temperature": 0.1, "top_k": 5},
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }
    service = ScriptedService(*said("Arr"), models=[model(overrides=overrides)])
    client(service).chat("tiny", QUESTION, options={"top_k": 7})
    client(service).chat("tiny", [{"role": "system", "content": "no"}, *QUESTION])
    client(service).generate("tiny", "hello", system="")
    asked, own, plain = service.jobs
    assert [m["content"] for m in asked.prompt.messages] == ["be a pirate", "a", "b", "hello"]
    assert [m["content"] for m in own.prompt.messages] == ["a", "b", "no", "hello"]
    assert [m["content"] for m in plain.prompt.messages] == ["a", "b", "hello"]
    assert (asked.sampling.temperature, asked.sampling.top_k) == (0.1, 7)


def test_loading_and_unloading():
    service = ScriptedService()
    reached = client(service)
    assert reached.chat("tiny", []).done_reason == "load"
    assert reached.chat("tiny", [], keep_alive=0).done_reason == "unload"
    assert reached.generate("tiny", keep_alive="-1").done_reason == "load"
    assert [line.done_reason for line in reached.generate("tiny", stream=True)] == ["load"]
    assert service.registry.done == [
        *(("load", "tiny", None), ("unload", "tiny")),
        *(("load", "tiny", -1.0), ("load", "tiny", None)),
    ]


def test_errors():
    reached = client(ScriptedService(OverloadError("too much to do", retry_after=2)))
    with pytest.raises(ollama.ResponseError, match="too much to do") as caught:
        reached.chat("tiny", QUESTION)
    assert caught.value.status_code == 503
    with pytest.raises(ollama.ResponseError, match="no model") as caught:
        reached.chat("other", QUESTION)
    assert caught.value.status_code == 404


def test_errors_inside_a_stream():
    service = ScriptedService(Piece(content="Hi"), DeadlineError("out of time"))
    stream = client(service).chat("tiny", QUESTION, stream=True)
    assert next(stream).message.content == "Hi"
    with pytest.raises(ollama.ResponseError, match="out of time"):
        next(stream)
    assert service.generations[0].closed


def test_bugs_inside_a_stream_are_not_told():
    service = ScriptedService(Piece(content="Hi"), ZeroDivisionError("secret"))
    with pytest.raises(ollama.ResponseError, match="req-1") as caught:
        list(client(service).chat("tiny", QUESTION, stream=True))
    assert "secret" not in str(caught.value)


def test_embed():
    service = ScriptedService()
    reached = client(service)
    made = reached.embed("tiny", ["a", "b"], dimensions=3, truncate=False)
    assert made.embeddings == [[0.0, 1.0, 2.0]] * 2
    assert (made.total_duration, made.load_duration) == (500_000_000, 250_000_000)
    assert made.prompt_eval_count == 4
    assert reached.embed("tiny", "a").embeddings == [[0.0, 1.0, 2.0]]
    assert reached.embeddings("tiny", "a").embedding == [0.0, 1.0, 2.0]
    assert [job.truncate for job in service.jobs] == [False, True, True]
    assert service.jobs[0].dimensions == 3
    assert reached.embed("tiny", "").embeddings == []
    assert reached.embeddings("tiny", "").embedding == []
    assert len(service.registry.done) == 2


def test_lists():
    models = [model(), model("org/other:q8", modified=1_700_000_001.0, expires=1_800_000_000)]
    reached = client(ScriptedService(models=models))
    names = [listed.model for listed in reached.list().models]
    assert names == ["org/other:q8", "tiny:latest"]
    listed = reached.list().models[1]
    assert (listed.size, listed.digest) == (1000, "ab" * 32)
    assert listed.modified_at.timestamp() == 1_700_000_000.5
    assert listed.details.parameter_size == "134.52M"
    for_ever, other = reached.ps().models
    assert for_ever.expires_at.year == 9999
    assert other.expires_at.timestamp() == 1_800_000_000
    assert (other.size, other.size_vram, other.context_length) == (4000, 0, 2048)


def test_a_digest_that_nobody_has_read_is_read():
    reached = client(ScriptedService(models=[model(digest=None)]))
    assert reached.list().models[0].digest == "cd" * 32


def test_show():
    overrides = {"system": "be\nbrief", "parameters": {"stop": ["a", "b"], "top_k": 3}}
    shown = client(ScriptedService(models=[model(overrides=overrides)])).show("tiny:latest")
    assert shown.template == "{{ messages }}"
    assert shown.parameters.split() == ["stop", '"a"', "stop", '"b"', "top_k", "3"]
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 2048
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.details.quantization_level == "Q4_1"
    assert 'SYSTEM """be\nbrief"""' in shown.modelfile
    assert "FROM tiny:latest" in shown.modelfile


def test_pull():
    service = ScriptedService()
    service.registry.steps = [
        PullProgress("pulling manifest"),
        PullProgress("pulling ab", "sha256:ab", 5, 10),
        PullProgress("success"),
    ]
    reached = client(service)
    assert reached.pull("org/name").status == "success"
    steps = list(reached.pull("org/name", stream=True))
    assert [step.status for step in steps] == ["pulling manifest", "pulling ab", "success"]
    assert (steps[1].completed, steps[1].total, steps[1].digest) == (5, 10, "sha256:ab")


def test_a_pull_that_fails():
    service = ScriptedService()
    reached = client(service)
    service.registry.steps = [HastenError("there is no network")]
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="no network") as caught:
            list(reached.pull("org/name", stream=stream))
        assert caught.value.status_code == 500
    service.registry.steps = [PullProgress("pulling"), PullProgress("on"), HastenError("it went")]
    steps = reached.pull("org/name", stream=True)
    assert [next(steps).status, next(steps).status] == ["pulling", "on"]
    with pytest.raises(ollama.ResponseError, match="went"):
        next(steps)


def test_push_copy_delete():
    service = ScriptedService()
    reached = client(service)
    with pytest.raises(ollama.ResponseError, match="publishes no models"):
        reached.push("tiny")
    assert reached.copy("tiny", "other").status == "success"
    assert reached.delete("tiny").status == "success"
    assert service.registry.done == [("copy", "tiny", "other"), ("delete", "tiny")]
    with pytest.raises(ollama.ResponseError) as caught:
        reached.delete("missing")
    assert caught.value.status_code == 404


def test_create():
    service = ScriptedService()
    settings = {"temperature": 0.5, "mirostat": 1, "stop": None}
    steps = client(service).create(
        "pirate",
        from_="tiny",
        system="Arr",
        license=["a", "b"],
        parameters=settings,
        messages=[{"role": "user", "content": "x"}],
        stream=True,
    )
    assert [step.status for step in steps] == ["reading", "success"]
    overrides = {
        "system": "Arr",
        "license": "a\nb",
        "parameters": {"temperature": 0.5, "mirostat": 1},
        "messages": [{"role": "user", "content": "x"}],
    }
    given = {"source": "tiny", "files": {}, "overrides": overrides}
    assert service.registry.done == [("create", "pirate", given)]
    with pytest.raises(ollama.ResponseError) as caught:
        list(client(service).create("pirate", from_="missing", stream=True))
    assert caught.value.status_code == 404


@pytest.mark.parametrize(
    "asked",
    [
        *({}, {"from_": "tiny", "files": {"a": "b"}}, {"from_": "tiny", "quantize": "q4_0"}),
        *(
            {"from_": "tiny", "template": "{{ .Prompt }}"},
            {"from_": "tiny", "adapters": {"a": "b"}},
        ),
        {"from_": "tiny", "parameters": {"top_k": "many"}},
    ],
)
def test_what_cannot_be_created(asked):
    service = ScriptedService()
    with pytest.raises(ollama.ResponseError) as caught:
        client(service).create("pirate", **asked)
    assert caught.value.status_code == 400
    assert not service.registry.done


def test_blobs(tmp_path):
    service = ScriptedService()
    service.registry.blobs = BlobStore(tmp_path / "blobs", 100)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    reached = client(service)
    digest = reached.create_blob(file)
    assert service.registry.blobs.has(digest)
    assert reached.create_blob(file) == digest
    http = reached._client
    assert http.head(f"/api/blobs/{digest}").status_code == 200
    absent = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    assert http.head(f"/api/blobs/{absent}").status_code == 404
    assert http.post(f"/api/blobs/{absent}", content=b"other").status_code == 400
    assert http.head("/api/blobs/etc").status_code == 400


def test_what_probes_look_for():
    http = client(ScriptedService())._client
    assert http.get("/").text == "Ollama is running"
    assert http.head("/").status_code == 200
    assert http.get("/api/version").json()["version"]


def test_usage_without_a_token():
    timing = replace(USAGE.timing, ttft=None)
    events = [Ended(0, "stop"), replace(USAGE, output_tokens=0, timing=timing)]
    (line,) = client(ScriptedService(*events)).generate("tiny", "x", stream=True)
    assert (line.response, line.done, line.eval_count) == ("", True, 0)
