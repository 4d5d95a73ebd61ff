"""What a pacer makes of made-up step times."""

import numpy as np
import pytest

from hasten.generation.pacing import Pacer


def seconds(decoding, tokens, token=0.001, fixed=0.004):
    return fixed + token * (decoding + tokens)


def play(pacer, steps, decoding=8, noise=None, **costs):
    """Runs steps that take all the prompt tokens that the pacer allows; times over decoding alone.

    Returns:
        For each step, the prompt tokens, and how many times longer it took than without them.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(steps):
        tokens = pacer.limit(decoding, 1)
        assert tokens is not None
        took = seconds(decoding, tokens, **costs)
        found.append((tokens, took / seconds(decoding, 0, **costs)))
        if noise:
            took *= 1 + rng.exponential(noise)
        pacer.record(decoding, tokens, took)
    return found


def warm(stretch=2.0):
    pacer = Pacer(stretch)
    pacer.record(0, 512, seconds(0, 512))
    return pacer


def test_nothing_is_limited_while_nothing_decodes():
    assert Pacer(2.0).limit(0, 1) is None
    assert warm().limit(0, 1) is None


def test_no_stretch_is_no_limit():
    assert Pacer(float("inf")).limit(8, 1) is None


def test_decoding_is_measured_before_prompts_join():
    assert [tokens for tokens, _ in play(warm(), 4)] == [0, 0, 0, 11]


@pytest.mark.parametrize("noise", [None, 0.05])
@pytest.mark.parametrize("stretch", [1.5, 2.0, 4.0])
def test_steps_are_stretched_as_far_as_allowed(stretch, noise):
    steps = play(warm(stretch), 400, noise=noise)
    mixed = [times for tokens, times in steps if tokens]
    assert len(mixed) > 0.9 * len(steps)
    assert np.percentile(mixed, 99) <= stretch * (1.2 if noise else 1.01)
    assert np.median(mixed) >= 1 + 0.8 * (stretch - 1)


def test_where_more_wait_than_decode_prompts_get_more():
    pacer = warm()
    play(pacer, 20)
    alone = pacer.limit(8, 1)
    assert pacer.limit(8, 8) == alone
    assert pacer.limit(8, 32) == pytest.approx(4 * alone, abs=4)


def test_a_disturbed_step_changes_little():
    pacer = warm()
    play(pacer, 20)
    before = pacer.limit(8, 1)
    pacer.record(8, before, 1.0)
    pacer.record(8, 0, 1.0)
    assert abs(pacer.limit(8, 1) - before) <= 2


def test_it_follows_what_steps_take():
    pacer = warm()
    play(pacer, 50)
    slower = play(pacer, 200, token=0.004, fixed=0.016)
    assert slower[-2][1] == pytest.approx(2, abs=0.1)
    pacer.record(0, 512, seconds(0, 512, token=0.0001))
    cheaper = play(pacer, 200, token=0.0001)
    assert cheaper[-2][1] == pytest.approx(2, abs=0.1)


def test_more_sequences_cost_more():
    pacer = warm()
    play(pacer, 20, decoding=2)
    few, many = pacer.limit(2, 1), pacer.limit(12, 1)
    assert many >= few + 9


def test_prompts_always_go_on():
    pacer = warm(1.0)
    assert sum(tokens for tokens, _ in play(pacer, 100)) >= 300
    stuck = Pacer(2.0)
    for _ in range(3):
        stuck.record(4, 0, 0.0)
    assert stuck.limit(4, 1) > 0
