"""The page shows what the reports say, runs nothing of theirs, and needs no network."""

import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.machine import Rates
from hasten.measure.html import plots_of, render_html

sys.path.insert(0, str(Path(__file__).parent))
from made_reports import made_document


def titles(plots):
    return [plot["title"] for plot in plots]


def test_plots_of_two_reports():
    before, after = made_document(), made_document(2, seed=2)
    plots = plots_of({"before": before, "after": after})
    assert titles(plots)[:3] == [
        "Distribution of time to first token",
        "Distribution of time per output token",
        "Distribution of end to end",
    ]
    first, second = plots[0]["series"]
    assert [first["label"], second["label"]] == ["before", "after"]
    assert first["x"] == sorted(before["records"]["ttft_ms"])
    assert (first["y"][0], first["y"][-1]) == (pytest.approx(100 / 60), 100)
    timeline = next(plot for plot in plots if plot["title"].startswith("before"))
    assert len(timeline["series"][0]["x"]) == 60


def test_long_curves_are_thinned_to_their_ends():
    document = made_document(count=5000)
    (curve,) = plots_of({"a": document})[0]["series"]
    assert len(curve["x"]) <= 400
    values = document["records"]["ttft_ms"]
    assert (curve["x"][0], curve["x"][-1]) == (min(values), max(values))


def test_failed_requests_have_no_latency():
    (curve,) = plots_of({"a": made_document(failed=10)})[0]["series"]
    assert len(curve["x"]) == 50


def test_requests_of_the_same_moment_stay_apart():
    document = made_document()
    document["records"]["intended_s"] = [0.0] * 60
    timeline = plots_of({"a": document})[-1]
    for series in timeline["series"]:
        assert len(series["x"]) == len(set(series["x"])) == 60


def phase(intensity, rate):
    """Of a profile whose one kind of op does so many operations a byte, and a second."""
    op = {
        "kind": "linear",
        "label": "gate up",
        "shape": "3072 x 576",
        "ops": 30,
        "operations_per_step": 1e9,
        "bytes_per_step": 1e9 / intensity,
        "seconds_per_step": 1e9 / rate,
        "floor_s_per_step": None,
        "time_over_floor": None,
    }
    rates = Rates(threads=2, isa="avx2", bandwidth=2e10, int8=4e11, fp32=1e11).as_dict()
    return {"seconds_per_step": 2e9 / rate, "rates": rates, "by_kind": [op]}


def test_a_sweep_and_a_roofline():
    step = made_document()
    document = step | {
        "sweep": [step],
        "phases": {"decode": phase(2.0, 3e10), "prefill": phase(200.0, 3e11)},
    }
    plots = {plot["title"]: plot for plot in plots_of({"a": document})}
    assert plots["Latency against throughput"]["series"][0]["y"][0] > 0
    roof, *points = plots["a: roofline"]["series"]
    assert max(roof["y"]) == pytest.approx(400)
    assert [one["label"] for one in points] == ["decode: linear", "prefill: linear"]
    assert (points[0]["x"], points[0]["y"]) == ([2.0], [pytest.approx(30)])
    page = render_html({"a": document}, "t")
    assert "time / floor" in page
    assert page.count("<td>gate up</td>") == 2


def test_names_are_text_and_nothing_else():
    evil = "</script><img src=x onerror=alert(1)>"
    page = render_html({evil: made_document(model=evil)}, evil)
    assert evil not in page
    assert "<img" not in page
    payload = re.search(
        r'<script type="application/json" id="plots">(.*?)</script>', page, re.DOTALL
    )[1]
    assert evil in json.loads(payload)[0]["series"][0]["label"]


def test_nothing_is_fetched():
    page = render_html({"a": made_document()}, "t")

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag not in {"link", "img", "iframe"}
            assert not {"src", "href"} & dict(attrs).keys()

    Links().feed(page)
    assert "default-src 'none'" in page


def test_an_invalid_report_says_so():
    assert "do not stand" not in render_html({"a": made_document() | {"valid": True}}, "t")
    assert "do not stand" in render_html({"a": made_document() | {"valid": False}}, "t")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_draws_the_plots(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(render_html({"a": made_document()}, "t"))
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    ).stdout
    assert shown.count("<canvas") == 4
