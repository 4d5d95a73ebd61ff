"""What the scheduler puts into a batch, and who gives way to whom."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import CapacityError
from hasten.generation.adapters import LoadedAdapter
from hasten.generation.blockpool import BlockPool
from hasten.generation.kvcache import blocks_for
from hasten.generation.pacing import Pacer
from hasten.generation.sampler import TokenSampler
from hasten.generation.scheduler import Scheduler
from hasten.generation.sequence import Sequence
from hasten.generation.text import TextStream
from hasten.types import Request, SamplingParams


def new_sequence(request, arrival, adapter=None):
    sampler = TokenSampler(request.sampling, request.prompt)
    return Sequence(request, TextStream(None, ()), sampler, arrival, adapter=adapter)


class Scene:
    """A scheduler, the sequences that were given to it, and what an engine does between steps."""

    def __init__(
        self, blocks=16, max_sequences=4, budget=32, stretch=float("inf"), prefix_cache=True
    ):
        self.pool = BlockPool(blocks)
        pacer = Pacer(stretch)
        self.scheduler = Scheduler(
            self.pool, max_sequences, budget, pacer, prefix_cache=prefix_cache
        )
        self.arrived = 0

    def add(self, name, prompt, max_tokens=8, *, start=0, adapter=None, **fields):
        """A request whose prompt has so many tokens, all different from those of other starts."""
        tokens = tuple(range(start, start + prompt))
        request = Request(name, tokens, SamplingParams(max_tokens=max_tokens), **fields)
        sequence = new_sequence(request, self.arrived, adapter)
        self.arrived += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self, seconds=lambda decoding, prompts: 0.01):
        """One step, with token 0 as every sample; the plan that was run.

        Args:
            seconds: What it takes, by the sequences that decode and the tokens of prompts.
        """
        plan = self.scheduler.schedule()
        prompts = len(plan.batch.tokens) - plan.decoding
        self.scheduler.update(plan, seconds(plan.decoding, prompts))
        for sequence in plan.shares:
            if sequence.remaining == 0:
                sequence.tokens.append(0)
                if sequence.generated >= sequence.request.sampling.max_tokens:
                    self.scheduler.remove(sequence)
        return plan

    @property
    def running(self):
        return sorted(sequence.request.id for sequence in self.scheduler.running)

    @property
    def waiting(self):
        return [sequence.request.id for sequence in self.scheduler.waiting]


def shares(plan):
    return {sequence.request.id: count for sequence, count in plan.shares.items()}


def test_a_long_prompt_is_read_in_pieces():
    scene = Scene(budget=32)
    scene.add("a", 70)
    sizes, wanted = [], []
    for _ in range(3):
        batch = scene.step().batch
        sizes.append(len(batch.tokens))
        wanted.append(batch.logit_rows.tolist())
        assert batch.positions.tolist() == batch.tokens.tolist()
    assert (sizes, wanted) == ([32, 32, 6], [[], [], [5]])


def test_running_sequences_come_before_prompts():
    scene = Scene(budget=8)
    scene.add("first", 4)
    scene.step()
    scene.add("second", 50)
    plan = scene.step()
    assert shares(plan) == {"first": 1, "second": 7}
    assert plan.decoding == 1
    assert plan.batch.starts.tolist() == [0, 1, 8]
    assert plan.batch.logit_rows.tolist() == [0]


def test_tables_hold_the_blocks_of_each():
    scene = Scene(budget=64)
    scene.add("a", 40)
    scene.add("b", 4, start=100)
    plan = scene.step()
    for table, one in zip(plan.batch.block_tables, plan.shares, strict=True):
        assert table[: len(one.blocks)].tolist() == one.blocks
        assert (table[len(one.blocks) :] == -1).all()
    arrays = (plan.batch.tokens, plan.batch.positions, plan.batch.block_tables)
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}


def test_only_so_many_run_at_once():
    scene = Scene(max_sequences=2)
    for i in range(5):
        scene.add(str(i), 4, start=10 * i)
    scene.step()
    assert (scene.running, scene.waiting) == (["0", "1"], ["2", "3", "4"])


def test_no_more_run_than_a_call_takes_tokens():
    scene = Scene(max_sequences=9, budget=3)
    for i in range(5):
        scene.add(str(i), 1)
    for _ in range(6):
        assert len(scene.step().batch.tokens) <= 3
    assert len(scene.running) == 3


def test_blocks_are_taken_as_a_sequence_grows():
    scene = Scene(blocks=16)
    one = scene.add("a", 20, max_tokens=500)
    for _ in range(13):
        scene.step()
        assert len(one.blocks) == 1
    scene.step()
    assert len(one.blocks) == 2


def test_a_prompt_waits_until_its_blocks_are_free():
    scene = Scene(blocks=4, budget=128)
    scene.add("a", 60, max_tokens=3)
    scene.add("b", 60, start=100)
    scene.step()
    # Two blocks are free, but one of them is for `a` to grow.
    assert (scene.running, scene.waiting) == (["a"], ["b"])
    scene.step()
    scene.step()
    assert shares(scene.step()) == {"b": 60}


def test_the_last_gives_way_when_blocks_run_out():
    scene = Scene(blocks=4, budget=128)
    first = scene.add("first", 31, max_tokens=60)
    second = scene.add("second", 31, max_tokens=60, start=100)
    while second.preemptions == 0:
        scene.step()
        assert scene.pool.free == 4 - len(first.blocks) - len(second.blocks)
    assert (scene.running, scene.waiting) == (["first"], ["second"])
    assert second.blocks == []
    assert second.computed == 0
    assert len(second.tokens) > 31 + 30
    while scene.scheduler.has_work:
        scene.step()
    assert (first.preemptions, first.generated, second.generated) == (0, 60, 60)
    assert scene.scheduler.preemptions == second.preemptions


def test_priority_comes_before_arrival():
    scene = Scene(max_sequences=1, budget=16)
    scene.add("late", 4, max_tokens=1, priority=1)
    scene.add("early", 4, max_tokens=1, priority=-1)
    scene.add("earlier", 4, max_tokens=1, priority=-1)
    assert [next(iter(shares(scene.step()))) for _ in range(3)] == ["early", "earlier", "late"]


def test_priority_takes_a_slot_from_the_last_of_lower_ones():
    scene = Scene(max_sequences=2)
    scene.add("a", 4, priority=1, max_tokens=50)
    scene.add("b", 4, priority=1, max_tokens=50)
    scene.step()
    scene.add("same", 4, priority=1)
    scene.step()
    assert scene.running == ["a", "b"]
    scene.add("urgent", 4)
    scene.step()
    assert (scene.running, scene.waiting) == (["a", "urgent"], ["b", "same"])


def test_priority_takes_blocks_only_where_that_suffices():
    scene = Scene(blocks=6, budget=300)
    scene.add("equal", 90, max_tokens=200)
    scene.add("lower", 20, max_tokens=200, priority=1, start=200)
    scene.step()
    scene.add("large", 100, start=400)
    scene.step()
    assert scene.running == ["equal", "lower"]
    scene.scheduler.remove(scene.scheduler.waiting[0])
    scene.add("small", 50, start=600)
    scene.step()
    assert (scene.running, scene.waiting) == (["equal", "small"], ["lower"])


def test_an_urgent_prompt_is_read_before_one_that_has_begun():
    scene = Scene(budget=16, blocks=64)
    scene.add("long", 500, priority=1)
    scene.step()
    scene.add("urgent", 20, start=1000)
    assert shares(scene.step()) == {"urgent": 16}
    assert shares(scene.step()) == {"urgent": 4, "long": 12}


def test_deadlines():
    scene = Scene(max_sequences=1)
    scene.add("a", 4, deadline=5.0)
    scene.add("b", 4, deadline=7.0)
    scene.add("c", 4)
    scene.step()
    assert scene.scheduler.expired(4.9) == []
    assert [one.request.id for one in scene.scheduler.expired(5.0)] == ["a"]
    late = scene.scheduler.expired(9.0)
    assert sorted(one.request.id for one in late) == ["a", "b"]
    for one in late:
        scene.scheduler.remove(one)
    assert scene.scheduler.expired(9.0) == []
    scene.step()
    assert scene.running == ["c"]


def test_equal_beginnings_are_computed_once():
    scene = Scene(blocks=32, budget=200)
    first = scene.add("first", 100)
    second = scene.add("second", 101)
    # The second waits for what the first computes in this step.
    assert shares(scene.step()) == {"first": 100}
    assert shares(scene.step()) == {"first": 1, "second": 101 - 96}
    assert (first.cached_tokens, second.cached_tokens) == (0, 96)
    assert second.blocks[:3] == first.blocks[:3]
    assert second.blocks[3:] != first.blocks[3:]


def test_the_last_token_is_computed_always():
    scene = Scene(blocks=32, budget=200)
    scene.add("first", 64, max_tokens=1)
    scene.step()
    again = scene.add("again", 64, max_tokens=1)
    assert shares(scene.step()) == {"again": 32}
    assert again.cached_tokens == 0 or again.generated == 1


def test_what_was_generated_is_found_too():
    scene = Scene(blocks=32, budget=200)
    first = scene.add("first", 20, max_tokens=50)
    while scene.scheduler.has_work:
        scene.step()
    request = Request("next", (*first.tokens, 1, 2), SamplingParams(max_tokens=1))
    scene.scheduler.add(new_sequence(request, 9))
    assert shares(scene.step()) == {"next": 72 - 64}


@pytest.mark.parametrize("other", [{"tenant": "x"}, {"adapter": LoadedAdapter("x", 3, "digest")}])
def test_tenants_and_adapters_share_nothing(other):
    scene = Scene(blocks=32, budget=200)
    scene.add("first", 100)
    scene.add("second", 100, **other)
    assert shares(scene.step()) == {"first": 100, "second": 100}


def test_batches_name_the_slots_of_adapters():
    scene = Scene(blocks=32, budget=200)
    scene.add("plain", 40)
    assert scene.step().batch.adapters is None
    scene.add("adapted", 20, adapter=LoadedAdapter("x", 3, "digest"))
    assert scene.step().batch.adapters.tolist() == [-1, 3]


def test_without_a_prefix_cache_all_is_computed():
    scene = Scene(blocks=32, budget=200, prefix_cache=False)
    scene.add("first", 100)
    scene.add("second", 100)
    assert shares(scene.step()) == {"first": 100, "second": 100}
    assert scene.pool.cached == 0


def test_logits_of_the_prompt_are_computed_anew():
    scene = Scene(blocks=32, budget=300)
    scene.add("first", 100)
    scene.step()
    request = Request("scored", tuple(range(100)), SamplingParams(max_tokens=1, prompt_logprobs=0))
    scene.scheduler.add(new_sequence(request, 9))
    assert shares(scene.step()) == {"first": 1, "scored": 100}


def test_a_preempted_sequence_finds_its_own_blocks_again():
    scene = Scene(blocks=8, max_sequences=1, budget=200)
    scene.add("low", 100, priority=1, max_tokens=20)
    scene.step()
    scene.add("urgent", 4, max_tokens=1, start=500)
    assert shares(scene.step()) == {"urgent": 4}
    assert shares(scene.step()) == {"low": 101 - 96}


def test_prompts_are_paced_while_others_decode():
    scene = Scene(blocks=64, budget=512, stretch=2.0)
    scene.add("running", 10, max_tokens=1000)
    for _ in range(5):
        scene.step()
    scene.add("long", 1000, start=100)
    plan = scene.step(lambda decoding, prompts: 0.02)
    assert 0 < shares(plan)["long"] < 100
    scene.scheduler.remove(scene.scheduler.running[0])
    assert shares(scene.step()) == {"long": 512}


@pytest.mark.parametrize(("priority", "least", "most"), [(0, 5, 16), (1, 1, 2)])
def test_a_queue_of_short_answers_runs_side_by_side(priority, least, most):
    """But for those that decode, the less urgent do not count."""
    scene = Scene(blocks=512, max_sequences=16, budget=512, stretch=1.75, prefix_cache=False)
    scene.add("urgent", 10, max_tokens=10_000)
    for number in range(300):
        scene.add(str(number), 40, max_tokens=8, start=100, priority=priority)

    def took(decoding, prompts):
        return 0.01 + 0.0005 * decoding + 0.001 * prompts

    decoding = [scene.step(took).decoding - 1 for _ in range(250)]
    assert least <= np.median(decoding[50:]) <= most


def test_blocks_that_are_held_elsewhere():
    scene = Scene(blocks=3)
    held = scene.pool.take(2)
    scene.add("a", 40)
    with pytest.raises(CapacityError, match=r"2 KV blocks and 1 are free.*score"):
        scene.scheduler.schedule()
    scene.pool.give_back(held)
    scene.step()
    assert scene.running == ["a"]


@settings(deadline=None, max_examples=60)
@given(
    jobs=st.lists(
        st.tuples(st.integers(1, 100), st.integers(1, 40), st.integers(0, 2), st.integers(0, 60)),
        min_size=1,
        max_size=8,
    ),
    blocks=st.integers(5, 12),
    max_sequences=st.integers(1, 4),
    budget=st.integers(4, 64),
    prefix_cache=st.booleans(),
)
def test_everything_comes_to_its_end(jobs, blocks, max_sequences, budget, prefix_cache):
    scene = Scene(blocks, max_sequences, budget, prefix_cache=prefix_cache)
    sequences = []
    for step in range(5000):
        for i, (prompt, limit, priority, arrival) in enumerate(jobs):
            if arrival == step:
                # Two kinds of prompts, so that some begin alike.
                sequences.append(
                    scene.add(str(i), prompt, limit, priority=priority, start=i % 2 * 500)
                )
        if not scene.scheduler.has_work:
            if len(sequences) == len(jobs):
                break
            continue
        known = {one: one.computed for one in scene.scheduler.running}
        plan = scene.scheduler.schedule()
        assert 0 < len(plan.batch.tokens) <= budget
        assert len(scene.scheduler.running) <= max_sequences
        held = {block for one in scene.scheduler.running for block in one.blocks}
        assert len(held) == scene.pool.total - scene.pool.free
        written = []
        for (one, count), begin in zip(plan.shares.items(), plan.batch.starts, strict=False):
            positions = plan.batch.positions[begin : begin + count].tolist()
            assert positions == list(range(one.computed, one.computed + count))
            assert one.computed >= known.get(one, 0)
            assert blocks_for(one.computed + count) == len(one.blocks)
            written += {one.blocks[position // 32] for position in positions}
        # Nobody writes where another reads or writes.
        assert all(scene.pool.holders(block) == 1 for block in written)
        scene.scheduler.update(plan, 0.01)
        for one in plan.shares:
            if one.remaining == 0:
                one.tokens.append(len(one.tokens))
                if one.generated >= one.request.sampling.max_tokens:
                    scene.scheduler.remove(one)
    assert not scene.scheduler.has_work
    assert scene.pool.free == scene.pool.total
    assert all(scene.pool.holders(block) == 0 for block in range(blocks))
    assert [one.generated for one in sequences] == [
        one.request.sampling.max_tokens for one in sequences
    ]
