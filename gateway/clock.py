"""`obol clock`: reads a test merchant's clock, and moves it ahead."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import NamedTuple, TextIO

import asyncpg

from gateway.billing.clock import ClockReading, Clocks
from gateway.errors import ConfigurationError, ObolError
from gateway.ledger import scripts
from gateway.ledger.changes import Changes
from gateway.ledger.connection import Connection, LedgerAway
from gateway.ledger.keys import Keys
from gateway.settings import Settings
from gateway.store.postgres import Store

_ENGINE_WAIT_S = 5.0
_SPAN = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class Wanted(NamedTuple):
    """What the command line asks for. Neither `to` nor `by`: only read it."""

    merchant_id: str | None = None
    to: datetime | None = None
    by: timedelta | None = None


def read_span(text: str) -> timedelta:
    """A number and one of s, m, h, d, w, such as 30d. Raise ValueError."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a span such as 30d, 12h or 90s")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def main(settings: Settings, wanted: Wanted, out: TextIO | None = None) -> int:
    """Return 0. Raise ConfigurationError where there is no such merchant, it is a live one, or the engines are away."""
    if not settings.redis_url or not settings.postgres_url:
        raise ConfigurationError(
            "it needs OBOL_REDIS_URL and OBOL_POSTGRES_URL, or the --data-dir of a running obol up"
        )
    try:
        reading = asyncio.run(_move(settings, wanted))
    except (LedgerAway, ObolError, OSError, asyncpg.PostgresError) as error:
        raise ConfigurationError(str(error)) from None
    (out or sys.stdout).write(show(reading))
    return 0


def show(clock: ClockReading) -> str:
    waiting = f"{clock.turns_due} cycles are being turned" if clock.turns_due else "ready"
    return (
        f"{clock.merchant_id} ({clock.name})  {clock.now:%Y-%m-%dT%H:%M:%SZ}  "
        f"ahead by {timedelta(seconds=clock.offset_us // 1_000_000)}  {waiting}\n"
    )


async def _move(settings: Settings, wanted: Wanted) -> ClockReading:
    async with _clocks(settings) as clocks:
        merchant_id = wanted.merchant_id or await clocks.only_test_merchant()
        if wanted.to is not None:
            return await clocks.move(merchant_id, wanted.to)
        if wanted.by is not None:
            return await clocks.advance(merchant_id, wanted.by)
        return await clocks.read(merchant_id)


@asynccontextmanager
async def _clocks(settings: Settings) -> AsyncIterator[Clocks]:
    connection = Connection(settings.redis_url, scripts.load(), timeout_ms=settings.redis_timeout_ms)
    keeper = asyncio.create_task(connection.run(), name="redis connection")
    try:
        store = await Store.connect(settings.postgres_url, pool_max=2)
        try:
            await connection.wait_ready(_ENGINE_WAIT_S)
            yield Clocks(store, Changes(connection, Keys()).announce)
        finally:
            await store.close()
    finally:
        await connection.close()
        keeper.cancel()
        await asyncio.wait([keeper])
