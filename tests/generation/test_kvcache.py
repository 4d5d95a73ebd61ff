"""How large the cache is, by the memory there is."""

import pytest
from tiny import make_model

from hasten.errors import CapacityError, UsageError
from hasten.generation import Engine, kvcache
from hasten.generation.kvcache import blocks_for, choose_cache_size, kv_bytes_per_block
from hasten.types import EngineOptions

CONFIG = make_model(head_dim=32, max_position=1024).config
BLOCK = kv_bytes_per_block("bf16", 2, 2, 32)
WEIGHTS = 1000 * BLOCK


@pytest.fixture
def memory(monkeypatch):
    """Sets how many blocks fit beside the weights."""

    def limit(blocks):
        monkeypatch.setattr(kvcache, "memory_limit", lambda: WEIGHTS + blocks * BLOCK)

    limit(10**6)
    return limit


def size(**options):
    found = choose_cache_size(CONFIG, EngineOptions(**options), WEIGHTS)
    return found.blocks, found.context


def test_there_is_room_for_all_sequences_at_their_longest(memory):
    assert size(max_sequences=3) == (3 * 32, 1024)
    assert size(max_sequences=3, max_context=100) == (3 * 4, 100)


def test_half_of_what_the_weights_leave_is_the_most(memory):
    memory(100)
    assert size(max_sequences=9) == (50, 1024)


def test_one_longest_sequence_may_take_all(memory):
    memory(40)
    assert size(max_sequences=9) == (32, 1024)
    assert size(max_sequences=9, max_context=1000) == (32, 1000)


def test_the_context_shrinks_only_where_nobody_asked_for_it(memory):
    memory(31)
    assert size() == (31, 31 * 32)
    with pytest.raises(CapacityError, match=r"1000 tokens"):
        size(max_context=1000)
    memory(0)
    with pytest.raises(CapacityError):
        size()


def test_given_memory_is_used_whole_and_never_exceeded(memory):
    assert size(kv_memory=70 * BLOCK - 1, max_sequences=1) == (69, 1024)
    assert size(kv_memory=5 * BLOCK) == (5, 160)
    with pytest.raises(CapacityError, match="161 tokens"):
        size(kv_memory=5 * BLOCK, max_context=161)
    with pytest.raises(CapacityError):
        size(kv_memory=BLOCK - 1)
    memory(4)
    with pytest.raises(CapacityError):
        size(kv_memory=5 * BLOCK)


def test_formats_of_fewer_bytes_hold_more(memory):
    blocks = {kv: size(kv_memory=64 * BLOCK, kv=kv)[0] for kv in ("f32", "bf16", "int8")}
    assert blocks["f32"] == 32
    assert 64 < blocks["int8"] < 128
    assert size(kv_memory=64 * BLOCK, executor="reference")[0] == 32


def test_a_context_beyond_the_model():
    with pytest.raises(UsageError, match="1025"):
        size(max_context=1025)


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("head_dim", [10, 32, 80])
def test_what_is_allocated_is_not_more_than_was_given(kv, head_dim):
    options = EngineOptions(kv_memory=300_000, kv=kv, max_context=64, threads=1)
    with Engine(make_model(head_dim=head_dim), options) as engine:
        assert 150_000 < engine.memory["kv_cache"] <= 300_000
        assert engine.statistics().kv_blocks >= blocks_for(64)
