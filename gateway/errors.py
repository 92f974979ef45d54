"""Every error that Obol tells a caller, in one table, and how each dialect says it.

A leaf: it imports nothing of ours. `code` is stable and machine-readable; the message names the field.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


class ConfigurationError(Exception):
    """The installation, not a request, is at fault. The message is for the operator."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table: HTTP status and the vendors' names for it."""

    status: int
    openai_type: str
    anthropic_type: str
    google_status: str


_BAD = Kind(400, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT")
_AUTH = Kind(401, "authentication_error", "authentication_error", "UNAUTHENTICATED")
_PAY = Kind(402, "insufficient_quota", "billing_error", "RESOURCE_EXHAUSTED")
_FORBIDDEN = Kind(403, "permission_error", "permission_error", "PERMISSION_DENIED")
_MISSING = Kind(404, "not_found_error", "not_found_error", "NOT_FOUND")
_CONFLICT = Kind(409, "conflict_error", "invalid_request_error", "ABORTED")
_LARGE = Kind(413, "invalid_request_error", "request_too_large", "INVALID_ARGUMENT")
_LIMIT = Kind(429, "rate_limit_error", "rate_limit_error", "RESOURCE_EXHAUSTED")
_SERVER = Kind(500, "server_error", "api_error", "INTERNAL")
_UPSTREAM = Kind(502, "server_error", "api_error", "UNAVAILABLE")
_AWAY = Kind(503, "server_error", "overloaded_error", "UNAVAILABLE")
_SLOW = Kind(504, "server_error", "timeout_error", "DEADLINE_EXCEEDED")

KINDS: dict[str, Kind] = {
    "invalid_request": _BAD,
    "forward_target_missing": _BAD,
    "forward_target_invalid": _BAD,
    "forward_endpoint_not_supported": _BAD,
    "forward_model_not_supported": _BAD,
    "forward_model_invalid": _BAD,
    "forward_translation_not_supported": _BAD,
    "metadata_invalid": _BAD,
    "unauthorized": _AUTH,
    "insufficient_balance": _PAY,
    "balance_reserved": _PAY,
    "spend_limit_exceeded": _PAY,
    "connection_disabled": _FORBIDDEN,
    "spend_key_inactive": _FORBIDDEN,
    "spend_key_not_allowed": _FORBIDDEN,
    "meter_not_on_plan": _FORBIDDEN,
    "test_clock_refused": _FORBIDDEN,
    "not_found": _MISSING,
    "meter_not_found": _MISSING,
    "connection_not_found": _MISSING,
    "plan_not_found": _MISSING,
    "credit_bundle_not_found": _MISSING,
    "subscription_not_found": _MISSING,
    "payment_method_not_found": _MISSING,
    "webhook_not_found": _MISSING,
    "webhook_delivery_not_found": _MISSING,
    "request_timeout": Kind(408, "timeout_error", "timeout_error", "DEADLINE_EXCEEDED"),
    "expectation_failed": Kind(417, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    "headers_too_large": Kind(431, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    "method_not_allowed": Kind(405, "invalid_request_error", "invalid_request_error", "INVALID_ARGUMENT"),
    "request_id_conflict": _CONFLICT,
    "request_in_progress": _CONFLICT,
    "request_already_made": _CONFLICT,
    "slug_taken": _CONFLICT,
    "last_secret_key": _CONFLICT,
    "webhook_limit_reached": _CONFLICT,
    "reference_id_taken": _CONFLICT,
    "already_subscribed": _CONFLICT,
    "plan_in_use": _CONFLICT,
    "body_too_large": _LARGE,
    "too_many_calls": _LIMIT,
    "too_many_requests": _LIMIT,
    "internal": _SERVER,
    "cards_not_configured": Kind(501, "server_error", "api_error", "UNIMPLEMENTED"),
    "phone_codes_not_configured": Kind(501, "server_error", "api_error", "UNIMPLEMENTED"),
    "phone_codes_unavailable": _AWAY,
    "upstream_failed": _UPSTREAM,
    "upstream_key_missing": _UPSTREAM,
    "ledger_unavailable": _AWAY,
    "store_unavailable": _AWAY,
    "wallet_unavailable": _AWAY,
    "journal_full": _AWAY,
    "too_many_connections": _AWAY,
    "shutting_down": _AWAY,
    "upstream_timeout": _SLOW,
}


class ObolError(Exception):
    """An error with a place in the table. `param` names the field at fault, `retry_after_s` when to come back.

    `limit` names the setting whose limit was reached: it is counted by `obol_limits_reached_total`, not told.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        details: dict[str, Any] | None = None,
        limit: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = details or {}
        self.limit = limit

    @property
    def status(self) -> int:
        return KINDS[self.code].status

    def again(self) -> ObolError:
        """A new one that says the same. One that is kept is not raised: it would keep the frames that it passed."""
        return ObolError(
            self.code,
            self.message,
            param=self.param,
            retry_after_s=self.retry_after_s,
            details=self.details,
            limit=self.limit,
        )


@contextmanager
def naming(field: str) -> Iterator[None]:
    """What is not known is told of the field as it was sent. By a copy: a cache of refusals may share the original."""
    try:
        yield
    except ObolError as error:
        if error.status != 404:
            raise
        copy = error.again()
        copy.param = field
        raise copy from None


def body(error: ObolError, dialect: str = "obol", request_id: str | None = None) -> dict[str, Any]:
    """The JSON object for `error`. `dialect`: "obol", "openai", "anthropic" or "google".

    All but Google's keep `error.code` and `error.message` of the published envelope beside the vendor's own
    fields, so that one body serves the published SDKs and the vendor's.
    """
    kind = KINDS[error.code]
    if dialect == "google":
        detail = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": error.code}
        return {
            "error": {
                "code": kind.status,
                "message": error.message,
                "status": kind.google_status,
                "details": [detail],
            }
        }
    inner: dict[str, Any] = {"code": error.code, "message": error.message, "param": error.param, **error.details}
    if dialect == "anthropic":
        inner["type"] = kind.anthropic_type
        return {"type": "error", "error": inner, "request_id": request_id}
    inner["type"] = kind.openai_type
    if request_id:
        inner["request_id"] = request_id
    return {"error": inner}
