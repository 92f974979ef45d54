"""What goes wrong, as exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class ObolError(Exception):
    """Everything that this package raises about a call."""


class ConnectionFailedError(ObolError):
    """No whole answer came: the server could not be reached, did not answer in time (`timed_out`), or broke off."""

    def __init__(self, message: str, *, timed_out: bool) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class UnexpectedAnswerError(ObolError):
    """The answer is not what this version of the package knows: of another server, or of a much later one."""


class ApiError(ObolError):
    """The server refused. `code` is stable and machine-readable, `field` names what is at fault where one is.

    Of a provider's own error, passed through by the gateway, `code` is the provider's, and `body` has all it said.
    """

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        told = _told(content)
        self.status = status
        self.code = _text(told.get("code")) or _text(told.get("type")) or f"http_{status}"
        self.message = _text(told.get("message")) or content[:200].decode("utf-8", "replace") or f"status {status}"
        self.field = _text(told.get("param"))
        self.request_id = _text(told.get("request_id")) or headers.get("x-lava-request-id")
        self.retry_after_s = retry_after_s(headers)
        self.body = content
        super().__init__(f"{status} {self.code}: {self.message}")


class InvalidRequestError(ApiError):
    """400, 405, 413, 422: the call is wrong as it stands."""


class AuthenticationError(ApiError):
    """401."""


class PaymentRequiredError(ApiError):
    """402: the customer's balance, or a spend key's limit, does not cover the call."""


class PermissionDeniedError(ApiError):
    """403."""


class NotFoundError(ApiError):
    """404: also of what is another merchant's."""


class ConflictError(ApiError):
    """409."""


class RateLimitError(ApiError):
    """429."""


class ServerError(ApiError):
    """5xx."""


_BY_STATUS: Mapping[int, type[ApiError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    402: PaymentRequiredError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: InvalidRequestError,
    409: ConflictError,
    413: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitError,
}


def api_error(status: int, headers: Mapping[str, str], content: bytes) -> ApiError:
    """The exception for an answer of 300 or above."""
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
    return kind(status, headers, content)


def retry_after_s(headers: Mapping[str, str]) -> int | None:
    """Seconds of `Retry-After`; None where it has none or a date."""
    given = headers.get("retry-after", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 6 else None


def _told(content: bytes) -> dict[str, Any]:
    """The object under `error`; the request id may stand beside it."""
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        return {"message": error}
    if not isinstance(error, dict):
        return {}
    return {"request_id": body.get("request_id"), **error}


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, str | int) and value != "" else None
