"""Random traffic on few blocks: nothing is lost, nothing differs from a request alone."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model, some_tokens

from hasten.generation import Engine
from hasten.generation.kvcache import kv_bytes_per_block
from hasten.types import EngineOptions, Request, SamplingParams

MODEL = make_model()
CONTEXT = 128
BLOCK = kv_bytes_per_block("int8", 2, 2, 32)
OPTIONS = {"weights": "int8:32", "kv": "int8", "max_context": CONTEXT, "threads": 1}


@functools.cache
def alone(prompt, max_tokens, temperature):
    """Tokens of a request in a fresh engine."""
    sampling = sampling_of(max_tokens, temperature)
    with Engine(MODEL, EngineOptions(**OPTIONS, max_sequences=1, prefix_cache=False)) as engine:
        return [token for output in engine.generate(prompt, sampling) for token in output.tokens]


def sampling_of(max_tokens, temperature):
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        seed=7 if temperature else None,
        ignore_eos=True,
    )


@st.composite
def arrivals(draw):
    """A request, the step at which it comes, and the steps at which it is cancelled or late."""
    # Prompts of a kind begin alike.
    kind, length = draw(st.integers(0, 1)), draw(st.integers(1, 100))
    prompt = (*some_tokens(64, seed=kind)[:length], *some_tokens(max(0, length - 64), seed=length))
    length_and_heat = draw(st.integers(1, 60)), draw(st.sampled_from([0.0, 0.9]))
    at = draw(st.integers(0, 80))
    rarely = st.none() | st.none() | st.integers(0, 60)
    cancel, late = draw(rarely), draw(rarely)
    return {
        "at": at,
        "cancel": None if cancel is None else at + cancel,
        "prompt": prompt,
        "sampling": length_and_heat,
        "priority": draw(st.integers(0, 2)),
        "deadline": None if late is None else float(at + late),
        "tenant": draw(st.sampled_from(["", "", "other"])),
    }


def play(engine, traffic, monkeypatch):
    """Runs traffic in which a step is a second; outputs by request."""
    now = 0
    monkeypatch.setattr("hasten.generation.engine.monotonic", lambda: float(now))
    outputs = {str(number): [] for number in range(len(traffic))}
    for now in range(5000):
        for number, one in enumerate(traffic):
            name = str(number)
            if one["at"] == now:
                fields = {key: one[key] for key in ("priority", "deadline", "tenant")}
                sampling = sampling_of(*one["sampling"])
                engine.submit(Request(name, one["prompt"], sampling, **fields))
            if one["cancel"] == now:
                engine.cancel(name)
        for output in engine.step():
            one = traffic[int(output.request_id)]
            assert one["cancel"] is None or now < one["cancel"]
            outputs[output.request_id].append(output)
        if not engine.has_work and now > max(one["at"] for one in traffic):
            return outputs
    raise AssertionError("the traffic does not come to an end")


@settings(deadline=None, max_examples=60)
@given(
    traffic=st.lists(arrivals(), min_size=1, max_size=10),
    blocks=st.integers(4, 10),
    max_sequences=st.integers(1, 5),
    chunk=st.sampled_from([3, 32, 50, 512]),
    threads=st.integers(1, 2),
    prefix_cache=st.booleans(),
    stretch=st.sampled_from([1.0, 1.75, float("inf")]),
)
def test_any_traffic(traffic, blocks, max_sequences, chunk, threads, prefix_cache, stretch):
    options = OPTIONS | {
        "kv_memory": blocks * BLOCK,
        "max_sequences": max_sequences,
        "chunk": chunk,
        "threads": threads,
        "prefix_cache": prefix_cache,
        "prefill_stretch": stretch,
    }
    with pytest.MonkeyPatch.context() as patch, Engine(MODEL, EngineOptions(**options)) as engine:
        outputs = play(engine, traffic, patch)
        end = engine.statistics()
        assert (end.running, end.waiting, end.kv_blocks, end.kv_blocks_used) == (0, 0, blocks, 0)
        assert sum(end.finished.values()) == len(traffic)
        # Every block can be had again.
        assert sum(len(rows) for _, rows in engine.score(some_tokens(CONTEXT))) == CONTEXT
    for one, found in zip(traffic, outputs.values(), strict=True):
        tokens = [token for output in found for token in output.tokens]
        want = alone(one["prompt"], *one["sampling"])
        reason = found[-1].finish_reason if found else None
        assert all(output.finish_reason is None for output in found[:-1])
        assert tokens == want[: len(tokens)]
        if reason == "length":
            assert len(tokens) == len(want)
        else:
            assert reason == "deadline" or one["cancel"] is not None
