"""An error of ours as HTTP/1.1: status line with its reason, `Date`, and the body in the dialect asked for."""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

import orjson

from gateway import errors
from gateway.errors import ObolError
from gateway.proxy.http_client import HeaderPairs


def reason(status: int) -> str:
    """The phrase of the status line."""
    return HTTPStatus(status).phrase


def refusal(error: ObolError, dialect: str = "obol", request_id: str | None = None) -> tuple[HeaderPairs, bytes]:
    """Headers and body of the answer that tells `error`."""
    body = orjson.dumps(errors.body(error, dialect, request_id))
    headers = [
        (b"date", formatdate(usegmt=True).encode()),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if request_id is not None:
        headers.append((b"x-lava-request-id", request_id.encode()))
    if error.code == "method_not_allowed":  # nothing here takes another one
        headers.append((b"allow", b"POST"))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    return headers, body


def last_answer(error: ObolError) -> bytes:
    """The whole answer to what is not a request that a handler could see. The connection ends with it."""
    headers, body = refusal(error)
    lines = [f"HTTP/1.1 {error.status} {reason(error.status)}\r\n".encode(), b"connection: close\r\n"]
    lines += [b"%b: %b\r\n" % pair for pair in headers]
    return b"".join([*lines, b"\r\n", body])
