"""What a bench measures: a model in this process, or a server by its URL."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import click

from hasten.cli.engine import describe, open_engine
from hasten.cli.load import REQUESTS
from hasten.cli.options import EngineChoice, apply_options
from hasten.errors import CapacityError, UsageError

if TYPE_CHECKING:
    from hasten.cli.load import LoadChoice
    from hasten.measure.synthetic import Coder
    from hasten.measure.targets.target import Target
    from hasten.measure.targets.tensors import TensorSpec
    from hasten.measure.workload import Workload

__all__ = ["OpenTarget", "TargetChoice", "open_target", "target_choice"]

Command = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class TargetChoice:
    """What the user said about a target that is a server or an ONNX file."""

    served_model: str | None
    api: Literal["chat", "completions"] | None
    tokenizer: str | None
    shapes: tuple[str, ...]
    server_pid: int | None
    ignore_eos: bool


@dataclass(frozen=True, slots=True)
class OpenTarget:
    """A target, and what is known of it.

    Attributes:
        target: What is measured.
        in_process: It runs in this process.
        tokenizer: Of the model; None where it is not known.
        as_text: It takes texts, not tokens.
        context: Tokens of its longest sequence; None where it is not known.
        signature: What its tensors look like; None for a language model.
        shapes: Sizes of tensors that the model leaves open.
        pids: Its processes on this machine.
        over_http: It is reached over HTTP.
    """

    target: Target
    in_process: bool
    tokenizer: Coder | None = None
    as_text: bool = False
    context: int | None = None
    signature: tuple[TensorSpec, ...] | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None
    pids: tuple[int, ...] = ()
    over_http: bool = False

    def workload(self, load: LoadChoice) -> Workload:
        """What is asked of it.

        Raises:
            UsageError: Lengths or shapes that are none, or a file that cannot be used.
            CapacityError: Synthetic requests do not fit the context, so that all would fail.
        """
        if self.signature is not None:
            from hasten.measure.targets.tensors import random_workload

            return random_workload(
                self.signature,
                load.requests or REQUESTS,
                warmup=load.warmup,
                seed=load.seed,
                shapes=self.shapes,
            )
        workload = load.workload(self.tokenizer, as_text=self.as_text)
        if self.context is not None and workload.seed is not None:
            _check_fit(workload, self.context)
        return workload


@contextmanager
def open_target(
    spec: str,
    choice: TargetChoice,
    engine: EngineChoice,
    *,
    max_sequences: int | None,
    prefix_cache: bool,
) -> Iterator[OpenTarget]:
    """Opens what is to be measured while the block runs.

    Args:
        spec: A model, a URL or an ONNX file.
        choice: What the user said about a server.
        engine: How a model in this process runs.
        max_sequences: For an engine, where the user does not say; None leaves its default.
        prefix_cache: Likewise.
    """
    from hasten.measure.targets.choose import names_target

    if names_target(spec):
        yield _open_server(spec, choice)
        return
    from hasten.measure.targets.engine import EngineTarget

    defaults: dict[str, Any] = {} if prefix_cache else {"prefix_cache": False}
    if max_sequences is not None:
        defaults["max_sequences"] = max_sequences
    with open_engine(spec, engine.or_else(**defaults)) as opened:
        yield OpenTarget(
            EngineTarget(opened, ignore_eos=choice.ignore_eos, description=describe(opened)),
            in_process=True,
            tokenizer=opened.model.tokenizer,
            context=opened.context,
        )


def target_choice(command: Command) -> Command:
    """Add the options of targets; the command receives `choice: TargetChoice`."""

    @functools.wraps(command)
    def with_target(*args: object, **kwargs: Any) -> object:  # noqa: ANN401 - what click parsed
        given = {field.name: kwargs.pop(field.name) for field in fields(TargetChoice)}
        return command(*args, choice=TargetChoice(**given), **kwargs)

    return apply_options(with_target, _OPTIONS)


_OPTIONS = (
    click.option(
        "--served-model",
        metavar="NAME",
        help="The model of a server, as that calls it  [default: the only one it has]",
    ),
    click.option(
        "--api",
        type=click.Choice(["chat", "completions"]),
        help="Of a server that speaks OpenAI's protocol  [default: chat, for prompts as text]",
    ),
    click.option(
        "--tokenizer",
        metavar="MODEL",
        help="A model here whose tokenizer a server's model has, for prompts of exact lengths.",
    ),
    click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=SIZES",
        help="Of an input tensor whose sizes the model leaves open, as in x=1,3,224,224; where a "
        "server does not tell its inputs, name each, as in x:INT64=1,3 (FP32 if it is not said).",
    ),
    click.option(
        "--server-pid",
        type=click.IntRange(1),
        metavar="PID",
        help="A server's process on this machine, whose memory and processor time are its own, "
        "not those of others.",
    ),
    click.option(
        "--ignore-eos/--honour-eos",
        default=True,
        help="Generate the whole length, or end where the model does  [default: ignore-eos]",
    ),
)


def _open_server(spec: str, choice: TargetChoice) -> OpenTarget:
    from hasten.measure.targets import choose

    settings = choose.TargetSettings(
        model=choice.served_model,
        api=choice.api,
        ignore_eos=choice.ignore_eos,
    )
    target = choose.open_target(spec, settings)
    tokenizer = None
    if choice.tokenizer is not None:
        from hasten.models import load_model

        tokenizer = load_model(choice.tokenizer).tokenizer
    given = tuple(map(_input, choice.shapes))
    signature = _signature(target)
    if signature == ():
        signature = given
        if not given:
            raise UsageError(
                f"{spec} does not tell the inputs of its model",
                do="name each with its sizes, as in --shape x=1,13 or --shape x:INT64=1,3",
            )
    return OpenTarget(
        target,
        in_process="://" not in spec,
        tokenizer=tokenizer,
        as_text=True,
        signature=signature,
        shapes={one.name: one.shape for one in given},
        pids=() if choice.server_pid is None else (choice.server_pid,),
        over_http="grpc" not in spec.partition("://")[0],
    )


def _signature(target: Target) -> tuple[TensorSpec, ...] | None:
    """What a model's tensors look like; None where it takes prompts."""
    if not hasattr(target, "signature"):
        return None

    async def ask() -> tuple[TensorSpec, ...]:
        async with target:
            found: tuple[TensorSpec, ...] = await target.signature()
            return found

    return asyncio.run(ask())


def _input(text: str) -> TensorSpec:
    """An input as the user writes it: NAME=SIZES or NAME:DATATYPE=SIZES; names may hold colons."""
    from hasten.measure.targets.tensors import NUMPY, TensorSpec

    name, found, sizes = text.rpartition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        found = ""
        shape = ()
    if not found or not name or min(shape) < 0:
        raise UsageError(f"shape {text!r:.60}", allowed="a name and sizes, as in x=1,3,224,224")
    first, _, datatype = name.rpartition(":")
    if first and datatype in {*NUMPY, "BYTES"}:
        return TensorSpec(first, datatype, shape)
    return TensorSpec(name, "FP32", shape)


def _check_fit(workload: Workload, context: int) -> None:
    """Refuses lengths of which requests would fail or end early."""
    from hasten.measure.workload import Item

    for item in workload.items:
        if isinstance(item, Item) and isinstance(item.prompt, tuple):
            inputs, outputs = len(item.prompt), item.output_tokens
            if inputs + outputs > context:
                raise CapacityError(
                    f"{inputs} input and {outputs} output tokens do not fit the context of "
                    f"{context}",
                    do="lower --input-len or --output-len, or raise --max-context",
                )
