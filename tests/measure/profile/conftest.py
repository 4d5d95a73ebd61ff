"""Figures of a phase that are made up, and a small engine of letters."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasten.generation import Engine
from hasten.machine import Rates
from hasten.measure.profile.account import OpShare, PhaseAccount
from hasten.measure.profile.bottleneck import Facts
from hasten.measure.profile.floors import Work
from hasten.models import load_model
from hasten.types import EngineOptions

RATES = Rates(threads=2, isa="scalar", bandwidth=10e9, int8=100e9, fp32=50e9)


@pytest.fixture
def rates() -> Rates:
    """A machine that reads 10 GB and computes 100 G integer operations a second."""
    return RATES


@pytest.fixture
def facts():
    """Decoding of a model that nothing holds up, with changes."""
    quiet = Facts(
        phase="decode",
        executor="native",
        weights="int8",
        kv="bf16",
        fused=True,
        sequences=1.0,
        context=100.0,
        threads=2,
        python=0.02,
        largest_part=("scheduling", 0.01),
        overhead=0.01,
        products=0.15,
        product_bytes=98e6,
        bandwidth_use=0.8,
        arithmetic_use=0.1,
        attention=0.1,
        small=0.1,
        waiting=0.05,
    )
    return lambda **changes: replace(quiet, **changes)


@pytest.fixture
def make_account():
    """A phase of 10 steps and 1 s whose ops have these seconds, by kind."""

    def make(parts=None, *, integer=True, **seconds: float) -> PhaseAccount:
        work = {"linear": Work(4e9, 1e9, integer), "attention": Work(1e8, 1e8, integer=False)}
        ops = tuple(
            OpShare(
                kind=kind,
                label=kind,
                shape="8x8",
                layer=number,
                ops=1,
                seconds=taken,
                waiting=0.1 * taken,
                work=work.get(kind),
                floor=None if kind not in work else work[kind].floor(RATES),
            )
            for number, (kind, taken) in enumerate(seconds.items())
        )
        return PhaseAccount(
            phase="decode",
            steps=10,
            tokens=10,
            sequences=1.0,
            context=64.0,
            seconds=1.0,
            parts=parts or {},
            ops=ops,
            rates=RATES,
        )

    return make


@pytest.fixture(scope="module")
def engine(tiny_model):
    """Of the tiny model, without its prefix cache."""
    options = EngineOptions(
        max_context=128, max_sequences=4, prefix_cache=False, threads=1, weights="int8:32"
    )
    with Engine(load_model(str(tiny_model)), options) as made:
        yield made
