"""Races of real engines of a tiny model, and the intervals that follow from blocks."""

import math
from collections import Counter

import numpy as np
import pytest
from made_up import timings

from hasten.measure.corpus import default_corpus
from hasten.models import load_model
from hasten.optimize import prepare_material
from hasten.optimize.candidates import Candidate, original
from hasten.optimize.laboratory import EngineLaboratory
from hasten.optimize.objective import Objective
from hasten.optimize.speed import Duel, Effort, RequestShape, Round, Timings, speedup
from hasten.optimize.tail import TailBound
from hasten.optimize.tail_search import TailSearch
from hasten.optimize.trial import Trial

SHAPE = RequestShape(8, 4, 2)
FAST = Candidate("int8:32", "bf16", 1)


class Counting(EngineLaboratory):
    """Counts the engines that are opened."""

    def _open(self, candidate):
        self.opened = getattr(self, "opened", Counter())
        self.opened[candidate] += 1
        return super()._open(candidate)


@pytest.fixture(scope="module")
def laboratory(tiny_model):
    model = load_model(str(tiny_model))
    material = prepare_material(model, default_corpus(), SHAPE, tokens=256, quick=True, seed=0)
    with Counting(
        lambda steps: model,
        context=material.evaluation.context,
        material=material,
        threads=1,
        memory_limit=1 << 30,
        seed=0,
    ) as made:
        made.screen(FAST)
        yield made


@pytest.mark.parametrize("twice", [True, False])
def test_every_block_has_engines_of_its_own(laboratory, monkeypatch, twice):
    before = laboratory.memory_bytes(original(1))
    after = laboratory.memory_bytes(FAST)
    monkeypatch.setattr(laboratory, "_memory_limit", 2 * (before + after - (not twice)))
    laboratory.opened = Counter()
    told = []
    duels = laboratory.race([original(1), FAST], Effort(6, 3, 60, 3), told.append)
    assert laboratory.opened == Counter({FAST: 3} | ({original(1): 3} if twice else {}))
    for side in (duels[FAST].before, duels[FAST].after):
        assert [len(block) for block in side.blocks] == [2, 2, 2]
        assert all(len(one.e2e) == SHAPE.concurrent for one in side.rounds)
    assert told == pytest.approx(np.arange(1, 7) / 6)
    again = Timings.from_samples(SHAPE, duels[FAST].after.samples())
    assert again == duels[FAST].after


def test_a_block_has_a_round_though_the_time_is_up(laboratory):
    duels = laboratory.race([original(1), FAST], Effort(6, 2, 0, 2), lambda share: None)
    assert [len(block) for block in duels[FAST].after.blocks] == [1, 1]


def test_real_requests_show_bounds_that_are_far_away_and_miss_those_that_are_too_near(laboratory):
    told = []
    for ms, kept in ((1e9, True), (1e-6, False)):
        objective = Objective("as given", SHAPE, tails=(TailBound("e2e", 0.95, ms),))
        trial = Trial(FAST, timings=timings(0.5))
        search = TailSearch(laboratory, objective, 60, lambda *what: told.append(what))
        winner, missed = search.choose([trial])
        (found,) = winner.tails
        assert found.kept == kept
        assert (missed is None) == kept
        assert found.requests >= (59 if kept else 1)
        assert (found.late, found.within_ms is None) == ((0, False) if kept else (120, False))
    assert told[0][0].startswith(f"{FAST.label}: 1 of 62 rounds")
    assert max(share for _, share in told) == 1.0


def duel(before, after):
    """Of seconds [blocks][rounds]."""
    sides = (
        Timings(SHAPE, tuple(tuple(Round((s,), (s,), (s,), s) for s in one) for one in side))
        for side in (before, after)
    )
    return Duel(*sides)


def test_blocks_that_differ_widen_the_interval_and_more_rounds_do_not_narrow_it():
    alike = duel([[2.0, 2.0]] * 6, [[1.0, 1.0]] * 6)
    found = speedup(alike, seed=0)
    assert (found.low, found.estimate, found.high) == pytest.approx((2, 2, 2))
    shifts = [0.9, 1.1] * 3
    for rounds in (2, 50):
        apart = duel([[2 * one] * rounds for one in shifts], [[1.0] * rounds] * 6)
        found = speedup(apart, seed=0)
        assert found.estimate == pytest.approx(2 * math.sqrt(0.99))
        half = 2.5706 * np.std(np.log(shifts), ddof=1) * math.sqrt(7 / 6)
        assert math.log(found.high / found.estimate) == pytest.approx(half, rel=1e-4)
        assert math.log(found.estimate / found.low) == pytest.approx(half, rel=1e-4)


def test_a_round_that_the_system_held_up_does_not_count_in_a_block_of_three():
    found = speedup(duel([[2.0, 2.0, 9.0]] * 4, [[1.0, 5.0, 1.0]] * 4), seed=0)
    assert found.estimate == pytest.approx(2)


def test_what_slows_a_whole_block_is_no_difference():
    slow = [1.0, 3.0, 1.5, 2.0]
    found = speedup(duel([[2 * one] * 2 for one in slow], [[one] * 2 for one in slow]), seed=0)
    assert (found.low, found.high) == pytest.approx((2, 2))


def test_one_more_block_is_inside_the_interval_19_times_of_20_where_rounds_say_otherwise():
    generator = np.random.default_rng(0)
    inside = Counter()
    for _ in range(400):
        blocks = 0.05 * generator.normal(size=(7, 1)) + 0.02 * generator.normal(size=(7, 2))
        seconds = np.exp(blocks)
        ones = np.ones_like(seconds)
        truth = speedup(duel(seconds[6:], ones[6:]), seed=0).estimate
        for name, shown in (
            ("blocks", duel(seconds[:6], ones[:6])),
            ("one block of many rounds", duel(seconds[:6].reshape(1, 12), ones[:6].reshape(1, 12))),
        ):
            found = speedup(shown, seed=0)
            inside[name] += found.low <= truth <= found.high
    assert inside["blocks"] / 400 == pytest.approx(0.95, abs=0.03)
    assert inside["one block of many rounds"] / 400 < 0.7


def test_later_blocks_count_with_the_earlier():
    first, second = duel([[2.0]] * 3, [[1.0]] * 3), duel([[4.0]] * 3, [[1.0]] * 3)
    assert speedup(first.followed_by(second), seed=0).estimate == pytest.approx(math.sqrt(8))
