"""Parts, their prices, and the largest mixture that is admitted."""

from hypothesis import given
from hypothesis import strategies as st
from made_up import accuracy

from hasten.generation.formats import MatrixFormat
from hasten.optimize.candidates import Candidate
from hasten.optimize.sensitivity import (
    Part,
    Sensitivity,
    bytes_saved,
    largest_admitted,
    measure_parts,
    mix,
    parts_of,
)

BASE = Candidate("carried", "bf16", 2)


def test_layers_are_parts_in_their_order_and_other_matrices_stand_alone():
    names = [f"model.layers.{i}.{kind}.weight" for i in (10, 2) for kind in ("mlp.up", "attn.q")]
    parts = parts_of([*names, "model.embed_tokens.weight"])
    assert [part.name for part in parts] == ["model.embed_tokens", "layer 2", "layer 10"]
    assert parts[1].tensors == ("model.layers.2.attn.q.weight", "model.layers.2.mlp.up.weight")
    assert sum(len(part.tensors) for part in parts) == 5


def test_saved_bytes_follow_from_the_formats():
    part = Part("p", ("a", "b"))
    saved = bytes_saved(
        [part],
        {"a": (10, 64), "b": (10, 128)},
        {"a": MatrixFormat("int8", 64), "b": MatrixFormat("bf16")},
        dict.fromkeys("ab", MatrixFormat("int4", 64, minimum=True)),
    )
    before = 10 * 64 + 10 * 2 + 10 * 128 * 2
    after = 10 * 192 // 2 + 10 * 3 * 4
    assert saved == {part: before - after}


def test_parts_come_cheapest_per_byte_first_without_those_that_save_nothing_or_cost_too_much():
    saved = {"a": 100, "b": 50, "c": 10, "d": 0, "e": 10_000}
    costs = {"a": 0.4, "b": 0.1, "c": 0.1, "d": 0.0, "e": 0.5}
    found = measure_parts(
        {Part(name, (name,)): count for name, count in saved.items()},
        BASE,
        "int4:64",
        measure=lambda candidate: accuracy(kl=costs[candidate.overrides[0][0]]),
        bearable=lambda measured: measured.kl.estimate < 0.5,
        go_on=lambda _: True,
    )
    assert [one.part.name for one in found] == ["b", "a", "c"]


@given(st.integers(0, 40), st.integers(0, 45))
def test_the_largest_admitted_prefix_is_found(count, bearable):
    ordered = [Sensitivity(Part(f"p{i:02}", (f"t{i:02}",)), 0.1, 10) for i in range(count)]
    tried = []

    def admits(candidate):
        tried.append(candidate)
        return len(candidate.overrides) <= bearable

    found = largest_admitted(ordered, BASE, "int4:64", admits)
    expected = min(count, bearable)
    assert (0 if found is None else len(found.overrides)) == expected
    assert len(tried) <= 6


def test_a_mixture_keeps_earlier_overrides_and_says_what_it_is():
    base = mix(BASE, "int8", [Part("x", ("x1", "x2"))])
    both = mix(base, "int4:32", [Part("y", ("a",))])
    assert dict(both.overrides) == {"a": "int4:32", "x1": "int8", "x2": "int8"}
    assert both.mixed == "carried with int8 in 1 part with int4:32 in 1 part"
    assert both.kv == BASE.kv
