"""Builds a service from settings: registry, admission, observation and health, joined once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hasten.serve.admission import Admission
from hasten.serve.batch.queue import BatchQueue
from hasten.serve.cache import AnswerCache
from hasten.serve.health import Health
from hasten.serve.protocols import openai
from hasten.serve.recording import Recorder
from hasten.serve.registry import ModelRegistry
from hasten.serve.service import Service
from hasten.serve.settings import ServerSettings
from hasten.serve.telemetry.metrics import Metrics
from hasten.serve.telemetry.observer import Observer
from hasten.serve.telemetry.tracing import open_tracer
from hasten.serve.wire import EngineSpec
from hasten.types import EngineOptions

__all__ = ["build_service"]


def build_service(
    settings: ServerSettings,
    specs: Mapping[str, EngineSpec],
    *,
    connections: Callable[[], int] = lambda: 0,
) -> Service:
    """A service that is still to be started; call it in a running event loop.

    Args:
        settings: How the server runs.
        specs: What `Service.start` loads, by the name that clients use.
        connections: How many are open, for the metrics.

    Raises:
        UsageError: Two models of one name, a name that is none, a Redis that cannot be one, or a
            file to record to that exists or cannot be made.
        MissingDependencyError: Settings ask for what is not installed.
    """
    registry = ModelRegistry(settings)
    for name, spec in specs.items():
        registry.add(name, spec)

    def capacity(name: str) -> int:
        engine = registry.engines().get(name)
        options = None if engine is None else engine.spec.options
        return (options or EngineOptions()).max_sequences

    answers = AnswerCache(settings)
    metrics = Metrics(
        lambda: {name: one for name, one in registry.engines().items() if one is not None},
        in_flight=lambda: admission.in_flight(),  # noqa: PLW0108 - it is made below
        connections=connections,
        answers=answers.statistics,
    )
    admission = Admission(settings.limits, capacity, refused=metrics.refused)
    observer = Observer(metrics, open_tracer(settings.traces))
    recorder = None
    if settings.record is not None:
        recorder = Recorder(settings.record, content=settings.record_content)
    service = Service(settings, registry, admission, answers, observer, recorder)
    service.batches = BatchQueue(settings.data_directory / "batches", settings, openai.ROUTES)
    service.health = Health(registry.engines, lambda: admission.draining)
    return service
