"""Files and batches of a server, through the official client, over endpoints of a test."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import httpx
import openai
import pytest
from batch_fakes import CHAT, answer_to, echo, line, table

from hasten.errors import EngineLostError, OverloadError
from hasten.serve.app import App
from hasten.serve.batch.journal import Journal
from hasten.serve.batch.queue import BatchQueue
from hasten.serve.endpoint import Reply
from hasten.serve.files import Incoming
from hasten.serve.jobs import Client
from hasten.serve.protocols.openai import DIALECT, ROUTES
from hasten.serve.settings import Limits, ServerSettings
from hasten.serve.telemetry.metrics import Metrics
from hasten.serve.telemetry.observer import Observer

KEYS = {
    sha256(name.encode()).hexdigest(): Client(name=name, tenant=f"tenant of {name}", admin=False)
    for name in ("alice", "bob")
}


@asynccontextmanager
async def server(directory, endpoint=None, keys=KEYS, engines=None, **limits):
    """A server without a socket; yields a function that makes a client with a key."""
    settings = ServerSettings(keys=keys, limits=replace(Limits(), **limits))
    routes = [route for route in ROUTES if "/files" in route.path or "/batches" in route.path]
    chat = replace(table(endpoint or echo())[CHAT], dialect=DIALECT)
    queue = BatchQueue(directory, settings, [*routes, chat])
    service = SimpleNamespace(
        batches=queue,
        settings=settings,
        observer=Observer(Metrics()),
        registry=SimpleNamespace(engines=lambda: engines or {}),
    )
    app = App(service, {"openai": [*routes, chat]})
    await queue.start(service)
    clients = []

    def client(name="alice"):
        transport = httpx.ASGITransport(app)
        made = openai.AsyncOpenAI(
            api_key=name,
            base_url="http://127.0.0.1:8000/v1",
            max_retries=0,
            http_client=httpx.AsyncClient(transport=transport),
        )
        clients.append(made)
        return made

    try:
        yield client
    finally:
        for made in clients:
            await made.close()
        await queue.close()


async def submit(client, lines, **options):
    content = "".join(f"{text}\n" for text in lines).encode()
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    asked = {"endpoint": CHAT, "completion_window": "24h"} | options
    return file, await client.batches.create(input_file_id=file.id, **asked)


async def wait_for(client, batch, *statuses):
    async with asyncio.timeout(20):
        while batch.status not in (statuses or ("completed", "failed", "expired", "cancelled")):
            await asyncio.sleep(0.01)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def rows(client, file_id):
    content = await client.files.content(file_id)
    return [json.loads(text) for text in content.text.splitlines()]


def test_a_batch_from_upload_to_results(tmp_path):
    async def go():
        async with server(tmp_path) as connect:
            client = connect()
            lines = [line(f"name-{i}", str(i)) for i in range(30)]
            file, batch = await submit(client, [*lines, "{", line("x", url="/v1/embeddings")])
            assert (batch.status, batch.input_file_id) == ("validating", file.id)
            batch = await wait_for(client, batch)
            assert batch.status == "completed"
            counts = batch.request_counts
            assert (counts.total, counts.completed, counts.failed) == (32, 30, 2)
            assert (batch.usage.input_tokens, batch.usage.output_tokens) == (90, 60)
            assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at
            assert batch.finalizing_at <= batch.completed_at <= batch.expires_at
            good, bad = (
                await rows(client, batch.output_file_id),
                await rows(client, batch.error_file_id),
            )
            assert {row["custom_id"] for row in good} == {f"name-{i}" for i in range(30)}
            assert [row["error"]["code"] for row in bad].count("invalid_url") == 1
            one = next(row for row in good if row["custom_id"] == "name-7")
            body = json.dumps(json.loads(lines[7])["body"]).encode()
            assert one["response"]["body"] == json.loads(answer_to(body))
            output = await client.files.retrieve(batch.output_file_id)
            assert (output.purpose, output.status) == ("batch_output", "processed")
            assert (await client.files.delete(file.id)).deleted

    asyncio.run(go())


def test_lists_have_pages(tmp_path):
    async def go():
        async with server(tmp_path) as connect:
            client = connect()
            made = [await submit(client, [line("a")]) for _ in range(5)]
            files = [file.id for file, _ in made]
            found = [one.id async for one in client.files.list(purpose="batch", limit=2)]
            assert found == files[::-1]
            found = [
                one.id async for one in client.files.list(purpose="batch", order="asc", limit=3)
            ]
            assert found == files
            found = [one.id async for one in client.batches.list(limit=2)]
            assert found == [batch.id for _, batch in made][::-1]
            for query in ({"limit": 0}, {"limit": "x"}, {"order": "up"}, {"after": "file-1"}):
                with pytest.raises(openai.BadRequestError):
                    await client.files.list(extra_query=query)

    asyncio.run(go())


def test_tenants_do_not_see_each_other(tmp_path):
    async def go():
        async with server(tmp_path) as connect:
            alice, bob = connect("alice"), connect("bob")
            file, batch = await submit(alice, [line("a")])
            batch = await wait_for(alice, batch)
            assert [one async for one in bob.files.list()] == []
            assert [one async for one in bob.batches.list()] == []
            for call in (
                bob.files.retrieve(file.id),
                bob.files.content(batch.output_file_id),
                bob.files.delete(file.id),
                bob.batches.retrieve(batch.id),
                bob.batches.cancel(batch.id),
                bob.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h"),
            ):
                with pytest.raises(openai.NotFoundError):
                    await call
            assert (await alice.files.retrieve(file.id)).bytes == len(line("a")) + 1

    asyncio.run(go())


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "%2e%2e", "file-1", "a" * 3000])
def test_ids_are_no_paths(tmp_path, name):
    async def go():
        async with server(tmp_path) as connect:
            http = connect()._client
            for path in (f"files/{name}", f"files/{name}/content", f"batches/{name}"):
                answer = await http.get(
                    f"http://127.0.0.1:8000/v1/{path}", headers={"authorization": "Bearer alice"}
                )
                assert answer.status_code == 404
                assert "error" in answer.json()

    asyncio.run(go())


def test_wrong_requests_are_refused(tmp_path):
    async def go():
        async with server(tmp_path) as connect:
            client = connect()
            content = ("in.jsonl", b"{}\n")
            with pytest.raises(openai.BadRequestError, match="purpose"):
                await client.files.create(file=content, purpose="assistants")
            with pytest.raises(openai.BadRequestError, match="expires_after"):
                await client.files.create(
                    file=content,
                    purpose="batch",
                    expires_after={"anchor": "created_at", "seconds": 1},
                )
            file = await client.files.create(file=content, purpose="batch")
            asked = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
            for wrong in (
                {"endpoint": "/v1/images"},
                {"completion_window": "soon"},
                {"completion_window": "900d"},
                {"metadata": {"a": "b" * 600}},
                {"input_file_id": 7},
                {"output_expires_after": {"anchor": "now", "seconds": 3600}},
            ):
                with pytest.raises(openai.BadRequestError):
                    await client.batches.create(**asked | wrong)
            with pytest.raises(openai.NotFoundError):
                await client.batches.create(**asked | {"input_file_id": "file-" + "0" * 32})
            batch = await client.batches.create(**asked, metadata={"job": "nightly"})
            assert batch.metadata == {"job": "nightly"}
            batch = await wait_for(client, batch)
            with pytest.raises(openai.BadRequestError, match="purpose"):
                await client.batches.create(**asked | {"input_file_id": batch.error_file_id})
            with pytest.raises(openai.BadRequestError, match="completed already"):
                await client.batches.cancel(batch.id)

    asyncio.run(go())


def test_an_empty_file_fails(tmp_path):
    async def go():
        async with server(tmp_path) as connect:
            client = connect()
            _, batch = await submit(client, ["", ""])
            batch = await wait_for(client, batch)
            assert batch.status == "failed"
            assert [error.code for error in batch.errors.data] == ["empty_file"]
            assert batch.output_file_id is batch.error_file_id is None

    asyncio.run(go())


def gated(limit):
    """An endpoint that answers so many lines and then waits."""
    state = SimpleNamespace(answered=0, gate=asyncio.Event(), seen=[])

    async def endpoint(call):
        state.seen.append(call)
        if state.answered >= limit:
            await state.gate.wait()
        state.answered += 1
        return Reply(answer_to(call.body))

    return state, endpoint


def test_a_cancelled_batch_keeps_what_was_answered(tmp_path):
    async def go():
        state, endpoint = gated(10)
        async with server(tmp_path, endpoint) as connect:
            client = connect()
            _, first = await submit(client, [line(str(i)) for i in range(200)])
            _, second = await submit(client, [line("other")])
            while state.answered < 10:
                await asyncio.sleep(0.01)
            first = await client.batches.retrieve(first.id)
            assert (first.status, first.request_counts.completed) == ("in_progress", 10)
            assert first.output_file_id is None
            waiting = await client.batches.cancel(second.id)
            assert waiting.status == "cancelled"
            assert (await client.batches.cancel(first.id)).status in ("cancelling", "cancelled")
            first = await wait_for(client, first)
            assert (first.status, first.request_counts.completed) == ("cancelled", 10)
            assert len(await rows(client, first.output_file_id)) == 10
            assert first.error_file_id is None
            state.gate.set()
            _, third = await submit(client, [line("third")])
            assert (await wait_for(client, third)).status == "completed"

    asyncio.run(go())


def test_an_expired_batch_names_the_lines_that_were_late(tmp_path, monkeypatch):
    async def go():
        _, endpoint = gated(10)
        async with server(tmp_path, endpoint) as connect:
            client = connect()
            monkeypatch.setattr("hasten.serve.protocols.openai.batches._hours", lambda text: 1e-4)
            _, batch = await submit(client, [line(str(i)) for i in range(50)])
            batch = await wait_for(client, batch)
            assert batch.status == "expired"
            counts = batch.request_counts
            assert (counts.total, counts.completed, counts.failed) == (50, 10, 40)
            late = await rows(client, batch.error_file_id)
            assert {row["error"]["code"] for row in late} == {"batch_expired"}
            done = await rows(client, batch.output_file_id)
            assert {row["custom_id"] for row in late + done} == {str(i) for i in range(50)}

    asyncio.run(go())


def test_batches_go_on_after_a_restart(tmp_path):
    async def go():
        names = {str(i) for i in range(150)}
        state, endpoint = gated(40)
        async with server(tmp_path, endpoint) as connect:
            client = connect()
            _, first = await submit(client, [line(name) for name in sorted(names)])
            _, second = await submit(client, [line("second")])
            while state.answered < 40:
                await asyncio.sleep(0.01)
        again, endpoint = gated(1000)
        async with server(tmp_path, endpoint) as connect:
            client = connect()
            first, second = await wait_for(client, first), await wait_for(client, second)
            assert first.status == second.status == "completed"
            assert first.request_counts.completed == 150
            done = await rows(client, first.output_file_id)
            assert len(done) == 150
            assert {row["custom_id"] for row in done} == names
            assert again.answered == 111
            assert (first.usage.input_tokens, first.usage.output_tokens) == (450, 300)

    asyncio.run(go())


def test_a_batch_whose_key_is_gone_fails(tmp_path):
    async def go():
        _, endpoint = gated(0)
        async with server(tmp_path, endpoint) as connect:
            _, batch = await submit(connect(), [line("a")])
        other = {digest: client for digest, client in KEYS.items() if client.name == "bob"}
        tenant = {sha256(b"new").hexdigest(): Client(name="new", tenant="tenant of alice")}
        async with server(tmp_path, endpoint, keys=other | tenant) as connect:
            client = connect("new")
            batch = await wait_for(client, batch)
            assert (batch.status, batch.errors.data[0].code) == ("failed", "invalid_api_key")

    asyncio.run(go())


def test_lines_come_from_the_key_behind_everything_else(tmp_path):
    async def go():
        state, endpoint = gated(1000)
        async with server(tmp_path, endpoint) as connect:
            client = connect()
            await wait_for(client, (await submit(client, [line("a")]))[1])
            who = state.seen[0].client
            assert (who.name, who.tenant, who.batch) == ("alice", "tenant of alice", True)
            assert who.priority > 100

    asyncio.run(go())


def test_bounds_of_a_tenant(tmp_path):
    async def go():
        _, endpoint = gated(0)
        limits = {"files": 4, "batches": 2, "upload": 5000}
        async with server(tmp_path, endpoint, **limits) as connect:
            client = connect()
            batches = [(await submit(client, [line("a")]))[1] for _ in range(2)]
            with pytest.raises(openai.RateLimitError, match="2 batches"):
                await submit(client, [line("a")])
            await client.batches.cancel(batches[1].id)
            _, third = await submit(client, [line("a")])
            assert [one.id async for one in client.batches.list()] == [third.id, batches[0].id]
            with pytest.raises(openai.APIStatusError) as raised:
                await submit(client, [line("a")])
            assert raised.value.status_code == 413
            with pytest.raises(openai.APIStatusError) as raised:
                await connect("bob").files.create(file=("x", b"x" * 9000), purpose="batch")
            assert raised.value.status_code == 413

    asyncio.run(go())


def test_a_second_server_leaves_the_directory_alone(tmp_path):
    async def go():
        async with server(tmp_path) as connect, server(tmp_path) as connect_other:
            file, _ = await submit(connect(), [line("a")])
            with pytest.raises(openai.InternalServerError, match="data directory"):
                await connect_other().files.retrieve(file.id)
        async with server(tmp_path) as connect:
            assert (await connect().files.retrieve(file.id)).id == file.id

    asyncio.run(go())


def test_a_full_disk_makes_lines_wait(tmp_path, monkeypatch):
    append = Journal.append
    failures = 0

    def full(self, line):
        nonlocal failures
        if b"line-7" in line and failures < 2:
            failures += 1
            raise OverloadError("disk full", retry_after=1)
        append(self, line)

    async def go():
        monkeypatch.setattr("hasten.serve.batch.queue.DISK_SECONDS", 0.01)
        monkeypatch.setattr(Journal, "append", full)
        async with server(tmp_path) as connect:
            client = connect()
            _, batch = await submit(client, [line(f"line-{i}") for i in range(20)])
            batch = await wait_for(client, batch)
            assert (batch.status, failures) == ("completed", 2)
            assert len(await rows(client, batch.output_file_id)) == 20

    asyncio.run(go())


def test_lines_wait_for_an_engine_that_takes_its_time_to_come_back(tmp_path):
    async def go():
        back = asyncio.Event()
        calls = 0

        async def endpoint(call):
            nonlocal calls
            calls += 1
            if not back.is_set():
                raise EngineLostError("the engine ended")
            return Reply(answer_to(call.body))

        engines = {"m": SimpleNamespace(wait_ready=back.wait), "later": None}
        async with server(tmp_path, endpoint, engines=engines) as connect:
            client = connect()
            _, batch = await submit(client, [line(str(i)) for i in range(5)])
            while calls < 5:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert calls == 5
            back.set()
            batch = await wait_for(client, batch)
            assert (batch.request_counts.completed, batch.request_counts.failed) == (5, 0)

    asyncio.run(go())


def test_lines_of_an_engine_that_cannot_be_started_fail(tmp_path, monkeypatch):
    monkeypatch.setattr("hasten.serve.batch.queue.LOSS_SECONDS", 0.01)

    async def fail(*_):
        raise EngineLostError("the engine cannot be started")

    async def go():
        engines = {"m": SimpleNamespace(wait_ready=fail)}
        async with server(tmp_path, fail, engines=engines) as connect:
            client = connect()
            _, batch = await submit(client, [line("a")])
            batch = await wait_for(client, batch)
            assert (batch.status, batch.request_counts.failed) == ("completed", 1)
            (row,) = await rows(client, batch.error_file_id)
            assert row["response"]["status_code"] == 503

    asyncio.run(go())


def test_a_full_disk_makes_results_wait(tmp_path, monkeypatch):
    keep = Incoming.keep
    failures = 0

    def full(self, name, *, seconds=None):
        nonlocal failures
        if "output" in name and failures < 2:
            failures += 1
            raise OverloadError("disk full", retry_after=1)
        return keep(self, name, seconds=seconds)

    async def go():
        monkeypatch.setattr("hasten.serve.batch.queue.DISK_SECONDS", 0.01)
        monkeypatch.setattr(Incoming, "keep", full)
        async with server(tmp_path) as connect:
            client = connect()
            _, batch = await submit(client, [line("a"), "{"])
            batch = await wait_for(client, batch)
            assert (batch.status, failures) == ("completed", 2)
            assert len(await rows(client, batch.output_file_id)) == 1
            assert len(await rows(client, batch.error_file_id)) == 1

    asyncio.run(go())


def test_a_bug_ends_one_batch_and_not_the_queue(tmp_path, monkeypatch):
    async def go():
        async with server(tmp_path) as connect:
            client = connect()

            def bug(*arguments):
                raise KeyError("bug")

            with monkeypatch.context() as patch:
                patch.setattr("hasten.serve.batch.queue.split_answers", bug)
                _, batch = await submit(client, [line("a")])
                batch = await wait_for(client, batch)
            assert batch.status == "failed"
            assert "bug" not in batch.errors.data[0].message
            _, batch = await submit(client, [line("a")])
            assert (await wait_for(client, batch)).status == "completed"

    asyncio.run(go())
