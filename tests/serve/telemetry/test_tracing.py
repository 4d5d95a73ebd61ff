import http.server
import socket
import subprocess
import sys
import threading
import time

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from hasten.errors import EngineLostError, MissingDependencyError, UsageError
from hasten.serve.jobs import MAX_OUTPUT, Timing, Usage
from hasten.serve.telemetry.observed import Observed
from hasten.serve.telemetry.otlp import OtlpTracer
from hasten.serve.telemetry.tracing import NoTracer, open_tracer
from hasten.types import SamplingParams

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
USAGE = Usage(9, 4, 3, 0, Timing(2.0, 0.25, 0.5, 0.25, 0.5, 1.0))


def observed(**given):
    made = Observed("req-1", "POST", "/v1/chat/completions", time.monotonic() - 2.0)
    values = {
        "client": "key",
        "route": "/v1/chat/completions",
        "protocol": "openai",
        "status": 200,
        "model": "m",
        "operation": "chat",
        "sampling": SamplingParams(max_tokens=50, temperature=0.5, n=2),
        "usages": [USAGE],
        "reasons": ["stop", "length"],
    }
    for name, value in (values | given).items():
        setattr(made, name, value)
    return made


def traced(given, headers):
    """The span of a request, and the trace that it is told to be in."""
    exporter = InMemorySpanExporter()
    tracer = OtlpTracer(exporter)
    trace_id = tracer.record(given, headers)
    tracer.close()
    (span,) = exporter.get_finished_spans()
    return span, trace_id


def test_a_span_tells_what_became_of_a_request():
    span, trace_id = traced(observed(), {})
    assert span.name == "POST /v1/chat/completions"
    assert span.kind is SpanKind.SERVER
    assert f"{span.context.trace_id:032x}" == trace_id
    assert span.parent is None
    assert 1.9e9 < span.end_time - span.start_time < 60e9
    assert span.status.status_code is StatusCode.UNSET
    assert span.resource.attributes["service.name"] == "hasten"
    attributes = dict(span.attributes)
    assert attributes["http.response.status_code"] == 200
    assert attributes["http.route"] == "/v1/chat/completions"
    assert attributes["gen_ai.request.id"] == "req-1"
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == "m"
    assert attributes["gen_ai.request.max_tokens"] == 50
    assert attributes["gen_ai.request.choice.count"] == 2
    assert attributes["gen_ai.usage.input_tokens"] == 9
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 4
    assert attributes["gen_ai.response.finish_reasons"] == ("stop", "length")
    assert attributes["gen_ai.latency.time_in_queue"] == 0.5
    assert attributes["gen_ai.latency.time_to_first_token"] == 1.0
    (event,) = span.events
    assert event.name == "first token"
    assert event.timestamp - span.start_time == 10**9


def test_a_span_continues_the_clients_trace():
    span, trace_id = traced(observed(), {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert trace_id == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT


@pytest.mark.parametrize(
    "header", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01", "00-" + "x" * 9999]
)
def test_a_broken_traceparent_begins_a_trace(header):
    span, _ = traced(observed(), {"traceparent": header})
    assert span.parent is None


def test_what_the_client_does_not_want_traced_is_not():
    exporter = InMemorySpanExporter()
    tracer = OtlpTracer(exporter)
    tracer.record(observed(), {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    tracer.close()
    assert exporter.get_finished_spans() == ()


def test_failures_are_told():
    span, _ = traced(observed(status=503, error=EngineLostError("gone"), usages=[]), {})
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "EngineLostError"


def test_requests_without_a_model_have_no_such_attributes():
    span, _ = traced(observed(model="", usages=[], reasons=[], sampling=None, status=404), {})
    assert not [name for name in span.attributes if name.startswith("gen_ai.usage")]


def test_no_limit_is_no_attribute():
    span, _ = traced(observed(sampling=SamplingParams(max_tokens=MAX_OUTPUT)), {})
    assert "gen_ai.request.max_tokens" not in span.attributes


def test_routine_requests_are_not_traced():
    exporter = InMemorySpanExporter()
    tracer = OtlpTracer(exporter)
    assert tracer.record(observed(route="/health/ready"), {}) == ""
    tracer.close()
    assert exporter.get_finished_spans() == ()


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def collector():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.bodies = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_spans_reach_a_collector(collector):
    tracer = open_tracer(f"http://127.0.0.1:{collector.server_port}")
    for _ in range(3):
        tracer.record(observed(), {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    tracer.close()
    ((path, body),) = collector.bodies
    assert path == "/v1/traces"
    message = ExportTraceServiceRequest.FromString(body)
    spans = message.resource_spans[0].scope_spans[0].spans
    assert [span.trace_id.hex() for span in spans] == [TRACE] * 3


def test_a_collector_that_is_down_stops_nothing(caplog, capfd):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    tracer = open_tracer(f"http://127.0.0.1:{port}/")
    for _ in range(5000):
        tracer.record(observed(), {})
    begin = time.monotonic()
    tracer.close()
    assert time.monotonic() - begin < 30
    ours = [record for record in caplog.records if record.name == "hasten.serve.traces"]
    assert len(ours) == 1
    assert capfd.readouterr().err == ""


def test_no_url_traces_nothing():
    tracer = open_tracer(None)
    assert isinstance(tracer, NoTracer)
    assert tracer.record(observed(), {}) == ""
    tracer.close()


@pytest.mark.parametrize("url", ["localhost:4318", "ftp://host", "http://"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(UsageError, match="no URL of a collector"):
        open_tracer(url)


def test_opentelemetry_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "hasten.serve.telemetry.otlp", raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hasten\[traces\]'"):
        open_tracer("http://localhost:4318")


def test_no_server_loads_opentelemetry_unasked():
    code = (
        "import sys; from hasten.serve.telemetry.observer import Observer;"
        "print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
