import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "measure"))
from made_reports import made_document


@pytest.fixture
def reports(tmp_path):
    paths = []
    for number, scale in enumerate((1.0, 1.0, 0.5)):
        path = tmp_path / f"r{number}.json"
        path.write_text(json.dumps(made_document(scale, seed=number)))
        paths.append(str(path))
    return paths


def test_each_beside_the_first(hasten, reports, tmp_path):
    page = tmp_path / "page.html"
    result = hasten("compare", *reports, "--html", str(page))
    assert result.status == 0
    assert result.out.count("no difference shown") == 3
    assert result.out.count("faster") == 3
    assert all(path in page.read_text() for path in reports)


def test_as_json(hasten, reports):
    document = json.loads(hasten("compare", *reports, "--json", "-").out)
    assert document["first"] == reports[0]
    verdicts = {one["verdict"] for one in document["changes"][reports[2]]}
    assert verdicts == {"faster"}


def test_what_cannot_be_compared(hasten, reports, tmp_path):
    assert hasten("compare", reports[0]).status == 2
    assert hasten("compare", reports[0], reports[0]).status == 2
    other = tmp_path / "other.json"
    other.write_text(json.dumps(made_document(requests=3)))
    result = hasten("compare", reports[0], str(other))
    assert result.status == 2
    assert "different workloads" in result.err
