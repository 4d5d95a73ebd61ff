"""Figures and a laboratory made up for tests of the search; nothing here runs a model."""

import itertools
import math
from dataclasses import dataclass

from hasten.measure.accuracy import Accuracy
from hasten.measure.statistics import Interval
from hasten.optimize.claims import Claim
from hasten.optimize.gate import Measured
from hasten.optimize.passes.interface import Prediction
from hasten.optimize.prediction import predict_passes
from hasten.optimize.sensitivity import Part
from hasten.optimize.speed import Duel, RequestShape, Round, Timings

SHAPE = RequestShape(128, 64)


def interval(value, half=0.0):
    return Interval(value, value - half, value + half, 0.95)


def accuracy(*, kl=0.001, rise=0.1, disagreement=1.0, half=0.0):
    """Losses as in a budget: nats, per cent, per cent; `half` widens each by this share of it."""
    agreement = 1 - disagreement / 100
    return Accuracy(
        tokens=4096,
        reference_perplexity=interval(15.0),
        perplexity=interval(15.0 * (1 + rise / 100)),
        perplexity_ratio=interval(1 + rise / 100, half * abs(rise) / 100),
        kl=interval(kl, half * kl),
        top1_agreement=interval(agreement, half * disagreement / 100),
    )


def timings(seconds, rounds=5, blocks=1):
    """Alike in all rounds; `rounds` of each block."""
    one = Round((seconds * 0.2,), (seconds * 0.8 / 63,), (seconds,), seconds)
    return Timings(SHAPE, ((one,) * rounds,) * blocks)


@dataclass(frozen=True)
class MadeUpPass:
    """Saves a share of everything, as it says."""

    label: str
    share: float = 1.0
    exact: bool = False
    name = "made_up"

    def predict(self, model):
        return Prediction(self.share, self.share)


class MadeUpLaboratory:
    """Answers from a table by weight format; KV int8 and threads scale what the format gives.

    `table` maps a format to (seconds, KL, bytes); every other loss follows from KL.
    """

    def __init__(self, table, *, original_seconds=1.0, half=0.1, kv_gain=0.95, unfit=()):
        self.table = table
        self.original_seconds = original_seconds
        self.half = half
        self.kv_gain = kv_gain
        self.unfit = unfit
        self.clock = 0.0
        self.proved = []
        self.confidences = []
        self.screened = []
        self.layer_cost = {}
        self.same = {}
        self.held = []
        self.excess = self.inexactness = 0.0
        self.repeated = []
        self.tail = itertools.repeat(0.3)

    def why_unfit(self, candidate):
        return "does not fit" if candidate.weights in self.unfit else None

    def formats(self, candidate):
        return {
            "w": self.same.get(candidate.weights, candidate.weights),
            **dict(candidate.overrides),
        }

    def kl_of(self, candidate):
        kl = self.table[candidate.weights][1]
        kl += sum(self.layer_cost.get(name, 0.001) for name, _ in candidate.overrides)
        return kl * (1.1 if candidate.kv == "int8" else 1.0)

    def measured(self, candidate):
        kl = self.kl_of(candidate)
        if math.isinf(kl):
            return accuracy(kl=kl, rise=kl, disagreement=100)
        return accuracy(kl=kl, rise=kl * 50, disagreement=min(kl * 350, 100), half=self.half)

    def screen(self, candidate):
        self.clock += 1
        self.screened.append(candidate)
        return Measured(self.measured(candidate))

    def glance(self, candidate):
        self.clock += 1
        return self.measured(candidate)

    def prove(self, candidate, confidence):
        self.clock += 1
        self.proved.append(candidate)
        self.confidences.append(confidence)
        return Measured(self.measured(candidate))

    def hold(self, candidate, confidence):
        """Of a candidate without exact steps nothing is asked."""
        self.clock += 1
        self.held.append((candidate, confidence))
        steps = tuple(step.label for step in candidate.steps if step.exact)
        assert steps
        exact = tuple(accuracy(kl=self.inexactness) for _ in steps)
        return Claim(steps, accuracy(kl=self.excess, half=self.half), exact)

    def seconds_of(self, candidate):
        if candidate.weights == "f32":
            return self.original_seconds
        seconds = self.table[candidate.weights][0] * (1 - 0.01 * len(candidate.overrides))
        seconds *= math.prod(step.share for step in candidate.steps)
        return seconds * (self.kv_gain if candidate.kv == "int8" else 1.0) / candidate.threads**0.5

    def race(self, candidates, effort, on_round):
        rounds = effort.rounds
        self.clock += len(candidates) * rounds
        for number in range(rounds):
            on_round((number + 1) / rounds)
        how = {"rounds": effort.of_block().rounds, "blocks": effort.blocks}
        before = timings(self.seconds_of(candidates[0]), **how)
        return {one: Duel(before, timings(self.seconds_of(one), **how)) for one in candidates}

    def repeat(self, candidate, rounds, seconds, number, on_round):
        """The latencies of `self.tail`, again and again; the clock moves by them."""
        self.repeated.append((candidate, rounds, number))
        found = []
        while len(found) < rounds and (not found or seconds > 0):
            e2e = next(self.tail)
            self.clock += e2e
            seconds -= e2e
            found.append(Round((e2e / 5,), (e2e / 100,), (e2e,), e2e))
            on_round(len(found) / rounds)
        return Timings(SHAPE, (tuple(found),))

    def weights_bytes(self, candidate):
        return self.table[candidate.weights][2]

    def memory_bytes(self, candidate):
        return self.weights_bytes(candidate)

    def predict(self, candidate):
        return predict_passes(None, candidate.steps)

    def parts(self, base, coarse):
        saved = (self.table[base.weights][2] - self.table[coarse][2]) // 8
        return {Part(f"layer {i}", (f"layers.{i}.w",)): saved for i in range(8)}

    def seconds(self):
        return self.clock
