"""Gemini's schemas, a subset of OpenAPI 3.0, as JSON Schema."""

from __future__ import annotations

from typing import Any

from gateway.wire.translate.fields import refusal

_SAME = frozenset(
    {"title", "description", "enum", "format", "default", "pattern", "example", "required", "minimum", "maximum"}
)
_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
_LISTS = {"anyOf": "anyOf", "any_of": "anyOf", "oneOf": "oneOf", "allOf": "allOf", "prefixItems": "prefixItems"}
_MAPS = {"properties": "properties", "$defs": "$defs", "defs": "$defs"}
_AS_THEY_ARE = frozenset({"$ref", "$schema", "$id", "$anchor", "const", "exclusiveMinimum", "exclusiveMaximum"})
_ALIASES = {"min_items": "minItems", "max_items": "maxItems", "min_length": "minLength", "max_length": "maxLength"}
DEPTH_MAX = 64


def json_schema(schema: dict[str, Any], at: str, depth: int = 0) -> dict[str, Any]:
    """Types in lower case, `nullable` as the type null, 64-bit counts as numbers.

    Raise ObolError `forward_translation_not_supported` for a member that is none of Gemini's, or too many levels.
    """
    if depth > DEPTH_MAX:
        raise refusal(at, f"a schema of more than {DEPTH_MAX} levels")
    found: dict[str, Any] = {}
    for name, value in schema.items():
        name = _ALIASES.get(name, name)
        if value is None or name in ("propertyOrdering", "property_ordering", "nullable"):
            continue
        if name == "type":
            found["type"] = value.lower() if isinstance(value, str) else value
        elif name in _COUNTS:
            found[name] = int(value) if isinstance(value, str) and value.isdecimal() else value
        else:
            found |= _member(name, value, f"{at}.{name}", depth)
    if schema.get("nullable") is True and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    return found


def _member(name: str, value: Any, at: str, depth: int) -> dict[str, Any]:
    if name in _SAME or name in _AS_THEY_ARE:
        return {name: value}
    if name in _LISTS and isinstance(value, list):
        return {_LISTS[name]: [_inner(one, at, depth) for one in value]}
    if name in _MAPS and isinstance(value, dict):
        return {_MAPS[name]: {key: _inner(one, f"{at}.{key}", depth) for key, one in value.items()}}
    if name in ("items", "additionalProperties", "additional_properties"):
        written = "items" if name == "items" else "additionalProperties"
        return {written: value if isinstance(value, bool) else _inner(value, at, depth)}
    raise refusal(at, "it is no member of Gemini's schemas")


def _inner(value: Any, at: str, depth: int) -> Any:
    if not isinstance(value, dict):
        raise refusal(at, "it is no schema")
    return json_schema(value, at, depth + 1)
