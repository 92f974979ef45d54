"""The OpenAPI document and the page made from it: complete, and true to what the operations take and answer."""

from __future__ import annotations

import re
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
from aiohttp import web

from gateway import app
from gateway.api import docs_page, openapi, openapi_gateway, routes
from gateway.api.operation import Money, Operation, encode
from gateway.errors import KINDS
from gateway.observe import Probes
from gateway.wire.dropin import route_of
from gateway.wire.rewrite import PREFIX

UNDESCRIBED = {
    "/openapi.json",
    "/docs",
    "/auth/cli",
    "/auth/connect",
    "/metrics",
    "/healthz",
    "/readyz",
    "/dashboard",
    "/dashboard/",
    "/embed/checkout/{secret}",
    "/checkout/{secret}",
    "/checkout.js",
    "/v1/processor_events/{name}/{mode}",
    "/checkout/{token}",
    "/{token}",
}
"""Pages and probes."""


@cache
def operations() -> tuple[Operation, ...]:
    return tuple(routes.operations(MagicMock()))


@cache
def document() -> dict[str, Any]:
    return openapi.document(operations())


def described() -> list[tuple[str, str, Any]]:
    return [(path, method, told) for path, item in document()["paths"].items() for method, told in item.items()]


def values_of(tree: Any, key: str) -> set[Any]:
    """Every text under `key`, wherever it stands."""
    if isinstance(tree, list):
        return set().union(*(values_of(each, key) for each in tree))
    if not isinstance(tree, dict):
        return set()
    own = {tree[key]} if isinstance(tree.get(key), str) else set()
    return own.union(*(values_of(each, key) for each in tree.values()))


@pytest.mark.filterwarnings("ignore:Bare functions")  # of the probes, which are not there
def test_every_route_is_described_or_is_a_page() -> None:
    context = MagicMock()
    context.settings.max_request_body_bytes = 1
    probes = SimpleNamespace(routes=lambda: Probes.routes(MagicMock()))
    served = {
        (re.sub(r"\{(\w+):[^}]*\}+", r"{\1}", route.resource.canonical), route.method.lower())
        for route in app.application(context, probes).router.routes()  # type: ignore[arg-type]
        if isinstance(route, web.ResourceRoute) and route.resource is not None and route.method != "HEAD"
    }
    known = {(path, method) for path, method, _ in described()}
    missing = {path for path, _ in served - known}
    assert {path for path in missing if not path.startswith(("/dashboard/static/", "/checkout/static/"))} == UNDESCRIBED
    gateways = {(row.path, method.lower()) for row in openapi_gateway.PATHS for method in row.methods}
    assert known - served == gateways


@pytest.mark.parametrize("row", openapi_gateway.PATHS, ids=lambda row: row.path)
def test_the_paths_described_by_hand_exist(row: openapi_gateway.Path) -> None:
    path = row.path.replace("{model}", "gemini-2.5-pro")
    assert path == "/v1/forward" or path.startswith(PREFIX) or route_of(path) is not None


def test_every_reference_leads_somewhere_and_every_type_is_used() -> None:
    schemas = {f"#/components/schemas/{name}" for name in document()["components"]["schemas"]}
    assert values_of(document(), "$ref") == schemas


def test_types_have_names_for_readers() -> None:
    """Two types of one name get the name of their module, which says nothing to a caller."""
    names = document()["components"]["schemas"]
    assert [name for name in names if not re.fullmatch(r"[A-Z][A-Za-z0-9]+", name)] == []
    assert "MeterPage" in names


def test_operations_are_told_apart() -> None:
    ids = [told["operationId"] for _, _, told in described() if "operationId" in told]
    assert len(ids) == len(set(ids)) == sum(len(each.paths) for each in operations())
    current = [(told["summary"], told["tags"][0]) for _, _, told in described() if not told.get("deprecated")]
    assert len({each for each in current if each[1] != "Gateway"}) >= len(operations()) - 2


def test_each_place_in_a_path_is_a_parameter() -> None:
    for path, _, told in described():
        assert [each["name"] for each in told["parameters"] if each["in"] == "path"] == re.findall(r"\{(\w+)\}", path)


def test_older_paths_are_deprecated_and_current_ones_are_not() -> None:
    for operation in operations():
        for path in operation.paths:
            told = document()["paths"][re.sub(r"\{(\w+):[^}]*\}", r"{\1}", path)][operation.method.lower()]
            assert told.get("deprecated", False) == (path != operation.path)


def test_each_answer_and_error_has_its_status() -> None:
    for operation in operations():
        told = document()["paths"][re.sub(r"\{(\w+):[^}]*\}", r"{\1}", operation.path)][operation.method.lower()]
        expected = {KINDS[code].status for code in operation.errors} | {operation.status, 400, 500, 503}
        assert {int(status) for status in told["responses"]} >= expected
        assert ("401" in told["responses"]) is not operation.public or operation.public
        assert (told.get("security") == []) is operation.public
        for code in operation.errors:
            assert f"`{code}`" in told["responses"][str(KINDS[code].status)]["description"]


def test_an_amount_is_shown_as_it_is_encoded() -> None:
    pattern = document()["components"]["schemas"]["UsageTotals"]["properties"]["total_charge"]["pattern"]
    for nano in (0, 1, -1, 25 * 10**9):
        assert re.fullmatch(pattern, msgspec.json.decode(encode(Money(nano))))


class Limit(msgspec.Struct):
    amount: Money


class Holder(msgspec.Struct):
    limit: Limit


def test_a_type_of_two_shapes_has_two_names() -> None:
    """An amount may be sent as a number, but is answered as text; what holds it differs, too."""
    operation = Operation("POST", "/x", MagicMock(__doc__=None), "Make", "X", body=Holder, answer=Holder)
    schemas = openapi.document([operation])["components"]["schemas"]
    assert schemas["HolderSent"]["properties"]["limit"] == {"$ref": "#/components/schemas/LimitSent"}
    assert schemas["Holder"]["properties"]["limit"] == {"$ref": "#/components/schemas/Limit"}
    assert "anyOf" in schemas["LimitSent"]["properties"]["amount"]
    assert "pattern" in schemas["Limit"]["properties"]["amount"]


def test_the_page_shows_every_path_and_type() -> None:
    page = docs_page.page(document())
    assert [path for path in document()["paths"] if f"<code>{path}</code>" not in page] == []
    assert [name for name in document()["components"]["schemas"] if f'id="type-{name}"' not in page] == []
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(re.findall(r'id="([^"]+)"', page))
    assert "<script" not in page
    assert "://" not in re.sub(r"<code>[^<]*</code>", "", page.partition("<body>")[2]).replace("https://", "", 20)


def test_what_the_document_says_cannot_become_markup() -> None:
    told = {**document(), "info": {**document()["info"], "title": "<b>&", "description": "`<i>`"}}
    page = docs_page.page(told)
    assert "<b>&" not in page
    assert "<code>&lt;i&gt;</code>" in page
