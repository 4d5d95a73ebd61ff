"""Sums over ops, and what an engine's profile becomes."""

import pytest

from hasten.generation.stopwatch import Stopwatch
from hasten.measure.profile.account import OTHERS, account, group
from hasten.measure.profile.floors import Costs
from hasten.measure.profile.run import profile_groups, run_group

PROMPTS = [[tuple(range(3, 43)), tuple(range(4, 24))], [tuple(range(5, 35))]]


def test_equal_ops_are_put_together(make_account):
    made = make_account(linear=0.5, attention=0.2, rms_norm=0.1)
    (together,) = group([*made.ops, *made.ops], lambda _: None)
    assert (together.ops, together.kind, together.label) == (6, "all", "")
    assert together.seconds == pytest.approx(1.6)
    assert together.waiting == pytest.approx(0.16)
    assert together.work.bytes == 8.2e9
    # Floors add up; those of all bytes and all operations together would be lower.
    assert together.floor == pytest.approx(2 * (0.4 + 0.01))
    kinds = group([*made.ops, *made.ops], lambda op: op.kind)
    assert [(one.kind, one.ops) for one in kinds] == [
        ("linear", 2),
        ("attention", 2),
        ("rms_norm", 2),
    ]
    assert kinds[0].layer == 0
    assert kinds[0].over_floor == pytest.approx(0.5 / 0.4)
    assert kinds[2].floor is None
    assert kinds[2].over_floor is None


def test_what_is_accounted_for(make_account):
    parts = {"scheduling": 0.05, "sampling": 0.02, "engine": 0.1, "executor": 0.01, OTHERS: 0.03}
    made = make_account(parts, linear=0.6, rope=0.1)
    assert made.accounted == pytest.approx(0.8)
    assert made.floor == pytest.approx(0.4)
    assert [one.kind for one in made.by_kind()] == ["linear", "rope"]
    assert [one.layer for one in made.by_layer()] == [0, 1]


def test_a_stopwatch_counts_what_is_inside_to_the_inside():
    ticks = iter(range(100))
    watch = Stopwatch(lambda: float(next(ticks)))
    inner = watch.timed("inner", lambda: None)  # 1 s: between its two looks at the clock

    def work():
        inner()
        inner()
        return "done"

    assert watch.timed("outer", work)() == "done"
    assert watch.seconds == {"inner": 2.0, "outer": 3.0}


def test_a_stopwatch_counts_what_fails():
    ticks = iter(range(100))
    watch = Stopwatch(lambda: float(next(ticks)))
    fail = watch.timed("failing", lambda: 1 / 0)
    outer = watch.timed("outer", fail)
    with pytest.raises(ZeroDivisionError):
        outer()
    assert watch.seconds == {"failing": 1.0, "outer": 2.0}


def test_an_engine_in_account(engine, rates):
    done = []
    measured = profile_groups(engine, PROMPTS, 5, done.append)
    assert done == [1, 2]
    assert measured.requests == 3
    costs = Costs(engine.model.config, engine.formats, engine.options.kv)
    phases = account(measured.profile, costs, dict.fromkeys(("prefill", "decode", "mixed"), rates))
    assert set(phases) >= {"prefill", "decode"}
    decode = phases["decode"]
    assert sum(one.tokens for one in phases.values()) == 90 + 3 * 4
    assert decode.steps == 8
    assert decode.sequences == 1.5
    assert 20 < decode.context < 50
    for one in phases.values():
        parts = sum(one.parts.values())
        assert one.op_seconds + parts <= one.seconds
        assert 0 < one.accounted <= 1
        for rows in (one.by_kind(), one.ops):
            assert sum(op.seconds for op in rows) == pytest.approx(one.op_seconds)
        layers = one.by_layer()
        assert [op.layer for op in layers] == list(range(engine.model.config.num_layers))
        assert sum(op.seconds for op in layers) < one.op_seconds
        document = one.as_dict()
        assert len(document["ops"]) == len(one.ops)


def test_factors_add_up_to_the_whole(engine):
    measured = profile_groups(engine, PROMPTS, 5)
    factors = {one.name: one for one in measured.factors()}
    assert factors["network"].seconds is None
    assert factors["queue"].overlaps
    counted = [one for one in factors.values() if not one.overlaps and one.seconds is not None]
    total = sum(one.seconds for one in counted)
    assert total == pytest.approx(measured.seconds / measured.requests)
    assert {"tokenizer", "intake", "model", "sampling", "detokenising"} <= {x.name for x in counted}
    assert all(one.seconds > 0 for one in counted)


def test_a_group_counts_the_tokens_after_the_first_ones(engine):
    times = run_group(engine, PROMPTS[0], 5)
    assert times.tokens == 8
    assert times.prefill > 0
    assert times.decode > 0
