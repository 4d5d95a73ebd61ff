"""What executors tell of the time of their ops."""

import numpy as np
import pytest
from tiny import Player, make_model, some_tokens

from hasten import _native
from hasten.errors import UsageError
from hasten.generation import Engine
from hasten.generation.op_times import PhaseTimes, phase_of
from hasten.types import Batch, EngineOptions, Request, SamplingParams

SEQUENCES = [some_tokens(n, seed=n) for n in (40, 3)]
EXECUTORS = pytest.mark.parametrize("executor", ["native", "reference", "torch"])


def batch(*lengths, begin=0):
    """A batch of sequences of these lengths, all beginning at a position."""
    positions = np.concatenate([np.arange(begin, begin + n) for n in lengths]).astype(np.int32)
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    tables = np.zeros((len(lengths), 4), np.int32)
    return Batch(np.zeros_like(positions), positions, starts, tables, starts[1:] - np.int32(1))


def test_phases():
    assert phase_of(batch(7, 2)) == "prefill"
    assert phase_of(batch(1, 1)) == "decode"
    assert phase_of(batch(1, 5)) == "mixed"


def test_what_a_phase_counts():
    times = PhaseTimes(3)
    times.add(batch(2, 3), 0.5)
    times.add(batch(1, begin=4), 0.25)
    assert (times.steps, times.tokens, times.rows, times.sequences) == (2, 6, 3, 3)
    assert times.seconds == 0.75
    assert times.positions == {0: 2, 1: 2, 2: 1, 4: 1}
    assert times.ends == {1: 1, 2: 1, 4: 1}


@EXECUTORS
@pytest.mark.parametrize("fuse", [True, False])
def test_ops_take_the_time_of_the_call(executor, fuse):
    player = Player(make_model(), SEQUENCES, executor=executor, fuse=fuse, threads=2)
    with player.executor.profile() as times:
        for _ in range(3):
            player.together(33)
    found = times.phases
    assert set(found) <= {"prefill", "mixed", "decode"}
    for phase in found.values():
        seconds, waiting = phase.ops
        assert seconds.shape == (len(times.graph.ops),)
        assert (seconds > 0).all()
        assert (waiting >= 0).all()
        assert (waiting <= seconds).all()
        assert seconds.sum() <= phase.seconds
    assert sum(phase.tokens for phase in found.values()) == 3 * sum(map(len, SEQUENCES))


@EXECUTORS
def test_a_profile_changes_no_bit(executor):
    plain = Player(make_model(), SEQUENCES, executor=executor, threads=2).together(33)
    player = Player(make_model(), SEQUENCES, executor=executor, threads=2)
    with player.executor.profile():
        np.testing.assert_array_equal(player.together(33), plain)


@EXECUTORS
def test_a_profile_ends_with_its_block(executor):
    player = Player(make_model(), SEQUENCES, executor=executor)
    with player.executor.profile() as times:
        player.together(33)
    steps = [phase.steps for phase in times.phases.values()]
    player.together(33)
    assert [phase.steps for phase in times.phases.values()] == steps


@EXECUTORS
def test_one_profile_at_a_time(executor):
    player = Player(make_model(), SEQUENCES, executor=executor)
    with (
        player.executor.profile(),
        pytest.raises(UsageError, match="is being taken"),
        player.executor.profile(),
    ):
        pass
    with player.executor.profile():
        pass


def test_times_of_another_shape_are_refused():
    player = Player(make_model(), SEQUENCES[:1])
    program = player.executor._program
    whole = batch(3)
    output = np.empty((1, program.output_width), np.float32)
    arrays = (whole.tokens, whole.positions, whole.starts, whole.block_tables, whole.logit_rows)
    assert isinstance(program, _native.Program)
    for shape in ((1, program.ops), (2, program.ops - 1)):
        with pytest.raises(ValueError, match="a column for each op"):
            program.run(*arrays, output, times=np.zeros(shape))


def open_engine(**options):
    return Engine(make_model(), EngineOptions(max_context=128, **options))


def answer(engine, *prompts, output=6):
    """Runs requests side by side; their tokens."""
    sampling = SamplingParams(max_tokens=output, ignore_eos=True)
    found = {}
    for number, prompt in enumerate(prompts):
        engine.submit(Request(str(number), tuple(prompt), sampling))
    while engine.has_work:
        for one in engine.step():
            found.setdefault(one.request_id, []).extend(one.tokens)
    return found


@EXECUTORS
def test_the_parts_of_an_engine_add_up(executor):
    with open_engine(executor=executor, chunk=64, max_sequences=2) as engine:
        plain = answer(engine, some_tokens(50), some_tokens(20, seed=1), some_tokens(9, seed=2))
        engine.forget_prefixes()
        with engine.profile() as profile:
            again = answer(engine, some_tokens(50), some_tokens(20, seed=1), some_tokens(9, seed=2))
    assert again == plain
    assert len(profile.queue) == 3
    assert profile.intake > 0
    assert set(profile.steps) == set(profile.ops.phases) >= {"prefill", "decode"}
    for phase, seconds in profile.steps.items():
        parts = profile.parts[phase]
        assert all(part >= 0 for part in parts.values())
        assert parts["model"] >= profile.ops.phases[phase].seconds
        assert 0 < sum(parts.values()) <= seconds


def test_what_finds_no_slot_waits_in_the_queue():
    with open_engine(max_sequences=2) as engine, engine.profile() as profile:
        sampling = SamplingParams(max_tokens=2, ignore_eos=True)
        for number in range(3):
            engine.submit(Request(str(number), tuple(some_tokens(9, seed=number)), sampling))
        engine.step()
        assert len(profile.queue) == 2
        while engine.has_work:
            engine.step()
    assert len(profile.queue) == 3


def test_an_engine_is_as_before_after_its_profile():
    with open_engine() as engine:
        with engine.profile():
            pass
        before = {name: set(vars(part)) for name, part in vars(engine).items() if vars_of(part)}
        own = set(vars(engine))
        with engine.profile() as profile:
            answer(engine, some_tokens(9))
            with pytest.raises(UsageError, match="is being taken"), engine.profile():
                pass
            assert "step" in vars(engine)
        assert set(vars(engine)) == own
        assert {name: set(vars(getattr(engine, name))) for name in before} == before
        steps = dict(profile.steps)
        answer(engine, some_tokens(9))
        assert profile.steps == steps
        assert profile.ops.phases["decode"].steps == 5


def vars_of(part):
    return getattr(part, "__dict__", None)
