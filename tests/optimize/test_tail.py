"""Bounds on the slowest requests: how many requests, what they show, and what the search does."""

import itertools
from contextlib import closing

import pytest
from made_up import MadeUpLaboratory

from hasten.errors import UsageError
from hasten.optimize.candidates import uniform_candidates
from hasten.optimize.gate import Budget
from hasten.optimize.journal import Journal, JournaledLaboratory
from hasten.optimize.objective import Objective
from hasten.optimize.search import Search
from hasten.optimize.search_plan import SearchPlan
from hasten.optimize.speed import RequestShape
from hasten.optimize.tail import TailBound, TailFinding, parse_tail, rounds_to_run

MIB = 1 << 20
SHAPE = RequestShape(128, 64)
TABLE = {"carried": (0.3, 0.003, 92 * MIB), "int8:32": (0.4, 0.003, 60 * MIB)}
P99 = TailBound("e2e", 0.99, 600)


def search(laboratory, *tails, seconds=300.0, told=None):
    made = Search(
        laboratory,
        Budget(),
        SearchPlan(
            threads=1,
            candidates=tuple(uniform_candidates(1, list(TABLE))),
            objective=Objective("as given", SHAPE, tails=tails),
            mixed_seconds=0,
            tail_seconds=seconds,
        ),
        lambda doing, share: told.append((doing, share)) if told is not None else None,
    )
    return made, made.run()


def laboratory(tail):
    made = MadeUpLaboratory(TABLE, kv_gain=1.2)
    made.tail = iter(tail)
    return made


def test_bounds_are_read_as_a_bench_reads_them():
    assert parse_tail("600", 0.99) == (P99,)
    assert parse_tail("ttft=450,e2e=600", 0.95) == (
        TailBound("ttft", 0.95, 450),
        TailBound("e2e", 0.95, 600),
    )
    for text in ("", "fast", "0", "-1", "nan", "inf", "p99=3", "ttft=0", "1e300"):
        with pytest.raises(UsageError):
            parse_tail(text, 0.99)


def test_rounds_follow_from_the_percentile_the_requests_side_by_side_and_the_time():
    p95 = TailBound("ttft", 0.95, 1)
    assert rounds_to_run([P99], 1, 1.0, 300) == 299
    assert rounds_to_run([P99, p95], 1, 1.0, 500) == 473
    assert rounds_to_run([P99], 1, 0.01, 500) == 628
    assert rounds_to_run([p95], 1, 1.0, 60) == 59
    assert rounds_to_run([P99], 16, 5.0, 100) == 19
    assert rounds_to_run([P99], 1, 3.0, 300) == 100
    assert rounds_to_run([P99], 1, 500.0, 300) == 1


def test_what_requests_show_is_said_with_its_figures():
    kept = TailFinding.of(P99, [0.5] * 299, 299)
    assert kept.kept
    assert str(kept).endswith("0 of 299 were late, which shows it; they show 500 ms")
    few = TailFinding.of(P99, [0.5] * 120, 299)
    assert not few.kept
    assert not few.hopeless
    assert str(few) == (
        "latency within 600 ms for 99 % of requests: 0 of 120 were late, so up to 2.5 % of all may"
        " be (95 % confidence); to show it takes 299 requests"
    )
    late = TailFinding.of(P99, [0.5] * 292 + [0.7] * 7, 299)
    assert late.hopeless
    assert "up to 4.4 % of all may be (95 % confidence); they show 700 ms" in str(late)
    assert late.as_dict() == {
        "metric": "e2e",
        "percentile": 0.99,
        "ms": 600,
        "planned": 299,
        "requests": 299,
        "late": 7,
        "most_late": pytest.approx(0.0435, abs=1e-4),
        "within_ms": 700.0,
        "confidence": 0.95,
        "kept": False,
    }


def test_without_such_bounds_nothing_is_repeated():
    made = laboratory([])
    _, winner = search(made)
    assert made.repeated == []
    assert winner.tails == ()


def test_the_fastest_is_chosen_when_enough_of_its_requests_keep_the_bound():
    made, told = laboratory(itertools.repeat(0.35)), []
    searched, winner = search(made, P99, seconds=120, told=told)
    assert winner.candidate.weights == "carried"
    assert sum(rounds for _, rounds, _ in made.repeated) == 299
    assert [number for _, _, number in made.repeated] == [0, 1, 2]
    assert {candidate for candidate, _, _ in made.repeated} == {winner.candidate}
    assert "0 of 299 were late" in winner.reason
    assert searched.remarks == []
    assert any("299 of 299 rounds" in doing for doing, _ in told)
    assert [share for _, share in told] == sorted(share for _, share in told)


def test_a_candidate_whose_slowest_are_too_slow_is_refused_and_the_next_is_measured():
    slow = [0.3] * 80 + [2.0] * 20
    made = laboratory(itertools.chain(slow, itertools.repeat(0.4)))
    searched, winner = search(made, P99, seconds=200)
    first = made.repeated[0][0]
    assert {one for one, _, _ in made.repeated} == {first, winner.candidate}
    assert winner.tails[0].kept
    (refused,) = [one for one in searched.trials if one.candidate == first]
    assert refused.status == "refused"
    assert refused.reason.startswith("outside the objective: latency within 600 ms for 99 %")
    # Given up after the first portion, as no number of further requests could show it.
    assert refused.tails[0].requests == 100


def test_a_median_over_the_bound_is_refused_before_anything_is_repeated():
    made = laboratory(itertools.repeat(0.3))
    searched, winner = search(made, TailBound("e2e", 0.99, 350), seconds=100)
    reasons = [one.reason for one in searched.trials if one.candidate.weights == "int8:32"]
    assert any("but the median is 400 ms" in reason for reason in reasons)
    assert winner.candidate.weights == "carried"


def test_where_none_keeps_the_bound_the_fastest_stays_and_a_note_says_so():
    made = laboratory(itertools.cycle([0.3, 2.0]))
    searched, winner = search(made, P99)
    assert winner.candidate.weights == "carried"
    assert winner.status == "chosen"
    (remark,) = searched.remarks
    assert remark.startswith("no candidate is shown to keep the bounds of 'as given'; the fastest:")
    assert all(one.status != "open" for one in searched.trials)


def test_where_time_does_not_suffice_it_says_how_far_it_came_and_tries_no_slower_one():
    made = laboratory(itertools.repeat(0.5))
    searched, winner = search(made, P99, seconds=40)
    assert {candidate for candidate, _, _ in made.repeated} == {winner.candidate}
    (finding,) = winner.tails
    assert finding.requests < 299
    assert not finding.kept
    assert f"0 of {finding.requests} were late" in searched.remarks[0]
    assert "to show it takes 299 requests" in searched.remarks[0]


def test_a_search_that_is_stopped_goes_on_from_the_last_portion(tmp_path):
    class Remembered(MadeUpLaboratory):
        shape = SHAPE

        def memory(self, candidate):
            return {"weights": self.weights_bytes(candidate)}

        def remember(self, candidate, memory):
            pass

    def begin(latencies):
        lab = Remembered(TABLE, kv_gain=1.2)
        lab.remarks, lab.tail = [], latencies
        return lab, Journal(tmp_path / "journal.jsonl", {"seed": 0})

    def stopping():
        yield from [0.35] * 250
        raise KeyboardInterrupt

    lab, journal = begin(stopping())
    with closing(journal), pytest.raises(KeyboardInterrupt):
        search(JournaledLaboratory(lab, journal), P99)
    assert [number for _, _, number in lab.repeated] == [0, 1, 2]
    lab, journal = begin(itertools.repeat(0.35))
    with closing(journal):
        made, winner = search(JournaledLaboratory(lab, journal), P99)
    assert [number for _, _, number in lab.repeated] == [2, 3, 4, 5, 6]
    assert winner.tails[0].requests == 628
    assert made.remarks == []


def test_a_search_that_is_stopped_among_the_slowest_requests_knows_its_best():
    def stopping():
        yield from [0.35] * 10
        raise KeyboardInterrupt

    made = Search(
        laboratory(stopping()),
        Budget(),
        SearchPlan(
            threads=1,
            candidates=tuple(uniform_candidates(1, list(TABLE))),
            objective=Objective("as given", SHAPE, tails=(P99,)),
        ),
        lambda *_: None,
    )
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.best_so_far().candidate.weights == "carried"
