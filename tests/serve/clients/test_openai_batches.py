"""OpenAI's client, files and batches."""

import asyncio
import json

import openai
import pytest
from served_process import GUEST, until

FINAL = {"completed", "failed", "cancelled", "expired"}
QUESTION = [{"role": "user", "content": "Hello!"}]


def line(number, endpoint="/v1/chat/completions", **body):
    asked = {"model": "chat", "temperature": 0, "max_tokens": 10} | body
    return {"custom_id": f"line-{number}", "method": "POST", "url": endpoint, "body": asked}


def lines_of(answers):
    return [json.loads(answer) for answer in answers.text.splitlines()]


@pytest.fixture
def upload(openai_client):
    """Uploads lines, and deletes the files afterwards."""
    made = []

    def upload(lines):
        content = "".join(json.dumps(one) + "\n" for one in lines).encode()
        file = openai_client.files.create(file=("lines.jsonl", content), purpose="batch")
        made.append(file.id)
        return file, content

    yield upload
    for name in made:
        openai_client.files.delete(name)


def ended(client, batch):
    """The batch, once it has ended."""
    until(lambda: client.batches.retrieve(batch.id).status in FINAL)
    return client.batches.retrieve(batch.id)


def test_files(openai_client, openai_options, upload):
    file, content = upload([line(1)])
    assert (file.filename, file.purpose, file.bytes) == ("lines.jsonl", "batch", len(content))
    assert openai_client.files.retrieve(file.id) == file
    assert file in list(openai_client.files.list(purpose="batch"))
    assert openai_client.files.content(file.id).content == content
    other = openai_client.files.create(file=b"{}", purpose="batch")
    assert openai_client.files.delete(other.id).deleted
    for call in (openai_client.files.retrieve, openai_client.files.content):
        with pytest.raises(openai.NotFoundError):
            call(other.id)
    with pytest.raises(openai.BadRequestError):
        openai_client.files.create(file=b"{}", purpose="fine-tune")
    with openai.OpenAI(**openai_options | {"api_key": GUEST}) as guest:
        assert list(guest.files.list()) == []
        with pytest.raises(openai.NotFoundError):
            guest.files.content(file.id)


def test_a_batch_answers_as_its_endpoints_do(openai_client, upload, expected):
    file, _ = upload(
        [
            line(1, messages=QUESTION),
            line(2, model="nothing", messages=QUESTION),
            line(3, messages=QUESTION, tool_choice="required"),
            line(4, messages=[{"role": "user", "content": "Why?"}]),
        ]
    )
    batch = openai_client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"for": "a test"},
    )
    assert batch.id in [one.id for one in openai_client.batches.list()]
    done = ended(openai_client, batch)

    def lines(name):
        return lines_of(openai_client.files.content(name))

    counts = done.request_counts
    assert (done.status, counts.total, counts.completed, counts.failed) == ("completed", 4, 2, 2)
    assert done.metadata == {"for": "a test"}
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    answers = {one["custom_id"]: one for one in lines(done.output_file_id)}
    assert set(answers) == {"line-1", "line-4"}
    text, tokens, prompt = expected.chat(QUESTION, max_tokens=10)
    body = answers["line-1"]["response"]["body"]
    assert answers["line-1"]["response"]["status_code"] == 200
    assert body["choices"][0]["message"]["content"] == text
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (prompt, tokens)
    other = answers["line-4"]["response"]["body"]["usage"]
    assert done.usage.input_tokens == prompt + other["prompt_tokens"]
    assert done.usage.output_tokens == tokens + other["completion_tokens"]
    failed = {one["custom_id"]: one for one in lines(done.error_file_id)}
    statuses = {name: one["response"]["status_code"] for name, one in failed.items()}
    assert statuses == {"line-2": 404, "line-3": 400}
    for name in (done.output_file_id, done.error_file_id):
        assert openai_client.files.delete(name).deleted


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"model": "embed", "input": "x"}),
        ("/v1/responses", {"input": "x"}),
    ],
)
def test_other_endpoints(openai_client, upload, endpoint, body):
    asked = {"model": "chat"} | body
    lines = [{"custom_id": "1", "method": "POST", "url": endpoint, "body": asked}]
    if endpoint != "/v1/embeddings":
        limit = "max_output_tokens" if endpoint == "/v1/responses" else "max_tokens"
        asked[limit] = 5
    file, _ = upload(lines)
    batch = openai_client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h"
    )
    done = ended(openai_client, batch)
    assert (done.status, done.request_counts.completed) == ("completed", 1)
    (answer,) = lines_of(openai_client.files.content(done.output_file_id))
    assert answer["response"]["body"]["model"] == asked["model"]


def test_a_batch_that_is_cancelled_keeps_what_was_answered(openai_client, upload):
    long = {"messages": QUESTION, "max_tokens": 1500, "ignore_eos": True}
    file, _ = upload([line(1, messages=QUESTION), *(line(n, **long) for n in range(2, 60))])
    batch = openai_client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    until(lambda: openai_client.batches.retrieve(batch.id).request_counts.completed)
    assert openai_client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(openai_client, batch)
    assert done.status == "cancelled"
    assert 1 <= done.request_counts.completed < 59
    answers = lines_of(openai_client.files.content(done.output_file_id))
    assert "line-1" in [answer["custom_id"] for answer in answers]
    assert len(answers) == done.request_counts.completed
    assert openai_client.batches.cancel(batch.id).status == "cancelled"  # and nothing else happens


def test_what_cannot_be_queued(openai_client, upload):
    file, _ = upload([line(1, messages=QUESTION)])
    queue = openai_client.batches.create
    asked = {"input_file_id": file.id, "endpoint": "/v1/responses", "completion_window": "24h"}
    for wrong in (
        {"endpoint": "/v1/files"},
        {"completion_window": "1s"},
    ):
        with pytest.raises(openai.BadRequestError):
            queue(**asked | wrong)
    with pytest.raises(openai.NotFoundError):
        queue(**asked | {"input_file_id": "file-none"})
    with pytest.raises(openai.NotFoundError):
        openai_client.batches.retrieve("batch_none")


def test_the_async_client(openai_options, upload):
    file, _ = upload([line(1, messages=QUESTION)])

    async def go():
        async with openai.AsyncOpenAI(**openai_options) as client:
            batch = await client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
            while batch.status not in FINAL:
                batch = await client.batches.retrieve(batch.id)
            return lines_of(await client.files.content(batch.output_file_id))

    (answer,) = asyncio.run(go())
    assert answer["response"]["status_code"] == 200
