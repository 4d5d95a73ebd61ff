"""What the scheduler puts into a batch, and who owns which block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import CapacityError
from hasten.generation.kvcache import BlockPool, blocks_for
from hasten.generation.scheduler import Scheduler, Sequence
from hasten.generation.text import TextStream
from hasten.types import Request, SamplingParams

CONTEXT = 128


def sequence(name, prompt, max_tokens=8):
    request = Request(name, tuple(range(prompt)), SamplingParams(max_tokens=max_tokens))
    return Sequence(request, TextStream(None, ()), list(request.prompt))


def scheduler(*sequences, blocks=16, max_sequences=4, budget=32):
    pool = BlockPool(blocks)
    made = Scheduler(pool, CONTEXT, max_sequences, budget)
    made.waiting.extend(sequences)
    return made, pool


def advance(made, batch, chosen):
    """What the engine does after a run, with token 0 as every sample."""
    for one, begin, end in zip(chosen, batch.starts, batch.starts[1:], strict=False):
        one.computed += int(end - begin)
        if one.computed == len(one.tokens):
            one.tokens.append(0)
            if one.generated >= one.request.sampling.max_tokens or len(one.tokens) >= CONTEXT:
                made.finish(one)


def test_a_long_prompt_is_read_in_pieces():
    made, _ = scheduler(sequence("a", 70), budget=32)
    sizes, wanted = [], []
    for _ in range(3):
        batch, chosen = made.schedule()
        sizes.append(len(batch.tokens))
        wanted.append(batch.logit_rows.tolist())
        assert batch.positions.tolist() == batch.tokens.tolist()
        advance(made, batch, chosen)
    assert (sizes, wanted) == ([32, 32, 6], [[], [], [5]])


def test_running_sequences_come_before_prompts():
    first = sequence("first", 4)
    made, _ = scheduler(first, budget=8)
    advance(made, *made.schedule())
    made.waiting.append(sequence("second", 50))
    batch, chosen = made.schedule()
    assert [one.request.id for one in chosen] == ["first", "second"]
    assert batch.starts.tolist() == [0, 1, 8]
    assert batch.logit_rows.tolist() == [0]


def test_tables_hold_the_blocks_of_each():
    made, _ = scheduler(sequence("a", 40), sequence("b", 4))
    batch, chosen = made.schedule()
    for table, one in zip(batch.block_tables, chosen, strict=True):
        assert table[: len(one.blocks)].tolist() == one.blocks
        assert (table[len(one.blocks) :] == -1).all()
    assert {array.dtype for array in (batch.tokens, batch.positions, batch.block_tables)} == {
        np.dtype(np.int32)
    }


def test_a_sequence_waits_until_its_blocks_are_free():
    made, pool = scheduler(sequence("a", 40), sequence("b", 40), blocks=3)
    made.schedule()
    assert [one.request.id for one in made.running] == ["a"]
    made.finish(made.running[0])
    assert pool.free == 3
    made.schedule()
    assert [one.request.id for one in made.running] == ["b"]


def test_only_so_many_run_at_once():
    made, _ = scheduler(*(sequence(str(i), 4) for i in range(5)), max_sequences=2)
    made.schedule()
    assert (len(made.running), len(made.waiting)) == (2, 3)


def test_finish_takes_waiting_sequences_out():
    waiting = sequence("a", 4)
    made, pool = scheduler(waiting)
    made.finish(waiting)
    assert not made.has_work
    assert pool.free == pool.total


def test_pool_refuses_more_than_it_has():
    pool = BlockPool(3)
    taken = pool.take(2)
    with pytest.raises(CapacityError, match="2 KV blocks"):
        pool.take(2)
    pool.give_back(taken)
    assert sorted(pool.take(3)) == [0, 1, 2]


@settings(deadline=None)
@given(
    jobs=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 40)), min_size=1, max_size=8),
    blocks=st.integers(4, 12),
    max_sequences=st.integers(1, 4),
    budget=st.integers(4, 64),
)
def test_everything_is_computed_once(jobs, blocks, max_sequences, budget):
    sequences = [sequence(str(i), n, limit) for i, (n, limit) in enumerate(jobs)]
    made, pool = scheduler(*sequences, blocks=blocks, max_sequences=max_sequences, budget=budget)
    for _ in range(2000):
        if not made.has_work:
            break
        batch, chosen = made.schedule()
        assert 0 < len(batch.tokens) <= budget
        owned = [block for one in made.running for block in one.blocks]
        assert len(owned) == len(set(owned)) == pool.total - pool.free
        for one, begin, end in zip(chosen, batch.starts, batch.starts[1:], strict=False):
            assert batch.positions[begin:end].tolist() == list(
                range(one.computed, one.computed + end - begin)
            )
            assert blocks_for(one.computed + int(end - begin)) <= len(one.blocks)
        advance(made, batch, chosen)
    assert not made.has_work
    assert pool.free == pool.total
    for one, (prompt, limit) in zip(sequences, jobs, strict=True):
        assert len(one.tokens) == min(prompt + limit, CONTEXT)
