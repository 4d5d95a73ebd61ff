from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from hasten.errors import EngineLostError
from hasten.serve.jobs import Timing, Usage
from hasten.serve.telemetry import metrics as module
from hasten.serve.telemetry.distribution import Distribution
from hasten.serve.telemetry.metrics import Metrics
from hasten.types import EngineStatistics

TIMING = Timing(total=3.0, load=0.25, queue=0.5, prompt=0.25, decode=1.5, ttft=1.0)
USAGE = Usage(100, 64, 11, 0, TIMING)


def statistics(**given):
    values = {
        "running": 3,
        "waiting": 2,
        "kv_blocks": 100,
        "kv_blocks_used": 25,
        "kv_blocks_cached": 50,
        "steps": 7,
        "prompt_tokens": 1000,
        "cached_tokens": 400,
        "output_tokens": 500,
        "preemptions": 1,
        "finished": {},
    }
    return EngineStatistics(**(values | given))


@dataclass(eq=False)
class FakeEngine:
    statistics: EngineStatistics | None = None
    state: str = "ready"
    restarts: int = 0


def text_of(metrics, accept=""):
    pieces, _ = metrics.render(accept)
    return b"".join(pieces).decode()


def samples(metrics):
    """Values by name and labels, as Prometheus reads them."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text_of(metrics))
        for sample in family.samples
    }


def test_routers_find_what_they_read():
    engines = {"m": FakeEngine(statistics())}
    found = samples(Metrics(lambda: engines))
    assert found["vllm:num_requests_running", "m"] == 3
    assert found["vllm:num_requests_waiting", "m"] == 2
    assert found["vllm:kv_cache_usage_perc", "m"] == 0.25
    assert found["vllm:prefix_cache_queries_total", "m"] == 1000
    assert found["vllm:prefix_cache_hits_total", "m"] == 400
    assert "model_name" in text_of(Metrics(lambda: engines))


def test_engines_are_read_when_somebody_asks():
    engines = {"m": FakeEngine(statistics())}
    metrics = Metrics(lambda: engines, lambda: {"m": 5}, lambda: 12)
    engines["m"].statistics = statistics(running=9)
    found = samples(metrics)
    assert found["vllm:num_requests_running", "m"] == 9
    assert found["hasten_sequences_in_flight", "m"] == 5
    assert found["hasten_connections",] == 12
    assert found["hasten_models_loaded",] == 1
    blocks = [found["hasten_kv_blocks", *sorted(("m", state))] for state in ("used", "cached")]
    assert blocks == [25, 50]
    assert found["hasten_kv_blocks", "free", "m"] == 25


@pytest.mark.parametrize("state", ["starting", "restarting", "failed"])
def test_an_engine_that_is_not_ready_runs_nothing_and_all_wait(state):
    engines = {"m": FakeEngine(statistics(), state=state)}
    found = samples(Metrics(lambda: engines, lambda: {"m": 5}))
    assert found["vllm:num_requests_running", "m"] == 0
    assert found["vllm:num_requests_waiting", "m"] == 5
    assert found["vllm:kv_cache_usage_perc", "m"] == 0
    assert found["hasten_engine_ready", "m"] == 0


lives = st.lists(
    st.tuples(st.sampled_from(["run", "restart", "reload", "unload"]), st.integers(0, 50)),
    max_size=30,
)


@given(lives)
def test_counters_never_go_backwards(lives):
    """Whatever happens to the process behind them; scraped often enough, they lose nothing."""
    engine, engines, total, before = FakeEngine(statistics(steps=0)), {}, 0, 0
    engines["m"] = engine
    metrics = Metrics(lambda: engines)
    for what, steps in lives:
        if what == "unload":
            engines.pop("m", None)
        elif what == "reload" or "m" not in engines:
            engine = engines["m"] = FakeEngine(statistics(steps=steps))
            total += steps
        elif what == "restart":
            engine.restarts += 1
            engine.statistics = statistics(steps=steps)
            total += steps
        else:
            engine.statistics = statistics(steps=engine.statistics.steps + steps)
            total += steps
        now = samples(metrics).get(("hasten_engine_steps_total", "m"), 0)
        assert now == total
        assert now >= before
        before = now


def test_a_job_is_counted_by_its_definitions():
    metrics = Metrics()
    metrics.generated("m", USAGE, ["stop"], "miss")
    found = samples(metrics)
    assert found["hasten_ttft_seconds_sum", "m"] == 1.0
    assert found["hasten_tpot_seconds_sum", "m"] == pytest.approx((3.0 - 1.0) / 10)
    assert found["hasten_e2e_seconds_sum", "m"] == 3.0
    assert found["hasten_queue_seconds_sum", "m"] == 0.5
    assert found["hasten_model_seconds_sum", "m"] == 1.75
    assert found["hasten_prefill_seconds_sum", "m"] == 0.25
    assert found["hasten_decode_seconds_sum", "m"] == 1.5
    assert found["hasten_prompt_tokens_total", "m"] == 100
    assert found["hasten_cached_tokens_total", "m"] == 64
    assert found["hasten_output_tokens_total", "m"] == 11
    assert found["hasten_outputs_total", "m", "stop"] == 1
    assert found["hasten_response_cache_total", "m", "miss"] == 1
    assert ("hasten_truncations_total", "m") not in found


@pytest.mark.parametrize(
    ("usage", "reasons", "cache"),
    [
        (Usage(5, 0, 1, 0, TIMING), ["length"], "off"),
        (Usage(5, 0, 8, 0, TIMING), ["stop", "length"], "off"),
        (Usage(5, 0, 8, 0, TIMING), ["length"], "hit"),
    ],
)
def test_time_per_token_is_absent_where_it_is_undefined(usage, reasons, cache):
    metrics = Metrics()
    metrics.generated("m", usage, reasons, cache)
    found = samples(metrics)
    assert ("hasten_tpot_seconds_count", "m") not in found
    assert found["hasten_truncations_total", "m"] == 1


def test_requests_are_counted_by_what_became_of_them():
    metrics = Metrics()
    metrics.answered("openai", "m", 200)
    metrics.answered("openai", "m", 200)
    metrics.answered("ollama", "", 404)
    metrics.answered("openai", "m", 0, disconnected=True)
    metrics.refused("queue")
    metrics.failed("m", EngineLostError("gone"))
    metrics.embedded("e", 40, 0.5)
    found = samples(metrics)
    assert found["hasten_requests_total", "200", "m", "openai"] == 2
    assert found["hasten_requests_total", "", "404", "ollama"] == 1
    assert found["hasten_requests_total", "499", "m", "openai"] == 1
    assert found["hasten_disconnects_total", "m"] == 1
    assert found["hasten_rejections_total", "queue"] == 1
    assert found["hasten_failures_total", "EngineLostError", "m"] == 1
    assert found["hasten_prompt_tokens_total", "e"] == 40
    assert found["hasten_e2e_seconds_count", "e"] == 1


def test_labels_have_a_bound(monkeypatch):
    monkeypatch.setattr(module, "_MOST_MODELS", 4)
    metrics = Metrics()
    for number in range(100):
        metrics.generated(f"m{number}", USAGE, ["stop"])
        metrics.answered("openai", f"m{number}", 200)
        metrics.gap(f"m{number}", 0.1)
    found = samples(metrics)
    models = {key[1] for key in found if key[0] == "hasten_prompt_tokens_total"}
    assert models == {"m0", "m1", "m2", "m3", "other"}
    assert found["hasten_itl_seconds_count", "other"] == 96


def test_servers_do_not_share_their_figures():
    first, second = Metrics(), Metrics()
    first.refused("queue")
    assert ("hasten_rejections_total", "queue") not in samples(second)


def test_every_metric_says_what_it_is():
    engines = {"m": FakeEngine(statistics())}
    metrics = Metrics(lambda: engines)
    metrics.generated("m", USAGE, ["length"], "hit")
    for family in text_string_to_metric_families(text_of(metrics)):
        assert family.documentation
        assert family.name.startswith(("vllm:", "hasten_", "process_"))


def test_openmetrics_where_it_is_asked_for():
    metrics = Metrics(lambda: {"m": FakeEngine(statistics())})
    metrics.generated("m", USAGE, ["stop"])
    accept = "application/openmetrics-text; version=1.0.0, text/plain;q=0.5"
    _, content_type = metrics.render(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    text = text_of(metrics, accept)
    assert text.count("# EOF") == 1
    names = {family.name for family in openmetrics.text_string_to_metric_families(text)}
    assert {"hasten_ttft_seconds", "vllm:prefix_cache_hits"} <= names


@given(st.lists(st.floats(0, 20), min_size=1))
def test_a_distribution_is_a_histogram(values):
    distribution = Distribution("x_seconds", "text", (0.1, 1, 10))
    for value in values:
        distribution.add("m", value)
    (family,) = distribution.collect()
    found = {(s.name, s.labels.get("le")): s.value for s in family.samples}
    for text, bound in (("0.1", 0.1), ("1.0", 1), ("10.0", 10), ("+Inf", float("inf"))):
        assert found["x_seconds_bucket", text] == sum(value <= bound for value in values)
    assert found["x_seconds_count", None] == len(values)
    assert found["x_seconds_sum", None] == pytest.approx(sum(values))
