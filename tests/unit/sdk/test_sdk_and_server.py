"""The Python client asks for what the server has: each call's path, fields and answer are those of an operation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import msgspec.inspect as types
import pytest
from obol_sdk import resources
from obol_sdk.call import Call, Resource

from gateway.api import routes
from gateway.api.operation import Operation

GIVEN: dict[str, Any] = {
    "tiers": [{"start": 0, "rate": 1}],
    "credit_bundles": [{"name": "Ten", "cost": 9, "credit_amount": 10}],
    "spend_limit": {"amount": 5, "cycle": "daily"},
    "metadata": {"key": "value"},
    **dict.fromkeys(("period_amount", "included_credit", "overage_cap"), "1"),
}
"""Arguments that are not just some text."""


class Described:
    """In the place of a client: gives the call back."""

    def send(self, call: Call[Any]) -> Any:
        return call

    send_paged = send


def described() -> Iterator[tuple[str, Call[Any]]]:
    """Every method's call, with every argument given."""
    for name in resources.__all__:
        resource: Resource[Any] = getattr(resources, name)(Described())
        for method in vars(type(resource)):
            if not method.startswith("_"):
                call = getattr(resource, method)
                arguments = {
                    each: GIVEN.get(each, "x") for each in inspect.signature(call).parameters if each != "self"
                }
                yield f"{name}.{method}", call(**arguments)


CALLS = dict(described())


@pytest.fixture(scope="module")
def operations() -> list[Operation]:
    return routes.operations(MagicMock())


def operation_of(call: Call[Any], operations: list[Operation]) -> Operation:
    """An id in a path matches a name before a pattern: /spend_keys/{id}/rotate is no /{id}."""
    path = f"/v1/{call.path}"
    found = [
        each
        for each in operations
        if each.method == call.method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", each.path), path)
    ]
    assert len(found) == 1, (call.method, path)
    return found[0]


def names(kind: Any) -> set[str]:
    return {each.encode_name for each in types.type_info(kind).fields}  # type: ignore[union-attr]


def missing(asked: types.Type, answered: types.Type, place: str) -> list[str]:
    """The fields that the client's struct has and the server's has not."""
    ours, theirs = structs(asked), structs(answered)
    if not ours or not theirs:
        return []
    known = {each.encode_name: each for struct in theirs for each in struct.fields}
    faults = []
    for struct in ours:
        for each in struct.fields:
            if each.encode_name not in known:
                faults.append(f"{place}.{each.encode_name}")
            else:
                faults += missing(each.type, known[each.encode_name].type, f"{place}.{each.encode_name}")
    return faults


def structs(kind: types.Type) -> list[types.StructType]:
    """Those that a type may be, or be a list of."""
    if isinstance(kind, types.ListType):
        return structs(kind.item_type)
    if isinstance(kind, types.UnionType):
        return [struct for each in kind.types for struct in structs(each)]
    return [kind] if isinstance(kind, types.StructType) else []


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_one_of_the_servers(name: str, operations: list[Operation]) -> None:
    call = CALLS[name]
    operation = operation_of(call, operations)
    assert set(call.body or {}) <= names(operation.body)
    assert set(call.query or {}) <= names(operation.query)
    if operation.answer is not None:
        assert missing(types.type_info(call.answer), types.type_info(operation.answer), name) == []
