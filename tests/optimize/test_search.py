"""Decisions of the search, on made-up figures: what wins, what is refused, and why."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_up import MadeUpLaboratory

from hasten.optimize.candidates import FORMATS, uniform_candidates
from hasten.optimize.gate import Budget
from hasten.optimize.search import Search
from hasten.optimize.search_plan import SearchPlan

MIB = 1 << 20
EQUALLY_FAST = 0.0500001  # the search prefers the more accurate of two this near


def search(laboratory, budget=None, **plan):
    plan = {
        "threads": 2,
        "candidates": tuple(uniform_candidates(2, list(laboratory.table))),
        **plan,
    }
    made = Search(laboratory, budget or Budget(), SearchPlan(**plan), lambda *_: None)
    return made, made.run()


def refused(made):
    return {one.candidate.weights: one.reason for one in made.trials if one.status == "refused"}


figures = st.tuples(
    st.floats(0.05, 3.0),
    st.one_of(st.floats(0, 0.5), st.just(math.inf)),
    st.integers(MIB, 500 * MIB),
)


@settings(deadline=None, max_examples=150)
@given(
    table=st.dictionaries(st.sampled_from(FORMATS), figures, max_size=len(FORMATS)),
    half=st.floats(0, 0.9),
    kv_gain=st.floats(0.5, 2.0),
    unfit=st.sets(st.sampled_from(FORMATS)),
    threads=st.sampled_from([1, 2, 16]),
)
@example(table={"carried": (0.5, 0.0, MIB)}, half=0.0, kv_gain=0.96875, unfit=set(), threads=1)
def test_whatever_the_figures_the_winner_is_inside_the_budget_and_not_slower(
    table, half, kv_gain, unfit, threads
):
    laboratory = MadeUpLaboratory(table, half=half, kv_gain=kv_gain, unfit=unfit)
    budget = Budget()
    shares = []
    made = Search(
        laboratory,
        budget,
        SearchPlan(threads=threads, candidates=tuple(uniform_candidates(threads, list(table)))),
        lambda _, share: shares.append(share),
    )
    winner = made.run()
    assert made.original.status == "original"
    assert made.original.timings is not None
    if winner is not made.original:
        assert winner.status == "chosen"
        assert budget.admits(winner.proved)
        assert winner.speedup.low > 1
        assert winner.candidate in laboratory.proved
        for other in made.trials:
            if other.status == "passed":
                assert winner.speedup.estimate >= other.speedup.estimate * (1 - EQUALLY_FAST)
    for trial in made.trials:
        assert trial.status in ("refused", "slower", "passed", "chosen")
        assert trial.reason
    assert len({trial.candidate.label for trial in made.trials}) == len(made.trials)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(0 <= share <= 1 for share in shares)


def test_the_fastest_inside_the_budget_wins_and_the_faster_but_worse_is_named():
    laboratory = MadeUpLaboratory(
        {
            "carried": (0.30, 0.004, 94 * MIB),
            "int8": (0.35, 0.012, 134 * MIB),
            "int4:64": (0.20, 0.284, 85 * MIB),
            "bf16": (0.60, 0.0001, 268 * MIB),
        },
        kv_gain=1.2,
    )
    made, winner = search(laboratory, mixed_seconds=0)
    assert winner.candidate.weights == "carried"
    assert winner.candidate.threads == 2
    reason = refused(made)["int4:64"]
    assert "KL divergence 0.2840" in reason
    assert "budget 0.02" in reason


def test_finalists_share_the_chance_of_an_error():
    laboratory = MadeUpLaboratory(
        {"carried": (0.30, 0.003, 92 * MIB), "int8": (0.31, 0.004, 134 * MIB)}
    )
    search(laboratory, mixed_seconds=0)
    raced = len(laboratory.confidences)
    assert raced > 1
    assert 1 - laboratory.confidences[0] < 0.05
    assert 0.05 / (1 - laboratory.confidences[0]) >= 2


def test_a_small_sample_makes_the_gate_stricter():
    table = {"carried": (0.3, 0.015, 94 * MIB)}
    _, sure = search(MadeUpLaboratory(table, half=0.1))
    made, unsure = search(MadeUpLaboratory(table, half=0.5))
    assert sure.candidate.weights == "carried"
    assert unsure is made.original


def test_slower_candidates_are_refused_with_their_figure_and_the_original_stays():
    laboratory = MadeUpLaboratory({"int8": (2.0, 0.001, 134 * MIB)}, original_seconds=1.0)
    made, winner = search(laboratory)
    assert winner is made.original
    assert "faster" in winner.reason
    assert refused(made)["int8"].startswith("not faster than the original: 0.71 times")


def test_an_unfit_format_is_refused_before_anything_is_measured():
    laboratory = MadeUpLaboratory(
        {"int4:128": (0.1, 0.001, MIB), "int8": (0.5, 0.001, 2 * MIB)}, unfit={"int4:128"}
    )
    made, winner = search(laboratory)
    assert refused(made)["int4:128"] == "does not fit"
    assert winner.candidate.weights == "int8"
    assert all(candidate.weights != "int4:128" for candidate in laboratory.screened)


def test_mixed_precision_gives_the_coarse_format_to_the_layers_that_bear_it():
    laboratory = MadeUpLaboratory(
        {"int8": (0.5, 0.002, 100 * MIB), "int4:64": (0.3, 0.28, 60 * MIB)}, kv_gain=1.1
    )
    laboratory.layer_cost = {f"layers.{i}.w": 0.1 if i in (0, 7) else 0.001 for i in range(8)}
    made, winner = search(laboratory)
    assert winner.candidate.mixed == "int8 with int4:64 in 6 parts"
    assert {name for name, _ in winner.candidate.overrides} == {
        f"layers.{i}.w" for i in range(1, 7)
    }
    assert set(dict(winner.candidate.overrides).values()) == {"int4:64"}
    assert "int4:64" in refused(made)


def test_mixed_precision_stops_when_its_time_is_over():
    laboratory = MadeUpLaboratory(
        {"int8": (0.5, 0.002, 100 * MIB), "int4:64": (0.3, 0.28, 60 * MIB)}
    )
    made, _ = search(laboratory, mixed_seconds=3.0)
    assert made.remarks == ["mixed precision: time was up when 38% was measured"]


def test_no_mixture_is_tried_when_the_coarse_format_saves_nothing():
    laboratory = MadeUpLaboratory(
        {"carried": (0.5, 0.002, 100 * MIB), "int4:64": (0.3, 0.28, 99 * MIB)}
    )
    made, _ = search(laboratory)
    assert not any(trial.candidate.mixed for trial in made.trials)


def test_fewer_threads_win_where_more_of_them_hinder():
    class Contended(MadeUpLaboratory):
        def seconds_of(self, candidate):
            return super().seconds_of(candidate) * (2 if candidate.threads > 1 else 1)

    laboratory = Contended({"int8": (0.3, 0.001, MIB)}, original_seconds=2.0)
    _, winner = search(laboratory)
    assert winner.candidate.threads == 1


class Kernels(MadeUpLaboratory):
    """Machines on which other operators change the speed by a factor."""

    unfused, isas = 1.0, {}

    def seconds_of(self, candidate):
        operators = candidate.operators
        factor = 1.0 if operators.fuse else self.unfused
        return super().seconds_of(candidate) * factor * self.isas.get(operators.isa, 1.0)


def test_operators_computed_otherwise_are_tried_with_the_leader_and_left_behind():
    laboratory = Kernels({"carried": (0.3, 0.004, 94 * MIB), "int8": (0.4, 0.004, 134 * MIB)})
    laboratory.unfused, laboratory.isas = 1.3, {"avx2": 1.5}
    made, winner = search(laboratory, isas=("avx2",))
    assert winner.candidate.operators.settings() == {}
    slower = {one.candidate.label: one for one in made.trials if one.status == "slower"}
    unfused = slower["carried, KV bf16, 2 threads, op by op"]
    assert "times the original's speed, against 4.71 of carried" in unfused.reason
    assert "carried, KV bf16, 2 threads, avx2 kernels" in slower
    assert unfused.candidate not in laboratory.proved


def test_narrower_vectors_win_where_they_are_faster():
    laboratory = Kernels({"carried": (0.3, 0.004, 94 * MIB)})
    laboratory.isas = {"avx2": 0.8}
    _, winner = search(laboratory, isas=("avx2",))
    assert winner.candidate.operators.isa == "avx2"


def test_operators_stay_as_they_are_in_a_quick_search():
    made, _ = search(Kernels({"carried": (0.3, 0.004, 94 * MIB)}))
    assert all(one.candidate.operators.settings() == {} for one in made.trials)


def test_equally_fast_candidates_are_told_apart_by_accuracy():
    laboratory = MadeUpLaboratory({"carried": (0.3, 0.004, 94 * MIB)}, kv_gain=0.995)
    _, winner = search(laboratory)
    assert winner.candidate.kv == "bf16"


def test_a_candidate_that_passes_the_screen_still_has_to_pass_the_proof():
    class Overfitted(MadeUpLaboratory):
        def prove(self, candidate, confidence):
            self.table = {"carried": (0.3, 0.1, 94 * MIB)}
            return super().prove(candidate, confidence)

    made, winner = search(Overfitted({"carried": (0.3, 0.001, 94 * MIB)}))
    assert winner is made.original
    assert "KL divergence 0.1" in refused(made)["carried"]


def test_a_stopped_search_knows_its_best_so_far():
    class Interrupted(MadeUpLaboratory):
        def prove(self, candidate, confidence):
            raise KeyboardInterrupt

    laboratory = Interrupted({"carried": (0.3, 0.001, 94 * MIB), "int4:64": (0.2, 0.3, MIB)})
    candidates = tuple(uniform_candidates(2, list(laboratory.table)))
    plan = SearchPlan(threads=2, candidates=candidates)
    made = Search(laboratory, Budget(), plan, lambda *_: None)
    assert made.best_so_far() is made.original
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert made.best_so_far().candidate.weights == "carried"


def test_a_format_that_is_what_the_file_holds_anyway_is_measured_once():
    laboratory = MadeUpLaboratory({"carried": (0.3, 0.003, MIB), "int4:32": (0.2, 0.003, MIB)})
    laboratory.same = {"int4:32": "carried"}
    made, winner = search(laboratory)
    assert winner.candidate.weights == "carried"
    assert refused(made)["int4:32"] == "the same weights as carried, KV bf16, 2 threads"
    assert all(one.weights != "int4:32" for one in laboratory.screened)


def test_mixing_is_not_tried_where_the_budget_buys_next_to_nothing():
    laboratory = MadeUpLaboratory(
        {"carried": (0.5, 0.003, 92 * MIB), "int4:64": (0.45, 0.28, 86 * MIB)}
    )
    made, _ = search(laboratory)
    assert "mixed precision was not tried: int4:64 costs 0.28 nats" in made.remarks[0]
    assert not any(one.overrides for one in laboratory.screened)
    made, _ = search(laboratory, Budget(perplexity_percent=None, kl=0.2, top1_percent=None))
    assert any(one.overrides for one in laboratory.screened)


def test_what_is_far_behind_a_candidate_that_passed_is_slower_and_its_point_is_proved():
    laboratory = MadeUpLaboratory(
        {"carried": (0.3, 0.003, 92 * MIB), "bf16": (0.7, 0.0001, 268 * MIB)}
    )
    made, winner = search(laboratory, mixed_seconds=0)
    assert laboratory.proved[0].weights == "carried"
    assert winner.candidate.weights == "carried"
    assert {one.status for one in made.trials if one.candidate.weights == "bf16"} == {"slower"}
