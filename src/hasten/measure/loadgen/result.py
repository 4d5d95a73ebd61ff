"""What LoadGen found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.measure.loadgen.log import Detail, read_detail
from hasten.measure.loadgen.settings import LoadGenSettings
from hasten.measure.metrics import samples
from hasten.measure.records import Record

__all__ = ["LoadGenResult", "read_result"]

EARLY_STOPPING = {
    "early_stopping_result": "latency",
    "early_stopping_ttft_result": "ttft",
    "early_stopping_tpot_result": "tpot",
}
HELD_UP = 1.05
HELD_UP_MS = 1.0
"""LoadGen's latency over and above that from the hand-over, from which on a note tells it."""


@dataclass(frozen=True, slots=True)
class LoadGenResult:
    """What LoadGen found.

    Attributes:
        settings: What it was asked for.
        valid: LoadGen calls the result valid, and nothing else speaks against it.
        result: "VALID" or "INVALID" as LoadGen says; None in a run for accuracy.
        n: Samples.
        score: What the scenario is judged by; None where LoadGen did not say.
        score_unit: Of the score.
        percentiles: By name and percent, in milliseconds, as LoadGen counts them: the value at
            place n x percentile. None of them, nor a score, where a request failed.
        early_stopping: What LoadGen says about the sample's size, by name.
        problems: Why the result is not valid.
        notes: What else a reader should know.
        records: The requests; they count from when LoadGen handed them over, so where it was
            itself late its own figures are larger.
        outputs: Texts of the answers by the number of the sample, in a run for accuracy.
        folder: Where LoadGen's logs lie.
        interrupted: The user stopped it.
    """

    settings: LoadGenSettings
    valid: bool
    result: str | None
    n: int
    score: float | None
    score_unit: str
    percentiles: Mapping[str, Mapping[float, float]]
    early_stopping: Mapping[str, str]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    records: tuple[Record, ...]
    outputs: Mapping[int, str]
    folder: Path
    interrupted: bool

    def as_dict(self) -> dict[str, object]:
        """JSON-ready values; records and answers are in the folder."""
        return {
            "scenario": self.settings.scenario,
            "mode": "accuracy" if self.settings.accuracy else "performance",
            "result": self.result,
            "valid": self.valid,
            "n": self.n,
            "score": {"value": self.score, "unit": self.score_unit},
            "percentiles_ms": {
                kind: {f"p{percent:g}": value for percent, value in values.items()}
                for kind, values in self.percentiles.items()
            },
            "early_stopping": dict(self.early_stopping),
            "problems": list(self.problems),
            "notes": list(self.notes),
            "folder": str(self.folder),
        }


def read_result(
    settings: LoadGenSettings,
    folder: Path,
    records: Sequence[Record],
    outputs: Mapping[int, str],
    problem: str | None,
    *,
    interrupted: bool,
) -> LoadGenResult:
    """Reads LoadGen's logs.

    Args:
        settings: What it was asked for.
        folder: Where the logs lie.
        records: The requests.
        outputs: Texts of the answers by the number of the sample.
        problem: What went wrong on the way to the target and back.
        interrupted: It was the user.

    Raises:
        HastenError: LoadGen wrote no log.
    """
    detail = read_detail(folder)
    if problem is not None:
        # LoadGen timed answers that never were; what it makes of them says nothing.
        detail = Detail({}, ())
    percentiles = detail.percentiles()
    score, unit = _score(settings, detail, percentiles)
    problems = tuple(_problems(settings, detail, problem))
    verdict = detail.values.get("result_validity")
    return LoadGenResult(
        settings=settings,
        valid=not problems,
        result=None if settings.accuracy else str(verdict or "INVALID"),
        n=len(records),
        score=score,
        score_unit=unit,
        percentiles=percentiles,
        early_stopping={
            name: " ".join(str(detail.values[key]).split())
            for key, name in EARLY_STOPPING.items()
            if key in detail.values
        },
        problems=problems,
        notes=tuple(_notes(settings, percentiles, records, outputs)),
        records=tuple(records),
        outputs=outputs,
        folder=folder,
        interrupted=interrupted,
    )


def _score(
    settings: LoadGenSettings, detail: Detail, percentiles: Mapping[str, Mapping[float, float]]
) -> tuple[float | None, str]:
    """What the scenario is judged by."""
    if settings.accuracy:
        return None, ""
    if settings.scenario == "server":
        return detail.number("result_scheduled_samples_per_sec"), "queries/s"
    if settings.scenario == "offline":
        key = "result_tokens_per_second" if settings.tokens else "result_samples_per_second"
        return detail.number(key), "tokens/s" if settings.tokens else "samples/s"
    kind = "query" if settings.scenario == "multi-stream" else "latency"
    percent = round(100 * settings.quantile, 1)
    return percentiles.get(kind, {}).get(percent), f"ms (p{percent:g})"


def _problems(settings: LoadGenSettings, detail: Detail, problem: str | None) -> Iterator[str]:
    if problem is not None:
        yield f"invalid: {problem}"
        return
    yield from (f"invalid: LoadGen: {error}" for error in detail.errors)
    if settings.accuracy or detail.values.get("result_validity") == "VALID":
        return
    reason = detail.values.get("result_invalid_reason")
    if reason and str(reason).strip():
        yield f"invalid: LoadGen: {str(reason).strip()}"
    if detail.flag("early_stopping_met") is False:
        said = [str(detail.values[key]) for key in EARLY_STOPPING if key in detail.values]
        yield f"invalid: LoadGen's early stopping: {' '.join(' '.join(said).split())}"
    if not reason and detail.flag("early_stopping_met") is not False:
        yield "invalid: LoadGen gives no reason; see its logs"


def _notes(
    settings: LoadGenSettings,
    percentiles: Mapping[str, Mapping[float, float]],
    records: Sequence[Record],
    outputs: Mapping[int, str],
) -> Iterator[str]:
    different = len({record.request_id for record in records})
    if not outputs and len(records) > different:
        yield (
            f"{len(records)} requests were made of {different} different ones: LoadGen repeats "
            "them, and a cache of prompts or answers makes the target look faster than it is"
        )
    own = sorted(samples(records)["e2e"])
    percent = round(100 * settings.quantile, 1)
    theirs = percentiles.get("latency", {}).get(percent)
    if settings.scenario == "server" and theirs is not None and own:
        from_hand_over = own[int(len(own) * settings.quantile)]
        if theirs > max(HELD_UP * from_hand_over, from_hand_over + HELD_UP_MS):
            yield (
                f"the p{percent:g} of the latency is {theirs:.2f} ms from the schedule on and "
                f"{from_hand_over:.2f} ms from the hand-over on: this client was held up"
            )
