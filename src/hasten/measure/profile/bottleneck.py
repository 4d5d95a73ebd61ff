"""What holds a phase up, in a sentence, and the option that would help: rules over its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hasten.measure.profile.account import OTHERS, OpShare, PhaseAccount

__all__ = ["RULES", "Facts", "Finding", "Rule", "facts_of", "find_bottlenecks"]

PYTHON = ("scheduling", "sampling", "detokenising", "engine", "executor")


@dataclass(frozen=True, slots=True)
class Facts:
    """Figures of a phase that rules look at; shares are of the time of its steps, in [0, 1].

    Attributes:
        phase: "prefill", "decode" or "mixed".
        executor: As in `EngineOptions`.
        weights: Kind of format that most bytes of the matrices are in: "f32", "bf16", "int8" or
            "int4".
        kv: Format of the KV cache.
        fused: The graph ran with its fusions.
        sequences: In a step, on average.
        context: Positions that a token saw, on average.
        threads: That took part.
        python: Share of Python: scheduling, sampling, detokenising, the engine.
        largest_part: The largest of these, and its share.
        overhead: Share of the executor around its ops.
        products: Share of products with matrices.
        product_bytes: That they read in a step.
        bandwidth_use: Those bytes over their time and the bandwidth of memory.
        arithmetic_use: Their operations over their time and the rate of arithmetic.
        attention: Share of attention.
        small: Share of all other ops.
        waiting: Share in which the leading thread waited for others.
    """

    phase: str
    executor: str
    weights: str
    kv: str
    fused: bool
    sequences: float
    context: float
    threads: int
    python: float
    largest_part: tuple[str, float]
    overhead: float
    products: float
    product_bytes: float
    bandwidth_use: float
    arithmetic_use: float
    attention: float
    small: float
    waiting: float

    @property
    def name(self) -> str:
        """Of the phase, in a sentence."""
        return "prefill beside decode" if self.phase == "mixed" else self.phase


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that may hold a phase up.

    Attributes:
        name: Of what holds it up.
        share: How much of the time it explains; 0 where it does not apply.
        sentence: What the figures say.
        remedy: What would help, with the option for it.
    """

    name: str
    share: Callable[[Facts], float]
    sentence: Callable[[Facts], str]
    remedy: Callable[[Facts], str]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule said of a phase.

    Attributes:
        phase: Of which it is true.
        name: Of the rule.
        share: Of the phase's time that it explains.
        sentence: The figures and what would help.
    """

    phase: str
    name: str
    share: float
    sentence: str


def facts_of(account: PhaseAccount, *, executor: str, weights: str, kv: str, fused: bool) -> Facts:
    """The figures of a phase.

    Args:
        account: Of the phase.
        executor: As in `EngineOptions`.
        weights: Kind of format that most bytes of the matrices are in.
        kv: Format of the KV cache.
        fused: The graph ran with its fusions.
    """
    whole, rates = account.seconds, account.rates
    products = [op for op in account.ops if op.kind == "linear"]
    attention = [op for op in account.ops if op.kind == "attention"]
    seconds, busy = _seconds(products), _seconds(products) or 1.0
    works = [op.work for op in products if op.work is not None]
    read = sum(work.bytes for work in works)
    computing = sum(work.operations / work.rate(rates) for work in works)
    python = {part: account.parts.get(part, 0.0) / whole for part in PYTHON}
    return Facts(
        phase=account.phase,
        executor=executor,
        weights=weights,
        kv=kv,
        fused=fused,
        sequences=account.sequences,
        context=account.context,
        threads=rates.threads,
        python=sum(python.values()),
        largest_part=max(python.items(), key=lambda item: item[1]),
        overhead=account.parts.get(OTHERS, 0.0) / whole,
        products=seconds / whole,
        product_bytes=read / account.steps,
        bandwidth_use=read / rates.bandwidth / busy,
        arithmetic_use=computing / busy,
        attention=_seconds(attention) / whole,
        small=(account.op_seconds - seconds - _seconds(attention)) / whole,
        waiting=sum(op.waiting for op in account.ops) / whole,
    )


def find_bottlenecks(facts: Facts, rules: Iterable[Rule] | None = None) -> list[Finding]:
    """What holds a phase up, what explains most of its time first."""
    found = []
    for rule in RULES if rules is None else rules:
        share = rule.share(facts)
        if share > 0:
            sentence = f"{rule.sentence(facts)}: {rule.remedy(facts)}"
            found.append(Finding(facts.phase, rule.name, share, sentence))
    return sorted(found, key=lambda one: -one.share)


def _seconds(ops: Iterable[OpShare]) -> float:
    return sum(op.seconds for op in ops)


def _above(share: float, least: float) -> float:
    """The share where it is worth telling, else 0."""
    return share if share >= least else 0.0


def _memory_bound(facts: Facts) -> bool:
    return facts.bandwidth_use >= facts.arithmetic_use


READING = 0.5
"""Share of the bandwidth above which products are bound by it."""
COMPUTING = 0.3
"""Share of the rate of arithmetic, likewise; scales and minimums take operations that do not count,
so products with few bits a weight come to about half of it."""


def _reading(facts: Facts) -> float:
    busy = _memory_bound(facts) and facts.bandwidth_use >= READING
    return _above(facts.products, 0.2) if busy else 0.0


def _computing(facts: Facts) -> float:
    busy = not _memory_bound(facts) and facts.arithmetic_use >= COMPUTING
    return _above(facts.products, 0.2) if busy else 0.0


def _stalling(facts: Facts) -> float:
    busy = _reading(facts) or _computing(facts) or facts.executor != "native"
    return 0.0 if busy else _above(facts.products, 0.2)


def _say_reading(facts: Facts) -> str:
    megabytes = facts.product_bytes / 1e6
    unit = "token" if facts.sequences < 1.5 and facts.phase == "decode" else "step"
    return (
        f"{facts.name} reads {megabytes:.3g} MB of weights a {unit} at {facts.bandwidth_use:.0%} "
        f"of the memory bandwidth, in {facts.products:.0%} of its time"
    )


def _fewer_bytes(facts: Facts) -> str:
    narrower = {"f32": "int8:32", "bf16": "int8:32", "int8": "int4:32"}.get(facts.weights)
    if narrower is not None:
        return f"fewer bits a weight would help (--weights {narrower})"
    return "more sequences at once would share each read (serve or batch, --max-sequences)"


def _cheaper_products(facts: Facts) -> str:
    if facts.weights in ("f32", "bf16"):
        return "integer products are faster (--weights int8:32)"
    if facts.phase == "decode":
        return "more cores would help (--threads), more sequences at once no longer do"
    return (
        "prompts that begin alike are computed once (--prefix-cache); more cores help (--threads)"
    )


def _shorter_context(facts: Facts) -> str:
    if facts.kv != "int8":
        return "a smaller cache would help (--kv int8), and so would shorter prompts"
    return "shorter prompts would help, or a model with a sliding window"


def _say_python(facts: Facts) -> str:
    part, share = facts.largest_part
    return (
        f"Python around the model takes {facts.python:.0%} of a {facts.name} step, most of it "
        f"{part} ({share:.0%})"
    )


def _less_python(facts: Facts) -> str:
    if facts.largest_part[0] == "sampling":
        return "greedy sampling (--temperature 0), or fewer penalties and log probabilities"
    return "more tokens a step share it (more sequences at once: --batch, --max-sequences)"


RULES: tuple[Rule, ...] = (
    Rule(
        "op by op",
        lambda f: f.products + f.attention + f.small if f.executor != "native" else 0.0,
        lambda f: f"{f.name} runs in the {f.executor} executor, op by op",
        lambda _: "the native one is the fast one (--executor native)",
    ),
    Rule("weights from memory", _reading, _say_reading, _fewer_bytes),
    Rule(
        "arithmetic",
        _computing,
        lambda f: (
            f"{f.name} is bound by arithmetic: products run at {f.arithmetic_use:.0%} of the "
            f"machine's rate, in {f.products:.0%} of the time"
        ),
        _cheaper_products,
    ),
    Rule(
        "products below the machine's limits",
        _stalling,
        lambda f: (
            f"products take {f.products:.0%} of {f.name} at {f.bandwidth_use:.0%} of the "
            f"memory bandwidth and {f.arithmetic_use:.0%} of the rate of arithmetic"
        ),
        lambda f: (
            "they wait for something else; try other numbers of threads (--sweep threads)"
            if f.waiting > 0.1
            else "steps are too small to fill the machine; more tokens a step would (--batch)"
        ),
    ),
    Rule(
        "attention",
        lambda f: _above(f.attention, 0.2) if f.executor == "native" else 0.0,
        lambda f: f"attention over {f.context:.0f} positions takes {f.attention:.0%} of {f.name}",
        _shorter_context,
    ),
    Rule("python", lambda f: _above(f.python, 0.1), _say_python, _less_python),
    Rule(
        "small ops",
        lambda f: _above(f.small, 0.15 if not f.fused else 0.25) if f.executor == "native" else 0.0,
        lambda f: f"norms, rotations and the like take {f.small:.0%} of {f.name}",
        lambda f: (
            "more tokens a step would fill them (--batch)"
            if f.fused
            else "let the products hold them (--fuse)"
        ),
    ),
    Rule(
        "waiting for threads",
        lambda f: _above(f.waiting, 0.2) if f.threads > 1 else 0.0,
        lambda f: f"the leading thread waits for others in {f.waiting:.0%} of {f.name}",
        lambda f: (
            f"fewer threads than {f.threads} may be as fast (--sweep threads), and other "
            "processes may be using the cores"
        ),
    ),
    Rule(
        "around the ops",
        lambda f: _above(f.overhead, 0.1),
        lambda f: f"the executor spends {f.overhead:.0%} of {f.name} around its ops",
        lambda _: "more tokens a step share it (--batch)",
    ),
)
"""Each looks at figures alone, so made-up ones test it."""
