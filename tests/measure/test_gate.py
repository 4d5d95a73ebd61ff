import json
import sys
from pathlib import Path

import pytest

from hasten.errors import UsageError
from hasten.measure.arrivals import ClosedLoop
from hasten.measure.gate import compare_reports, read_report, regressions

sys.path.insert(0, str(Path(__file__).parent))
from made_reports import made_document


def test_the_same_again_shows_no_difference():
    changes = compare_reports(made_document(seed=1), made_document(seed=2))
    assert [one.metric for one in changes] == ["ttft", "tpot", "e2e"]
    assert all(one.ratio.low < one.ratio.estimate < one.ratio.high for one in changes)
    assert regressions(made_document(seed=1), made_document(seed=2), 0.05) == []


@pytest.mark.parametrize(("scale", "verdict"), [(1.3, "slower"), (0.7, "faster")])
def test_what_changed_is_found(scale, verdict):
    changes = compare_reports(made_document(), made_document(scale, seed=2))
    assert {one.verdict for one in changes} == {verdict}
    assert changes[0].ratio.estimate == pytest.approx(scale, rel=0.1)
    assert json.dumps(changes[0].as_dict())


def test_only_what_is_beyond_the_tolerance_fails():
    slower = made_document(1.3, seed=2)
    assert len(regressions(made_document(), slower, 0.05)) == 3
    assert regressions(made_document(), slower, 0.5) == []
    assert regressions(slower, made_document(), 0.0) == []


def test_more_failures_are_worse():
    found = regressions(made_document(), made_document(failed=3), 0.5)
    assert found == ["requests that did not complete: 0.0% -> 5.0%"]


@pytest.mark.parametrize(
    ("change", "part"), [({"requests": 10}, "workload"), ({"pattern": ClosedLoop(2)}, "scenario")]
)
def test_other_work_is_not_compared(change, part):
    with pytest.raises(UsageError, match=f"different {part}s"):
        compare_reports(made_document(), made_document(**change))


def test_too_few_requests_say_nothing():
    with pytest.raises(UsageError, match="no latency in common"):
        compare_reports(made_document(count=6), made_document(count=6))


def test_a_report_is_read(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(made_document()))
    assert read_report(path)["schema"] == "hasten.bench/1"


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema": "hasten.eval/1"}', "\xff", "[" * 9999]
)
def test_what_is_no_report(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UsageError):
        read_report(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_report(tmp_path / "none")
