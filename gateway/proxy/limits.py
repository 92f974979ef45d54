"""How many calls there may be: of one connection over all processes (counted in hold.lua), of one merchant in this one.

A merchant's wallets lie on different shards, so that no script could count the calls of them all.
"""

from __future__ import annotations

import math

from gateway.core.money import format_nano
from gateway.errors import ObolError
from gateway.ledger.wallets import UNBOUNDED, HoldLimits, HoldResult
from gateway.settings import Settings

BUSY_RETRY_S = 1
SPEND_LIMIT_EXCEEDED = "Service key spend limit exceeded."
"""As the published service says it."""


class CallLimits:
    """The limits of a process, and its count of each merchant's calls."""

    def __init__(self, settings: Settings) -> None:
        self._of_connection = HoldLimits(
            settings.connection_calls_max, settings.connection_requests_per_minute, settings.connection_requests_burst
        )
        self._merchant_calls_max = settings.merchant_calls_per_process_max
        self._calls: dict[str, int] = {}

    def of_hold(self, *, charged: bool) -> HoldLimits:
        """What the hold script is to hold a call to. Calls that the merchant bears are on the merchant's own wallet: no
        connection's."""
        return self._of_connection if charged else UNBOUNDED

    def enter(self, merchant_id: str) -> None:
        """One more call of a merchant: `leave` it, whatever happens. Raise ObolError `too_many_calls`."""
        calls = self._calls.get(merchant_id, 0)
        if 0 < self._merchant_calls_max <= calls:
            raise ObolError(
                "too_many_calls",
                f"this account has {calls} calls in flight here, which is as many as it may",
                retry_after_s=BUSY_RETRY_S,
                limit="merchant_calls_per_process_max",
            )
        self._calls[merchant_id] = calls + 1

    def leave(self, merchant_id: str) -> None:
        calls = self._calls[merchant_id] - 1
        if calls:
            self._calls[merchant_id] = calls
        else:
            del self._calls[merchant_id]


def beyond(result: HoldResult) -> ObolError:
    """The error for a hold that is "busy", "throttled" or "key_throttled"."""
    if result.kind == "key_throttled":
        return ObolError(
            "too_many_requests",
            "this spend key's requests of this minute are used up",
            retry_after_s=math.ceil(result.retry_ms / 1000),
        )
    if result.kind == "busy":
        return ObolError(
            "too_many_calls",
            f"this connection has {result.calls} calls in flight, which is as many as it may",
            retry_after_s=BUSY_RETRY_S,
            limit="connection_calls_max",
        )
    return ObolError(
        "too_many_requests",
        "this connection's requests of this minute are used up",
        retry_after_s=math.ceil(result.retry_ms / 1000),
        limit="connection_requests_per_minute",
    )


def beyond_key(result: HoldResult, ceiling_nano: int) -> ObolError:
    """The error for a hold that is "key_spent" or "key_requests". What is in flight may give something back."""
    if result.kind == "key_requests":
        return ObolError("spend_limit_exceeded", "Service key request limit exceeded.")
    details = {"required": format_nano(ceiling_nano), "available": format_nano(max(0, result.available_nano))}
    retry_after_s = BUSY_RETRY_S if ceiling_nano <= result.available_nano + result.held_nano else None
    return ObolError("spend_limit_exceeded", SPEND_LIMIT_EXCEEDED, retry_after_s=retry_after_s, details=details)
