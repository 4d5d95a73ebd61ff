"""Sharing memory out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import CapacityError
from hasten.generation.embedding import Embedder, embedder_options
from hasten.generation.engine import Engine
from hasten.models import load_model
from hasten.serve.registry.memory import (
    PROCESS_BYTES,
    MemoryBudget,
    Need,
    estimate,
    server_budget,
)
from hasten.types import EngineOptions

GIB = 1 << 30
SIZES = st.integers(0, 1000)


@given(
    total=SIZES,
    held=st.lists(SIZES, max_size=3),
    fixed=SIZES,
    least=SIZES,
    more=SIZES,
    coming=st.lists(SIZES, max_size=3),
)
def test_a_share_fits_and_serves(total, held, fixed, least, more, coming):
    budget = MemoryBudget(total)
    for owner, size in enumerate(held):
        budget.hold(owner, size)
    need = Need(fixed, least, least + more)
    share = budget.share(need, [Need(size, 0, 1000) for size in coming])
    if share is None:
        assert budget.free < fixed + least
    else:
        assert need.least <= share <= need.wanted
        assert fixed + share <= budget.free


def test_one_engine_leaves_half_of_what_is_left():
    budget = MemoryBudget(100)
    assert budget.share(Need(20, 10, 1000)) == 40
    assert budget.share(Need(20, 10, 30)) == 30


def test_engines_that_come_together_have_equal_shares():
    budget = MemoryBudget(170)
    needs = [Need(20, 1, 1000), Need(10, 1, 1000), Need(20, 1, 1000)]
    caches = []
    for number, need in enumerate(needs):
        caches.append(budget.share(need, needs[number + 1 :]))
        budget.hold(number, need.fixed + caches[-1])
    assert caches == [30, 30, 30]
    assert budget.free == 30


def test_what_is_released_is_free():
    budget = MemoryBudget(100)
    budget.hold("a", 70)
    budget.hold("a", 60)
    assert budget.free == 40
    budget.release("a")
    budget.release("a")
    assert budget.free == 100


def test_the_server_keeps_a_part_of_the_machine():
    assert server_budget(5 * GIB) == 5 * GIB
    from hasten.machine import memory_limit

    assert 0.8 * memory_limit() < server_budget(None) < memory_limit()


def test_a_model_that_never_fits_is_refused(tiny_model):
    with pytest.raises(CapacityError, match="takes"):
        estimate(load_model(tiny_model), "generate", EngineOptions(), 1 << 20)


def test_a_context_that_the_user_chose_is_not_cut(tiny_model):
    model, options = load_model(tiny_model), EngineOptions(threads=1)
    roomy = estimate(model, "generate", options, GIB)
    tight = roomy.fixed + roomy.least - 1
    assert 0 < estimate(model, "generate", options, tight).least < roomy.least
    with pytest.raises(CapacityError):
        estimate(model, "generate", replace(options, max_context=128), tight)


def test_a_cache_that_the_user_chose_is_taken_as_it_is(tiny_model):
    need = estimate(load_model(tiny_model), "generate", EngineOptions(kv_memory=1 << 20), GIB)
    assert need.least == need.wanted == 1 << 20


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_estimates_are_near_what_engines_take(name):
    model = load_model(name)
    if name == "minilm":
        options = embedder_options(model, threads=1)
        need = estimate(model, "embed", options, 8 * GIB)
        engine = Embedder(model, options)
    else:
        options = EngineOptions(threads=1, max_context=512, max_sequences=2)
        need = estimate(model, "generate", options, 8 * GIB)
        engine = Engine(model, options)
    with engine:
        taken = PROCESS_BYTES + sum(engine.memory.values())
    assert 0.9 * taken <= need.fixed + need.wanted <= 1.2 * taken
