import pytest

from hasten.errors import UsageError
from hasten.measure.traffic import describe
from hasten.measure.workload import Item, Workload


def workload(*prompts, times=None, outputs=None):
    outputs = outputs or [4] * len(prompts)
    items = tuple(Item(p, n) for p, n in zip(prompts, outputs, strict=True))
    return Workload("made up", None, (), items, times)


def test_lengths_and_times():
    found = describe(
        workload((1,) * 3, (2,) * 5, (3,) * 7, times=(0.0, 0.5, 4.0), outputs=[1, 2, 6])
    )
    assert (found.requests, found.seconds, found.rate) == (3, 4.0, 0.5)
    assert found.burstiness == pytest.approx((1.5**2) / (2.0**2))
    assert found.busiest_second == 2
    assert (found.input_tokens.mean, found.output_tokens.max) == (5, 6)
    assert (found.shared_prefix, found.repeated) == (0, 0)


def test_even_arrivals_have_no_burstiness():
    found = describe(workload(*[(n,) for n in range(10)], times=tuple(map(float, range(10)))))
    assert found.burstiness == 0


def test_what_prompts_share():
    system, other = tuple(range(32)), tuple(range(100, 132))
    first, second = (*system, *range(200, 216)), (*system, *range(300, 316))
    found = describe(workload(first, second, other, first))
    # Two blocks of the second, three of the last; 48 + 48 + 32 + 48 tokens in all.
    assert found.shared_prefix == pytest.approx((32 + 48) / 176)
    assert found.repeated == 0.25


def test_only_beginnings_are_shared():
    block, other = tuple(range(16)), tuple(range(16, 32))
    assert describe(workload((*block, *other), (*other, *block))).shared_prefix == 0
    assert describe(workload((*block, 99), (*block, 98))).shared_prefix == pytest.approx(16 / 34)


def test_without_times():
    found = describe(workload((1, 2)))
    assert found.rate is found.seconds is found.burstiness is found.busiest_second is None


def test_all_at_once():
    found = describe(workload((1,), (2,), times=(3.0, 3.0)))
    assert (found.rate, found.burstiness, found.busiest_second) == (None, None, 2)


def test_texts_are_refused():
    with pytest.raises(UsageError, match="holds texts"):
        describe(workload("hello"))
