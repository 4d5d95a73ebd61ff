"""How many threads a step gets, and that it does not matter to its result."""

import itertools

import numpy as np
import pytest
from tiny import Player, make_model, some_tokens

from hasten.errors import UsageError
from hasten.generation import Engine, engine_options
from hasten.generation.native import NativeExecutor
from hasten.generation.threads import (
    LEAST_ROUNDS,
    ROUNDS,
    ThreadChoice,
    choose_threads,
    race,
    thread_limit,
)
from hasten.types import EngineOptions, SamplingParams


def unused(tokens, threads):
    raise AssertionError("nothing is left to measure")


def saturating(enough, noise=0.0, penalty=0.0):
    """Decoding that gains nothing from more than `enough` threads; prompts gain from all."""
    ticks = itertools.count()

    def measure(tokens, threads):
        used = min(threads, enough) if tokens == 1 else threads
        wobble = 1 + noise * (next(ticks) * 7 % 5)
        return 1e-3 * wobble * (1 / used + penalty * threads)

    return measure


@pytest.mark.parametrize(
    ("options", "prefill", "decode"),
    [({"threads": 6}, 6, 6), ({"threads": 6, "decode_threads": 2}, 6, 2)],
)
def test_what_is_given_is_taken(options, prefill, decode):
    choice = choose_threads(EngineOptions(**options), unused, cores=16, physical=8)
    assert (choice.prefill, choice.decode, choice.times) == (prefill, decode, {})
    assert choice.reason == "as given"


@pytest.mark.parametrize("cores", [1, 2])
def test_without_a_choice_nothing_is_measured(cores):
    choice = choose_threads(EngineOptions(), unused, cores=cores, physical=cores)
    assert (choice.prefill, choice.decode) == (cores, cores)


def test_decoding_takes_the_fewest_threads_that_are_as_fast():
    measure = saturating(enough=4)
    choice = choose_threads(EngineOptions(), measure, cores=16, physical=16)
    assert (choice.prefill, choice.decode) == (16, 4)
    assert set(choice.times) == {16, 12, 8, 6, 4}
    assert "4: 0.25 ms" in choice.reason


def test_decoding_that_scales_takes_every_physical_core():
    choice = choose_threads(EngineOptions(), saturating(enough=64), cores=8, physical=8)
    assert (choice.prefill, choice.decode) == (8, 8)


def test_decoding_that_threads_slow_down():
    measure = saturating(enough=6, penalty=0.02)
    assert choose_threads(EngineOptions(), measure, cores=16, physical=16).decode == 6


@pytest.mark.parametrize("enough", [4, 64])
def test_noise_of_a_machine_does_not_decide(enough):
    quiet = choose_threads(EngineOptions(), saturating(enough), cores=16, physical=16)
    noisy = choose_threads(EngineOptions(), saturating(enough, noise=0.02), cores=16, physical=16)
    assert noisy.decode >= quiet.decode
    assert noisy.decode in (quiet.decode, 6, 16)


@pytest.mark.parametrize(("share", "prefill"), [(0.8, 8), (0.97, 4), (1.3, 4)])
def test_siblings_read_prompts_where_they_clearly_help(share, prefill):
    def measure(tokens, threads):
        return 1.0 if threads <= 4 else share

    choice = choose_threads(EngineOptions(), measure, cores=8, physical=4)
    assert choice.prefill == prefill
    assert choice.decode <= 4


def test_decode_threads_alone():
    options = EngineOptions(decode_threads=3)
    choice = choose_threads(options, unused, cores=8, physical=8)
    assert (choice.prefill, choice.decode) == (8, 3)
    assert choose_threads(EngineOptions(decode_threads=9), unused, cores=8, physical=8).prefill == 9


class Watch:
    """A clock that measurements move."""

    def __init__(self):
        self.now = 0.0

    def measure(self, threads):
        self.now += 1.0
        return 1.0


@pytest.mark.parametrize(("budget", "rounds"), [(0.5, 0), (4.0, 1), (1000.0, ROUNDS)])
def test_a_race_keeps_to_its_budget(budget, rounds):
    watch = Watch()
    times = race(watch.measure, [4, 3, 2], budget=budget, clock=lambda: watch.now)
    assert {threads: len(found) for threads, found in times.items()} == dict.fromkeys(
        (4, 3, 2), rounds
    )


def test_too_few_rounds_leave_the_default():
    assert LEAST_ROUNDS > 1
    fast = iter([0.5])

    def measure(tokens, threads):
        # The first measurement outlasts the budget by the real clock only in a slow model.
        return next(fast, 0.5) if threads < 16 else 1.0

    choice = choose_threads(EngineOptions(), measure, cores=16, physical=16)
    assert choice.decode < 16  # it would win
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(race, "__kwdefaults__", race.__kwdefaults__ | {"budget": 0.0})
        slow = choose_threads(EngineOptions(), measure, cores=16, physical=16)
    assert slow.decode == 16
    assert "too slow to measure" in slow.reason


def test_threads_grow_with_the_tokens_of_a_step():
    choice = ThreadChoice(16, 4, "")
    assert [choice.for_tokens(tokens) for tokens in (1, 2, 3, 4, 5, 512)] == [4, 8, 12, 16, 16, 16]


@pytest.mark.parametrize(
    ("options", "limit"),
    [({"threads": 3}, 3), ({"threads": 3, "decode_threads": 2}, 3), ({"decode_threads": 99}, 99)],
)
def test_the_team_has_all_that_a_step_may_use(options, limit):
    assert thread_limit(EngineOptions(**options)) == limit


@pytest.mark.parametrize("threads", [2, 5])
def test_the_bits_do_not_depend_on_the_threads_of_a_step(isa, threads):
    model = make_model()
    sequences = [some_tokens(n, seed=n) for n in (40, 9)]
    want = Player(model, sequences, isa=isa, weights="int8:32").alone()
    for decode in range(1, threads + 1):
        options = {"threads": threads, "decode_threads": decode, "weights": "int8:32"}
        np.testing.assert_array_equal(
            Player(model, sequences, isa=isa, **options).together(1), want, f"{decode=}"
        )


def test_a_measured_engine_answers_as_any_other(monkeypatch):
    """What the measurement leaves in buffers and cache does not show."""
    model = make_model()
    sampling = SamplingParams(max_tokens=20)

    def answer(options):
        with Engine(model, options) as engine:
            outputs = list(engine.generate(some_tokens(10), sampling))
            return [out.tokens for out in outputs], engine.thread_choice

    want, _ = answer(EngineOptions(max_context=64, threads=1))
    monkeypatch.setattr("hasten.generation.threads.available_cores", lambda: 8)
    monkeypatch.setattr("hasten.generation.threads.physical_cores", lambda: 4)
    got, choice = answer(EngineOptions(max_context=64))
    assert got == want
    assert "for decoding" in choice.reason
    assert "for prompts" in choice.reason
    assert choice.as_dict()["prefill"] == choice.prefill


def test_decode_threads_out_of_range():
    model = make_model()
    for options in ({"decode_threads": 0}, {"threads": 2, "decode_threads": 3}):
        with pytest.raises(UsageError, match="decode_threads"):
            Engine(model, EngineOptions(max_context=64, **options))


def test_a_recipe_of_a_larger_machine():
    model = make_model()
    model.recipe = {"settings": {"threads": 4096, "decode_threads": 1024}}
    options = engine_options(model)
    assert options.decode_threads is not None
    assert 1 <= options.decode_threads <= options.threads < 1024


def test_the_time_of_a_prompt_is_told_by_kind_of_op():
    model = make_model()
    executor = NativeExecutor(model, EngineOptions(threads=2, max_context=64), 4, 64)
    seconds = executor.op_seconds(40)
    assert set(seconds) == {type(op).__name__ for op in executor.graph.ops}
    assert all(value > 0 for value in seconds.values())
