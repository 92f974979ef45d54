"""Verify what arrives at a webhook endpoint, in every style in which Obol signs."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from obol_sdk.errors import ObolError

TOLERANCE_S = 300
_TIMESTAMPED = re.compile(r"t=(\d{1,15})((?:,v1=[0-9a-f]{64})+)")


class VerificationError(ObolError):
    """The message is not from the holder of the secret, or is too old. Answer 400 and do nothing."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What happened. `id` is the same each time the event is delivered: remember it, and do nothing the second time."""

    id: str
    event: str
    type: str
    created_at: datetime
    data: dict[str, Any]


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secret: str,
    *,
    tolerance_s: int = TOLERANCE_S,
    now_s: float | None = None,
    untimed: bool = False,
) -> Event:
    """The event in `body`, which must be the bytes as they arrived. Raise VerificationError.

    `headers` of the request, in any case of letters; `secret` as it was shown when the endpoint was made (`whsec_...`).
    A signature that has a time is asked for first, and is the only kind that tells a message that was recorded and
    sent again: without one a message is refused, unless `untimed`. A style whose header is there must hold: a wrong one
    is not made good by another.
    """
    given = {name.lower(): value for name, value in headers.items()}
    now = time.time() if now_s is None else now_s
    if "webhook-signature" in given:
        _standard(body, given, secret, now, tolerance_s)
    elif given.get("x-lava-signature", "").startswith("t="):
        _timestamped(body, given["x-lava-signature"], secret, now, tolerance_s)
    elif untimed:
        _plain(body, given, secret)
    else:
        raise VerificationError("the message has no signature with a time; untimed=True accepts one without")
    try:
        return msgspec.json.decode(body, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise VerificationError(f"the message is signed, but is no event: {error}") from None


def _standard(body: bytes, given: Mapping[str, str], secret: str, now_s: float, tolerance_s: int) -> None:
    """https://www.standardwebhooks.com: a list of `v1,<base64>` over id, time and body."""
    event_id, sent = given.get("webhook-id", ""), given.get("webhook-timestamp", "")
    _check_time(sent, now_s, tolerance_s)
    try:
        key = b64decode(secret.removeprefix("whsec_"), validate=True)
    except (Base64Error, ValueError):
        raise VerificationError("the secret is not whsec_ and base64 behind it") from None
    expected = b64encode(_digest(key, event_id.encode(errors="replace") + b"." + sent.encode() + b"." + body)).decode()
    _check_any(expected, [each.removeprefix("v1,") for each in given["webhook-signature"].split(" ")[:10]])


def _timestamped(body: bytes, header: str, secret: str, now_s: float, tolerance_s: int) -> None:
    """`t=<unix seconds>,v1=<hex over time and body>`; more than one v1 while a secret is being rotated."""
    match = _TIMESTAMPED.fullmatch(header)
    if match is None:
        raise VerificationError("x-lava-signature is not t=...,v1=...")
    _check_time(match[1], now_s, tolerance_s)
    expected = _digest(secret.encode(), match[1].encode() + b"." + body).hex()
    _check_any(expected, match[2].removeprefix(",v1=").split(",v1="))


def _plain(body: bytes, given: Mapping[str, str], secret: str) -> None:
    """Hex over the body alone."""
    names = ("x-webhook-signature", "x-webhook-signature-previous", "x-lava-signature")
    _check_any(_digest(secret.encode(), body).hex(), [given[name].lower() for name in names if name in given])


def _check_time(sent: str, now_s: float, tolerance_s: int) -> None:
    if not (sent.isascii() and sent.isdigit() and len(sent) < 16):
        raise VerificationError("the message has no time")
    if abs(now_s - int(sent)) > tolerance_s:
        raise VerificationError(f"the message is more than {tolerance_s} s away from this machine's clock")


def _check_any(expected: str, signatures: list[str]) -> None:
    """In constant time for each."""
    matches = [hmac.compare_digest(expected.encode(), signature.encode(errors="replace")) for signature in signatures]
    if not any(matches):
        raise VerificationError("no signature of the message holds" if signatures else "the message is not signed")


def _digest(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, hashlib.sha256)
