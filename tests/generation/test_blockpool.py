"""Who holds which block, and which content can be found again."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from hasten.errors import CapacityError
from hasten.generation.blockpool import BlockPool


def test_pool_refuses_more_than_it_has():
    pool = BlockPool(3)
    taken = pool.take(2)
    with pytest.raises(CapacityError, match="2 KV blocks"):
        pool.take(2)
    pool.give_back(taken)
    assert sorted(pool.take(3)) == [0, 1, 2]


def test_content_is_found_until_its_place_is_needed():
    pool = BlockPool(3)
    first, second = pool.take(2)
    pool.set_name(first, b"first")
    pool.set_name(second, b"second")
    pool.give_back([first, second])
    assert (pool.free, pool.cached) == (3, 2)
    assert pool.share(b"first") == first
    assert pool.free == 2
    # An empty block comes before one with content, and what is held stays.
    assert second not in pool.take(1)
    assert pool.take(1) == [second]
    assert pool.share(b"second") is None
    assert pool.share(b"first") == first
    assert pool.holders(first) == 2


def test_ends_of_sequences_go_before_their_beginnings():
    pool = BlockPool(3)
    blocks = pool.take(3)
    for block, name in zip(blocks, (b"1", b"2", b"3"), strict=True):
        pool.set_name(block, name)
    pool.give_back(blocks)
    pool.take(2)
    assert [pool.has(name) for name in (b"1", b"2", b"3")] == [True, False, False]


def test_the_longest_unused_goes_first():
    pool = BlockPool(2)
    for block, name in zip(pool.take(2), (b"a", b"b"), strict=True):
        pool.set_name(block, name)
        pool.give_back([block])
    pool.give_back([pool.share(b"a")])
    pool.take(1)
    assert (pool.has(b"a"), pool.has(b"b")) == (True, False)


def test_a_second_block_of_the_same_content_stays_nameless():
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.set_name(first, b"x")
    pool.set_name(second, b"x")
    pool.give_back([first, second])
    assert (pool.free, pool.cached) == (2, 1)
    assert pool.share(b"x") == first


def test_forgetting_leaves_blocks_with_their_holders():
    pool = BlockPool(3)
    held, unused = pool.take(2)
    pool.set_name(held, b"held")
    pool.set_name(unused, b"unused")
    pool.give_back([unused])
    pool.forget()
    assert (pool.free, pool.cached) == (2, 0)
    assert not pool.has(b"held")
    pool.give_back([held])
    assert sorted(pool.take(3)) == [0, 1, 2]


class Pool(RuleBasedStateMachine):
    """Any order of calls, against a plain account of who holds what and what it says."""

    holdings = Bundle("holdings")

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(5)
        self.held = []
        self.content = {}

    @rule(target=holdings, count=st.integers(0, 6))
    def take(self, count):
        if count > self.pool.free:
            with pytest.raises(CapacityError):
                self.pool.take(count)
            return multiple()
        blocks = self.pool.take(count)
        assert not set(blocks) & set(self.held)
        for block in blocks:
            self.content.pop(block, None)
        self.held += blocks
        return blocks

    @rule(blocks=holdings, name=st.binary(min_size=1, max_size=1))
    def set_names(self, blocks, name):
        for number, block in enumerate(blocks):
            chosen = name + bytes([number])
            named = chosen in self.content.values() or block in self.content
            self.pool.set_name(block, chosen)
            if not named:
                self.content[block] = chosen

    @rule(target=holdings, name=st.binary(min_size=1, max_size=1))
    def share(self, name):
        block = self.pool.share(name + b"\0")
        if block is None:
            assert name + b"\0" not in self.content.values()
            return multiple()
        assert self.content[block] == name + b"\0"
        self.held.append(block)
        return [block]

    @rule(blocks=consumes(holdings))
    def give_back(self, blocks):
        self.pool.give_back(blocks)
        for block in blocks:
            self.held.remove(block)

    @rule()
    def forget(self):
        self.pool.forget()
        self.content.clear()

    @invariant()
    def accounts_agree(self):
        assert self.pool.free == self.pool.total - len(set(self.held))
        assert self.pool.cached == len(set(self.content) - set(self.held))
        assert [self.pool.holders(b) for b in range(5)] == [self.held.count(b) for b in range(5)]


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_any_order_of_calls = Pool.TestCase
