"""Flushers that add to the same hours: one at a time, and never in a circle."""

from __future__ import annotations

import asyncio

import pytest

from gateway.store.postgres import Store

HOUR_US = 1_790_000_000_000_000 - 1_790_000_000_000_000 % 3_600_000_000


def hour(connection_id: str) -> list[list[object]]:
    """The columns of flush.hourly: a request of this connection."""
    return [[each] for each in ("mer_1", HOUR_US, connection_id, "mtr_1", 1, 40, 3, 2, 5)]


@pytest.mark.asyncio
async def test_a_flusher_that_halves_its_batch_and_one_that_has_its_rows_both_end(postgres: str) -> None:
    store = await Store.connect(postgres)
    add = store.sql("flush.hourly")
    try:
        async with store.connection() as looking, store.connection() as other, asyncio.timeout(10):
            async with store.transaction() as halving:
                await halving.execute(add, *hour("con_1"))  # its first half
                waiting = asyncio.ensure_future(other.execute(add, *hour("con_2")))
                while not await looking.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.005)
                await halving.execute(add, *hour("con_2"))  # the second
            await waiting
            sums = await looking.fetch("SELECT connection_id, requests, charge_nano FROM usage_hourly ORDER BY 1")
            assert [tuple(row) for row in sums] == [("con_1", 1, 5), ("con_2", 2, 10)]
            assert tuple(await looking.fetchrow("SELECT requests, charge_nano FROM usage_by_meter")) == (3, 15)
    finally:
        await store.close()
