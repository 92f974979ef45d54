"""Providers' errors, in all the shapes they come in, and as each dialect tells them. The HTTP status is kept."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.wire.fields import MESSAGE_MAX_CHARACTERS, failure, mapping
from gateway.wire.translate.model import Dialect, Failed

_OPENAI = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_GOOGLE = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    529: "UNAVAILABLE",
}
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "insufficient_quota": 429,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
    "INVALID_ARGUMENT": 400,
    "UNAVAILABLE": 503,
    "RESOURCE_EXHAUSTED": 429,
    "DEADLINE_EXCEEDED": 504,
}
"""The status of an error that came inside a stream, by its kind."""


def read_failure(body: bytes, status: int) -> Failed:
    """The error in the body of an answer with `status`."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = body[: 4 * MESSAGE_MAX_CHARACTERS].decode("utf-8", "replace").strip()[:MESSAGE_MAX_CHARACTERS]
        return Failed(said or f"the provider answered with status {status}", status)
    if isinstance(value, list):
        value = value[0] if value else {}
    return failed(value, status)


def failed(value: Any, status: int = 0) -> Failed:
    """The error in a JSON object: `error` as an object or a string, or members of its own."""
    outer = mapping(value)
    told = outer.get("error", outer)
    inner = mapping(told) or outer
    kind = inner.get("type") if isinstance(inner.get("type"), str) else inner.get("status")
    code = inner.get("code")
    message = failure(told) or f"the provider answered with status {status}"
    kind = kind if isinstance(kind, str) else ""
    return Failed(
        message,
        status or _STATUSES.get(kind, 500),
        kind,
        code if isinstance(code, str) else "",
        inner["param"] if isinstance(inner.get("param"), str) else "",
    )


def written_failure(error: Failed, dialect: Dialect, request_id: str) -> dict[str, Any]:
    """The error as a client of `dialect` knows it. `request_id` is the gateway's."""
    status = error.status
    if dialect == "google":
        name = _GOOGLE.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
        return {"error": {"code": status, "message": error.message, "status": name}}
    if dialect == "anthropic":
        kind = _ANTHROPIC.get(status, "invalid_request_error" if status < 500 else "api_error")
        told = {"type": kind, "message": error.message}
        return {"type": "error", "error": told, "request_id": request_id}
    kind = _OPENAI.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = error.code or error.kind or None
    return {"error": {"message": error.message, "type": kind, "param": error.param or None, "code": code}}
