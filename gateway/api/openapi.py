"""The OpenAPI 3.1 document, made from the table of operations and the structs that validate their bodies and answers.

The gateway's own paths are described by hand (`gateway_paths`): they pass on whatever a provider takes and answers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gateway import __version__
from gateway.api.models import TAG as MODELS_TAG
from gateway.api.openapi_gateway import gateway_paths
from gateway.api.operation import Money, Nothing, Operation
from gateway.errors import KINDS

Json = dict[str, Any]

EVERYWHERE = ("invalid_request", "internal", "ledger_unavailable", "store_unavailable", "wallet_unavailable")
"""What every operation may answer with, whatever it does."""
_REF = "#/components/schemas/{name}"
_PAGE_NAME = re.compile(r"Listed_(\w+)_$")
_PLACE = re.compile(r"\{(\w+)(?::[^{}]*)?\}")
_SPACE = re.compile(r"\s+")
_ABOUT = """Meters, plans, customers, subscriptions, credits, requests, usage, keys and webhooks of one merchant.

Amounts are decimal strings in dollars with ten places. Times are ISO-8601 in UTC. Lists are pages, newest first: go on
with `next_cursor` while there is one. In a body, null is the same as absent where the field's type has no null; unknown
fields are ignored. Paths marked deprecated are what older clients call the same thing. Slow, oversized or broken
requests are answered before they reach an operation, with the same body and status 408, 413, 417 or 431."""


def document(operations: Sequence[Operation]) -> Json:
    """The whole document. A type that is sent and answered in two shapes is sent as `<name>Sent`."""
    taken = Types((each.body for each in operations if each.body is not Nothing), _sent)
    given = Types((each.answer for each in operations if each.answer is not None), _answered)
    taken.rename({name: f"{name}Sent" for name in _of_two_shapes(taken.schemas, given.schemas)})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Obol billing API", "version": __version__, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}],
        "tags": [{"name": name} for name in dict.fromkeys([*(each.tag for each in operations), "Gateway"])],
        "paths": {**_paths(operations, taken, given), **gateway_paths()},
        "components": {
            "schemas": {**taken.schemas, **given.schemas, "Error": _ERROR, "GoogleError": _GOOGLE_ERROR},
            "securitySchemes": _SECURITY,
        },
    }


class Types:
    """The schemas of some types: `schemas` by name, and `of` a type that is among them."""

    def __init__(self, types: Iterable[Any], hook: Any) -> None:
        ordered = list(dict.fromkeys(types))
        shown, self.schemas = msgspec.json.schema_components(ordered, schema_hook=hook, ref_template=_REF)
        self._shown: dict[Any, Json] = dict(zip(ordered, shown, strict=True))
        self.rename({name: _page_name(name) for name in self.schemas})

    def of(self, kind: Any) -> Json:
        return self._shown[kind]

    def rename(self, names: Mapping[str, str]) -> None:
        self.schemas = {names.get(name, name): _tidy(schema, names) for name, schema in self.schemas.items()}
        self._shown = {kind: _tidy(schema, names) for kind, schema in self._shown.items()}


def _page_name(name: str) -> str:
    return _PAGE_NAME.sub(r"\1Page", name)


def _tidy(schema: Any, names: Mapping[str, str]) -> Any:
    """The schema with other names for types, and descriptions on one line."""
    if isinstance(schema, list):
        return [_tidy(each, names) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {key: _tidy(value, names) for key, value in schema.items()}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = _SPACE.sub(" ", tidy["description"])
    if tidy.get("format") == "decimal":
        tidy = {**tidy, "type": ["string", "number"]}
    if isinstance(tidy.get("$ref"), str):
        name = tidy["$ref"].rpartition("/")[2]
        tidy["$ref"] = _REF.format(name=names.get(name, name))
    return tidy


def _of_two_shapes(sent: Json, answered: Json) -> set[str]:
    """The names of types that differ, or that hold one that does."""
    shared = sent.keys() & answered.keys()
    found = {name for name in shared if sent[name] != answered[name]}
    while more := {name for name in shared - found if found & _named(sent[name])}:
        found |= more
    return found


def _named(schema: Any) -> set[str]:
    """The types that a schema refers to."""
    return {reference.rpartition("/")[2] for reference in re.findall(r'"\$ref":"([^"]+)"', _text(schema))}


def _text(schema: Any) -> str:
    return msgspec.json.encode(schema).decode()


def _sent(kind: type) -> Json:
    if kind is not Money:
        raise NotImplementedError(kind)
    return {
        "description": "An amount in dollars, with at most 9 decimal places.",
        "anyOf": [{"type": "string", "pattern": r"^[0-9]{1,7}(\.[0-9]{1,9})?$"}, {"type": "number", "minimum": 0}],
        "examples": ["25.00"],
    }


def _answered(kind: type) -> Json:
    if kind is not Money:
        raise NotImplementedError(kind)
    return {"type": "string", "pattern": r"^-?[0-9]+\.[0-9]{10}$", "examples": ["25.0000000000"]}


def _paths(operations: Iterable[Operation], taken: Types, given: Types) -> Json:
    paths: Json = {}
    for operation in operations:
        for path in operation.paths:
            plain = _PLACE.sub(r"{\1}", path)
            paths.setdefault(plain, {})[operation.method.lower()] = _shown(operation, path, plain, taken, given)
    return paths


def _shown(operation: Operation, path: str, plain: str, taken: Types, given: Types) -> Json:
    shown: Json = {
        "operationId": "_".join(re.findall(r"[\w-]+", f"{operation.method.lower()} {plain}")),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [*_path_parameters(path), *_query_parameters(operation.query)],
        "responses": {str(operation.status): _success(operation, given), **_errors(operation, path)},
    }
    if described := inspect.getdoc(operation.handler):
        shown["description"] = _SPACE.sub(" ", described)
    if operation.body is not Nothing:
        required = any(each.required for each in msgspec.structs.fields(operation.body))
        shown["requestBody"] = {"required": required, **_json(taken.of(operation.body))}
    if operation.public:
        shown["security"] = []
    if path != operation.path:
        shown["deprecated"] = True
    return shown


def _json(schema: Json) -> Json:
    return {"content": {"application/json": {"schema": schema}}}


def _success(operation: Operation, given: Types) -> Json:
    if operation.answer is None:
        return {"description": operation.summary}
    return {"description": operation.summary, **_json(given.of(operation.answer))}


def _path_parameters(path: str) -> Iterator[Json]:
    for name in _PLACE.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query_parameters(query: type[msgspec.Struct]) -> list[Json]:
    (_,), found = msgspec.json.schema_components([query], schema_hook=_sent, ref_template=_REF)
    own = found[query.__name__]
    return [
        {
            "name": name,
            "in": "query",
            "required": name in own["required"],
            "schema": _without_null(schema),
        }
        for name, schema in own["properties"].items()
    ]


def _without_null(schema: Json) -> Json:
    """A parameter is left out rather than null."""
    rest = {key: value for key, value in schema.items() if key != "anyOf" and (key != "default" or value is not None)}
    options = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    return {**rest, **options[0]} if len(options) == 1 else {**rest, **({"anyOf": options} if options else {})}


def _errors(operation: Operation, path: str) -> Json:
    """By status, the codes that the operation may answer with there."""
    codes = [*EVERYWHERE, *operation.errors]
    if not operation.public:
        codes.append("unauthorized")
    if "{" in path:  # what cannot be anybody's id
        codes.append("not_found")
    if operation.body is not Nothing:
        codes.append("body_too_large")
    # Vendors' clients ask for models, each in its own dialect.
    names = ("Error", "GoogleError") if operation.tag == MODELS_TAG else ("Error",)
    schemas = [{"$ref": _REF.format(name=name)} for name in names]
    schema: Json = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(KINDS[code].status, []).append(code)
    return {
        str(status): {"description": ", ".join(f"`{code}`" for code in by_status[status]), **_json(schema)}
        for status in sorted(by_status)
    }


_SECURITY: Json = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The merchant's secret key, `aks_...`"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key"},
}
_ERROR: Json = {
    "description": "Every error. What each code means and what to do stands in docs/errors.md.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "param", "type"],
            "properties": {
                "code": {"enum": sorted(KINDS)},
                "message": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field at fault."},
                "type": {"type": "string", "description": "The name that OpenAI's or Anthropic's API has for it."},
                "request_id": {"type": "string"},
            },
        }
    },
}
_GOOGLE_ERROR: Json = {
    "description": "An error in the dialect of Google's API; the code is `details[0].reason`.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message"],
            "properties": {"code": {"type": ["integer", "string"]}, "message": {"type": "string"}},
        }
    },
}
