"""The interactive chat of `hasten run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hasten.cli.console import remark
from hasten.cli.engine import generate, prompt_ids, show, why_short
from hasten.errors import CapacityError, HastenError
from hasten.types import SamplingParams

if TYPE_CHECKING:
    from hasten.generation import Engine

__all__ = ["chat"]

HELP = """/clear  forget the conversation
/help   show this
/exit   leave; Ctrl-D does so too
Ctrl-C  stop the answer"""


def chat(
    engine: Engine,
    sampling: SamplingParams,
    *,
    system: str | None,
    raw: bool,
    stats: bool,
    adapter: str | None = None,
) -> None:
    """Answer what the user types until they leave; every answer sees the whole conversation.

    A message that no longer fits the context is refused with the figures, and the conversation
    stays as it was before it. Without a chat template each message stands alone.
    """
    # Gives input() line editing and a history of what was typed.
    import readline  # noqa: F401

    opening = [] if system is None else [{"role": "system", "content": system}]
    history = list(opening)
    has_memory = not raw and engine.model.chat_template is not None
    remark(f"{engine.model.name}: /help lists the commands, Ctrl-D leaves")
    if not has_memory:
        remark("no chat template in use: the model continues each text and remembers none")
    while (text := _ask()) is not None:
        if text in ("/exit", "/quit"):
            return
        if text == "/help":
            remark(HELP)
        elif text == "/clear":
            history = list(opening)
            remark("the conversation is forgotten")
        elif text.startswith("/"):
            remark(f"unknown command {text.split()[0]!r}; /help lists the commands")
        elif text.strip():
            messages = [*history, _message("user", text)]
            turn = _answer(engine, sampling, messages, raw, stats, adapter)
            if has_memory and turn is not None:
                history += [_message("user", text), _message("assistant", turn)]


def _ask() -> str | None:
    """Read one line; None after Ctrl-D. Ctrl-C drops the line that is being typed."""
    while True:
        try:
            return input(">>> ")
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo()
            remark("Ctrl-D or /exit leaves")


def _answer(
    engine: Engine,
    sampling: SamplingParams,
    messages: list[dict[str, str]],
    raw: bool,
    stats: bool,
    adapter: str | None,
) -> str | None:
    """Show the answer to a conversation and return it; None if there is none to remember."""
    try:
        ids = prompt_ids(engine.model, messages, raw=raw)
        answer = generate(engine, ids, sampling, show, adapter)
    except CapacityError as error:
        remark(f"error: {error}; /clear forgets the conversation")
        return None
    except HastenError as error:
        remark(f"error: {error}")
        return None
    click.echo()
    if answer.finish_reason == "cancelled":
        remark("[stopped]")
    elif (why := why_short(answer, sampling)) is not None:
        remark(why)
    if stats:
        remark(answer.describe())
    return answer.text or None


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
