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
MEANT = {501, 503, 504}
NAMES = ["tiny", "tiny", "vectors", "tiny:latest", None]


PUBLISHED = document([one for listed in all_routes().values() for one in listed], secured=False)
schema = schemathesis.openapi.from_dict(PUBLISHED)


def test_it_is_what_is_published(server):
    assert json.loads(server.request("GET", "/openapi.json")[2]) == PUBLISHED


@schema.hook("map_body")
def name_a_model(context, body):
    """Most requests are for models that are there, unless they would take them away."""
    admin = context.operation.path.startswith(("/api/create", "/api/delete", "/api/copy"))
    if isinstance(body, dict) and isinstance(body.get("model"), str) and not admin:
        name = NAMES[len(str(body)) % len(NAMES)]
        return body if name is None else {**body, "model": name}
    return body


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
    response = case.call(base_url=server.url, timeout=60)
    case.validate_response(
        response,
        checks=[status_code_conformance, content_type_conformance, response_schema_conformance],
    )
    assert response.status_code < 500 or response.status_code in MEANT, response.text
    assert "x-request-id" in response.headers
