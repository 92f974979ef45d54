"""What the writers of answers share: what is known of the call, and server-sent events."""

from __future__ import annotations

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
        value = None
    if not isinstance(value, dict):
        raise Untranslatable("the provider's answer is not a JSON object, so it cannot be translated")
    return value
