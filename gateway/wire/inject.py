"""Asking an OpenAI-shaped stream for its usage: setting `stream_options.include_usage` in the body's own bytes.

Everything outside the value of the top-level member `stream_options` stays byte for byte as the client sent it.
"""

from __future__ import annotations

import re

import msgspec

from gateway.wire.fields import Json, decode, mapping

_KEY = "stream_options"
_INSERTED = b'"stream_options":{"include_usage":true}'
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\],:]', re.DOTALL)


def with_usage(body: bytes) -> bytes:
    """`body`, a JSON object, asking for the usage chunk. Unchanged if it cannot be read."""
    if b"stream_options" not in body and b"\\u" not in body:
        return _inserted(body)
    spans = _value_spans(body)
    if not spans:
        return _inserted(body)
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


def _value_spans(body: bytes) -> list[tuple[int, int]]:
    """Where the values of the top-level member stand; more than one if the client repeated it."""
    spans: list[tuple[int, int]] = []
    depth = 0
    start = -1
    key = b""
    for match in _TOKEN.finditer(body):
        token = match.group()
        if token in (b"{", b"["):
            depth += 1
        elif token == b":" and depth == 1:
            start = match.end() if _is_key(key) else -1
        elif depth == 1 and start >= 0 and token in (b",", b"}"):
            spans.append((start, match.start()))
            start = -1
        if token in (b"}", b"]"):
            depth -= 1
        key = token
    return spans


def _is_key(token: bytes) -> bool:
    return token.startswith(b'"') and decode(token, str) == _KEY
