"""The OpenAPI document as a page to read: one HTML file, no scripts, made from nothing but the document."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, NamedTuple

from gateway.api.html import framed

Json = dict[str, Any]

_METHODS = ("get", "post", "put", "patch", "delete")
_CODE = re.compile(r"`([^`]+)`")


class Entry(NamedTuple):
    """One operation of the page: its methods, its path, older paths of the same, and what the document says of it."""

    methods: list[str]
    path: str
    older: list[str]
    told: Json


def page(document: Json) -> str:
    """The whole page."""
    tags = {tag: list(entries) for tag, entries in _by_tag(document)}
    schemas = document["components"]["schemas"]
    info = document["info"]
    body = f"""<header>
<h1>{escape(info["title"])} <span>{escape(info["version"])}</span></h1>
<p><a href="openapi.json">OpenAPI document</a> · <a href="dashboard">Dashboard</a></p>
</header>
<nav aria-label="Sections">{"".join(_link(tag) for tag in [*tags, "Types"])}</nav>
<main>
{"".join(f"<p>{_prose(part)}</p>" for part in info["description"].split(chr(10) * 2))}
{"".join(_section(tag, entries, schemas) for tag, entries in tags.items())}
<section id="types"><h2>Types</h2>{"".join(_type(name, schemas[name]) for name in sorted(schemas))}</section>
</main>"""
    return framed(info["title"], body)


def _by_tag(document: Json) -> Iterator[tuple[str, Iterable[Entry]]]:
    """The operations under each tag, in the order of the document; an operation at several paths once."""
    found: dict[str, dict[tuple[str, str], Entry]] = {tag["name"]: {} for tag in document["tags"]}
    shown = [(path, method, item[method]) for path, item in document["paths"].items() for method in item]
    for path, method, told in sorted(shown, key=lambda each: bool(each[2].get("deprecated"))):
        entries = found[told["tags"][0]]
        entry = entries.setdefault((told["summary"], str(told.get("requestBody"))), Entry([], path, [], told))
        if path != entry.path and path not in entry.older:
            entry.older.append(path)
        if method not in entry.methods:
            entry.methods.append(method)
    for tag, entries in found.items():
        if entries:
            yield tag, entries.values()


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())


def _link(tag: str) -> str:
    return f'<a href="#{_anchor(tag)}">{escape(tag)}</a> '


def _prose(text: str) -> str:
    """Text with its `code` marked."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _section(tag: str, entries: Iterable[Entry], schemas: Json) -> str:
    shown = "".join(_entry(entry, schemas) for entry in entries)
    return f'<section id="{_anchor(tag)}"><h2>{escape(tag)}</h2>{shown}</section>'


def _entry(entry: Entry, schemas: Json) -> str:
    told, name = entry.told, f"{'-'.join(entry.methods)}-{_anchor(entry.path).strip('-')}"
    methods = " ".join(f'<b class="{each}">{each.upper()}</b>' for each in sorted(entry.methods, key=_METHODS.index))
    parts = [
        f"<p>{_prose(told['description'])}</p>" if "description" in told else "",
        f"<p>Older paths: {', '.join(f'<code>{escape(path)}</code>' for path in entry.older)}</p>"
        if entry.older
        else "",
        "<p>Needs no credential.</p>" if told.get("security") == [] else "",
        _table("Parameters", [_parameter_row(each) for each in told["parameters"]]),
        _body(told.get("requestBody"), schemas),
        _responses(told["responses"]),
    ]
    summary = f"{methods} <code>{escape(entry.path)}</code> <span>{escape(told['summary'])}</span>"
    return f'<details><summary>{summary}</summary><div id="{name}">{"".join(parts)}</div></details>'


def _table(title: str, rows: list[str]) -> str:
    return f"<h3>{title}</h3><table><tbody>{''.join(rows)}</tbody></table>" if rows else ""


def _row(name: str, required: bool, schema: Json) -> str:
    need = " <em>required</em>" if required else ""
    about = f"<p>{_prose(schema['description'])}</p>" if "description" in schema else ""
    default = schema.get("default")
    shown = f" <small>default {escape(json.dumps(default))}</small>" if isinstance(default, str | int) else ""
    return f"<tr><th><code>{escape(name)}</code>{need}</th><td>{_kind(schema)}{shown}{about}</td></tr>"


def _parameter_row(parameter: Json) -> str:
    schema = {**parameter["schema"]}
    if "description" in parameter:
        schema["description"] = parameter["description"]
    return _row(parameter["name"], bool(parameter.get("required")) and parameter["in"] != "path", schema)


def _fields(schema: Json) -> list[str]:
    """What is required comes first."""
    required, fields = schema.get("required", ()), schema.get("properties", {})
    ordered = sorted(fields, key=lambda name: name not in required)
    return [_row(name, name in required, fields[name]) for name in ordered]


def _body(body: Json | None, schemas: Json) -> str:
    if body is None:
        return ""
    schema = next(iter(body["content"].values()))["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    if not name:
        return f"<h3>Body</h3><p>{_prose(body.get('description', ''))}</p>"
    return _table("Body", _fields(schemas[name]))


def _responses(responses: Json) -> str:
    rows = []
    for status, told in responses.items():
        schema: Json | None = next((each["schema"] for each in told.get("content", {}).values()), None)
        kind = _kind(schema) if status.startswith("2") and schema else _prose(told["description"])
        rows.append(f"<tr><th>{escape(status)}</th><td>{kind}</td></tr>")
    return _table("Answers", rows)


def _type(name: str, schema: Json) -> str:
    """A browser opens the details around what a link names, not those that the link names."""
    about = f"<p>{_prose(schema['description'])}</p>" if "description" in schema else ""
    return (
        f"<details><summary><code>{escape(name)}</code></summary>"
        f'<div id="type-{escape(name)}">{about}{_table("Fields", _fields(schema))}</div></details>'
    )


def _kind(schema: Json) -> str:
    """A schema in words: what it takes, its limits, and links to named types."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#type-{escape(name)}">{escape(name)}</a>'
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(each) for each in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(each))}</code>" for each in schema["enum"])
    kind = schema.get("type", "anything")
    words = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if words == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if words == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    return f"{escape(words)}{_limits(schema)}"


def _limits(schema: Json) -> str:
    told = [
        f"{words} {schema[key]}"
        for key, words in (
            ("format", "as"),
            ("minimum", "from"),
            ("maximum", "to"),
            ("minLength", "at least"),
            ("maxLength", "at most"),
        )
        if key in schema
    ]
    unit = " characters" if "maxLength" in schema else ""
    return f" <small>{escape(', '.join(told))}{unit}</small>" if told else ""
