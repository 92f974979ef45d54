"""Reads subscriptions with their plans and customers, for `subscription_object`."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from gateway.api import paging
from gateway.billing.principals import Merchant
from gateway.store.postgres import Store


async def page(
    store: Store, merchant: Merchant, after: paging.Place, limit: int, **scope: str | None
) -> Sequence[asyncpg.Record]:
    """At most `limit` behind a place, newest first. `scope`: columns and the values they must have, None for any."""
    given = {name: value for name, value in scope.items() if value is not None}
    conditions = "".join(f" AND s.{name} = ${place}" for place, name in enumerate(given, start=5))
    sql = store.sql("api_subscriptions.page").replace("{scope}", conditions)
    async with store.connection() as db:
        found: list[asyncpg.Record] = await db.fetch(sql, merchant.merchant_id, *after, limit, *given.values())
        return found


async def find(store: Store, merchant: Merchant, subscription_id: str) -> asyncpg.Record | None:
    return next(iter(await page(store, merchant, paging.NEWEST, 1, subscription_id=subscription_id)), None)
