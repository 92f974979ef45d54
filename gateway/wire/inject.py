"""Asking an OpenAI-shaped stream for its usage: setting `stream_options.include_usage` in the body's own bytes.

Everything outside the value of the top-level member `stream_options` stays byte for byte as the client sent it; of a
large body that has one, the values of all other members do.
"""

from __future__ import annotations

import re

import msgspec

from gateway.wire.fields import Json, decode, mapping
from gateway.wire.requests import BOM

SCAN_MAX_BYTES = 4_096
"""Up to this a body is read token by token, at most some 4 ms."""
_KEY = "stream_options"
_INSERTED = b'"stream_options":{"include_usage":true}'
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]', re.DOTALL)


def with_usage(body: bytes) -> bytes:
    """`body`, a JSON object, asking for the usage chunk. Unchanged if it cannot be read."""
    if b"stream_options" not in body and b"\\u" not in body:
        return _inserted(body)
    members = raw_members(body)
    if _KEY not in members:
        return _inserted(body)
    if len(body) > SCAN_MAX_BYTES:
        options = mapping(decode(bytes(members[_KEY]), Json | None)) | {"include_usage": True}  # type: ignore[arg-type]
        return with_member(members, _KEY, msgspec.json.encode(options))
    spans = value_spans(body, _KEY)
    for start, end in reversed(spans):
        options = mapping(decode(body[start:end], Json | None)) | {"include_usage": True}  # type: ignore[arg-type]
        body = body[:start] + msgspec.json.encode(options) + body[end:]
    return body


def _inserted(body: bytes) -> bytes:
    at = body.find(b"{") + 1
    if at == 0:
        return body
    comma = b"" if body[at:].lstrip()[:1] == b"}" else b","
    return b"".join((body[:at], _INSERTED, comma, body[at:]))


def raw_members(body: bytes) -> dict[str, msgspec.Raw]:
    """The members of a JSON object, each value as it was sent; the last one of a name counts. {} if it is no object."""
    return decode(body.removeprefix(BOM), dict[str, msgspec.Raw]) or {}


def with_member(members: dict[str, msgspec.Raw], name: str, value: bytes) -> bytes:
    """The object with this value, written anew: once each name, and nothing between them."""
    return msgspec.json.encode(members | {name: msgspec.Raw(value)})


def value_spans(body: bytes, name: str) -> list[tuple[int, int]]:
    """Where the values of the top-level member `name` stand; more than one if the client repeated it.

    Takes up to a microsecond a byte: for bodies up to SCAN_MAX_BYTES.
    """
    spans: list[tuple[int, int]] = []
    depth = 0
    start = -1
    key = b""
    for match in _TOKEN.finditer(body):
        token = match.group()
        if token in (b"{", b"["):
            depth += 1
        elif token == b":" and depth == 1:
            start = match.end() if _is_key(key, name) else -1
        elif depth == 1 and start >= 0 and token in (b",", b"}"):
            spans.append((start, match.start()))
            start = -1
        if token in (b"}", b"]"):
            depth -= 1
        key = token
    return spans


def _is_key(token: bytes, name: str) -> bool:
    return token.startswith(b'"') and decode(token, str) == name
