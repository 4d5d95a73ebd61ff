"""`hasten serve`: models behind the protocols that clients already speak."""

from __future__ import annotations

import asyncio
import functools
import gc
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasten.cli.console import remark
from hasten.cli.interrupts import noted_interrupts
from hasten.cli.options import ByteSize, EngineChoice, FiniteFloat, apply_options, engine_choice
from hasten.cli.specs import read_spec, split_named

if TYPE_CHECKING:
    from hasten.serve.server import Server
    from hasten.serve.service import Service
    from hasten.serve.settings import ServerSettings
    from hasten.serve.wire import EngineSpec

__all__ = ["command"]


class AnswerStore(click.ParamType[int | str]):
    """Where answers are kept: a number of bytes, or the URL of a Redis."""

    name = "store"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """The number or the URL."""
        if isinstance(value, str) and "://" in value:
            return value
        return ByteSize().convert(value, param, ctx)


class SectionOption(click.Option):
    """An option that help shows under a heading of its own.

    Args:
        section: The heading.
    """

    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        self.section = section


class SectionedCommand(click.Command):
    """A command whose help shows options by section; those without one come last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                section = getattr(parameter, "section", "How models run")
                sections.setdefault(section, []).append(record)
        for section, records in sections.items():
            with formatter.section(section):
                formatter.write_dl(records)


def _in_section(section: str) -> Any:  # noqa: ANN401
    return functools.partial(click.option, cls=SectionOption, section=section)


def _file(*, directory: bool = False) -> click.Path:
    return click.Path(path_type=Path, dir_okay=directory, file_okay=not directory)


_access = _in_section("Who may ask")
_ACCESS = (
    _access("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    _access(
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        help="TCP port; 0 takes a free one.",
    ),
    _access(
        "--api-key",
        "api_keys",
        metavar="KEY",
        multiple=True,
        envvar="HASTEN_API_KEY",
        help="A key that clients must send; may be repeated. Others on this machine can read it "
        "here, so better put it into HASTEN_API_KEY.",
    ),
    _access(
        "--keys",
        "key_file",
        metavar="FILE",
        type=_file(),
        help="Keys and what each may use: a JSON list of objects with name, key or sha256, and "
        "perhaps tenant, priority, concurrency, requests_per_minute, tokens_per_minute, models, "
        "admin.",
    ),
    _access("--no-auth", is_flag=True, help="Let everybody ask who reaches --host."),
    _access(
        "--allow-host",
        "hosts",
        metavar="NAME",
        multiple=True,
        help="A name that clients call this server by, besides its address; * is any.",
    ),
    _access(
        "--allow-origin",
        "origins",
        metavar="ORIGIN",
        multiple=True,
        help="Web pages that may ask, as in https://example.org; * is any.",
    ),
    _access(
        "--tls-certificate",
        "certificate",
        metavar="FILE",
        type=_file(),
        help="PEM file with the certificate chain.",
    ),
    _access(
        "--tls-key", "private_key", metavar="FILE", type=_file(), help="PEM file with its key."
    ),
)

_limit = _in_section("How much at once")
_LIMITS = (
    _limit(
        "--queue",
        type=click.IntRange(0, 1_000_000),
        default=64,
        show_default=True,
        help="Sequences that may wait for a model beyond those that run; more are refused.",
    ),
    _limit(
        "--timeout",
        "request_seconds",
        type=FiniteFloat(0.001, 86_400),
        default=600.0,
        show_default=True,
        help="Most seconds of a request.",
    ),
    _limit(
        "--max-connections",
        "connections",
        type=click.IntRange(1, 1_000_000),
        default=1000,
        show_default=True,
        help="Connections at once; more are refused.",
    ),
    _limit(
        "--max-body",
        "body",
        type=ByteSize(),
        default=16 << 20,
        help="Longest body of a request, unpacked  [default: 16MiB]",
    ),
    _limit(
        "--max-upload",
        "upload",
        type=ByteSize(),
        default=512 << 20,
        help="Longest uploaded file  [default: 512MiB]",
    ),
    _limit(
        "--memory",
        type=ByteSize(),
        help="Most memory of all loaded models  [default: what this machine allows]",
    ),
)

_cache = _in_section("Answers that were given before")
_CACHE = (
    _cache(
        "--response-cache",
        metavar="SIZE|URL",
        type=AnswerStore(),
        envvar="HASTEN_RESPONSE_CACHE",
        help="Keep answers and give them again to the same request of the same tenant: in so much "
        "memory, or in a Redis (redis://HOST:PORT; one with a password better in "
        "HASTEN_RESPONSE_CACHE)  [default: off]",
    ),
    _cache(
        "--cache-seconds",
        type=FiniteFloat(0.001, 1e9),
        default=3600.0,
        show_default=True,
        help="How long an answer is kept.",
    ),
    _cache(
        "--cache-sampled",
        is_flag=True,
        help="Keep answers to requests with a temperature and no seed, too.",
    ),
)

_running = _in_section("How the server runs")
_RUNNING = (
    _running(
        "--lora",
        "adapters",
        metavar="NAME=PATH",
        multiple=True,
        help="A LoRA adapter of the first MODEL, served as a model of its own name.",
    ),
    _running(
        "--keep-alive",
        type=FiniteFloat(0, 1e9),
        help="Seconds for which a model without requests stays loaded  [default: for ever]",
    ),
    _running(
        "--data",
        metavar="DIRECTORY",
        type=_file(directory=True),
        help="For pulled and uploaded files  [default: the user's own]",
    ),
    _running(
        "--drain",
        "drain_seconds",
        type=FiniteFloat(0, 86_400),
        default=30.0,
        show_default=True,
        help="Seconds that requests in flight may go on after SIGTERM or Ctrl-C; a second one "
        "ends them at once.",
    ),
    _running(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="What is logged to stderr; JSON unless that is a terminal.",
    ),
    _running(
        "--traces", metavar="URL", help="An OpenTelemetry collector (OTLP over HTTP) for traces."
    ),
    _running(
        "--record",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Keep the traffic as a workload that `hasten bench` can replay: times, lengths and "
        "shared beginnings, with other tokens in the place of the prompts'.",
    ),
    _running(
        "--record-content",
        is_flag=True,
        help="Keep the prompts' own tokens in --record, which can be read again.",
    ),
)


def _serve_options(command: Any) -> Any:  # noqa: ANN401
    return apply_options(command, (*_ACCESS, *_LIMITS, *_CACHE, *_RUNNING))


@click.command(
    cls=SectionedCommand,
    epilog="Examples:\n\n"
    "\b\n"
    "  hasten serve smollm2\n"
    "  hasten serve chat=./artefact embed=minilm --port 8080\n"
    "  HASTEN_API_KEY=secret hasten serve model.gguf --host 0.0.0.0 --allow-host my.example\n"
    "  hasten serve smollm2 --max-sequences 32 --queue 128 --lora poet=./adapter\n"
    "  hasten serve smollm2 --response-cache 256MiB --cache-seconds 600",
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@_serve_options
@engine_choice
def command(
    models: tuple[str, ...],
    engine: EngineChoice,
    adapters: tuple[str, ...],
    api_keys: tuple[str, ...],
    key_file: Path | None,
    no_auth: bool,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    **given: Any,  # noqa: ANN401 - fields of ServerSettings and Limits, checked by click
) -> None:
    """Serve each MODEL to clients of OpenAI, Ollama and Anthropic.

    A MODEL may be given a name of your choice: NAME=MODEL. Language models and models that embed
    texts can be served side by side.
    """
    from hasten.serve.auth import client_keys, read_keys, refuse_open
    from hasten.serve.settings import Limits, ServerSettings
    from hasten.serve.telemetry.logs import logging_to

    limited = ("queue", "request_seconds", "connections", "body", "upload")
    limits = {name: given.pop(name) for name in limited}
    keys = client_keys(api_keys) | (read_keys(key_file) if key_file is not None else {})
    settings = ServerSettings(
        keys=keys,
        hosts=frozenset(hosts),
        origins=frozenset(origins),
        limits=replace(Limits(), **limits),
        **given,
    )
    if settings.record_content and settings.record is None:
        raise click.UsageError("--record-content needs --record FILE.")
    refuse_open(settings, accepted=no_auth)
    try:
        specs = _specs(models, adapters, engine)
        with logging_to(settings.log_level):
            _run(settings, specs)
    except KeyboardInterrupt:  # before the server acts on signals itself
        remark("ended before it served")


def _specs(
    models: Sequence[str], adapters: Sequence[str], choice: EngineChoice
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
    from hasten.serve.server import Server

    async def run() -> None:
        service = build_service(settings, specs, connections=lambda: server.connections)
        server = Server(App(service, all_routes()))
        server.stop_on_signals()
        if interrupted():
            server.stop()
        await server.start()
        try:
            if await _started(service, server):
                gc.freeze()  # what is there stays: looking through it would hold up all streams
                remark(_greeting(server.url, next(iter(specs))))
        except BaseException:
            server.stop()
            server.stop()  # at once: nothing can be answered
            raise
        finally:
            await server.serve()

    _raise_file_limit()
    with noted_interrupts() as interrupted:
        asyncio.run(run())


async def _started(service: Service, server: Server) -> bool:
    """Load the models; False if the server was stopped before that was done."""
    starting = asyncio.create_task(service.start())
    stopping = asyncio.create_task(server.stopping.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting})
        return False
    await starting
    return True


def _raise_file_limit() -> None:
    """Each connection is a file, and the usual limit of 1024 is meant for other programs."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _greeting(url: str, model: str) -> str:
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"serving at {url} (OpenAI: {url}/v1; Ollama and Anthropic: {url}); Ctrl-C ends\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    )
