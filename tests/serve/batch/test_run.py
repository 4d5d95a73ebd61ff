"""The loop: every line once, whatever endpoints do."""

import asyncio
import contextlib
import json
import os
import random
import signal
import time
import tracemalloc
from collections import Counter

import pytest
from batch_fakes import (
    CHAT,
    answer_to,
    echo,
    line,
    read_output,
    run_batch,
    table,
    write_input,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasten.errors import (
    DeadlineError,
    EngineLostError,
    NotFoundError,
    OverloadError,
    RateLimitError,
    UsageError,
)
from hasten.serve.batch.source import Source
from hasten.serve.endpoint import Reply


def comparable(output):
    """The answers as a set, without the ids of their run."""
    rows = read_output(output)
    for row in rows:
        row["id"] = row["id"].rsplit("_", 1)[1]
        if row["response"]:
            del row["response"]["request_id"]
    assert len({row["id"] for row in rows}) == len(rows)
    return sorted(json.dumps(row) for row in rows)


def by_name(output):
    return {row["custom_id"]: row for row in read_output(output)}


def test_every_line_is_answered_once(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 200)
    tally, _ = run_batch(source, tmp_path / "out.jsonl", echo(0.002))
    rows = read_output(tmp_path / "out.jsonl")
    assert Counter(row["custom_id"] for row in rows) == {f"line-{i}": 1 for i in range(200)}
    assert (tally.answered, tally.failed, tally.output_tokens) == (200, 0, 400)
    assert len({row["response"]["request_id"] for row in rows}) == 200


def test_bad_lines_are_answered_too(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(
        "\n".join(
            [
                line("good"),
                "nonsense",
                "",
                line("good", "again"),
                line("elsewhere", url="/v1/images"),
                line("stream", body={"model": "m", "stream": True}),
                line("long", "x" * 3000),
                line("last"),
            ]
        )
    )
    tally, _ = run_batch(source, tmp_path / "out.jsonl", line_bytes=2000)
    rows = {int(row["id"].rsplit("_", 1)[1]): row for row in read_output(tmp_path / "out.jsonl")}
    codes = {number: (row["error"] or {}).get("code") for number, row in rows.items()}
    assert codes == {
        1: None,
        2: "invalid_json_line",
        4: "duplicate_custom_id",
        5: "invalid_url",
        6: "stream_not_supported",
        7: "line_too_long",
        8: None,
    }
    assert rows[2]["error"]["message"].startswith("line 2: ")
    assert all((row["response"] is None) == (row["error"] is not None) for row in rows.values())
    assert (tally.answered, tally.failed) == (7, 5)


def test_errors_of_endpoints_are_answers(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(f"{line('usage')}\n{line('missing')}\n{line('bug')}\n{line('fine')}\n")

    async def endpoint(call):
        errors = [UsageError("bad temperature"), NotFoundError("no such model"), KeyError("bug")]
        number = int(call.id.split("_")[2])
        if number <= len(errors):
            raise errors[number - 1]
        return Reply(answer_to(call.body))

    tally, _ = run_batch(source, tmp_path / "out.jsonl", endpoint)
    rows = by_name(tmp_path / "out.jsonl")
    status = {name: row["response"]["status_code"] for name, row in rows.items()}
    assert status == {"usage": 400, "missing": 404, "bug": 500, "fine": 200}
    assert rows["usage"]["response"]["body"]["error"]["message"] == "bad temperature"
    assert rows["usage"]["error"] is None
    assert tally.failed == 3


def test_other_models_are_counted_or_refused(tmp_path):
    source = tmp_path / "in.jsonl"
    bodies = [{"model": "gpt-4o-mini"}, {"model": "m"}, {}]
    source.write_text("".join(f"{line(str(i), body=body)}\n" for i, body in enumerate(bodies)))
    seen = []

    async def endpoint(call):
        seen.append(json.loads(call.body)["model"])
        return Reply(b"{}")

    _, caller = run_batch(source, tmp_path / "out.jsonl", endpoint)
    assert seen == ["m", "m", "m"]
    assert caller.other_models == {"gpt-4o-mini": 1}
    run_batch(source, tmp_path / "strict.jsonl", endpoint, same_model=True)
    rows = by_name(tmp_path / "strict.jsonl")
    assert rows["0"]["error"]["code"] == "mismatched_model"
    assert rows["1"]["error"] is rows["2"]["error"] is None


def test_lines_that_are_turned_away_come_again(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 20)
    turned: Counter[bytes] = Counter()

    async def endpoint(call):
        turned[call.body] += 1
        kinds = (OverloadError, RateLimitError)
        if turned[call.body] <= 6:
            raise kinds[turned[call.body] % 2]("full", retry_after=0.001)
        return Reply(answer_to(call.body))

    tally, _ = run_batch(source, tmp_path / "out.jsonl", endpoint)
    assert (tally.answered, tally.failed) == (20, 0)


async def interrupt():
    """As Ctrl-C does; a second one would not end politely."""
    if not any(task.cancelling() for task in asyncio.all_tasks()):
        signal.raise_signal(signal.SIGINT)
    await asyncio.sleep(60)


def test_a_line_that_kills_the_engine_takes_no_other_with_it(tmp_path):
    source = tmp_path / "in.jsonl"
    lines = [line(f"poison-{i}" if i in (5, 40) else f"line-{i}", str(i)) for i in range(60)]
    source.write_text("\n".join(lines))
    lost = asyncio.Event()
    deaths = 0

    async def endpoint(call):
        nonlocal lost, deaths
        here = lost
        if json.loads(call.body)["messages"][0]["content"] in ("5", "40"):
            await asyncio.sleep(0.002)
            deaths += 1
            lost = asyncio.Event()
            here.set()
            raise EngineLostError("the engine ended")
        try:
            async with asyncio.timeout(0.005):
                await here.wait()
        except TimeoutError:
            return Reply(answer_to(call.body))
        raise EngineLostError("the engine ended")

    tally, _ = run_batch(source, tmp_path / "out.jsonl", endpoint, width=16)
    rows = by_name(tmp_path / "out.jsonl")
    failed = {name for name, row in rows.items() if row["response"]["status_code"] != 200}
    assert failed == {"poison-5", "poison-40"}
    assert rows["poison-5"]["response"]["status_code"] == 503
    assert deaths == 6
    assert tally.answered == 60


def test_a_deadline_is_tried_again_but_not_for_ever(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 3)
    tries: Counter[bytes] = Counter()

    async def endpoint(call):
        tries[call.body] += 1
        if b"text 1" in call.body or tries[call.body] < 2:
            raise DeadlineError("too late")
        return Reply(answer_to(call.body))

    run_batch(source, tmp_path / "out.jsonl", endpoint)
    rows = by_name(tmp_path / "out.jsonl")
    assert [rows[f"line-{i}"]["response"]["status_code"] for i in range(3)] == [200, 504, 200]
    assert sorted(tries.values()) == [2, 2, 3]


def test_an_engine_that_does_not_come_back_ends_the_run(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 40)
    output = tmp_path / "out.jsonl"
    count = 0

    async def endpoint(call):
        nonlocal count
        count += 1
        if count > 20:
            raise EngineLostError("the engine ended")
        return Reply(answer_to(call.body))

    async def never():
        raise EngineLostError("the engine cannot be started")

    with pytest.raises(EngineLostError, match="cannot be started"):
        run_batch(source, output, endpoint, recover=never)
    assert len(read_output(output)) == 20
    run_batch(source, output)
    assert len(read_output(output)) == len(by_name(output)) == 40


def test_as_many_lines_are_under_way_as_asked(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 100)
    now = most = 0

    async def endpoint(call):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return Reply(answer_to(call.body))

    run_batch(source, tmp_path / "out.jsonl", endpoint, width=12)
    assert most == 12


def test_long_lines_do_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("hasten.serve.batch.run._MEMORY", 25_000)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(f"{line(str(i), 'x' * 9_700)}\n" for i in range(30)))
    now = most = 0

    async def endpoint(call):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        return Reply(b"{}")

    tally, _ = run_batch(source, tmp_path / "out.jsonl", endpoint, width=12)
    assert (most, tally.answered) == (2, 30)


def test_an_input_that_changes_meanwhile_is_no_success(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 10)

    async def endpoint(call):
        if b"text 9" in call.body:
            source.write_text("other")
        return Reply(b"{}")

    with pytest.raises(UsageError, match="changed while"):
        run_batch(source, tmp_path / "out.jsonl", endpoint)


def test_what_was_answered_is_kept_when_the_run_is_cancelled(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 100)
    output = tmp_path / "out.jsonl"
    done = 0

    async def endpoint(call):
        nonlocal done
        if done >= 50:
            await interrupt()
        await asyncio.sleep(0)
        done += 1
        return Reply(answer_to(call.body))

    with pytest.raises(KeyboardInterrupt):
        run_batch(source, output, endpoint)
    kept = read_output(output)
    assert len(kept) >= 40
    run_batch(source, output)
    assert len(read_output(output)) == len(by_name(output)) == 100


def start(source, output, seed):
    """The batch in a process of its own, to be killed; forked, since imports take longest."""
    child = os.fork()
    if child == 0:
        try:
            run_batch(source, output, echo(0.03, seed), width=16)
        finally:
            os._exit(1)
    return child


def kill(child):
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL  # it had not ended by itself


def test_killed_at_random_moments_and_resumed(tmp_path):
    """20 kills; the output is complete, each line once, and equal to one that was never killed."""
    source = write_input(tmp_path / "in.jsonl", 3000)
    with source.open("a") as file:
        file.write(f"nonsense\n{line('line-7')}\n")
    drawn = random.Random(4)
    killed = tmp_path / "killed.jsonl"
    for seed in range(20):
        before = killed.stat().st_size if killed.exists() else 0
        more = drawn.choice([0, drawn.randrange(1, 50_000)])  # else while it starts
        child = start(source, killed, seed)
        while more and not (killed.exists() and killed.stat().st_size >= before + more):
            time.sleep(0.001)
        time.sleep(drawn.random() * 0.05)
        kill(child)
    tally, _ = run_batch(source, killed)
    run_batch(source, tmp_path / "whole.jsonl")
    assert tally.answered == 3002
    assert comparable(killed) == comparable(tmp_path / "whole.jsonl")


def test_a_second_process_is_refused_while_the_first_runs(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 2000)
    output = tmp_path / "out.jsonl"
    child = start(source, output, 1)
    while not output.exists() or output.stat().st_size == 0:
        time.sleep(0.01)
    with pytest.raises(UsageError, match="another run is writing"):
        run_batch(source, output)
    kill(child)
    tally, _ = run_batch(source, output)
    assert tally.answered == 2000


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stops=st.lists(st.integers(0, 30), max_size=4),
    cut=st.integers(0, 300),
    texts=st.lists(st.sampled_from(["good", "bad", "blank", "same"]), max_size=30),
)
def test_any_history_of_stops_ends_complete(tmp_path_factory, stops, cut, texts):
    folder = tmp_path_factory.mktemp("history")
    source = folder / "in.jsonl"
    made = {"bad": "{", "blank": "", "same": line("same")}
    source.write_text("\n".join(made.get(text, line(f"{i}")) for i, text in enumerate(texts)))
    output = folder / "out.jsonl"
    for stop in stops:
        count = 0

        async def endpoint(call, stop=stop):
            nonlocal count
            count += 1
            if count > stop:
                await interrupt()
            return Reply(answer_to(call.body))

        with contextlib.suppress(KeyboardInterrupt):
            run_batch(source, output, endpoint, width=3)
        content = output.read_bytes()
        output.write_bytes(content[: max(0, len(content) - cut)])
    run_batch(source, output, width=3)
    run_batch(source, folder / "whole.jsonl", width=3)
    assert comparable(output) == comparable(folder / "whole.jsonl")
    assert len(read_output(output)) == sum(text != "blank" for text in texts)


def peak_of(source, output):
    """Bytes that a batch takes at most."""

    async def endpoint(call):
        return Reply(b"{}")

    tracemalloc.start()
    try:
        run_batch(source, output, endpoint, width=32)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("run", ["whole", "resumed"])
def test_many_lines_in_little_memory(tmp_path, monkeypatch, run):
    monkeypatch.setattr("hasten.serve.batch.run._LOOK", 200)
    peaks = []
    for count in (500, 3_000):
        source, output = write_input(tmp_path / f"{count}.jsonl", count), tmp_path / f"{count}.out"
        if run == "resumed":  # all answered: reads both files
            run_batch(source, output)
        peaks.append(peak_of(source, output))
        assert len(read_output(output)) == count
    assert peaks[1] - peaks[0] < 2_500 * 40  # of which the scan takes 26 a line


def test_progress_is_told_as_it_is_made(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 50)
    seen = []
    run_batch(source, tmp_path / "out.jsonl", told=lambda tally: seen.append(tally.answered))
    assert seen == sorted(seen)
    assert seen[-1] == 50


def test_lines_go_to_the_endpoint_that_they_name(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(f"{line('a')}\n{line('b', url='/v1/embeddings')}\n")

    async def chat(call):
        return Reply(b'"chat"')

    async def embed(call):
        return Reply(b'"embed"')

    routes = table(chat, CHAT) | table(embed, "/v1/embeddings")
    run_batch(source, tmp_path / "out.jsonl", routes=routes)
    rows = by_name(tmp_path / "out.jsonl")
    assert (rows["a"]["response"]["body"], rows["b"]["response"]["body"]) == ("chat", "embed")


def test_a_scan_can_be_ended(tmp_path):
    source = write_input(tmp_path / "in.jsonl", 20_000)

    def stop(done):
        raise KeyboardInterrupt

    with Source(source, 1000) as opened, pytest.raises(KeyboardInterrupt):
        opened.scan(stop)
