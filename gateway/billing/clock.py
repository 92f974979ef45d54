"""The merchant's time: real time, plus how far a test merchant has moved its clock ahead.

Cycles, spend limits by period and the times of rows follow the merchant's time. Holds, records in Redis and the times
of the ledger stay real.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

import asyncpg
import msgspec

from gateway.billing.principals import Merchant
from gateway.errors import ConfigurationError, ObolError
from gateway.store import partitions
from gateway.store.postgres import Store

AHEAD_MAX_DAYS = 1_830
"""Five years: every month that a clock visits may get a partition of `requests`."""


class ClockReading(msgspec.Struct, frozen=True):
    """A merchant's clock. `turns_due`: cycles to be turned, or turned and not recorded yet."""

    merchant_id: str
    mode: str
    name: str
    now: datetime
    offset_us: int
    turns_due: int

    @property
    def status(self) -> Literal["advancing", "ready"]:
        return "advancing" if self.turns_due else "ready"


def now(merchant: Merchant) -> datetime:
    """The merchant's time, by the clock of this process and what it has cached of the merchant."""
    return datetime.now(UTC) + timedelta(microseconds=merchant.clock_offset_us)


async def now_in(db: asyncpg.Connection, store: Store, merchant_id: str) -> datetime:
    """The merchant's time, by PostgreSQL: what is written about cycles uses this one."""
    at: datetime = await db.fetchval(store.sql("clock.now"), merchant_id)
    return at


class Clocks:
    """`changed` tells every process that something of a merchant changed (`Principals.changed`, `Changes.announce`)."""

    def __init__(self, store: Store, changed: Callable[[str], Awaitable[None]]) -> None:
        self._store = store
        self._changed = changed

    async def read(self, merchant_id: str) -> ClockReading:
        """Raise ObolError `not_found`."""
        row = await self._store.row("clock.read", merchant_id)
        if row is None:
            raise ObolError("not_found", "there is no such merchant", param="merchant_id")
        return ClockReading(
            row["merchant_id"], row["mode"], row["name"], row["merchant_now"], row["offset_us"], row["turns_due"]
        )

    async def only_test_merchant(self) -> str:
        """The id of the test merchant, where there is one only. Raise ConfigurationError."""
        rows = await self._store.rows("clock.test_merchants")
        if len(rows) == 1:
            return str(rows[0]["merchant_id"])
        known = "; ".join(f"{row['merchant_id']} ({row['name']})" for row in rows)
        raise ConfigurationError(f"name one with --merchant: {known}" if rows else "there is no test merchant")

    async def move(self, merchant_id: str, to: datetime) -> ClockReading:
        """Move the clock ahead to `to`. Raise ObolError `test_clock_refused`, `invalid_request` (`now`)."""
        return await self._move(merchant_id, "now", lambda _: to)

    async def advance(self, merchant_id: str, by: timedelta) -> ClockReading:
        """Move the clock ahead by `by`. Raise ObolError as `move` does (`advance_seconds`)."""
        return await self._move(merchant_id, "advance_seconds", lambda at: at + by)

    async def _move(self, merchant_id: str, param: str, target: Callable[[datetime], datetime]) -> ClockReading:
        async with self._store.transaction() as db:
            mode = await db.fetchval(self._store.sql("clock.lock"), merchant_id)
            if mode is None:
                raise ObolError("not_found", "there is no such merchant", param="merchant_id")
            if mode != "test":
                raise ObolError("test_clock_refused", "only a test merchant has a clock that can be moved")
            row = await db.fetchrow(self._store.sql("clock.locked"), merchant_id)
            before = timedelta(microseconds=row["offset_us"])
            offset = _ahead(row["real_now"], before, target, param)
            await db.execute(self._store.sql("clock.move"), merchant_id, offset // timedelta(microseconds=1))
        await self._make_partitions()
        await self._changed(merchant_id)
        return await self.read(merchant_id)

    async def _make_partitions(self) -> None:
        """Rows of the new month come soon. Where the table is too busy the worker makes them later."""
        rows = await self._store.rows("clock.times")
        try:
            for row in rows:
                await partitions.ensure(self._store, row["month"])
        except asyncpg.LockNotAvailableError:
            return


def _ahead(real_now: datetime, before: timedelta, target: Callable[[datetime], datetime], param: str) -> timedelta:
    """The offset that makes it `target` of the time until now."""
    latest = timedelta(days=AHEAD_MAX_DAYS)
    try:
        offset = target(real_now + before) - real_now
    except OverflowError:
        offset = latest * 2
    if offset < before:
        raise ObolError("invalid_request", "a test clock moves forward only", param=param)
    if offset > latest:
        raise ObolError(
            "invalid_request", f"a test clock is at most {AHEAD_MAX_DAYS} days ahead of real time", param=param
        )
    return offset
