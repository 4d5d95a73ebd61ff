import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.serve.rates import Bucket, Pace

steps = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=100)


@given(st.integers(1, 600), steps)
def test_a_bucket_never_gives_more_than_its_rate(per_minute, steps):
    """In every span of time: at most what it holds and what fills it meanwhile."""
    bucket, now, taken = Bucket(per_minute), 1000.0, []
    for pause, tokens in steps:
        now += pause
        if bucket.wait(now, tokens) == 0.0:
            bucket.take(now, tokens)
            taken.append((now, tokens))
    for first, (start, _) in enumerate(taken):
        total = 0
        for time, tokens in taken[first:]:
            total += tokens
            assert total <= per_minute * (1 + (time - start) / 60) + 1e-3


@given(st.integers(1, 10**6), st.integers(0, 10**7), st.integers(0, 1), st.floats(0, 1e7))
def test_who_waits_as_told_is_let_in_and_no_sooner(per_minute, used, tokens, now):
    bucket = Bucket(per_minute)
    bucket.take(now, used)
    wait = bucket.wait(now, tokens)
    assert wait == pytest.approx(max(0.0, (used + tokens - per_minute) * 60 / per_minute), abs=1e-3)
    assert bucket.wait(now + wait, tokens) == 0.0
    if wait > 0.01:
        assert bucket.wait(now + wait - 0.01, tokens) > 0.0


def test_a_bucket_that_never_fills_is_refused():
    with pytest.raises(ValueError, match="0 tokens"):
        Bucket(0)


def test_pace_is_the_mean_time_between_ends():
    pace, now = Pace(), 100.0
    pace.begin(now)
    for _ in range(100):
        now += 0.5
        pace.end(now, 1)
    assert pace.estimate(now, 20) == pytest.approx(10.0)


def test_sequences_that_end_together_count_as_what_they_are():
    pace, now = Pace(), 0.0
    pace.begin(now)
    for _ in range(50):
        now += 4.0
        for _ in range(8):
            pace.end(now, 1)
    assert pace.estimate(now, 16) == pytest.approx(8.0)


def test_time_without_sequences_does_not_count():
    pace = Pace()
    pace.begin(0.0)
    pace.end(2.0, 1)
    pace.begin(5000.0)
    assert pace.estimate(5000.0, 5) == pytest.approx(10.0)


def test_what_changed_lately_weighs_more():
    pace, now = Pace(), 0.0
    pace.begin(now)
    for gap in [1.0] * 100 + [0.1] * 1000:
        now += gap
        pace.end(now, 1)
    assert pace.estimate(now, 100) == pytest.approx(10.0, rel=0.1)


def test_estimates_have_bounds():
    pace = Pace()
    pace.begin(0.0)
    assert pace.estimate(0.0, 5) == 1.0
    assert pace.estimate(500.0, 5) == 60.0
