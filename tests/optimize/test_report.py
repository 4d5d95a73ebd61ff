"""The page is drawn from the recipe alone, asks nothing of the network, and escapes names."""

import copy
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import ModelFileError
from hasten.optimize.chart import Point, draw_chart, draw_losses
from hasten.optimize.report import before_and_after, candidate_table, headline, render_report
from hasten.optimize.training import loss_curve


def interval(value, share=0.1):
    half = abs(value) * share
    return {
        "estimate": value,
        "low": value - half,
        "high": value + half,
        "confidence": 0.95,
    }


def accuracy(kl):
    return {
        "tokens": 4088,
        "reference_perplexity": interval(15.1),
        "perplexity": interval(15.1 + kl),
        "perplexity_ratio": interval(1 + kl, 0.001),
        "kl_divergence": interval(kl),
        "top1_agreement": interval(0.96, 0.01),
    }


BROKEN = {
    name: dict.fromkeys(("estimate", "low", "high")) for name in accuracy(1) if name != "tokens"
}


def candidate(label, status, speed, loss, reason=""):
    return {
        "label": label,
        "settings": {
            "weights": label.partition(",")[0],
            "overrides": {},
            "kv": "int8" if "KV int8" in label else "bf16",
            "threads": 2,
        },
        "passes": [],
        "memory_bytes": 120 << 20,
        "status": status,
        "reason": reason,
        "weights_bytes": 92 << 20,
        "timings": None,
        "speedup": None if speed is None else interval(speed),
        "accuracy": loss,
        "accuracy_text": "calibration" if status == "refused" else "evaluation",
    }


def figures(scale):
    return {
        "settings": {},
        "rounds": 11,
        "e2e_ms": 3000 / scale,
        "ttft_ms": 200 / scale,
        "tpot_ms": 44 / scale,
        "prefill_tokens_per_s": 640 * scale,
        "decode_tokens_per_s": 22 * scale,
        "output_tokens_per_s": 20 * scale,
        "memory": {"weights": int((512 << 20) / scale), "kv_cache": 22 << 20, "buffers": 1},
    }


RECIPE = {
    "schema": "hasten.recipe/1",
    "date": "2026-01-02T03:04:05+00:00",
    "command": ["hasten", "optimize", "smollm2", "-o", "my fast"],
    "versions": {"hasten": "0.1.0", "numpy": "2", "python": "3.11"},
    "source": {"name": "smollm2", "path": "/models/x.gguf", "digest": "ab" * 32},
    "passes": [],
    "settings": {"weights": "carried", "kv": "int8", "threads": 2},
    "objective": {"name": "chat", "concurrent": 1, "input_tokens": 128, "output_tokens": 64},
    "front": [0, 1, 3],
    "before": figures(1),
    "after": figures(9),
    "speedup": interval(9.0),
    "tasks": None,
    "accuracy": accuracy(0.003),
    "budget": {"perplexity_percent": 1.0, "kl": 0.02, "top1_percent": 7.0},
    "texts": {
        kind: {"name": kind, "digest": "cd", "tokens": 4088, "windows": 8, "context": 512}
        for kind in ("calibration", "evaluation")
    },
    "chosen": "carried, KV int8, 2 threads",
    "candidates": [
        candidate("f32, KV f32, 2 threads", "original", 1.0, None),
        candidate("carried, KV int8, 2 threads", "chosen", 9.0, accuracy(0.003)),
        candidate("carried, KV bf16, 2 threads", "passed", 8.8, accuracy(0.0029), "8.80 times"),
        candidate("int4:64, KV bf16, 2 threads", "refused", 9.4, accuracy(0.284), "KL 0.28 > 0.02"),
        candidate("int4:128", "refused", None, None, "groups of 128 do not divide"),
        candidate("nan", "refused", 3.0, BROKEN, "KL inf"),
    ],
    "remarks": ["mixed precision: no layer bears int4:64 inside the budget"],
    "machine": {
        "cpu": "A CPU",
        "architecture": "x86_64",
        "cores": 2,
        "memory_limit_bytes": 24 << 30,
        "kernel": "Linux 6",
        "python": "3.11",
        "hasten": "0.1.0",
    },
    "seed": 0,
    "search_seconds": 100.0,
    "formulas": {"e2e": "send -> last token"},
}


class Checker(HTMLParser):
    """Every element that is opened is closed, and nothing points outside the page."""

    VOID = frozenset({"meta", "br", "path", "rect", "circle"})

    def __init__(self):
        super().__init__()
        self.open = []
        self.text = []

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "img", "iframe", "object")
        for name, value in attributes:
            assert name not in ("src", "href", "srcset", "action", "data")
            assert "//" not in (value or "")
            assert not name.startswith("on")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def text_of(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return " ".join(" ".join(checker.text).split())


def test_the_page_is_self_contained_and_says_everything():
    page = render_report(RECIPE, "my fast")
    text = text_of(page)
    assert not re.search(r"url\(|@import|https?:", page)
    for expected in (
        "smollm2 answers 9.0 times as fast",
        "KL 0.28 > 0.02",
        "groups of 128 do not divide",
        "no layer bears int4:64",
        "hasten run 'my fast' \"Hello\"",
        "hasten optimize smollm2 -o 'my fast'",
        "KL divergence at most 0.02",
        "send -> last token",
        "A CPU (x86_64)",
    ):
        assert expected in text
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_names_cannot_smuggle_markup_into_the_page():
    hostile = copy.deepcopy(RECIPE)
    attack = '<script>alert(1)</script>"><img src=x onerror=y>'
    hostile["source"]["name"] = hostile["candidates"][1]["label"] = attack
    hostile["candidates"][1]["reason"] = hostile["remarks"][0] = attack
    hostile["machine"]["cpu"] = attack
    text = text_of(render_report(hostile, attack))
    assert text.count("<script>alert(1)</script>") >= 5


def test_when_nothing_was_better_the_page_says_so():
    plain = copy.deepcopy(RECIPE)
    plain["accuracy"] = plain["speedup"] = None
    plain["after"] = plain["before"]
    assert "stays as it is" in headline(plain)
    assert "stays as it is" in text_of(render_report(plain, "x"))


@pytest.mark.parametrize("criterion", ["perplexity_percent", "top1_percent", None])
def test_the_chart_shows_the_criterion_of_the_budget(criterion):
    recipe = copy.deepcopy(RECIPE)
    recipe["budget"] = dict.fromkeys(RECIPE["budget"]) | ({criterion: 3.0} if criterion else {})
    title = {
        "perplexity_percent": "rise of perplexity",
        "top1_percent": "changed likeliest tokens",
        None: "KL divergence",
    }[criterion]
    assert f"← {title}" in text_of(render_report(recipe, "x"))


def test_rows_before_and_after_are_ratios_in_the_reader_s_direction():
    rows = {row[0]: row[1:] for row in before_and_after(RECIPE)}
    assert rows["latency of a request, ms"] == ("3000", "333", "9.00 × faster")
    assert rows["decode, tokens/s"] == ("22.0", "198.0", "9.00 × faster")
    assert rows["weights in memory, MiB"] == ("512.0", "56.9", "9.00 × smaller")
    assert rows["perplexity"][2] == "+0.20 to +0.40 %"


def test_every_candidate_is_in_the_table():
    table = candidate_table(RECIPE)
    assert [row[0] for row in table] == [one["label"] for one in RECIPE["candidates"]]
    assert table[5][2:] == ("3.00 ×", "–", "–")


@pytest.mark.parametrize("lost", ["source", "settings", "candidates"])
def test_a_recipe_that_lacks_a_part_is_refused(lost):
    with pytest.raises(ModelFileError, match=lost):
        render_report({key: value for key, value in RECIPE.items() if key != lost}, "x")


def test_a_recipe_of_another_schema_is_refused():
    with pytest.raises(ModelFileError, match=r"hasten\.recipe/2"):
        render_report(RECIPE | {"schema": "hasten.recipe/2"}, "x")


positive = st.floats(1e-9, 1e6)


@given(
    points=st.lists(
        st.tuples(positive, st.floats(0, 100), st.sampled_from(["chosen", "passed", "refused"])),
        max_size=25,
    ),
    limit=st.floats(1e-6, 1e3),
)
def test_all_marks_and_numbers_stay_inside_the_picture(points, limit):
    made = [
        Point(index, kind, "t", (speed, speed * 0.9, speed * 1.1), (loss, loss * 0.5, loss * 2))
        for index, (speed, loss, kind) in enumerate(points)
    ]
    svg = draw_chart(made, limit=limit, loss_title="KL & <loss>")
    text_of(svg)
    assert svg.count('class="number') == len(points)
    for x, y in re.findall(r'<text class="number[^>]* x="([-\d.]+)" y="([-\d.]+)"', svg):
        assert 0 <= float(x) <= 480
        assert 0 <= float(y) <= 330
    assert "nan" not in svg


def test_what_was_traded_is_said_with_figures():
    text = text_of(render_report(RECIPE, "x"))
    assert "Chosen: carried, KV int8, 2 threads: 9.00 times as fast, KL 0.0030." in text
    assert "Faster at a price: int4:64, KV bf16, 2 threads: 9.40 times" in text
    assert "refused (KL 0.28 > 0.02)" in text
    assert "Weights 512 MiB -> 57 MiB." in text
    assert "With the KV cache in bf16 it would hold 120 MiB in all and run at 0.98" in text
    assert "128 tokens in and 64 out on this machine" in text


@pytest.mark.parametrize("kv", ["int8", "bf16"], ids=["of the chosen", "of another"])
def test_what_other_operators_are_worth_is_said(kv):
    recipe = copy.deepcopy(RECIPE)
    usual = f"carried, KV {kv}, 2 threads"
    speed = {"int8": 9.0, "bf16": 8.8}[kv]
    unfused = candidate(f"{usual}, op by op", "slower", 0.9 * speed, accuracy(0.003))
    narrow = candidate(f"{usual}, avx2 kernels", "slower", 0.8 * speed, accuracy(0.003))
    unfused["settings"]["fuse"], narrow["settings"]["isa"] = False, "avx2"
    recipe["candidates"] += [unfused, narrow]
    text = text_of(render_report(recipe, "x"))
    assert f"Run op by op, {usual} has 0.90 of its speed." in text
    assert f"Run with avx2 kernels, {usual} has 0.80 of its speed." in text
    assert text.count("of its speed.") == 2
    assert "of its speed." not in text_of(render_report(RECIPE, "x"))


def test_the_front_is_a_line_through_its_points():
    page = render_report(RECIPE, "x")
    (line,) = re.findall(r'<path class="front" d="M([^"]*)"', page)
    assert line.count("L") == 2
    lone = {**RECIPE, "front": [0]}
    assert 'class="front"' not in render_report(lone, "x")


def test_a_step_that_says_it_changes_nothing_is_shown_with_its_figures():
    recipe = copy.deepcopy(RECIPE)
    claim = {"steps": ["folded"], "excess": accuracy(0.0002), "float32": [accuracy(3e-9)]}
    recipe["candidates"][1]["claim"] = claim
    recipe["candidates"][2]["claim"] = None
    recipe["candidates"][3]["claim"] = {**claim, "steps": ["torn"], "float32": []}
    recipe["candidates"][4]["claim"] = {**claim, "steps": ["wild"], "float32": [BROKEN]}
    text = text_of(render_report(recipe, "x"))
    beside = "+0.0002 nats (+0.0002 to +0.0002) beside the same without it"
    assert f"folded says that it changes nothing: {beside}, 3.0e-09 nats in float32" in text
    assert f"torn says that it changes nothing: {beside} " in text
    assert "wild says that it changes nothing: what it computes is not finite" in text
    assert text.count("says that it changes nothing") == 3


TRAINING = {
    "pass": "healed <b>",
    "candidates": [2, 3],
    "loss": [[1, 2.0], [2, 1.0], [4, 0.25]],
    "held_out": [[0, 2.5], [2, 0.5], [4, 0.75]],
}


def test_losses_are_drawn_where_a_pass_trained():
    page = render_report({**RECIPE, "training": [TRAINING]}, "x")
    text = text_of(page)
    assert "What was trained" in text
    assert (
        "healed <b> (candidates 2, 3). On text held out the loss fell from 2.5000 to 0.5000" in text
    )
    assert "after 2 of 4 steps" in text
    (line,) = re.findall(r'<path class="loss" d="M([^"]*)"', page)
    assert line.count("L") == 2
    assert page.count('<circle class="held-out"') == 3
    for nothing in (RECIPE, {**RECIPE, "training": []}):
        assert "What was trained" not in text_of(render_report(nothing, "x"))


@given(
    loss=st.lists(st.floats(0, 1e4), max_size=300),
    held_out=st.lists(st.floats(0, 1e4), min_size=1, max_size=9),
)
def test_losses_stay_inside_their_picture_and_keep_their_mean(loss, held_out):
    given_losses = [{"step": 0, "loss": None, "held_out": held_out[0]}]
    given_losses += [{"step": n, "loss": one, "held_out": None} for n, one in enumerate(loss, 1)]
    for one, value in zip(given_losses[1:], held_out[1:], strict=False):
        one["held_out"] = value
    curve = loss_curve(given_losses)
    assert len(curve["loss"]) <= 100
    if loss and len(loss) % max(1, len(curve["loss"])) == 0:
        mean = sum(value for _, value in curve["loss"]) / len(curve["loss"])
        assert mean == pytest.approx(sum(loss) / len(loss))
    svg = draw_losses(curve["loss"], curve["held_out"], title="a & b")
    text_of(svg)
    assert "nan" not in svg
    for path in re.findall(r' d="M([^"HV]*)"', svg):
        for place in path.split("L"):
            x, y = map(float, place.split())
            assert 52 <= x <= 466
            assert 14 <= y <= 146
