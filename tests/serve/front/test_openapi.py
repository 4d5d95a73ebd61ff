"""The published schema is one, and says what the server does."""

from __future__ import annotations

import json

import pytest
import schemathesis

from hasten.serve.assemble import all_routes
from hasten.serve.openapi import document


@pytest.fixture(scope="module")
def published():
    routes = [route for listed in all_routes().values() for route in listed]
    return document(routes, secured=True)


def test_every_route_is_in_it(published):
    for listed in all_routes().values():
        for route in listed:
            path = route.path.replace(":path}", "}")
            operation = published["paths"][path][route.method.lower()]
            assert operation["summary"] == route.summary
            assert ("requestBody" in operation) == (bool(route.request) or route.streams_body)
            assert (operation.get("security") == []) == route.open
            assert {"401", "429", "503"} <= set(operation["responses"])
    names = [one["operationId"] for path in published["paths"].values() for one in path.values()]
    assert len(set(names)) == len(names)


def test_it_is_a_schema(published):
    assert published["openapi"] == "3.1.0"
    schema = schemathesis.openapi.from_dict(published)
    schema.validate()
    assert schema.statistic.operations.total == sum(map(len, published["paths"].values()))
    for operation in schema.get_all_operations():
        operation.ok()
    references = json.dumps(published).split('"#/components/schemas/')[1:]
    known = published["components"]["schemas"]
    assert all(reference.split('"')[0] in known for reference in references)


def test_it_is_shown(front):
    running = front(routes=all_routes())
    status, headers, body = running.request("GET", "/openapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert "/openapi.json" in json.loads(body)["paths"]
    assert json.loads(body)["security"] == []  # this one asks for no key
