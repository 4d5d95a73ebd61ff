"""Counters of a server around a load, and what `hasten bench` makes of them."""

import asyncio
import json
import math
import random
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_server import CLOSE, head, odd_server, whole
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from hasten.cli.main import main
from hasten.measure.load import run_load
from hasten.measure.server_times import COUNTERS, find_server_times
from hasten.measure.targets import counters as module
from hasten.measure.targets.counters import CounterReader, parse_totals
from hasten.measure.targets.http import HttpOptions
from hasten.measure.targets.openai import OpenAiTarget
from hasten.measure.targets.target import TargetError
from hasten.measure.workload import Item, Workload

NAMES = ("x_seconds_sum", "x_seconds_count", "y_total")
VLLM = (
    *("vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds"),
    *("vllm:request_prefill_time_seconds", "vllm:request_decode_time_seconds"),
)


@given(
    st.dictionaries(st.text(max_size=12), st.lists(st.floats(0, 1e6), max_size=4), max_size=4),
    st.sampled_from([generate_latest, generate_openmetrics]),
)
def test_what_prometheus_clients_write(observed, write):
    registry = CollectorRegistry()
    histogram = Histogram("x_seconds", "Of\nx", ["model_name"], registry=registry)
    Counter("y", "Of y", registry=registry).inc(3)
    for label, values in observed.items():
        for value in values:
            histogram.labels(label).observe(value)
    found = parse_totals(write(registry), NAMES)
    values = [value for values in observed.values() for value in values]
    assert found["y_total"] == 3
    assert found.get("x_seconds_count", 0) == len(values)
    assert math.isclose(found.get("x_seconds_sum", 0), math.fsum(values), abs_tol=1e-9)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ('x_seconds_sum{a="1",b="} \\" #{"} 2.5e-3 1700000000000', 0.0025),
        ("  x_seconds_sum\t+3.\r", 3.0),
        ('x_seconds_sum{} 4 # {trace="a"} 1 2', 4.0),
        ("x_seconds_sum 1\nx_seconds_sum 2\n# x_seconds_sum nan", 3.0),
    ],
)
def test_forms_of_a_line(line, value):
    assert parse_totals(line.encode(), NAMES) == {"x_seconds_sum": pytest.approx(value)}


@pytest.mark.parametrize(
    "line",
    [
        *("x_seconds_sum", "x_seconds_sum ", "x_seconds_sum{} NaN", "x_seconds_sum +Inf"),
        *("x_seconds_sum -1", "x_seconds_sum 1_0", "x_seconds_sum 0x1", "x_seconds_sum 1e999"),
        *('x_seconds_sum{a="} 1', "x_seconds_sum{a=1 1", "x_seconds_sum 1 2 3", "x_seconds_sum.5"),
        *("x_seconds_sum ٣", "x_seconds_sum " + "9" * 400, "x_seconds_sum 9e15\n" * 3),
    ],
)
def test_lines_that_are_none(line):
    with pytest.raises(TargetError, match="/metrics"):
        parse_totals(line.encode(), NAMES)


@given(st.binary(max_size=200), st.integers(0, 2**32))
def test_any_bytes_give_totals_or_an_error(noise, seed):
    page = bytearray(b'# HELP x\nx_seconds_sum{m="a\\"b"} 1.5\nx_seconds_count{m="a"} 3\n' + noise)
    dice = random.Random(seed)
    for _ in range(dice.randrange(4)):
        page[dice.randrange(len(page))] = dice.choice(b'{}"\\ \n09.e+-#_x')
    try:
        found = parse_totals(bytes(page), NAMES)
    except TargetError:
        return
    assert all(0 <= value <= 2**53 for value in found.values())


def test_a_line_is_read_in_one_pass():
    """Nested repetition must not go back over what it has read."""
    for body in (b'x_seconds_sum{a="' + b'\\"' * 200_000, b"x_seconds_sum{" + b'a="",' * 100_000):
        with pytest.raises(TargetError):
            parse_totals(body, NAMES)


def test_limits(monkeypatch):
    with pytest.raises(TargetError, match="lines"):
        parse_totals(b"\n" * 200_001, NAMES)
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    assert readings(whole(b"x_seconds_sum 1\n" + b"#" * 1000)) is None


def readings(*answers):
    """What a load's begin and end would find, or None."""

    async def go():
        async with odd_server(*answers, repeat=len(answers) == 1) as server:
            target = OpenAiTarget(server.url, "m")
            reader = CounterReader(target, NAMES)
            async with target:
                await reader.begin()
            # `end` runs a loop of its own, as a load has ended by then
            return await asyncio.to_thread(reader.end)

    return asyncio.run(go())


@pytest.mark.parametrize(
    "answer",
    [
        *(whole(b"x_seconds_sum 1", status=status) for status in (204, 401, 404, 500)),
        *(whole(b"x_seconds_sum -1"), [CLOSE], [b"nonsense"], [head(content_length=9), CLOSE]),
    ],
)
def test_a_server_that_publishes_nothing(answer):
    assert readings(answer) is None


def test_readings_wait_until_the_server_has_counted():
    def counted(number):
        return whole(b"x_seconds_count %d\n" % number)

    found = readings(*map(counted, (3, 4, 4, 8, 9, 9)))
    assert found == ({"x_seconds_count": 4.0}, {"x_seconds_count": 9.0})


def test_nothing_is_asked_of_a_model_here():
    reader = CounterReader(object(), NAMES)
    asyncio.run(reader.begin())
    assert reader.end() is None


class Scripted(BaseHTTPRequestHandler):
    """A server of OpenAI's protocol that counts under vLLM's names."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/v1/models":
            self.answer(json.dumps({"data": [{"id": "m"}]}).encode())
        elif self.path == "/metrics" and self.server.publishes:
            self.answer(generate_latest(self.server.registry))
        else:
            self.send_error(404)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        pieces = [{"choices": [{"delta": {"content": "a"}}]}] * body["max_tokens"]
        pieces.append({"choices": [{"delta": {}, "finish_reason": "length"}]})
        self.server.served += 1
        # a client beside this one comes while the last counted request is under way
        for _ in range(2 if self.server.served == self.server.visit_at else 1):
            for histogram, seconds in zip(self.server.times, (4e-4, 1e-4, 5e-5, 2e-4), strict=True):
                histogram.labels("another-name").observe(seconds)
        lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces]
        self.answer("".join([*lines, "data: [DONE]\n\n"]).encode())

    def answer(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def unmeasured_client(monkeypatch):
    """Its own rate takes seconds to measure, and is not what these tests are about."""
    monkeypatch.setattr("hasten.cli.bench._client_rate", lambda _: None)


@contextmanager
def scripted(*, publishes=True, visit_at=0):
    with ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        server.publishes, server.visit_at, server.served = publishes, visit_at, 0
        server.registry = CollectorRegistry()
        server.times = [
            Histogram(name, name, ["model_name"], registry=server.registry) for name in VLLM
        ]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def bench(url, path, *more):
    arguments = ["--requests", "8", "--warmup", "1", "--input-len", "8", "--output-len", "3", *more]
    assert main(["bench", url, *arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def check_sum(report):
    times = report["server_times"]
    parts = ("queue_ms", "prefill_ms", "decode_ms", "rest_ms", "network_ms")
    assert times["requests"] == 8
    assert sum(times[part] or 0 for part in parts) == pytest.approx(
        report["metrics"]["e2e"]["mean"]
    )
    return times


@pytest.mark.usefixtures("unmeasured_client")
def test_names_of_vllm(tmp_path, capsys):
    with scripted() as url:
        times = check_sum(bench(url, tmp_path / "report.json"))
    assert times["queue_ms"] == pytest.approx(0.1)
    assert times["prefill_ms"] == pytest.approx(0.05)
    assert times["decode_ms"] == pytest.approx(0.2)
    assert times["rest_ms"] == pytest.approx(0.05)
    shown = capsys.readouterr().out
    assert "mean ms" in shown
    assert "network and HTTP" in shown


@pytest.mark.usefixtures("unmeasured_client")
def test_another_client_in_between(tmp_path, capsys):
    with scripted(visit_at=9) as url:
        report = bench(url, tmp_path / "report.json")
    assert report["server_times"] is None
    assert any("counted 9 requests, 8 were sent" in note for note in report["notes"])
    assert "network and HTTP" not in capsys.readouterr().out


@pytest.mark.usefixtures("unmeasured_client")
def test_a_server_without_metrics_is_reported_as_ever(tmp_path):
    with scripted(publishes=False) as url:
        report = bench(url, tmp_path / "report.json")
    assert report["server_times"] is None
    assert not any("times of the server" in note for note in report["notes"])


@pytest.mark.usefixtures("unmeasured_client")
@pytest.mark.parametrize("kind", ["", "ollama+"])
def test_a_server_of_ours(served, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HASTEN_API_KEY", served.key)
    report = bench(f"{kind}{served.url}", tmp_path / "report.json", "--served-model", "chat")
    times = check_sum(report)
    assert min(times["queue_ms"], times["prefill_ms"], times["decode_ms"]) > 0


@pytest.mark.parametrize("others", [0, 1])
def test_another_client_of_a_server_of_ours(served, others):
    options = HttpOptions(key=served.key)
    target, other = (OpenAiTarget(served.url, name, options=options) for name in ("chat", "recite"))
    reader = CounterReader(target, COUNTERS)
    result = run_load(
        target, Workload("made up", None, (), (Item("Once", 4),) * 3), on_warm=reader.begin
    )
    run_load(other, Workload("made up", None, (), (Item("Once", 4),) * others))
    times, note = find_server_times(result.records, reader.end())
    if others:
        assert times is None
        assert "counted 4 requests, 3 were sent" in note
    else:
        assert note is None
        assert times.requests == 3
