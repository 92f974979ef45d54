"""What a wire format hands to the sender, and the pieces that formats share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from gateway.local.fake.answer import Answer, Prompt
from gateway.local.fake.call import Call, FakeError, JsonObject

Dialect = Literal["openai", "anthropic", "google", "cohere"]
SSE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response. A stream is its `head`, then `deltas`, then `tail`; a plain body is two halves, `head` empty.

    `error` is what the format says when it fails after its status line has gone.
    """

    status: int
    content_type: str
    deltas: Iterable[bytes]
    delta_count: int
    tail: bytes
    head: bytes = b""
    error: bytes = b""
    stream: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Format:
    """One wire format: `read` raises FakeError on a bad request, `render` answers a good one."""

    dialect: Dialect
    read: Callable[[Call], Prompt]
    render: Callable[[Answer], Reply]


def body_reply(body: bytes, content_type: str, *, status: int = 200, error: bytes = b"") -> Reply:
    """A response whose body is known: its first half stands as the delta, the second as the tail."""
    half = len(body) // 2
    return Reply(status, content_type, deltas=(body[:half],), delta_count=1, tail=body[half:], error=error)


def json_reply(value: Any, *, status: int = 200, dialect: Dialect = "openai", fingerprint: str = "") -> Reply:
    """A JSON response; its `error` is the dialect's own error body."""
    failure = error_body(dialect, FakeError(500, MID_STREAM_MESSAGE), fingerprint)
    return body_reply(orjson.dumps(value), "application/json", status=status, error=orjson.dumps(failure))


def sse(data: Any, event: str | None = None, newline: str = "\n") -> bytes:
    """One server-sent event with `data` as JSON."""
    name = f"event: {event}{newline}" if event else ""
    return f"{name}data: ".encode() + orjson.dumps(data) + (newline * 2).encode()


MID_STREAM_MESSAGE = "The server had an error while processing your request."

_OPENAI_TYPES = {
    401: ("invalid_request_error", "invalid_api_key"),
    429: ("requests", "rate_limit_exceeded"),
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_GOOGLE_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_body(dialect: Dialect, error: FakeError, fingerprint: str) -> JsonObject:
    """The provider's own error object."""
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        inner = {"type": kind, "message": error.message}
        return {"type": "error", "error": inner, "request_id": f"req_{fingerprint[:24]}"}
    if dialect == "google":
        fallback = "INTERNAL" if error.status >= 500 else "FAILED_PRECONDITION"
        name = _GOOGLE_STATUSES.get(error.status, fallback)
        return {"error": {"code": error.status, "message": error.message, "status": name}}
    if dialect == "cohere":
        return {"id": fingerprint[:32], "message": error.message}
    fallback_type = "server_error" if error.status >= 500 else "invalid_request_error"
    kind, code = _OPENAI_TYPES.get(error.status, (fallback_type, None))
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": code}}


def error_reply(dialect: Dialect, error: FakeError, fingerprint: str) -> Reply:
    return json_reply(error_body(dialect, error, fingerprint), status=error.status)


def text_field(fields: JsonObject, name: str) -> str:
    """A required string field. FakeError 400 naming it."""
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise FakeError(400, f"Missing required parameter: '{name}'.", name)
    return value


def whole_field(fields: JsonObject, *names: str) -> int | None:
    """The first of `names` that is present: a whole number of at least 1, or None. FakeError 400 naming a bad one."""
    for name in names:
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FakeError(400, f"Invalid '{name}': expected an integer of at least 1.", name)
        return value
    return None


def choices_field(fields: JsonObject, name: str, greatest: int) -> int:
    """How many answers are asked for, 1 where nothing is said. FakeError 400 naming the field."""
    count = whole_field(fields, name) or 1
    if count > greatest:
        raise FakeError(400, f"Invalid '{name}': expected at most {greatest}.", name)
    return count


def content_texts(content: Any) -> list[str]:
    """The texts of a message's content: a string, or a list of parts with a `text`; images and the like have none."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def messages_field(fields: JsonObject, name: str) -> list[JsonObject]:
    """A required list of message objects, not empty. FakeError 400 naming it."""
    messages = fields.get(name)
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise FakeError(400, f"Invalid '{name}': expected a non-empty array of objects.", name)
    return messages


def last_user_texts(messages: list[JsonObject], content: str = "content") -> tuple[str, ...]:
    """The texts of the last message whose role is user (a message without a role counts as one)."""
    for message in reversed(messages):
        if message.get("role", "user") == "user":
            return tuple(content_texts(message.get(content)))
    return ()
