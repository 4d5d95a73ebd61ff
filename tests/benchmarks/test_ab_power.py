"""The proof in small: benchmarks/ab_power.py runs 200 and 50 comparisons."""

from __future__ import annotations

from ab_power import REQUESTS, ROUNDS, SLOWDOWN, compare_once


def verdicts(trials: int, ratio: float) -> list[str]:
    return [
        compare_once(seed, ratio, rounds=ROUNDS, requests=REQUESTS)[0] for seed in range(trials)
    ]


def test_a_target_does_not_differ_from_itself():
    assert verdicts(10, 1.0).count("no difference shown") >= 9


def test_five_percent_are_found():
    found = verdicts(5, SLOWDOWN)
    assert found.count("slower") >= 4
    assert "faster" not in found
