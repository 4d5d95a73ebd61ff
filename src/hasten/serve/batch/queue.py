"""The batches of a server: one after another, behind everything else, and again after a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from hasten.errors import EngineLostError, HastenError, OverloadError, RateLimitError, UsageError
from hasten.serve.batch.caller import LineCaller, batch_routes
from hasten.serve.batch.journal import Journal
from hasten.serve.batch.records import FINAL, BatchRecord, BatchStatus, BatchStore, Problem
from hasten.serve.batch.results import add_expired, split_answers
from hasten.serve.batch.run import BatchRun
from hasten.serve.batch.source import Source
from hasten.serve.durable import lock_directory
from hasten.serve.endpoint import Route
from hasten.serve.files import FileStore, StoredFile
from hasten.serve.files import new_id as new_file_id
from hasten.serve.jobs import Client

if TYPE_CHECKING:
    from hasten.serve.service import Service
    from hasten.serve.settings import ServerSettings

__all__ = ["BatchQueue"]

P = ParamSpec("P")
T = TypeVar("T")

PRIORITY = 1000
"""Added to a client's own: batches run behind every request that somebody waits for."""
WIDTH = 64
"""Lines under way; how many of them run is for admission to say."""
DISK_SECONDS = 30.0
"""After which a batch that met a full disk is taken up again."""
LOSS_SECONDS = 5.0
"""Between two tries of a line whose engine cannot be started."""
_log = logging.getLogger(__name__)


class _ClosingError(Exception):
    """The server shuts down; the batch goes on when it is back."""


class BatchQueue:
    """Files and batches of a server, in its data directory.

    Args:
        directory: For the server alone; another server that finds it in use does without.
        settings: Limits and keys.
        routes: Those that lines of batches may name are chosen from them.
    """

    def __init__(self, directory: Path, settings: ServerSettings, routes: Iterable[Route]) -> None:
        self._directory = directory
        self._settings = settings
        self._routes = batch_routes(routes)
        self._files: FileStore | None = None
        self._batches: BatchStore | None = None
        self._lock: int | None = None
        self._wake = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._current: tuple[BatchRecord, asyncio.Task[None] | None] | None = None
        self._closing = False

    @property
    def files(self) -> FileStore:
        """The files.

        Raises:
            OverloadError: If models still load, or the directory cannot be had.
        """
        if self._files is None:
            raise self._unavailable()
        return self._files

    @property
    def batches(self) -> BatchStore:
        """The batches.

        Raises:
            OverloadError: If models still load, or the directory cannot be had.
        """
        if self._batches is None:
            raise self._unavailable()
        return self._batches

    async def start(self, service: Service) -> None:
        """Takes up what the directory holds.

        Args:
            service: What answers the lines.
        """
        try:
            await _in_thread(self._open)
        except OSError as error:
            _log.warning("no files and batches: %s: %s", self._directory, error.strerror)
            return
        self._worker = asyncio.create_task(self._work(service))

    async def close(self) -> None:
        """Stops; what is under way goes on at the next start. Before the engines end."""
        self._closing = True
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker
            self._worker = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = self._files = self._batches = None

    async def add(self, record: BatchRecord, file: StoredFile) -> None:
        """Queues a new batch.

        Args:
            record: Of it.
            file: With its lines.

        Raises:
            UsageError: If no line may name its endpoint.
            RateLimitError: If as many of the tenant's batches wait as may wait.
            OverloadError: If it cannot be stored.
        """
        if record.endpoint not in self._routes:
            allowed = ", ".join(self._routes)
            raise UsageError(f"endpoint is {record.endpoint[:80]!r}", allowed=allowed)
        most = self._settings.limits.batches
        kept = self.batches.of(record.tenant)
        for old in [one for one in kept if one.status in FINAL][: max(0, len(kept) + 1 - most)]:
            await _in_thread(self.batches.forget, old)
        if len(self.batches.of(record.tenant)) >= most:
            raise RateLimitError(
                f"{most} batches are not finished", retry_after=60.0, do="wait, or cancel some"
            )
        await _in_thread(self.batches.add, record, self.files.path(file))
        self._wake.set()

    async def cancel(self, record: BatchRecord) -> None:
        """Ends a batch; what was answered is kept.

        Raises:
            UsageError: If it has ended already.
        """
        if record.status in FINAL and record.status != "cancelled":
            raise UsageError(f"batch {record.id} is {record.status} already")
        if record.outcome is not None or record.status in ("cancelling", "cancelled"):
            return
        record.become("cancelling")
        if self._current is None or self._current[0] is not record:
            if record.total == 0:  # it never ran
                record.become("cancelled")
        elif self._current[1] is not None:
            self._current[1].cancel()
        await _in_thread(self.batches.save, record)
        if record.status == "cancelled":
            await _in_thread(self.batches.strip, record)

    async def _work(self, service: Service) -> None:
        while True:
            self._wake.clear()
            waiting = self.batches.unfinished()
            if not waiting:
                await self._wake.wait()
                continue
            # Those that are to end do not wait behind the one that runs next.
            record = next(filter(_is_cancelling, waiting), waiting[0])
            self._current = (record, None)
            try:
                await self._finish(record, service)
            except _ClosingError:
                return
            finally:
                self._current = None

    async def _finish(self, record: BatchRecord, service: Service) -> None:
        """Brings a batch to its end, from wherever it is."""
        try:
            if record.outcome is None:
                record.outcome = await self._answer(record, service)
                if not _is_cancelling(record):
                    record.become("finalizing")
                record.output_file, record.error_file = new_file_id(), new_file_id()
                await _in_thread(self.batches.save, record)
            await _in_thread(self._make_results, record)
        except _ClosingError:
            raise
        except OverloadError as error:
            _log.error("batch %s waits: %s", record.id, error)
            await asyncio.sleep(DISK_SECONDS)
            return
        except Exception as error:
            self._fail(record, error)
            record.output_file = record.error_file = None
        record.become(record.outcome or "failed")
        try:
            await _in_thread(self.batches.save, record)
            await _in_thread(self.batches.strip, record)
        except (HastenError, OSError) as error:
            _log.error("batch %s: %s", record.id, error)

    async def _answer(self, record: BatchRecord, service: Service) -> BatchStatus:
        """Has the lines answered; returns how that ended."""
        if _is_cancelling(record):
            return "cancelled"
        client = self._client(record)
        if client is None:
            record.problems = [Problem("invalid_api_key", "its API key is no longer known")]
            return "failed"
        limits = self._settings.limits
        with (
            Source(self.batches.input(record), limits.body) as source,
            Journal(self.batches.journal(record)) as journal,
        ):
            scan = await _in_thread(source.scan, self._check_open)
            if scan.lines == 0:
                record.problems = [Problem("empty_file", "the input file has no lines")]
                return "failed"
            await _in_thread(journal.begin, scan, record.endpoint)
            record.total, record.tally = scan.lines, journal.tally
            if _is_cancelling(record):  # meanwhile
                return "cancelled"
            if record.status == "validating":
                record.become("in_progress")
            await _in_thread(self.batches.save, record)
            routes = {record.endpoint: self._routes[record.endpoint]}
            caller = LineCaller(routes, service, client, partial(_recover, service))
            run = asyncio.create_task(BatchRun(source, scan, journal, caller, width=WIDTH).run())
            return await self._wait(record, run)

    async def _wait(self, record: BatchRecord, run: asyncio.Task[None]) -> BatchStatus:
        self._current = (record, run)
        if _is_cancelling(record):
            run.cancel()
        try:
            await asyncio.wait({run}, timeout=max(0.0, record.expires - time.time()))
            expired = not run.done()
        finally:
            run.cancel()
            await asyncio.wait({run})
        if expired:
            return "expired"
        if run.cancelled():
            return "cancelled"
        error = run.exception()
        if error is None:
            return "completed"
        if isinstance(error, OverloadError):
            raise error
        self._fail(record, error)
        return "failed"

    def _make_results(self, record: BatchRecord) -> None:
        """Makes the result files; those that a crash left behind are taken as they are."""
        files, ids = self.files, (record.output_file, record.error_file)
        answers, errors = (files.add_result(record.tenant, "batch_output", str(id_)) for id_ in ids)
        try:
            answered, tally = split_answers(self.batches.journal(record), answers, errors)
            if record.outcome == "expired":
                with Source(self.batches.input(record), self._settings.limits.body) as source:
                    late = add_expired(source, answered, errors)
                tally.answered += late
                tally.failed += late
            record.tally = tally
            for incoming, id_, kind in zip(
                (answers, errors), ids, ("output", "error"), strict=True
            ):
                if incoming.size and not files.has(str(id_)):
                    incoming.keep(f"{record.id}_{kind}.jsonl", seconds=record.result_seconds)
        finally:
            answers.discard()
            errors.discard()
        record.output_file = record.output_file if answers.size else None
        record.error_file = record.error_file if errors.size else None

    def _client(self, record: BatchRecord) -> Client | None:
        """Who asked, with what the key may do today; None if there is no such key any more."""
        known = self._settings.keys.values() or (Client(),)
        for client in known:
            if (client.name, client.tenant) == (record.client, record.tenant):
                return replace(client, priority=client.priority + PRIORITY, batch=True)
        return None

    def _fail(self, record: BatchRecord, error: BaseException) -> None:
        record.outcome = "failed"
        if isinstance(error, HastenError):
            record.problems = [Problem("server_error", str(error))]
        else:
            _log.error("batch %s failed", record.id, exc_info=error)
            record.problems = [Problem("server_error", "the server failed; its log says more")]

    def _check_open(self, done: int) -> None:
        if self._closing:
            raise _ClosingError

    def _open(self) -> None:
        limits = self._settings.limits
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock = lock_directory(self._directory)
        self._files = FileStore(
            self._directory / "files", most_files=limits.files, most_bytes=limits.file_bytes
        )
        self._batches = BatchStore(self._directory / "batches")

    def _unavailable(self) -> OverloadError:
        return OverloadError(
            "this server keeps no files: it still loads its models, or its data directory is used "
            "by another one or cannot be written",
            retry_after=60.0,
            do="try again later, or start it with a data directory of its own",
        )


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`, but waits for the thread even if it is cancelled.

    For threads that use what is closed afterwards.
    """
    work = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


async def _recover(service: Service) -> None:
    """Waits while engines start again; it is for the lines to tell of one that cannot."""
    for engine in service.registry.engines().values():
        if engine is not None:
            try:
                await engine.wait_ready()
            except EngineLostError:
                await asyncio.sleep(LOSS_SECONDS)


def _is_cancelling(record: BatchRecord) -> bool:
    return record.status == "cancelling"
