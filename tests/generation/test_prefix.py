"""Names of blocks stand for what is in them and for all before it."""

from hypothesis import given
from hypothesis import strategies as st
from tiny import some_tokens

from hasten.generation.prefix import BlockNames

TOKENS = some_tokens(96)


def names(tokens=TOKENS, tenant="", adapter=None, count=3):
    return BlockNames(tenant, adapter).up_to(tokens, count)


def test_equal_beginnings_have_equal_names():
    other = [*TOKENS[:64], 0, *TOKENS[65:]]
    assert TOKENS[64] != 0
    assert names()[:2] == names(other)[:2]
    assert names()[2] != names(other)[2]
    assert len(set(names())) == 3


def test_a_block_is_named_with_what_stands_before_it():
    assert not set(names()) & set(names([*TOKENS[32:], *TOKENS[:32]]))


def test_tenants_and_adapters_share_nothing():
    roots = [
        ("", None),
        ("a", None),
        ("", "a"),
        ("", "None"),
        ("a", "b"),
        ("b", "a"),
        ("a', '", ""),
    ]
    assert len({name for root in roots for name in names(TOKENS, *root)}) == 3 * len(roots)


@given(st.lists(st.integers(0, 4), max_size=8))
def test_names_do_not_depend_on_when_they_are_asked_for(counts):
    growing = BlockNames("", None)
    for count in counts:
        # A sequence only grows, so later blocks may not be there yet.
        assert growing.up_to(some_tokens(128)[: 32 * max([count, *counts])], count) == names(
            some_tokens(128), count=count
        )
