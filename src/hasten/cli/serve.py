"""`hasten serve`: models behind the protocols that clients already speak."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hasten.cli.console import remark
from hasten.cli.options import ByteSize, EngineChoice, FiniteFloat, apply_options, engine_choice
from hasten.cli.specs import read_spec, split_named

if TYPE_CHECKING:
    from hasten.serve.settings import ServerSettings
    from hasten.serve.wire import EngineSpec

__all__ = ["command"]

_ACCESS = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        help="TCP port; 0 takes a free one.",
    ),
    click.option(
        "--api-key",
        "api_keys",
        multiple=True,
        envvar="HASTEN_API_KEY",
        help="A key that clients must send; may be repeated. Better given as HASTEN_API_KEY.",
    ),
    click.option(
        "--keys",
        "key_file",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        help="JSON file with keys and what each may use; see docs/serve.md.",
    ),
    click.option("--no-auth", is_flag=True, help="Listen beyond loopback without keys."),
    click.option(
        "--allow-host", "hosts", multiple=True, help="A further name that clients may ask by."
    ),
    click.option(
        "--allow-origin", "origins", multiple=True, help="Origin of web pages that may ask."
    ),
    click.option(
        "--tls-certificate",
        "certificate",
        type=click.Path(path_type=Path, dir_okay=False),
        help="PEM file with the certificate chain.",
    ),
    click.option(
        "--tls-key",
        "private_key",
        type=click.Path(path_type=Path, dir_okay=False),
        help="PEM file with its private key.",
    ),
)
_RUNNING = (
    click.option(
        "--queue",
        type=click.IntRange(0, 1_000_000),
        default=64,
        show_default=True,
        help="Sequences that may wait for a model beyond those that run; more are refused.",
    ),
    click.option(
        "--timeout",
        type=FiniteFloat(0.001, 86_400),
        default=600.0,
        show_default=True,
        help="Most seconds of a request.",
    ),
    click.option(
        "--keep-alive",
        type=FiniteFloat(0, 1e9),
        help="Seconds for which a model without requests stays loaded  [default: for ever]",
    ),
    click.option(
        "--memory",
        type=ByteSize(),
        help="Most memory of all loaded models  [default: what this machine allows]",
    ),
    click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        help="Directory for pulled and uploaded files  [default: the user's own]",
    ),
    click.option(
        "--drain",
        "drain_seconds",
        type=FiniteFloat(0, 86_400),
        default=30.0,
        show_default=True,
        help="Seconds that requests in flight may go on after SIGTERM or Ctrl-C.",
    ),
    click.option(
        "--lora",
        "adapters",
        metavar="NAME=PATH",
        multiple=True,
        help="A LoRA adapter of the first MODEL, served as a model of its own name.",
    ),
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="What is logged to stderr; JSON unless that is a terminal.",
    ),
    click.option(
        "--traces", metavar="URL", help="An OpenTelemetry collector (OTLP over HTTP) for traces."
    ),
)


@click.command(
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten serve smollm2\n"
    "  hasten serve chat=./artefact embed=minilm --port 8080\n"
    "  HASTEN_API_KEY=secret hasten serve model.gguf --host 0.0.0.0\n"
    "  hasten serve smollm2 --max-sequences 32 --queue 128 --lora poet=./adapter"
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@(lambda command: apply_options(command, _ACCESS))
@(lambda command: apply_options(command, _RUNNING))
@engine_choice
def command(
    models: tuple[str, ...],
    engine: EngineChoice,
    adapters: tuple[str, ...],
    api_keys: tuple[str, ...],
    key_file: Path | None,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    no_auth: bool,
    queue: int,
    timeout: float,
    **given: object,
) -> None:
    """Serve each MODEL to clients of OpenAI, Ollama and Anthropic.

    A MODEL may be given a name of your choice: NAME=MODEL. Language models and models that embed
    texts can be served side by side.
    """
    from hasten.serve.auth import client_keys, read_keys, refuse_open
    from hasten.serve.settings import Limits, ServerSettings
    from hasten.serve.telemetry.logs import logging_to

    keys = client_keys(api_keys) | (read_keys(key_file) if key_file is not None else {})
    settings = ServerSettings(
        keys=keys,
        hosts=frozenset(hosts),
        origins=frozenset(origins),
        limits=replace(Limits(), queue=queue, request_seconds=timeout),
        **given,  # type: ignore[arg-type]  # click has checked them
    )
    refuse_open(settings, accepted=no_auth)
    specs = _specs(models, adapters, engine)
    with logging_to(settings.log_level):
        _run(settings, specs)


def _specs(
    models: tuple[str, ...], adapters: tuple[str, ...], choice: EngineChoice
) -> dict[str, EngineSpec]:
    specs: dict[str, EngineSpec] = {}
    for text in models:
        name, spec = read_spec(text, choice)
        if name in specs:
            raise click.UsageError(f"Two models are called {name!r}; give one as NAME=MODEL.")
        specs[name] = spec
    if adapters:
        first = next(iter(specs))
        found = dict(split_named(text, "--lora") for text in adapters)
        specs[first] = replace(specs[first], adapters=found)
    return specs


def _run(settings: ServerSettings, specs: dict[str, EngineSpec]) -> None:
    from hasten.serve.app import App
    from hasten.serve.assemble import all_routes
    from hasten.serve.build import build_service
    from hasten.serve.server import Server, new_event_loop

    async def run() -> None:
        service = build_service(settings, specs, connections=lambda: server.connections)
        server = Server(App(service, all_routes(), settings, service.observer))
        try:
            await service.registry.start()
            await service.batches.start(service)
            await server.start()
            server.stop_on_signals()
            remark(_greeting(server.url, next(iter(specs))))
            await server.serve()
        finally:
            await service.close()

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(run())


def _greeting(url: str, model: str) -> str:
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"serving at {url} (OpenAI: {url}/v1; Ollama and Anthropic: {url}); Ctrl-C ends\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    )
