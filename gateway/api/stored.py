"""Finding stored requests. Rows reach PostgreSQL about a tenth of a second after they were charged."""

from __future__ import annotations

import asyncio

from gateway.api.context import ApiContext
from gateway.api.filters import Filters
from gateway.api.paging import Window
from gateway.api.request_object import Request, StoredRequest, from_record, request_object
from gateway.api.searching import by_metadata

FLUSH_WAIT_S = 1.5
FLUSH_POLL_S = 0.02
LIST_WAIT_S = 0.4
"""A first page shows the calls that were answered before it was asked for, unless the flusher is behind by more."""


async def find(context: ApiContext, merchant_id: str, request_id: str) -> StoredRequest | None:
    """What PostgreSQL holds now."""
    record = await context.store.row("requests.find", merchant_id, request_id)
    return None if record is None else from_record(record, record["fingerprint"])


async def find_flushed(context: ApiContext, merchant_id: str, request_id: str) -> StoredRequest | None:
    """As `find`, but sees everything charged before the call, unless the flusher is more than FLUSH_WAIT_S behind."""
    stored = await find(context, merchant_id, request_id)
    if stored is None:
        await flushed(context, FLUSH_WAIT_S)
        stored = await find(context, merchant_id, request_id)
    return stored


async def flushed(context: ApiContext, wait_s: float) -> None:
    """Wait until PostgreSQL has what the journals hold now, for at most `wait_s`."""
    shards = range(context.settings.ledger_shards)
    numbers = await asyncio.gather(*(context.journal.last_number(shard) for shard in shards))
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + wait_s
    while loop.time() < deadline_s:
        done = {row["shard"]: row["last_id"] for row in await context.store.rows("requests.cursors")}
        if all(done.get(shard, 0) >= number for shard, number in zip(shards, numbers, strict=True)):
            return
        await asyncio.sleep(FLUSH_POLL_S)


async def page(context: ApiContext, merchant_id: str, filters: Filters, asked: Window) -> list[StoredRequest]:
    """The rows behind the cursor, newest first, one more than the limit where there are more."""
    if filters.metadata:
        return [from_record(each) for each in await by_metadata(context.store, merchant_id, filters, asked)]
    sql, arguments = filters.apply(context.store.sql("requests.page"), [merchant_id, *asked.after, asked.fetch])
    async with context.store.planned() as db:
        return [from_record(record) for record in await db.fetch(sql, *arguments)]


async def show(context: ApiContext, stored: list[StoredRequest]) -> list[Request]:
    """The request objects."""
    versions = await context.meter_versions.get(each.version for each in stored if each.version)
    return [request_object(each, versions.get(each.version) if each.version else None) for each in stored]
