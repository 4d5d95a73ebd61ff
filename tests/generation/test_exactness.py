"""The promise of the native executor: the same answer always, bit for bit."""

import numpy as np
import pytest
from tiny import (
    FAMILIES,
    Player,
    int8_with_minimum,
    make_model,
    quantised_model,
    some_tokens,
    symmetric_int4,
)

from hasten.generation import Engine
from hasten.generation.kvcache import kv_bytes_per_block
from hasten.types import EngineOptions, Request, SamplingParams

WEIGHTS = ("f32", "bf16", "int8", "int8:32", "int4:32", "int4:64")
KV = ("f32", "bf16", "int8")
SEQUENCES = [some_tokens(n, seed=n) for n in (70, 33, 1, 7)]


@pytest.fixture(scope="module")
def model():
    return make_model(attention_bias=True)


@pytest.fixture(scope="module")
def windowed():
    return make_model(sliding_window=20, model_type="mistral", tie_embeddings=True)


@pytest.mark.parametrize("kv", KV)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_logits_do_not_depend_on_how_they_are_computed(isa, model, weights, kv):
    def player(**options):
        return Player(model, SEQUENCES, isa=isa, weights=weights, kv=kv, **options)

    want = player().alone()
    assert np.isfinite(want).all()
    for threads, fuse in ((1, True), (1, False), (2, True), (3, False)):
        got = player(threads=threads, fuse=fuse).together()
        np.testing.assert_array_equal(got, want, f"{threads=} {fuse=}")
    for size in (1, 3, 7, 32):
        np.testing.assert_array_equal(player().together(size), want, f"{size=}")


@pytest.mark.parametrize(
    ("quantise", "form"), [(symmetric_int4, "int4:32"), (int8_with_minimum, "int8:32+min")]
)
def test_codes_of_the_file_do_not_depend_on_how_they_are_run(isa, quantise, form):
    """Formats that only files bring."""
    model = quantised_model(quantise)
    want = Player(model, SEQUENCES, isa=isa).alone()
    for size in (1, 7, 512):
        player = Player(model, SEQUENCES, isa=isa, fuse=size == 512)
        assert set(player.executor.formats.values()) == {form}
        np.testing.assert_array_equal(player.together(size), want)


@pytest.mark.parametrize("kv", KV)
def test_a_sliding_window_does_not_depend_on_chunks(isa, windowed, kv):
    want = Player(windowed, SEQUENCES, isa=isa, weights="int8:32", kv=kv).alone()
    for size in (1, 3, 7, 32):
        player = Player(windowed, SEQUENCES, isa=isa, weights="int8:32", kv=kv)
        np.testing.assert_array_equal(player.together(size), want)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_do_not_depend_on_how_they_are_computed(isa, family):
    model = make_model(**FAMILIES[family])
    for weights, kv in (("int8:32", "bf16"), ("f32", "int8")):
        given = {"isa": isa, "weights": weights, "kv": kv}
        want = Player(model, SEQUENCES, **given).alone()
        assert np.isfinite(want).all()
        for threads, fuse in ((2, True), (1, False)):
            got = Player(model, SEQUENCES, threads=threads, fuse=fuse, **given).together()
            np.testing.assert_array_equal(got, want, f"{weights=} {kv=} {threads=} {fuse=}")
        for size in (1, 7):
            np.testing.assert_array_equal(Player(model, SEQUENCES, **given).together(size), want)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 4, "num_kv_heads": 4, "head_dim": 2},
        {"num_heads": 9, "num_kv_heads": 1, "head_dim": 64, "mlp_bias": True},
        {"hidden_size": 64, "intermediate_size": 96, "head_dim": 80, "vocab_size": 32},
        {"hidden_size": 2, "intermediate_size": 1, "num_layers": 1, "vocab_size": 2},
    ],
)
def test_odd_shapes(isa, changes):
    model = make_model(**changes)
    tokens = [some_tokens(40, vocabulary=model.config.vocab_size)]
    want = Player(model, tokens, isa=isa, weights="int4:32").alone()
    unfused = Player(model, tokens, isa=isa, weights="int4:32", threads=3, fuse=False)
    np.testing.assert_array_equal(unfused.together(5), want)


def test_formats_that_differ_inside_a_block(isa, model):
    overrides = {
        "model.layers.0.self_attn.k_proj.weight": "f32",
        "model.layers.0.mlp.up_proj.weight": "int8:64",
        "model.layers.1.mlp.down_proj.weight": "bf16",
        "lm_head.weight": "int4:32",
    }
    given = {"isa": isa, "weights": "int8:32", "overrides": overrides}
    want = Player(model, SEQUENCES, **given).alone()
    np.testing.assert_array_equal(Player(model, SEQUENCES, fuse=False, **given).together(7), want)


def engine_for(model, **options):
    options = {"max_sequences": 4, "chunk": 64, "max_context": 128, "threads": 1} | options
    return Engine(model, EngineOptions(**options))


def run(engine, requests):
    """Tokens of each request, all submitted at once."""
    for number, (prompt, sampling) in enumerate(requests):
        engine.submit(Request(str(number), tuple(prompt), sampling))
    tokens = {str(number): [] for number in range(len(requests))}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.tokens
    assert engine.statistics().kv_blocks_used == 0
    return list(tokens.values())


def answers(model, requests, **options):
    """The same from an engine of their own."""
    with engine_for(model, **options) as engine:
        return run(engine, requests)


def cache_of(blocks, kv, model):
    """Bytes of a cache of so many blocks."""
    config = model.config
    dim = -(-config.head_dim // 32) * 32
    return blocks * kv_bytes_per_block(kv, config.num_layers, config.num_kv_heads, dim)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("weights", ["f32", "int8:32", "int4:32"])
def test_answers_do_not_depend_on_company(isa, model, weights, temperature):
    requests = [
        (prompt, SamplingParams(max_tokens=12, temperature=temperature, seed=i, top_p=0.95))
        for i, prompt in enumerate([*SEQUENCES, some_tokens(50), some_tokens(2)])
    ]
    alone = answers(model, requests, isa=isa, weights=weights, max_sequences=1)
    assert len({tuple(tokens) for tokens in alone}) == len(requests)
    for options in ({}, {"chunk": 4}, {"chunk": 7, "threads": 3}, {"fuse": False}):
        assert answers(model, requests, isa=isa, weights=weights, **options) == alone, options


def alike(count, length=70):
    """Requests whose prompts begin alike, greedy ones and others."""
    return [
        (
            [*some_tokens(length), *some_tokens(1 + 9 * i, seed=i)],
            SamplingParams(max_tokens=30, temperature=i % 2, seed=i),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("kv", KV)
def test_answers_do_not_depend_on_the_prefix_cache(isa, model, kv):
    requests = alike(4)
    want = answers(model, requests, isa=isa, kv=kv, prefix_cache=False, max_sequences=1)
    with engine_for(model, isa=isa, kv=kv, threads=2) as engine:
        for _ in range(3):
            assert run(engine, requests) == want
        # A chat goes on: what was generated is in the cache too.
        prompt, sampling = requests[2]
        longer = [([*prompt, *want[2]], sampling)]
        before = engine.statistics()
        assert run(engine, longer) == answers(model, longer, isa=isa, kv=kv, prefix_cache=False)
        after = engine.statistics()
    assert before.cached_tokens >= 64 * 3 + 64 * 4 * 2
    assert after.cached_tokens - before.cached_tokens == 96


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("kv", KV)
def test_answers_do_not_depend_on_preemption(isa, model, kv, prefix_cache):
    requests = [
        (some_tokens(20 + i, seed=i), SamplingParams(max_tokens=90, temperature=i % 2, seed=i))
        for i in range(4)
    ]
    want = answers(model, requests, isa=isa, kv=kv, max_sequences=1)
    options = {"isa": isa, "kv": kv, "prefix_cache": prefix_cache}
    for chunk in (7, 64):
        with engine_for(model, kv_memory=cache_of(6, kv, model), chunk=chunk, **options) as engine:
            assert engine.statistics().kv_blocks == 6
            assert run(engine, requests) == want
            assert engine.statistics().preemptions > 0


def test_scores_equal_the_logits_of_single_steps(isa, model):
    tokens = some_tokens(75)
    want = Player(model, [tokens], isa=isa, kv="bf16").alone(1)
    for chunk in (1, 7, 32, 512):
        options = EngineOptions(isa=isa, chunk=chunk, threads=2, max_context=128)
        with Engine(model, options) as engine:
            pieces = dict(engine.score(tokens))
        assert list(pieces) == list(range(0, 75, chunk))
        np.testing.assert_array_equal(np.concatenate(list(pieces.values())), want)
