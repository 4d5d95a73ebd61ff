from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_target import Plan, SyntheticTarget

from hasten.errors import HastenError, UsageError
from hasten.measure.compare import compare, contrast
from hasten.measure.statistics import least_pairs, signed_rank_interval
from hasten.measure.workload import Item, Workload


def workloads(rounds: int, requests: int = 3) -> list[Workload]:
    return [
        Workload("made up", n, (), tuple(Item((n, i), 4) for i in range(requests)))
        for n in range(rounds)
    ]


def steady(seconds: float) -> SyntheticTarget:
    return SyntheticTarget(lambda number: Plan(seconds, ((seconds / 10, 1),) * 3))


def test_a_slower_target_is_slower_by_its_ratio(virtual_clock):
    found = compare(steady(0.1), steady(0.11), workloads(10), clock=virtual_clock)
    (one,) = found.contrasts
    assert (one.metric, one.verdict, found.rounds, found.valid) == ("e2e", "slower", 10, True)
    assert one.ratio.estimate == pytest.approx(1.1, abs=1e-6)
    assert one.a == pytest.approx([130] * 10, abs=1e-3)
    assert one.b == pytest.approx([143] * 10, abs=1e-3)
    assert found.requests == (30, 30)
    assert found.as_dict()["contrasts"][0]["ratio"]["confidence"] == 0.99


def test_more_a_second_is_faster(virtual_clock):
    metrics = ("ttft", "output_tokens_per_s")
    found = compare(
        steady(0.2), steady(0.1), workloads(9), metrics=metrics, clock=virtual_clock
    ).contrasts
    assert [one.verdict for one in found] == ["faster", "faster"]
    assert [one.ratio.estimate for one in found] == pytest.approx([0.5, 2.0], abs=1e-6)
    assert found[0].ratio.confidence == pytest.approx(0.995)  # both together are right at 99 %


def test_both_get_the_same_work_in_changing_order(virtual_clock):
    class Noting(SyntheticTarget):
        async def send(self, work, answer):
            sent.append((self.name, work.prompt[0]))
            await super().send(work, answer)

    sent: list[tuple[str, int]] = []
    a, b = Noting(), Noting()
    a.name, b.name = "a", "b"
    compare(a, b, workloads(12, requests=1), clock=virtual_clock)
    rounds = [(sent[i], sent[i + 1]) for i in range(0, 24, 2)]
    assert all(one[1] == other[1] == n for n, (one, other) in enumerate(rounds))
    assert {(one[0], other[0]) for one, other in rounds} == {("a", "b"), ("b", "a")}


def test_requests_that_fail_make_it_invalid(virtual_clock):
    broken = SyntheticTarget(lambda number: Plan(fails_after=1 if number == 4 else None))
    found = compare(steady(0.05), broken, workloads(8), clock=virtual_clock)
    assert not found.valid
    (problem,) = found.problems
    assert problem.startswith("invalid: 1 of 24 requests to B did not complete (broke after 1")


def test_a_round_without_an_answer_is_an_error(virtual_clock):
    broken = SyntheticTarget(lambda number: Plan(fails_after=0))
    with pytest.raises(HastenError, match="of B tells nothing about e2e: broke after 0 events"):
        compare(steady(0.05), broken, workloads(8), clock=virtual_clock)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UsageError, match=r"3 rounds show nothing at 99\.0% .*at least 8"):
        compare(steady(1), steady(1), workloads(3))
    with pytest.raises(UsageError, match="metrics to compare: speed; allowed: ttft"):
        compare(steady(1), steady(1), workloads(8), metrics=("speed",))
    with pytest.raises(UsageError, match="none"):
        compare(steady(1), steady(1), workloads(8), metrics=())
    with pytest.raises(UsageError, match="above 0"):
        contrast("e2e", [1.0] * 8, [0.0] * 8)
    with pytest.raises(UsageError, match="8 rounds of A, and 9 of B"):
        contrast("e2e", [1.0] * 8, [1.0] * 9)


def test_least_pairs():
    assert [least_pairs(confidence) for confidence in (0.5, 0.9, 0.95, 0.99, 0.999)] == [
        *(2, 5, 6, 8, 11)
    ]
    with pytest.raises(UsageError, match=r"7 values .* at least 8"):
        signed_rank_interval(range(7), 0.99)
    with pytest.raises(UsageError, match="below 1"):
        least_pairs(1.0)


def test_signed_rank_interval_by_hand():
    """Six values at 95 %: least and greatest of the averages, whose chance is 2 / 64."""
    interval = signed_rank_interval([1, 2, 4, 8, 16, 32], 0.95)
    assert (interval.low, interval.high) == (1, 32)
    averages = sorted((a + b) / 2 for i, a in enumerate(VALUES) for b in VALUES[i:])
    assert interval.estimate == np.median(averages)


VALUES = [1, 2, 4, 8, 16, 32]


def test_signed_rank_interval_as_tables_have_it():
    """n = 10: at 95 % the 9th least of the averages (Hollander and Wolfe: P(T+ <= 8) = 0.024)."""
    values = np.random.default_rng(3).normal(size=10)
    first, second = np.triu_indices(10)
    averages = np.sort((values[first] + values[second]) / 2)
    interval = signed_rank_interval(values, 0.95)
    assert (interval.low, interval.high) == (averages[8], averages[-9])


@given(
    st.lists(st.floats(-100, 100), min_size=8, max_size=30),
    st.floats(-10, 10),
    st.floats(0.1, 10),
)
def test_signed_rank_interval_moves_with_the_values(values, shift, scale):
    before = signed_rank_interval(values, 0.99)
    after = signed_rank_interval([scale * value + shift for value in values], 0.99)
    for name in ("estimate", "low", "high"):
        assert getattr(after, name) == pytest.approx(
            scale * getattr(before, name) + shift, abs=1e-6
        )
    assert min(values) <= before.low <= before.estimate <= before.high <= max(values)


@pytest.mark.parametrize("tails", ["normal", "wild", "one-sided rounds"])
def test_the_interval_holds_the_truth_as_often_as_it_says(tails):
    draw = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        noise = {
            "normal": lambda: draw.normal(0, 0.05, 12),
            "wild": lambda: 0.02 * draw.standard_t(2, 12),
            "one-sided rounds": lambda: draw.exponential(0.1, 12) * draw.choice([-1, 1], 12),
        }[tails]()
        machine = np.exp(np.cumsum(draw.normal(0, 0.2, 12)))  # drifts by far more than 5 %
        b = 1.05 * machine * np.exp(noise)
        ratio = contrast("e2e", list(machine), list(b), 0.9).ratio
        held += ratio.low <= 1.05 <= ratio.high
    assert 0.9 - 3 * math.sqrt(0.09 / 400) <= held / 400 <= 0.97


def test_what_the_page_imports_exists():
    page = Path(__file__).parents[2] / "docs" / "measuring.md"
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if "import" in line]
    imports = [line for line in lines if line.startswith("from hasten")]
    assert len(imports) == 3
    for line in imports:
        exec(line, {})
