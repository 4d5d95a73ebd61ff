import asyncio
import io
import json
import time

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from hasten.errors import GenerationError, OverloadError
from hasten.serve.jobs import Client, Conversation, Embeddings, EmbedJob, Job, Timing, Usage
from hasten.serve.telemetry.logs import logging_to
from hasten.serve.telemetry.metrics import Metrics
from hasten.serve.telemetry.observed import CURRENT, Observed
from hasten.serve.telemetry.observer import Observer
from hasten.serve.telemetry.otlp import OtlpTracer
from hasten.types import SamplingParams

USAGE = Usage(9, 4, 3, 0, Timing(2.0, 0.25, 0.5, 0.25, 0.5, 1.0))


def job(prompt="text", n=1):
    return Job("r", "m", prompt, SamplingParams(n=n), Client(), 0.0)


def arrived():
    return Observed("req-1", "POST", "/v1/completions", time.monotonic(), protocol="openai")


def samples(observer):
    pieces, _ = observer.metrics.render()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(b"".join(pieces).decode())
        for sample in family.samples
    }


def test_a_request_is_counted_traced_and_logged_together():
    exporter, stream = InMemorySpanExporter(), io.StringIO()
    observer = Observer(Metrics(), OtlpTracer(exporter))
    with logging_to("info", stream), observer.request(arrived(), {}) as observed:
        observer.began(job(Conversation([])))
        observer.finished(job(), USAGE, ["stop"], cache="miss")
        observed.status = 200
    observer.tracer.close()
    (span,) = exporter.get_finished_spans()
    line = json.loads(stream.getvalue())
    found = samples(observer)
    assert found["hasten_requests_total", "200", "m", "openai"] == 1
    assert found["hasten_ttft_seconds_count", "m"] == 1
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert line["trace_id"] == f"{span.context.trace_id:032x}"
    assert (line["request_id"], line["output_tokens"]) == ("req-1", 3)
    assert CURRENT.get() is None


def test_several_jobs_of_a_request_add_up():
    observer = Observer(Metrics())
    with observer.request(arrived(), {}) as observed:
        for _ in range(3):
            observer.began(job())
            observer.finished(job(), USAGE, ["stop"])
        assert (observed.operation, observed.prompt_tokens) == ("text_completion", 27)
        assert (observed.cached_tokens, observed.output_tokens) == (12, 9)
    assert samples(observer)["hasten_ttft_seconds_count", "m"] == 3


def test_jobs_in_tasks_belong_to_their_request():
    async def ask(observer, name):
        observed = arrived()
        observed.id = name
        with observer.request(observed, {}):
            await asyncio.gather(*(finish(observer) for _ in range(4)))
        return observed

    async def finish(observer):
        await asyncio.sleep(0)
        observer.finished(job(), USAGE, ["stop"])

    async def run():
        observer = Observer(Metrics())
        return await asyncio.gather(*(ask(observer, str(number)) for number in range(5)))

    assert [observed.output_tokens for observed in asyncio.run(run())] == [12] * 5


def test_a_job_of_a_batch_has_no_request():
    observer = Observer(Metrics())
    observer.began(job())
    observer.finished(job(), USAGE, ["stop"])
    assert samples(observer)["hasten_output_tokens_total", "m"] == 3


@pytest.mark.parametrize(
    ("reasons", "error"), [([], None), (["stop"], None), (["stop"], GenerationError("no"))]
)
def test_times_are_taken_of_what_ended_well_alone(reasons, error):
    observer = Observer(Metrics())
    observer.finished(job(n=2), USAGE, reasons, error)
    found = samples(observer)
    assert ("hasten_ttft_seconds_count", "m") not in found
    assert found.get(("hasten_failures_total", "GenerationError", "m"), 0) == (error is not None)


def test_embeddings_are_counted():
    observer = Observer(Metrics())
    asked = EmbedJob("r", "e", ["text"], Client(), 0.0)
    with observer.request(arrived(), {}) as observed:
        observer.began(asked)
        observer.embedded(asked, Embeddings((b"",), 4, 12, 0.0, 0.5))
        assert (observed.operation, observed.prompt_tokens) == ("embeddings", 12)
    assert samples(observer)["hasten_prompt_tokens_total", "e"] == 12


def test_who_leaves_is_seen_to_leave():
    observer = Observer(Metrics())
    observed = arrived()
    with pytest.raises(asyncio.CancelledError), observer.request(observed, {}):
        raise asyncio.CancelledError
    assert samples(observer)["hasten_disconnects_total", ""] == 1
    assert samples(observer)["hasten_requests_total", "", "499", "openai"] == 1


def break_off(observer, status):
    observed = arrived()
    with observer.request(observed, {}):
        observed.status = status
        raise OverloadError("full", retry_after=1)


@pytest.mark.parametrize(("status", "counted"), [(0, "500"), (200, "200")])
def test_what_breaks_is_a_500_unless_the_answer_had_begun(status, counted):
    observer = Observer(Metrics())
    with pytest.raises(OverloadError):
        break_off(observer, status)
    assert samples(observer)["hasten_requests_total", "", counted, "openai"] == 1
    assert CURRENT.get() is None
