"""What goes out: JSON bodies, times, and every error as the JSON object of gateway/errors.py."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from gateway import errors
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.store.secrets import new_id

_LOG = logging.getLogger("obol.api")
DIALECT = web.RequestKey("dialect", str)
"""In which of gateway/errors.py this client is told of errors, where it is not our own."""
_STATUS_CODES = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def iso(moment: datetime) -> str:
    """ISO-8601 in UTC with milliseconds: "2026-01-31T23:59:59.999Z"."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_or_none(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment)


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error in JSON. One we did not foresee is logged in full and told without details."""
    request_id = new_id("api_")
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _response(_of_http(error, request), request_id, error.headers.get("Allow"))
    except (ConnectionError, web.RequestPayloadError):
        return _response(ObolError("invalid_request", "the request's body ended early or is badly encoded"), request_id)
    except Exception as error:
        if isinstance(error, ObolError):
            return _response(error, request_id, dialect=request.get(DIALECT, "obol"))
        if isinstance(error, LedgerAway):
            return _response(
                ObolError("ledger_unavailable", "the ledger is not reachable", retry_after_s=1), request_id
            )
        route = request.match_info.route.resource
        where = route.canonical if route is not None else "no route"
        _LOG.exception("unexpected error in %s %s", request.method, where, extra={"request_id": request_id})
        return _response(ObolError("internal", "the request failed for a reason on our side"), request_id)


def _of_http(error: web.HTTPException, request: web.Request) -> ObolError:
    code = _STATUS_CODES.get(error.status)
    if code == "not_found":
        return ObolError(code, f"there is nothing at {request.path[:200]!r}")
    if code == "method_not_allowed":
        return ObolError(code, f"{request.method} is not allowed here; allowed: {error.headers.get('Allow', '')}")
    if code is not None:
        return ObolError(code, "the body is too large")
    return ObolError("invalid_request" if error.status < 500 else "internal", error.reason)


def _response(error: ObolError, request_id: str, allow: str | None = None, *, dialect: str = "obol") -> web.Response:
    response = json_response(errors.body(error, dialect, request_id), error.status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if allow:
        response.headers["Allow"] = allow
    return response
