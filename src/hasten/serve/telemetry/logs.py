"""Logs: one JSON object a line, or a readable line where a terminal reads them.

Loggers under "hasten.serve" are ours. What is in `extra` becomes fields of the line::

    LOGGER.info("model loaded", extra={"model": name, "seconds": seconds})

Nothing that a client sends can begin a line of its own: characters that do not print are escaped.
Bodies, query strings and keys are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from hasten.serve.status import status_of
from hasten.serve.telemetry.observed import CURRENT, Observed

__all__ = ["ConsoleFormatter", "JsonFormatter", "log_access", "logging_to"]

_ROUTED = ("hasten.serve", "uvicorn", "asyncio", "python_multipart")
"""Loggers whose records, and those below them, get our format."""
_ACCESS = logging.getLogger("hasten.serve.access")
_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"}
"""Attributes of any record; uvicorn adds the last one for terminals."""
_encode = json.JSONEncoder(default=str).encode
_LONGEST = 256
"""Characters of a path or an error that are logged."""


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a record carries besides its message: the request it belongs to, and its own fields."""
    observed = CURRENT.get()
    fields: dict[str, Any] = {} if observed is None else {"request_id": observed.id}
    fields |= {name: value for name, value in vars(record).items() if name not in _OWN}
    return fields


class JsonFormatter(logging.Formatter):
    """One JSON object, ASCII only, without line breaks."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": when.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | _fields(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _encode(line)


class ConsoleFormatter(logging.Formatter):
    """A line to be read: time, level, message, fields; a traceback is indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        when = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = [f"{name}={value}" for name, value in _fields(record).items()]
        text = " ".join([when, f"{record.levelname.lower():<7}", record.getMessage(), *fields])
        lines = [text]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        return "\n    ".join(map(_printable, lines))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextmanager
def logging_to(level: str, stream: TextIO | None = None) -> Iterator[None]:
    """Sends our logs, and those of libraries that serve, to a stream until the block ends.

    uvicorn must be told to leave logging alone (`log_config=None`); its access log is not wanted,
    since ours says more.

    Args:
        level: "debug", "info", "warning" or "error".
        stream: Where to; standard error by default. JSON unless it is a terminal.
    """
    stream = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ConsoleFormatter() if stream.isatty() else JsonFormatter())
    loggers = [logging.getLogger(name) for name in _ROUTED]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    access = logging.getLogger("uvicorn.access")
    access_disabled, access.disabled = access.disabled, True
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    try:
        yield
    finally:
        access.disabled = access_disabled
        for logger, handlers, propagate, old in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(old)


def log_access(observed: Observed, seconds: float, trace_id: str) -> None:
    """The one line of a request; of routine ones only where they fail or debugging is on."""
    failed = observed.status >= 500 or observed.status == 0
    level = logging.DEBUG if observed.routine and not failed else logging.INFO
    if not _ACCESS.isEnabledFor(level):
        return
    path = observed.path[:_LONGEST]
    fields: dict[str, Any] = {
        "client": observed.client,
        "method": observed.method,
        "path": path,
        "status": observed.status,
        "seconds": round(seconds, 6),
    }
    if trace_id:
        fields["trace_id"] = trace_id
    fields |= _answer(observed)
    if observed.disconnected:
        fields["disconnected"] = True
    if observed.error is not None:
        fields |= _failure(observed.error)
    _ACCESS.log(level, "%s %s %s", observed.method, path, observed.status, extra=fields)


def _answer(observed: Observed) -> dict[str, Any]:
    if not observed.model:
        return {}
    fields: dict[str, Any] = {"model": observed.model}
    if observed.usages:
        ttfts = [usage.timing.ttft for usage in observed.usages if usage.timing.ttft is not None]
        fields |= {
            "prompt_tokens": observed.prompt_tokens,
            "cached_tokens": observed.cached_tokens,
            "output_tokens": observed.output_tokens,
        }
        if ttfts:
            fields["ttft"] = round(min(ttfts), 6)
    if observed.reasons:
        fields["finish"] = sorted(set(observed.reasons))
    if observed.cache != "off":
        fields["cache"] = observed.cache
    return fields


def _failure(error: BaseException) -> dict[str, str]:
    """A client's mistakes may quote what it sent, so that only ours are told in full."""
    fields = {"error": type(error).__name__}
    if isinstance(error, Exception) and status_of(error) >= 500:
        fields["reason"] = str(error)[:_LONGEST]
    return fields
