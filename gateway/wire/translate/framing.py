"""What the writers of answers share: what is known of the call, and server-sent events."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from gateway.wire.fields import Json


class Untranslatable(Exception):
    """An answer that cannot be read. The message is for the client."""


class Writing(msgspec.Struct, frozen=True, kw_only=True):
    """What a writer knows of the call. `model` is told where the provider tells none."""

    request_id: str
    model: str = ""
    created_s: int = 0
    include_usage: bool = False
    """An OpenAI client asked for the usage of its stream."""
    array: bool = False
    """A Gemini client asked for its stream as a JSON array."""


def event(value: Any, name: str = "") -> bytes:
    head = b"event: %b\n" % name.encode() if name else b""
    return b"%bdata: %b\n\n" % (head, msgspec.json.encode(value))


def decoded(data: bytes) -> Json:
    """A JSON object. Raise Untranslatable."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = _mended(data)
    if not isinstance(value, dict):
        raise Untranslatable("the provider's answer is not a JSON object, so it cannot be translated")
    return value


def _mended(data: bytes) -> Any:
    """JSON that is no Unicode, which servers write that cut text within a character: U+FFFD stands for the half."""
    try:
        text = json.dumps(json.loads(data.decode("utf-8", "replace")), ensure_ascii=False)
        return msgspec.json.decode(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    except (ValueError, msgspec.DecodeError, RecursionError):
        return None
