"""Requests by metadata, newest first, over millions of rows.

No index has both the metadata and the order. So: first the newest rows are looked through, where a pair that many rows
have fills a page at once. Else month by month, as the rows are partitioned: where the index of metadata finds few in
the month, they are sorted; where it finds many, the month is read in its order, which soon meets them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from gateway.api.filters import Filters
from gateway.api.paging import Place, Window
from gateway.store.postgres import Store

RECENT_ROWS = 5_000
MATCHES_MAX = 5_000
"""How many matches of a month are sorted. Where there are more, its order leads to them sooner."""
_EVER = datetime(1900, 1, 1, tzinfo=UTC)
_BY_INDEX = "SET LOCAL enable_indexscan = off; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = on"
_IN_ORDER = "SET LOCAL enable_indexscan = on; SET LOCAL enable_seqscan = on; SET LOCAL enable_bitmapscan = off"


async def by_metadata(store: Store, merchant_id: str, filters: Filters, asked: Window) -> list[asyncpg.Record]:
    """The rows behind the cursor, one more than the limit where there are more."""
    async with store.planned() as db:
        search = _Search(store, db, merchant_id, filters)
        found = await search.fetch("page_of_recent", asked.after, asked.fetch, RECENT_ROWS)
        if len(found) == asked.fetch:
            return found
        return await search.by_month(asked)


class _Search:
    """One search, in one transaction: the planner is told what each statement is for."""

    def __init__(self, store: Store, db: asyncpg.Connection, merchant_id: str, filters: Filters) -> None:
        self._store, self._db = store, db
        self._merchant_id, self._filters = merchant_id, filters

    async def fetch(self, name: str, after: Place, *more: Any) -> list[asyncpg.Record]:
        sql, arguments = self._filters.apply(self._store.sql(f"requests.{name}"), [self._merchant_id, *after, *more])
        found: list[asyncpg.Record] = await self._db.fetch(sql, *arguments)
        return found

    async def by_month(self, asked: Window) -> list[asyncpg.Record]:
        found: list[asyncpg.Record] = []
        after = asked.after
        while len(found) < asked.fetch and (start := await self._newest_month(after)) is not None:
            found += await self._of_month(after, start, asked.fetch - len(found))
            after = Place(start, "")
        return found

    async def _newest_month(self, after: Place) -> datetime | None:
        """When the month of the next row begins, whatever its metadata: mostly this one or the one before, where few
        partitions have to be looked at."""
        await self._db.execute(_IN_ORDER)
        for since in (_month(_month(after.created_at) - timedelta(days=1)), _EVER):
            newest = await self._db.fetchval(self._store.sql("requests.newest"), self._merchant_id, *after, since)
            if newest is not None:
                return _month(newest)
        return None

    async def _of_month(self, after: Place, start: datetime, limit: int) -> list[asyncpg.Record]:
        await self._db.execute(_BY_INDEX)
        few = await self.fetch("few_of_month", after, limit, start, MATCHES_MAX + 1)
        if not few or few[0]["matches"] <= MATCHES_MAX:
            return few
        await self._db.execute(_IN_ORDER)
        return await self.fetch("many_of_month", after, limit, start)


def _month(moment: datetime) -> datetime:
    """When its month began."""
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
