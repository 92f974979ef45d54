"""Naming another model in a request body, of which every other byte stays as the client sent it. Pure.

Of a large body that has the name of the member several times, all other values stay, but not what stands between them.
"""

from __future__ import annotations

import re

import msgspec

from gateway.errors import ObolError
from gateway.wire.fields import decode
from gateway.wire.inject import SCAN_MAX_BYTES, raw_members, value_spans, with_member
from gateway.wire.requests import form_value_span, is_form

_WHITE = b" \t\r\n"


_MEMBERS = {"elevenlabs_tts": "model_id", "elevenlabs_stt": "model_id", "hyperbolic_images": "model_name"}
_IN_PATH = frozenset({"gemini_generate", "gemini_stream", "gemini_embed", "gemini_count_tokens"})


def member_of(format_name: str) -> str | None:
    """The member of a format's requests that names the model; None where the path does."""
    return None if format_name in _IN_PATH else _MEMBERS.get(format_name, "model")


def with_model(body: bytes, model: str, member: str = "model") -> bytes:
    """`body`, a JSON object or a form, naming `model` in `member`; added where it named none.

    Scans the body: one that is large is better changed off the event loop. Raise ObolError `forward_model_invalid`
    where the member cannot be found.
    """
    if is_form(body):
        return _form_with(body, model, member)
    changed = _with_value(body, msgspec.json.encode(model), member)
    found = raw_members(changed).get(member)
    if found is None or decode(bytes(found), str) != model:
        raise _unreadable(member)
    return changed


def _with_value(body: bytes, value: bytes, member: str) -> bytes:
    spans, members = _only_span(body, member), raw_members(body)
    if not spans and member in members:
        if len(body) > SCAN_MAX_BYTES:
            return with_member(members, member, value)
        spans = value_spans(body, member)
    if not spans:
        at = body.find(b"{") + 1
        comma = b"" if body[at:].lstrip()[:1] == b"}" else b","
        return b"".join((body[:at], msgspec.json.encode(member), b":", value, comma, body[at:]))
    for start, end in reversed(spans):
        old = body[start:end]
        before, after = len(old) - len(old.lstrip(_WHITE)), len(old.rstrip(_WHITE)) - len(old)
        body = b"".join((body[: start + before], value, body[end + after :]))
    return body


def _only_span(body: bytes, member: str) -> list[tuple[int, int]]:
    """The member's place where it can be told without a token by token reading: it is written plainly, and once."""
    key = msgspec.json.encode(member)
    if body.count(key) != 1:
        return []
    raw = raw_members(body).get(member)
    found = re.search(re.escape(key) + rb"\s*:\s*" + re.escape(bytes(raw)), body) if raw is not None else None
    return [(found.end() - len(bytes(raw)), found.end())] if found is not None and raw is not None else []


def _form_with(body: bytes, model: str, member: str) -> bytes:
    span = form_value_span(body, member)
    if span is None:
        raise _unreadable(member)
    return body[: span[0]] + model.encode() + body[span[1] :]


def _unreadable(member: str) -> ObolError:
    return ObolError("forward_model_invalid", f"the field {member} of the request body cannot be read", param=member)
