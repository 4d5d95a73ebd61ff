"""What a search has measured, on disk: a search that was killed goes on where it was.

The decisions of a search follow from its measurements alone, so it is run again from its beginning
and each measurement that the journal holds is taken from there. The journal is JSON Lines; its
first line says what search it is of, and a line that was cut off by a kill is not counted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from hasten.errors import HastenError
from hasten.generation.formats import MatrixFormat
from hasten.measure.accuracy import Accuracy
from hasten.optimize.candidates import Candidate
from hasten.optimize.claims import Claim
from hasten.optimize.gate import Measured
from hasten.optimize.passes.interface import Prediction
from hasten.optimize.search import Laboratory
from hasten.optimize.sensitivity import Part
from hasten.optimize.speed import Duel, Effort, RequestShape, Timings

__all__ = ["Journal", "JournaledLaboratory", "Remembering"]

Entry = dict[str, Any]
Found = TypeVar("Found")


class Journal:
    """The measurements of a search.

    Args:
        path: The file; its directory exists.
        search: What decides about the measurements, JSON-ready: a journal of another search is
            thrown away.

    Attributes:
        found: How many measurements an earlier run left.
        name: Of the search, for what else is kept of it.
    """

    def __init__(self, path: Path, search: Mapping[str, Any]) -> None:
        head = json.dumps(search, sort_keys=True)
        self.name = hashlib.sha256(head.encode()).hexdigest()[:16]
        self._entries: dict[str, deque[Entry]] = {}
        self.found = 0
        lines = list(_whole_lines(path))
        kept = lines[1:] if lines and json.dumps(lines[0], sort_keys=True) == head else []
        for entry in kept:
            self._entries.setdefault(entry["key"], deque()).append(entry)
        self.found = len(kept)
        self._last = 0.0
        self._waiting = len(kept)
        self._resumed: float | None = None
        # Beside its place first: a kill while it is written loses nothing.
        fresh = path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in [search, *kept])
        fresh.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def measure(self, what: str, about: object, do: Callable[[], Entry]) -> Entry:
        """What was measured before, or what `do` measures now: JSON-ready, and kept.

        Args:
            what: Kind of measurement.
            about: What is measured, JSON-ready; the same thing may be measured several times.
            do: Measures it.
        """
        key = json.dumps([what, about], sort_keys=True)
        if self._entries.get(key):
            entry = self._entries[key].popleft()
            self._waiting -= 1
            self._last = entry["seconds"]
            found: Entry = entry["found"]
            return found
        before = self.seconds()
        found = do()
        self._last = max(before, self.seconds())
        self._write({"key": key, "seconds": self._last, "found": found})
        return found

    def seconds(self) -> float:
        """Seconds of the search, those of earlier runs included, without the time between."""
        if self._waiting > 0:
            return self._last
        if self._resumed is None:
            self._resumed = time.perf_counter() - self._last
        return time.perf_counter() - self._resumed

    def close(self) -> None:
        """Ends the file."""
        self._file.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


class Remembering(Laboratory, Protocol):
    """A laboratory that can be told what a candidate holds without opening it."""

    remarks: list[str]

    @property
    def shape(self) -> RequestShape:
        """What is timed."""
        ...

    def memory(self, candidate: Candidate) -> Mapping[str, int]:
        """Bytes of a candidate that has been opened, or told of."""
        ...

    def remember(self, candidate: Candidate, memory: Mapping[str, int]) -> None:
        """Takes note of the bytes of a candidate."""
        ...


class JournaledLaboratory:
    """A `Laboratory` that asks the journal first, and then another laboratory.

    Args:
        laboratory: Measures.
        journal: Keeps what was measured.
    """

    def __init__(self, laboratory: Remembering, journal: Journal) -> None:
        self._laboratory = laboratory
        self._journal = journal

    def why_unfit(self, candidate: Candidate) -> str | None:
        """See `Laboratory`."""
        return self._laboratory.why_unfit(candidate)

    def formats(self, candidate: Candidate) -> Mapping[str, MatrixFormat]:
        """See `Laboratory`."""
        return self._laboratory.formats(candidate)

    def screen(self, candidate: Candidate) -> Measured:
        """See `Laboratory`."""
        return self._measured("screen", candidate, lambda: self._laboratory.screen(candidate))

    def glance(self, candidate: Candidate) -> Accuracy:
        """See `Laboratory`."""
        found = self._measured(
            "glance", candidate, lambda: Measured(self._laboratory.glance(candidate))
        )
        if found.text is None:
            raise ValueError("a glance is at text")
        return found.text

    def prove(self, candidate: Candidate, confidence: float) -> Measured:
        """See `Laboratory`."""
        return self._measured(
            "prove",
            candidate,
            lambda: self._laboratory.prove(candidate, confidence),
            confidence=confidence,
        )

    def hold(self, candidate: Candidate, confidence: float) -> Claim:
        """See `Laboratory`."""
        return self._found(
            "hold",
            candidate,
            lambda: self._laboratory.hold(candidate, confidence),
            Claim,
            confidence=confidence,
        )

    def race(
        self, candidates: Sequence[Candidate], effort: Effort, on_round: Callable[[float], None]
    ) -> Mapping[Candidate, Duel]:
        """See `Laboratory`."""

        def run() -> Entry:
            duels = self._laboratory.race(candidates, effort, on_round)
            return {
                "duels": [
                    [duels[one].before.samples(), duels[one].after.samples()] for one in candidates
                ]
            }

        about = [[_named(one) for one in candidates], asdict(effort)]
        found = self._timed("race", about, run)
        shape = self._laboratory.shape
        return {
            one: Duel(*(Timings.from_samples(shape, samples) for samples in pair))
            for one, pair in zip(candidates, found["duels"], strict=True)
        }

    def repeat(
        self,
        candidate: Candidate,
        rounds: int,
        seconds: float,
        number: int,
        on_round: Callable[[float], None],
    ) -> Timings:
        """See `Laboratory`."""

        def run() -> Entry:
            timings = self._laboratory.repeat(candidate, rounds, seconds, number, on_round)
            return {"rounds": timings.samples()}

        found = self._timed("repeat", [_named(candidate), rounds, number], run)
        return Timings.from_samples(self._laboratory.shape, found["rounds"])

    def weights_bytes(self, candidate: Candidate) -> int:
        """See `Laboratory`."""
        return self._laboratory.weights_bytes(candidate)

    def memory_bytes(self, candidate: Candidate) -> int:
        """See `Laboratory`."""
        return self._laboratory.memory_bytes(candidate)

    def predict(self, candidate: Candidate) -> Prediction:
        """See `Laboratory`."""
        return self._laboratory.predict(candidate)

    def parts(self, base: Candidate, coarse: str) -> Mapping[Part, int]:
        """See `Laboratory`."""
        return self._laboratory.parts(base, coarse)

    def seconds(self) -> float:
        """Seconds of the search, those of earlier runs included."""
        return self._journal.seconds()

    def _timed(self, what: str, about: object, run: Callable[[], Entry]) -> Entry:
        """What was timed, with what the laboratory remarked on it."""

        def noting() -> Entry:
            known = len(self._laboratory.remarks)
            return {**run(), "remarks": self._laboratory.remarks[known:]}

        found = self._journal.measure(what, about, noting)
        for remark in found["remarks"]:
            if remark not in self._laboratory.remarks:
                self._laboratory.remarks.append(remark)
        return found

    def _measured(
        self, what: str, candidate: Candidate, measure: Callable[[], Measured], **how: float
    ) -> Measured:
        return self._found(what, candidate, measure, Measured, **how)

    def _found(
        self,
        what: str,
        candidate: Candidate,
        measure: Callable[[], Found],
        kind: type[Found],
        **how: float,
    ) -> Found:
        """What was measured of a candidate, and what the candidate holds in memory."""
        import msgspec

        def run() -> Entry:
            try:
                found = measure()
            except HastenError as error:
                return {"error": error.what}
            memory = dict(self._laboratory.memory(candidate))
            return {"measured": msgspec.to_builtins(found), "memory": memory}

        entry = self._journal.measure(what, {**_named(candidate), **how}, run)
        if "error" in entry:
            raise HastenError(entry["error"])
        self._laboratory.remember(candidate, entry["memory"])
        return msgspec.convert(entry["measured"], kind)


def _named(candidate: Candidate) -> Entry:
    return {**candidate.settings(), "passes": candidate.passes(), "mixed": candidate.mixed}


def _whole_lines(path: Path) -> Iterator[Any]:
    """The lines up to the first that is not whole."""
    with suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                return
