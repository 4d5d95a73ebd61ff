"""Requests made of the published schema, at random: the server answers each as the schema says.

`HASTEN_FUZZ_EXAMPLES` sets how many are tried for all places together; with it they differ from run
to run.
"""

from __future__ import annotations

import json
import os

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from hasten.serve.assemble import all_routes
from hasten.serve.openapi import document

EXAMPLES = os.environ.get("HASTEN_FUZZ_EXAMPLES")
PLACES = 50
"""About how many there are."""
MEANT = {501, 502, 503, 504}
NO_BRACKETS = "the structure cannot be followed"
"""What is said of JSON where a vocabulary, as that of the tiny model, has no brackets; a 500."""
ADMIN = {"/api/copy", "/api/create", "/api/delete", "/api/pull"}
COVERAGE = schemathesis.Config.from_dict({"phases": {"coverage": {"enabled": bool(EXAMPLES)}}})
"""Schemathesis's list of border cases, some thousands, is for the long form."""

PUBLISHED = document([one for listed in all_routes().values() for one in listed], secured=False)
schema = schemathesis.openapi.from_dict(PUBLISHED, config=COVERAGE)


def test_it_is_what_is_published(server):
    assert json.loads(server.request("GET", "/openapi.json")[2]) == PUBLISHED


def sensible(path, body):
    """A body with what no schema says: names of models that are there, and messages with content.

    Without that next to nothing would get as far as an engine. Some bodies stay as they are, and so
    do those that would take the models away.
    """
    if not isinstance(body, dict) or path in ADMIN or len(repr(body)) % 5 == 0:
        return body
    changed = {**body}
    if isinstance(body.get("model"), str):
        changed["model"] = "vectors" if "embed" in path else "tiny"
    for name in ("messages", "input"):
        if isinstance(body.get(name), list) and "embed" not in path:
            given = [one for one in body[name] if isinstance(one, dict) and one.get("content")]
            changed[name] = [*given[:3], {"role": "user", "content": "a b"}]
    return changed


@schema.parametrize()
@settings(
    max_examples=5 if EXAMPLES is None else max(1, int(EXAMPLES) // PLACES),
    derandomize=EXAMPLES is None,
    phases=[Phase.explicit, Phase.generate],
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_the_schema_says(case, server):
    case.body = sensible(case.operation.path, case.body)
    response = case.call(base_url=server.url, timeout=60)
    case.validate_response(
        response,
        checks=[status_code_conformance, content_type_conformance, response_schema_conformance],
    )
    meant = response.status_code in MEANT or NO_BRACKETS in response.text
    assert response.status_code < 500 or meant, response.text
    assert "x-request-id" in response.headers
