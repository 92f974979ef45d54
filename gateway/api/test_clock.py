"""A test merchant's clock: read, and moved ahead, so that a year of cycles is rehearsed in seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec

from gateway.api.context import ApiContext
from gateway.api.operation import Call, Nothing, Operation, Text, Time
from gateway.api.reading import invalid
from gateway.api.responses import iso
from gateway.billing.clock import AHEAD_MAX_DAYS, ClockReading, Clocks


class MoveClock(msgspec.Struct):
    """One of the two: an ISO-8601 time, or by how much to move on."""

    now: Text | None = None
    advance_seconds: Annotated[int, msgspec.Meta(ge=0, le=AHEAD_MAX_DAYS * 86_400)] | None = None


class MerchantClock(msgspec.Struct):
    """`turns_due`: cycles of subscriptions that have ended by this clock, and are not turned and recorded yet."""

    now: Time
    offset_seconds: int
    turns_due: int
    status: Literal["advancing", "ready"]


class ClockRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._clocks = Clocks(context.store, context.principals.changed)

    def operations(self) -> list[Operation]:
        path, tag, refused = "/v1/test_clock", "Test clock", ("test_clock_refused",)
        return [
            Operation("GET", path, self.read, "Read the merchant's clock", tag, answer=MerchantClock),
            Operation(
                "POST",
                path,
                self.move,
                "Move a test merchant's clock ahead",
                tag,
                body=MoveClock,
                answer=MerchantClock,
                errors=refused,
            ),
        ]

    async def read(self, call: Call[Nothing, Nothing]) -> MerchantClock:
        return _shown(await self._clocks.read(call.merchant.merchant_id))

    async def move(self, call: Call[MoveClock, Nothing]) -> MerchantClock:
        """Cycles that end by the new time are turned by the worker, one after the other: ask until it is ready."""
        merchant_id, to, by = call.merchant.merchant_id, call.body.now, call.body.advance_seconds
        if (to is None) == (by is None):
            raise invalid("now", "or advance_seconds is required, and not both")
        if to is not None:
            return _shown(await self._clocks.move(merchant_id, _moment(to)))
        return _shown(await self._clocks.advance(merchant_id, timedelta(seconds=by or 0)))


def _shown(clock: ClockReading) -> MerchantClock:
    return MerchantClock(iso(clock.now), clock.offset_us // 1_000_000, clock.turns_due, clock.status)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid("now", "must be an ISO-8601 time such as 2026-01-31T00:00:00Z") from None
