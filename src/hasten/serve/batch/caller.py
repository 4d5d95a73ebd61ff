"""Has a line answered by the endpoint that it names, whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

from hasten.errors import DeadlineError, EngineLostError, HastenError, OverloadError
from hasten.serve.batch.answer import make_id, render_answer, render_error
from hasten.serve.batch.request import LineError, LineRequest, parse
from hasten.serve.batch.source import Line
from hasten.serve.endpoint import Call, Route
from hasten.serve.jobs import Client
from hasten.serve.status import status_of

if TYPE_CHECKING:
    from hasten.serve.service import Service

__all__ = ["URLS", "LineCaller", "batch_routes"]

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
TRIES = 3
_WAITS = (0.05, 5.0)
"""The shortest and the longest wait of a line that was turned away, in seconds."""
_MAX_NAMES = 100

_log = logging.getLogger(__name__)


def batch_routes(routes: Iterable[Route]) -> dict[str, Route]:
    """Those of a protocol's routes that a batch may use, by path."""
    return {one.path: one for one in routes if one.method == "POST" and one.path in URLS}


class LineCaller:
    """Answers lines; several at once.

    Args:
        routes: The endpoints that lines may name, by url.
        service: What answers.
        client: Who asks.
        recover: Returns when the engine may serve again after a loss.
        model: Replaces the model of every line; None leaves it as the line says.
        same_model: Lines that name another model than `model` are refused.

    Attributes:
        other_models: With `model`, other names that lines gave, and how often.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        service: Service,
        client: Client,
        recover: Callable[[], Awaitable[None]],
        *,
        model: str | None = None,
        same_model: bool = False,
    ) -> None:
        self._routes = routes
        self._service = service
        self._client = client
        self._model = model
        self._same_model = same_model
        self._recover = recover
        self._suspects = asyncio.Semaphore(1)
        self.other_models: Counter[str] = Counter()

    async def answer(self, line: Line, run: str, *, repeated: bool) -> bytes:
        """The line of the output; every line has one.

        Args:
            line: Of the input.
            run: As in `Journal.run`.
            repeated: Whether an earlier line has the same custom_id.

        Raises:
            EngineLostError: If the engine does not come back, which is not the line's fault.
        """
        id_ = make_id(run, line.number)
        try:
            request = self._parse(line, repeated=repeated)
        except LineError as error:
            message = f"line {line.number}: {error.message}"
            return render_error(id_, error.custom_id, error.code, message)
        return await self._ask(request, id_)

    def _parse(self, line: Line, *, repeated: bool) -> LineRequest:
        if line.text is None:
            raise LineError("line_too_long", f"the line is too long ({line.size} bytes)")
        request = parse(line.text, self._routes, self._model)
        name = request.custom_id
        if repeated:
            raise LineError("duplicate_custom_id", f"an earlier line has custom_id {name!r}", name)
        if self._model is not None and request.model not in (None, self._model):
            if self._same_model:
                message = f"model is {request.model!r}; allowed: {self._model}"
                raise LineError("mismatched_model", message, name)
            if request.model in self.other_models or len(self.other_models) < _MAX_NAMES:
                self.other_models[str(request.model)] += 1
        return request

    async def _ask(self, request: LineRequest, id_: str) -> bytes:
        """Asks the endpoint, again where that may help."""
        route = self._routes[request.url]
        failures = calls = 0
        suspect = False
        while True:
            calls += 1
            call_id = f"req_{id_.removeprefix('batch_req_')}_{calls}"
            try:
                # Lines that were under way when the engine was lost go on one at a time: whichever
                # of them it was, the others are not lost with it once more.
                async with self._suspects if suspect else nullcontext():
                    status, body = await self._call(route, request, call_id)
                return render_answer(id_, request.custom_id, status, call_id, body)
            except OverloadError as error:
                await asyncio.sleep(min(max(error.retry_after, _WAITS[0]), _WAITS[1]))
                continue
            except (EngineLostError, DeadlineError) as error:
                failures += 1
                if isinstance(error, EngineLostError):
                    suspect = True
                    await self._recover()
                if failures < TRIES:
                    continue
                failure: Exception = error
            except HastenError as error:
                failure = error
            except Exception as error:
                _log.exception("request %s failed", call_id)
                failure = error
            status = status_of(failure)
            body = route.dialect.error(status, failure, call_id)
            return render_answer(id_, request.custom_id, status, call_id, body)

    async def _call(self, route: Route, request: LineRequest, id_: str) -> tuple[int, bytes]:
        reply = await route.endpoint(
            Call(
                service=self._service,
                client=self._client,
                id=id_,
                body=request.body,
                received=time.monotonic(),
                headers={"content-type": "application/json"},
            )
        )
        if not isinstance(reply.body, bytes):
            raise TypeError(f"{request.url} streams although it was not asked to")
        return reply.status, reply.body
