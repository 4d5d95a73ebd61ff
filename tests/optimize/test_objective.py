"""What is timed for a use, the bounds to keep, and what a search makes of them."""

import pytest
from made_up import MadeUpLaboratory, MadeUpPass, timings

from hasten.errors import HastenError, UsageError
from hasten.measure.corpus import default_corpus
from hasten.measure.goals import GOALS
from hasten.models import load_model
from hasten.optimize import Budget, prepare_material
from hasten.optimize.candidates import Candidate, settings_for, uniform_candidates
from hasten.optimize.objective import SHAPES, Objective, objective_of
from hasten.optimize.passes.interface import Prediction
from hasten.optimize.prediction import predicted_seconds
from hasten.optimize.search import Search
from hasten.optimize.search_plan import SearchPlan
from hasten.optimize.speed import RequestShape

MIB = 1 << 20
SHAPE = RequestShape(128, 64)


def search(laboratory, objective=None, **plan):
    made = Search(
        laboratory,
        Budget(),
        SearchPlan(
            threads=2,
            candidates=tuple(uniform_candidates(2, list(laboratory.table))),
            objective=objective or Objective("as given", SHAPE),
            mixed_seconds=0,
            **plan,
        ),
        lambda *_: None,
    )
    return made, made.run()


def test_every_use_has_its_requests():
    assert SHAPES.keys() == GOALS.keys()
    for name, goal in GOALS.items():
        objective = objective_of(name)
        assert objective.bounds == goal.bounds
        assert objective.most_memory == goal.memory_bytes
        assert (objective.shape.concurrent > 1) == (goal.aim == "throughput")


def test_what_the_user_says_counts_before_the_use():
    objective = objective_of(
        "chat", input_tokens=10, concurrent=3, shared=9, bounds={"ttft": 5}, most_memory=MIB
    )
    assert objective.shape == RequestShape(10, 64, 3, 9)
    assert objective.bounds == {"ttft": 5, "tpot": 200}
    assert objective.most_memory == MIB
    with pytest.raises(UsageError, match="cannot share 10"):
        objective_of("chat", input_tokens=10, shared=10)


def test_shortfalls_are_named_with_their_figures():
    objective = Objective("x", SHAPE, {"ttft": 100, "e2e": 5000}, 50, MIB)
    found = list(objective.shortfalls(timings(2.0), 2 * MIB))
    assert found == [
        "time to first token 400 ms, bound 100 ms",
        "32 output tokens/s, bound 50",
        "2 MiB of memory, bound 1 MiB",
    ]
    assert list(objective.shortfalls(timings(0.1), MIB)) == []
    assert list(objective.shortfalls(timings(0.1), None)) == []


TABLE = {"carried": (0.3, 0.003, 92 * MIB), "int8:32": (0.4, 0.003, 60 * MIB)}


def test_what_does_not_keep_a_bound_is_refused_if_another_does():
    objective = Objective("x", SHAPE, most_memory=61 * MIB)
    made, winner = search(MadeUpLaboratory(TABLE), objective)
    assert winner.candidate.weights == "int8:32"
    reasons = [one.reason for one in made.trials if one.candidate.weights == "carried"]
    assert any("92 MiB of memory, bound 61 MiB" in reason for reason in reasons)


def test_the_fastest_wins_where_nothing_keeps_the_bounds():
    made, winner = search(MadeUpLaboratory(TABLE), Objective("x", SHAPE, {"e2e": 1}))
    assert winner.candidate.weights == "carried"
    assert any("no candidate keeps the bounds of 'x'" in one for one in made.remarks)


def changed(name, **shares):
    return Candidate("carried", "bf16", 2, steps=(MadeUpPass(name, **shares),))


def test_passes_that_promise_nothing_are_not_made_unless_asked_for():
    laboratory = MadeUpLaboratory({"carried": (0.3, 0.003, 92 * MIB)})
    slow, fast = changed("slow", share=1.1), changed("fast", share=0.5)
    made, _ = search(laboratory, changed=(slow, fast))
    reasons = {one.candidate: one.reason for one in made.trials}
    assert reasons[slow].startswith("not tried: predicted to run 4.29 times")
    assert slow not in laboratory.screened
    assert fast in laboratory.screened
    laboratory = MadeUpLaboratory({"carried": (0.3, 0.003, 92 * MIB)})
    search(laboratory, asked=(slow,))
    assert slow in laboratory.screened


def test_no_pass_is_begun_when_time_is_up():
    laboratory = MadeUpLaboratory({"carried": (0.3, 0.003, 92 * MIB)})
    made, _ = search(laboratory, changed=(changed("fast", share=0.5),), pass_seconds=-1)
    assert [one.reason for one in made.trials if one.candidate.steps] == ["not tried: time was up"]


def test_a_pass_that_cannot_be_made_is_refused_and_the_search_goes_on():
    class Failing(MadeUpLaboratory):
        def screen(self, candidate):
            if candidate.steps:
                raise HastenError("the text is too short")
            return super().screen(candidate)

    made, winner = search(
        Failing({"carried": (0.3, 0.003, MIB)}), changed=(changed("fast", share=0.5),)
    )
    assert winner.candidate.weights == "carried"
    (trial,) = [one for one in made.trials if one.candidate.steps]
    assert trial.reason == "could not be made: the text is too short"


def test_prediction_moves_decoding_with_bytes_and_reading_with_operations():
    base = timings(1.0)
    assert predicted_seconds(base, Prediction()) == pytest.approx(1.0)
    assert predicted_seconds(base, Prediction(weight_bytes=0.5)) == pytest.approx(0.6)
    assert predicted_seconds(base, Prediction(operations=0.5)) == pytest.approx(0.9)


def test_settings_follow_from_the_requests():
    base = Candidate("carried", "bf16", 2)
    assert settings_for(base, SHAPE) == []
    many = settings_for(base, RequestShape(128, 64, 16, 100))
    assert {one.chunk for one in many} == {None, 256, 1024}
    assert {one.sequences for one in many} == {None, 8}
    assert any(one.prefix_cache for one in many)
    assert len({one.label for one in [base, *many]}) == 1 + len(many)


def test_prompts_share_their_beginning_and_nothing_else(tiny_model):
    model = load_model(str(tiny_model))
    shape = RequestShape(20, 4, 2, shared=12)
    material = prepare_material(model, default_corpus(), shape, tokens=256, quick=True, seed=0)
    assert len({prompt[:12] for prompt in material.prompts}) == 1
    assert len({prompt[12:] for prompt in material.prompts}) == len(material.prompts)
    assert {len(prompt) for prompt in material.prompts} == {20}
