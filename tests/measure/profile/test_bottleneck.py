"""Sentences about figures that are made up."""

import pytest

from hasten.measure.profile.account import OTHERS
from hasten.measure.profile.bottleneck import RULES, facts_of, find_bottlenecks

READING = {"products": 0.8, "bandwidth_use": 0.82}
CASES = {
    "int8 weights": (
        {**READING},
        (
            "decode reads 98 MB of weights a token at 82% of the memory bandwidth, in 80% of its "
            "time: fewer bits a weight would help (--weights int4:32)"
        ),
    ),
    "float weights": ({**READING, "weights": "bf16"}, "(--weights int8:32)"),
    "int4 weights": ({**READING, "weights": "int4"}, "more sequences at once would share"),
    "several sequences": ({**READING, "sequences": 4.0}, "98 MB of weights a step"),
    "arithmetic of a prompt": (
        {"phase": "prefill", "products": 0.8, "bandwidth_use": 0.05, "arithmetic_use": 0.7},
        (
            "prefill is bound by arithmetic: products run at 70% of the machine's rate, in 80% of "
            "the time: prompts that begin alike are computed once (--prefix-cache)"
        ),
    ),
    "float arithmetic": (
        {"products": 0.8, "bandwidth_use": 0.05, "arithmetic_use": 0.7, "weights": "f32"},
        "integer products are faster (--weights int8:32)",
    ),
    "arithmetic of decoding": (
        {"products": 0.8, "bandwidth_use": 0.3, "arithmetic_use": 0.7},
        "more cores would help (--threads)",
    ),
    "threads in each other's way": (
        {"products": 0.8, "bandwidth_use": 0.3, "waiting": 0.15},
        (
            "products take 80% of decode at 30% of the memory bandwidth and 10% of the rate "
            "of arithmetic: they wait for something else; try other numbers of threads "
            "(--sweep threads)"
        ),
    ),
    "small steps": ({"products": 0.8, "bandwidth_use": 0.3}, "steps are too small"),
    "attention": (
        {"attention": 0.6, "context": 3000.0},
        "attention over 3000 positions takes 60% of decode: a smaller cache would help (--kv int8)",
    ),
    "attention over int8": ({"attention": 0.6, "kv": "int8"}, "shorter prompts would help"),
    "python": (
        {"python": 0.2, "largest_part": ("scheduling", 0.12)},
        (
            "Python around the model takes 20% of a decode step, most of it scheduling (12%): more "
            "tokens a step share it"
        ),
    ),
    "sampling": (
        {"python": 0.2, "largest_part": ("sampling", 0.15)},
        "greedy sampling (--temperature 0)",
    ),
    "no fusions": (
        {"small": 0.3, "fused": False},
        "norms, rotations and the like take 30% of decode: let the products hold them (--fuse)",
    ),
    "small ops": ({"small": 0.3}, "more tokens a step would fill them (--batch)"),
    "waiting": (
        {"waiting": 0.4, "threads": 8},
        "the leading thread waits for others in 40% of decode: fewer threads than 8 may be as fast",
    ),
    "call": ({"overhead": 0.2}, "the executor spends 20% of decode around its ops"),
    "reference": ({"executor": "reference"}, "(--executor native)"),
}


@pytest.mark.parametrize(("changes", "words"), CASES.values(), ids=CASES)
def test_each_cause_has_its_sentence(facts, changes, words):
    found = find_bottlenecks(facts(**changes))
    assert len(found) == 1
    assert words in found[0].sentence
    assert 0 < found[0].share <= 1


def test_every_rule_has_a_case(facts):
    told = {one.name for changes, _ in CASES.values() for one in find_bottlenecks(facts(**changes))}
    assert told == {rule.name for rule in RULES}


def test_nothing_to_tell(facts):
    assert find_bottlenecks(facts()) == []


def test_what_explains_most_comes_first(facts):
    found = find_bottlenecks(facts(**READING, attention=0.3, python=0.15))
    assert [one.name for one in found] == ["weights from memory", "attention", "python"]
    assert [one.share for one in found] == [0.8, 0.3, 0.15]


def test_one_thread_waits_for_nobody(facts):
    assert find_bottlenecks(facts(waiting=0.4, threads=1)) == []


def test_facts_are_taken_from_an_account(make_account):
    parts = {"scheduling": 0.02, "sampling": 0.05, OTHERS: 0.03}
    account = make_account(parts, linear=0.5, attention=0.2, rms_norm=0.1, rope=0.1)
    facts = facts_of(account, executor="native", weights="int8", kv="bf16", fused=True)
    assert facts.products == 0.5
    # 4 GB in 0.5 s of 10 GB/s; 1 G operations in 0.5 s of 100 G/s
    assert facts.bandwidth_use == pytest.approx(0.8)
    assert facts.arithmetic_use == pytest.approx(0.02)
    assert facts.product_bytes == pytest.approx(4e8)
    assert facts.attention == 0.2
    assert facts.small == pytest.approx(0.2)
    assert facts.waiting == pytest.approx(0.09)
    assert facts.python == pytest.approx(0.07)
    assert facts.largest_part == ("sampling", 0.05)
    assert facts.overhead == 0.03


def test_float_products_are_held_against_the_float_rate(make_account):
    account = make_account(linear=0.5, integer=False)
    facts = facts_of(account, executor="native", weights="f32", kv="bf16", fused=True)
    assert facts.arithmetic_use == pytest.approx(0.04)


def test_a_phase_without_products(make_account):
    account = make_account(embed=0.5)
    facts = facts_of(account, executor="native", weights="f32", kv="bf16", fused=True)
    assert facts.products == facts.bandwidth_use == 0
