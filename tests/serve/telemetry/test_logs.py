import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import EngineLostError, UsageError
from hasten.serve.jobs import Timing, Usage
from hasten.serve.telemetry.logs import ConsoleFormatter, JsonFormatter, log_access, logging_to
from hasten.serve.telemetry.observed import CURRENT, Observed

LOGGER = logging.getLogger("hasten.serve.somewhere")
USAGE = Usage(9, 4, 3, 0, Timing(1.0, 0.0, 0.1, 0.2, 0.5, 0.3))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def record(message, **extra):
    made = logging.makeLogRecord({"name": "hasten.serve", "levelname": "INFO", "msg": message})
    vars(made).update(extra)
    return made


def lines(level="info", **given):
    """What one request logs."""
    observed = Observed("req-1", "GET", "/v1/models", 0.0, "key", "/v1/models", "openai", 200)
    for name, value in given.items():
        setattr(observed, name, value)
    stream = io.StringIO()
    token = CURRENT.set(observed)
    try:
        with logging_to(level, stream):
            log_access(observed, 0.25, "")
    finally:
        CURRENT.reset(token)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_line():
    (line,) = lines(model="m", usages=[USAGE], reasons=["stop"], cache="miss")
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "hasten.serve.access",
        "message": "GET /v1/models 200",
        "request_id": "req-1",
        "client": "key",
        "method": "GET",
        "path": "/v1/models",
        "status": 200,
        "seconds": 0.25,
        "model": "m",
        "prompt_tokens": 9,
        "cached_tokens": 4,
        "output_tokens": 3,
        "ttft": 0.3,
        "finish": ["stop"],
        "cache": "miss",
    }


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({"route": "/health/live"}, 0),
        ({"route": "/metrics"}, 0),
        ({"route": "/health/ready", "status": 503}, 1),
        ({"route": "/health/live", "level": "debug"}, 1),
        ({"level": "warning"}, 0),
    ],
)
def test_routine_requests_are_worth_a_line_where_they_fail(given, count):
    assert len(lines(**given)) == count


def test_what_a_client_got_wrong_is_not_quoted():
    (theirs,) = lines(status=400, error=UsageError("'my secret' is no number"))
    assert theirs["error"] == "UsageError"
    assert "my secret" not in str(theirs)
    (ours,) = lines(status=503, error=EngineLostError("the engine ended"), disconnected=True)
    assert (ours["error"], ours["reason"]) == ("EngineLostError", "the engine ended")
    assert ours["disconnected"] is True


def test_long_paths_are_cut():
    (line,) = lines(path="/" + "x" * 10_000)
    assert len(str(line)) < 1500


@given(st.text(), st.text())
def test_nothing_forges_a_line(message, path):
    text = JsonFormatter().format(record(message, path=path))
    assert len(text.splitlines()) == 1
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["message"] == message
    assert json.loads(text)["path"] == path
    console = ConsoleFormatter().format(record(message, path=path))
    assert len(console.splitlines()) == 1
    assert console.isprintable()


def failure():
    try:
        raise ValueError("one\nlevel=info \x1b[31m forged")
    except ValueError as error:
        return (type(error), error, error.__traceback__)


def test_tracebacks_stay_inside_their_record():
    line = JsonFormatter().format(record("met a bug", exc_info=failure()))
    assert "ValueError" in json.loads(line)["traceback"]
    assert len(line.splitlines()) == 1
    first, *rest = ConsoleFormatter().format(record("met a bug", exc_info=failure())).splitlines()
    assert "met a bug" in first
    assert all(line.startswith("    ") for line in rest)
    assert all(line.isprintable() for line in rest)


def test_fields_come_from_extra():
    stream = io.StringIO()
    with logging_to("info", stream):
        LOGGER.info("loaded %s", "m", extra={"model": "m", "seconds": 2.5})
    line = json.loads(stream.getvalue())
    assert line["message"] == "loaded m"
    assert (line["model"], line["seconds"]) == ("m", 2.5)
    assert "request_id" not in line
    assert not {"args", "lineno", "msg"} & set(line)


def test_a_terminal_gets_lines_to_read():
    stream = Terminal()
    with logging_to("info", stream):
        LOGGER.warning("loaded", extra={"model": "m"})
    assert stream.getvalue().endswith(" warning loaded model=m\n")


def test_uvicorn_and_asyncio_log_with_us_and_get_back_what_they_had():
    names = ("uvicorn", "uvicorn.error", "asyncio", "hasten.serve")
    before = [
        (logger.handlers, logger.propagate, logger.level)
        for logger in map(logging.getLogger, names)
    ]
    stream = io.StringIO()
    with logging_to("info", stream):
        logging.getLogger("uvicorn.error").info("Started", extra={"color_message": "\x1b"})
        logging.getLogger("uvicorn.access").info("twice")
        logging.getLogger("asyncio").error("never retrieved")
        LOGGER.debug("too much")
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in found] == ["Started", "never retrieved"]
    assert "color_message" not in found[0]
    after = [
        (logger.handlers, logger.propagate, logger.level)
        for logger in map(logging.getLogger, names)
    ]
    assert after == before
