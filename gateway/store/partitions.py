"""Monthly partitions of `requests`, made ahead of time: `requests_2026_11` holds November 2026 (UTC)."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from itertools import pairwise

import asyncpg

from gateway.store.postgres import Store

_LOG = logging.getLogger("obol.partitions")
MONTHS_AHEAD = 2
# Making one locks the table for a moment. Behind a long query it would wait, and everybody else behind it.
_LOCK_TIMEOUT_MS = 2_000


async def ensure(store: Store, now: datetime) -> list[str]:
    """Make the partitions of the month of `now` and the next two where they are missing; return the names made.

    A month of which `requests_default` already holds rows stays there: it is slower to read and nothing else.
    Raise asyncpg.LockNotAvailableError if the table is too busy; the next round tries again.
    """
    months = [_month(now, offset) for offset in range(MONTHS_AHEAD + 2)]
    return [
        name
        for start, end in pairwise(months)
        if (name := f"requests_{start:%Y_%m}") and await _make(store, name, start, end)
    ]


def _month(now: datetime, offset: int) -> datetime:
    years, month = divmod(now.astimezone(UTC).month - 1 + offset, 12)
    return datetime(now.astimezone(UTC).year + years, month + 1, 1, tzinfo=UTC)


async def _make(store: Store, name: str, start: datetime, end: datetime) -> bool:
    async with store.transaction() as connection:
        await connection.execute(store.sql("worker.partition_lock"))
        if await connection.fetchval(store.sql("worker.partition_exists"), name):
            return False
        if await connection.fetchval(store.sql("worker.default_partition_holds"), start, end):
            _LOG.warning("requests_default already holds rows of a month: it stays there", extra={"partition": name})
            return False
        await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
        try:
            async with connection.transaction():
                # Names and bounds are made of two integers; a statement like this takes no parameters.
                await connection.execute(
                    f"CREATE TABLE {name} PARTITION OF requests "
                    f"FOR VALUES FROM ('{start.isoformat()}') TO ('{end.isoformat()}')"
                )
        except asyncpg.CheckViolationError:
            return False  # a row of that month has come in since we looked
    return True
