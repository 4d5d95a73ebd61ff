"""Accuracy against float64 definitions; intervals against cases whose answer is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import UsageError
from hasten.measure.accuracy import (
    PairedSamples,
    Reference,
    compare_logits,
    excess,
    summarize,
    summarize_excess,
)
from hasten.measure.corpus import Windows


class TableModel:
    """Logits depend on the token alone; chunked like an engine, in one reused buffer."""

    def __init__(self, table, chunk=7):
        self.table = table.astype(np.float32)
        self.chunk = chunk
        self.calls = 0

    def score(self, token_ids):
        self.calls += 1
        buffer = np.empty((self.chunk, self.table.shape[1]), np.float32)
        for start in range(0, len(token_ids), self.chunk):
            ids = list(token_ids[start : start + self.chunk])
            buffer[: len(ids)] = self.table[ids]
            yield start, buffer[: len(ids)]


def make_windows(rng, *, vocab=50, count=5, length=100):
    ids = tuple(tuple(int(t) for t in rng.integers(0, vocab, length)) for _ in range(count))
    return Windows("random", "00", ids, length)


def log_softmax64(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 70),
    vocab=st.integers(2, 300),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    shift=st.sampled_from([0.0, 100.0, -300.0]),
)
def test_samples_equal_the_float64_definitions(seed, rows, vocab, scale, shift):
    rng = np.random.default_rng(seed)
    reference = (rng.normal(size=(rows, vocab)) * scale + shift).astype(np.float32)
    candidate = (reference + rng.normal(size=(rows, vocab)) * 0.1 * scale).astype(np.float32)
    targets = rng.integers(0, vocab, rows)
    samples = compare_logits(reference, candidate, targets)
    p, q = log_softmax64(reference), log_softmax64(candidate)
    at = np.arange(rows), targets
    tolerance = 1e-5 * max(scale, 1) + 1e-7 * abs(shift)
    np.testing.assert_allclose(samples.reference_loss, -p[at], atol=tolerance, rtol=1e-5)
    np.testing.assert_allclose(samples.candidate_loss, -q[at], atol=tolerance, rtol=1e-5)
    np.testing.assert_allclose(samples.kl, (np.exp(p) * (p - q)).sum(axis=1), atol=tolerance)
    np.testing.assert_array_equal(samples.agree, p.argmax(axis=1) == q.argmax(axis=1))
    chosen = p[np.arange(rows), q.argmax(axis=1)]
    np.testing.assert_allclose(samples.regret, p.max(axis=1) - chosen, atol=tolerance)


def test_a_model_compared_with_itself_loses_exactly_nothing():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, 50)) * 5
    windows = make_windows(rng)
    samples = Reference(TableModel(table), windows, vocab_size=50).compare(TableModel(table))
    accuracy = summarize(samples, seed=1)
    assert accuracy.tokens == windows.scored
    assert (accuracy.kl.low, accuracy.kl.estimate, accuracy.kl.high) == (0, 0, 0)
    assert accuracy.perplexity_ratio.high == 1
    assert accuracy.top1_agreement.low == 1


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    windows = make_windows(np.random.default_rng(0))
    uniform = TableModel(np.zeros((50, 50)))
    samples = Reference(uniform, windows, vocab_size=50).compare(uniform)
    perplexity = summarize(samples, seed=0).perplexity
    assert perplexity.estimate == pytest.approx(50)
    assert perplexity.high - perplexity.low == pytest.approx(0, abs=1e-9)


def test_chunks_and_kept_logits_change_no_sample():
    rng = np.random.default_rng(3)
    windows = make_windows(rng, length=65)
    table = rng.normal(size=(50, 50))
    other = TableModel(table + rng.normal(size=table.shape) * 0.2)
    engine = TableModel(table, chunk=9)
    whole = Reference(TableModel(table, 1000), windows, vocab_size=50).compare(other)
    two_windows = 2 * 65 * 50 * 4
    kept = Reference(engine, windows, vocab_size=50, keep_bytes=two_windows)
    for _ in range(3):
        samples = kept.compare(other)
        for name in ("reference_loss", "candidate_loss", "kl", "agree"):
            np.testing.assert_array_equal(getattr(samples, name), getattr(whole, name))
    # Five windows at first; after that only the three that were not kept are scored again.
    assert engine.calls == 5 + 3 + 3


def test_what_two_candidates_share_cancels_in_the_excess():
    rng = np.random.default_rng(5)
    reference = rng.normal(size=(300, 40)).astype(np.float32)
    near = reference + rng.normal(size=reference.shape).astype(np.float32) * 0.1
    far = reference + rng.normal(size=reference.shape).astype(np.float32) * 0.5
    targets = rng.integers(0, 40, 300)
    one, other = (compare_logits(reference, values, targets) for values in (near, far))
    none = summarize(excess(one, one), seed=0)
    assert (none.kl.low, none.kl.high, none.perplexity_ratio.high) == (0, 0, 1)
    assert none.top1_agreement.low == 1
    more = summarize(excess(other, one), seed=0)
    means = [summarize(samples, seed=0).kl.estimate for samples in (one, other)]
    assert more.kl.estimate == pytest.approx(means[1] - means[0])
    assert more.kl.low > 0
    with pytest.raises(UsageError, match="different tokens"):
        excess(one, compare_logits(reference, far, targets[::-1]))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_cost_infinitely_much(poison):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(50, 50))
    broken = table.copy()
    broken[7, 3] = poison
    windows = make_windows(rng)
    samples = Reference(TableModel(table), windows, vocab_size=50).compare(TableModel(broken))
    accuracy = summarize(samples, seed=0)
    assert math.isinf(accuracy.kl.estimate)
    assert math.isinf(accuracy.kl.high)
    assert math.isinf(accuracy.perplexity_ratio.high)
    assert json.loads(json.dumps(accuracy.as_dict(), allow_nan=False))["kl_divergence"] == {
        "estimate": None,
        "low": None,
        "high": None,
        "confidence": 0.95,
    }


def test_another_vocabulary_is_refused():
    rows = np.zeros((3, 10), np.float32)
    with pytest.raises(UsageError, match="same vocabulary"):
        compare_logits(rows, rows[:, :9], np.zeros(3, np.int64))


def correlated_samples(rng, *, blocks, size=64):
    """Losses that are constant within a block: as correlated as text can be."""
    loss = np.repeat(rng.normal(3, 1, blocks), size)
    zeros = np.zeros_like(loss)
    return PairedSamples(loss, loss, zeros, zeros, zeros)


def test_intervals_cover_the_truth_although_neighbours_are_correlated():
    rng = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        accuracy = summarize(correlated_samples(rng, blocks=64), seed=trial)
        covered += accuracy.perplexity.low <= math.exp(3) <= accuracy.perplexity.high
    # 95 % nominal: 200 trials give 190 +- 3; resampling single tokens would cover about 40.
    assert 178 <= covered <= 199


def test_a_seed_repeats_the_interval_and_another_moves_it():
    samples = correlated_samples(np.random.default_rng(1), blocks=20)
    first, again = summarize(samples, seed=4), summarize(samples, seed=4)
    assert first == again
    assert summarize(samples, seed=5).perplexity.high != first.perplexity.high


def test_one_wild_position_does_not_decide_the_excess():
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(1024, 40)).astype(np.float32)
    targets = rng.integers(0, 40, 1024)
    noise = rng.normal(size=(2, *reference.shape)).astype(np.float32) * 0.08
    one, other = (compare_logits(reference, reference + part, targets) for part in noise)
    wild = replace(other, kl=other.kl + 2.0 * (np.arange(1024) == 500))
    assert summarize(excess(wild, one), seed=0).kl.high > 0.002
    assert summarize_excess(wild, one, seed=0).kl.high < 0.0005
    poisoned = replace(other, kl=np.where(np.arange(1024) == 500, np.inf, other.kl))
    assert math.isinf(summarize_excess(poisoned, one, seed=0).kl.high)


def test_a_comparison_ends_when_there_is_enough():
    rng = np.random.default_rng(3)
    windows = make_windows(rng, length=65)
    table = rng.normal(size=(50, 50))
    reference = Reference(TableModel(table), windows, vocab_size=50)
    sizes = []

    def enough(samples):
        sizes.append(len(samples.kl))
        return len(sizes) == 2

    assert len(reference.compare(TableModel(table), enough=enough).kl) == 128
    assert sizes == [64, 128]
