"""Ollama's client and the models that come, change and go."""

import asyncio
import hashlib

import ollama
import openai
import pytest
from served_process import until

QUESTION = [{"role": "user", "content": "Hello!"}]
GREEDY = {"temperature": 0, "num_predict": 16}


@pytest.fixture
def forget(ollama_client):
    """Deletes the models that a test makes."""
    names = []
    yield names.append
    for name in names:
        ollama_client.delete(name)


def names_of(listed):
    return {one.model for one in listed.models}


def state(client, name):
    return [one for one in client.ps().models if one.model == name]


def missing(call, *arguments, **asked):
    with pytest.raises(ollama.ResponseError) as caught:
        call(*arguments, **asked)
    return caught.value.status_code == 404


def test_lists_and_descriptions(ollama_client, expected):
    listed = ollama_client.list().models
    assert {"chat:latest", "embed:latest"} <= {one.model for one in listed}
    chat = next(one for one in listed if one.model == "chat:latest")
    assert chat.size > 0
    assert chat.digest == expected.model.digest()
    assert (chat.details.family, chat.details.format) == ("llama", "safetensors")
    running = ollama_client.ps().models
    assert {"chat:latest", "embed:latest"} <= {one.model for one in running}
    assert all(one.size > 0 and one.size_vram == 0 for one in running)
    shown = ollama_client.show("chat")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.template == expected.model.chat_template.source
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 4096
    assert ollama_client.show("embed:latest").capabilities == ["embedding"]
    assert missing(ollama_client.show, "nothing")


def test_unloading_and_loading(ollama_client):
    assert state(ollama_client, "embed:latest")
    made = ollama_client.embed("embed", "x", keep_alive=0)
    until(lambda: not state(ollama_client, "embed:latest"))
    again = ollama_client.embed("embed", "x")
    assert again.embeddings == made.embeddings
    assert 0 < again.load_duration < again.total_duration
    (one,) = state(ollama_client, "embed:latest")
    assert one.expires_at.year == 9999
    assert ollama_client.embed("embed", "", keep_alive="10m").embeddings == []
    (one,) = state(ollama_client, "embed:latest")
    assert one.expires_at.year < 9999
    ollama_client.embed("embed", "", keep_alive=-1)


def test_chat_and_generate_load_and_unload(ollama_client, forget):
    ollama_client.copy("chat", "other")
    forget("other")
    assert ollama_client.chat("other", [], keep_alive=0).done_reason == "unload"
    until(lambda: not state(ollama_client, "chat:latest"))
    assert ollama_client.generate("other").done_reason == "load"
    assert state(ollama_client, "chat:latest")  # one engine for both names


def test_copies(ollama_client, forget, expected):
    text, *_ = expected.chat(QUESTION, max_tokens=16)
    assert ollama_client.copy("chat", "team/copy:v1").status == "success"
    forget("team/copy:v1")
    assert "team/copy:v1" in names_of(ollama_client.list())
    assert ollama_client.chat("team/copy:v1", QUESTION, options=GREEDY).message.content == text
    assert missing(ollama_client.copy, "nothing", "some")
    with pytest.raises(ollama.ResponseError, match="given by whoever started the server"):
        ollama_client.copy("chat", "embed")
    with pytest.raises(ollama.ResponseError, match="no name"):
        ollama_client.copy("chat", "../../etc")


def test_a_deleted_model_is_gone(ollama_client):
    ollama_client.copy("chat", "gone")
    assert ollama_client.delete("gone").status == "success"
    assert missing(ollama_client.delete, "gone")
    assert missing(ollama_client.chat, "gone", QUESTION)
    assert missing(ollama_client.generate, "gone", "x")
    assert missing(ollama_client.embed, "gone", "x")
    assert "chat:latest" in names_of(ollama_client.list())


def test_a_model_made_of_another(ollama_client, forget, expected):
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    steps = ollama_client.create(
        "pirate",
        from_="chat",
        system="Talk like a pirate.",
        parameters=GREEDY,
        messages=begun,
        license="free",
        stream=True,
    )
    assert [step.status for step in steps][-1] == "success"
    forget("pirate")
    said = [{"role": "system", "content": "Talk like a pirate."}, *begun, *QUESTION]
    text, tokens, prompt = expected.chat(said, max_tokens=16)
    answer = ollama_client.chat("pirate", QUESTION)
    assert (answer.message.content, answer.eval_count) == (text, tokens)
    assert answer.prompt_eval_count == prompt
    assert ollama_client.generate("pirate", "Hello!").response == text
    shown = ollama_client.show("pirate")
    assert "temperature" in shown.parameters
    assert 'SYSTEM "Talk like a pirate."' in shown.modelfile
    assert shown.details.parent_model == "chat"
    for wrong in ({"quantize": "q4_0"}, {"template": "x"}, {"from_": None}):
        with pytest.raises(ollama.ResponseError) as caught:
            ollama_client.create("wrong", **{"from_": "chat"} | wrong)
        assert caught.value.status_code == 400
    assert missing(ollama_client.create, "wrong", from_="nothing")


def test_a_model_made_of_uploaded_files(ollama_client, forget, models, expected):
    files = {}
    for path in models["chat"].iterdir():
        files[path.name] = ollama_client.create_blob(path)
        assert files[path.name] == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert ollama_client.create("uploaded", files=files).status == "success"
    forget("uploaded")
    answer = ollama_client.chat("uploaded", QUESTION, options=GREEDY)
    assert answer.message.content == expected.chat(QUESTION, max_tokens=16)[0]
    assert answer.load_duration > 0
    assert answer.total_duration > answer.load_duration
    with pytest.raises(ollama.ResponseError):
        ollama_client.create("wrong", files={"config.json": f"sha256:{'0' * 64}"})


def test_a_model_from_the_hub(ollama_client, forget, expected, hub):
    steps = list(ollama_client.pull("hf.co/org/tiny", stream=True))
    forget("org/tiny")
    assert steps[0].status == "pulling manifest"
    assert steps[-1].status == "success"
    weights = [step for step in steps if step.total]
    assert weights[-1].completed == weights[-1].total
    answer = ollama_client.chat("org/tiny", QUESTION, options=GREEDY)
    assert answer.message.content == expected.chat(QUESTION, max_tokens=16)[0]
    assert ollama_client.pull("org/tiny").status == "success"
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="org/none") as caught:
            list(ollama_client.pull("org/none", stream=stream))
        assert caught.value.status_code == 404


def test_push_is_refused(ollama_client):
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="publishes no models") as caught:
            list(ollama_client.push("chat", stream=stream))
        assert caught.value.status_code == 400


def test_other_clients_see_the_same_models(ollama_client, openai_client, forget):
    ollama_client.copy("chat", "seen")
    forget("seen")
    assert "seen" in [one.id for one in openai_client.models.list()]
    made = openai_client.completions.create(model="seen", prompt="x", max_tokens=1)
    assert made.model == "seen"
    with pytest.raises(openai.NotFoundError):
        openai_client.completions.create(model="unseen", prompt="x", max_tokens=1)


def test_the_async_client(ollama_options, models):
    async def go():
        async with ollama.AsyncClient(**ollama_options) as client:
            await client.copy("chat", "async")
            shown = await client.show("async")
            running = await client.ps()
            digest = await client.create_blob(models["chat"] / "config.json")
            steps = [
                one.status async for one in await client.create("b", from_="async", stream=True)
            ]
            for name in ("async", "b"):
                await client.delete(name)
            with pytest.raises(ollama.ResponseError):
                await client.push("chat")
            return shown.details.family, bool(running.models), digest[:7], steps[-1]

    assert asyncio.run(go()) == ("llama", True, "sha256:", "success")


def test_what_a_model_is_made_with_holds_for_every_client(
    ollama_client, openai_client, anthropic_client, forget, expected
):
    system = "Talk like a pirate."
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    parameters = GREEDY | {"stop": ["@@@"], "repeat_penalty": 1.5}
    ollama_client.create(
        "pirate", from_="chat", system=system, parameters=parameters, messages=begun
    )
    forget("pirate")
    said = [{"role": "system", "content": system}, *begun, *QUESTION]
    own = {"max_tokens": 16, "repetition_penalty": 1.5}
    text, tokens, prompt = expected.chat(said, **own)
    assert text != expected.chat(said, max_tokens=16)[0]
    told = ollama_client.chat("pirate", QUESTION)
    assert (told.message.content, told.prompt_eval_count) == (text, prompt)

    chat = openai_client.chat.completions.create
    answer = chat(model="pirate", messages=QUESTION)
    assert answer.choices[0].message.content == text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, tokens)
    mine = [{"role": "system", "content": "Be brief."}, *QUESTION]
    answer = chat(model="pirate", messages=mine, max_completion_tokens=5)
    assert answer.choices[0].message.content == expected.chat([*begun, *mine], **own)[0][:5]

    response = openai_client.responses.create(model="pirate", input="Hello!")
    assert (response.output_text, response.temperature) == (text, 0)
    again = openai_client.responses.create(
        model="pirate", input="And?", previous_response_id=response.id
    )
    turns = [*said, {"role": "assistant", "content": text}, {"role": "user", "content": "And?"}]
    assert again.output_text == expected.chat(turns, **own)[0]

    completed = openai_client.completions.create(model="pirate", prompt="Once upon")
    assert completed.choices[0].text == expected.text(expected.tokens("Once upon"), **own)

    values = {"enable_thinking": False}
    text, _, prompt = expected.chat(said, values=values, **own | {"max_tokens": 9})
    message = anthropic_client.messages.create(model="pirate", messages=QUESTION, max_tokens=9)
    assert message.content[0].text == text
    counted = anthropic_client.messages.count_tokens(model="pirate", messages=QUESTION)
    assert counted.input_tokens == prompt
