"""What merchants are told by webhook, written in the transaction of whatever it tells: both happen or neither does.

A row is written for each of the merchant's endpoints that wants the event; `gateway/webhooks/` delivers it. Nothing is
written for a merchant without one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import asyncpg

from gateway.store.postgres import load_queries
from gateway.store.secrets import new_id

Event = Literal[
    "connection.created",
    "connection.wallet.balance.updated",
    "connection.deleted",
    "checkout.completed",
    "subscription.updated",
]
"""By the names of the connection style. `subscription.updated`: one began, changed, was cancelled, or its cycle
turned."""

Style = Literal["connection", "customer"]

_QUERIES = load_queries()


def name_of(event: str, style: Style) -> str:
    """`event`, named as the connection style does, in `style`: the customer style says customer for connection."""
    if style == "customer" and event.startswith("connection."):
        return "customer." + event.removeprefix("connection.")
    return event


def base_name(event: str) -> str:
    """The name of an event of either style in the connection style."""
    return "connection." + event.removeprefix("customer.") if event.startswith("customer.") else event


async def tell(
    db: asyncpg.Connection,
    merchant_id: str,
    event: Event,
    connection_id: str,
    data: dict[str, Any] | None = None,
) -> None:
    """Tell the merchant's endpoints `event` of a connection once the transaction of `db` is committed.

    They are sent the connection as it is when the event is first delivered, and `data` on top of it.
    """
    await tell_many(db, event, {connection_id: merchant_id}, data)


async def tell_many(
    db: asyncpg.Connection, event: Event, merchants: Mapping[str, str], data: dict[str, Any] | None = None
) -> None:
    """The same of many connections, in one statement. `merchants`: of each connection."""
    event_ids = [new_id("evt_") for _ in merchants]
    await db.execute(_QUERIES["webhooks.tell"], event, event_ids, list(merchants), list(merchants.values()), data)


async def tell_balances(db: asyncpg.Connection, wallet_ids: Collection[str]) -> None:
    """The balances of these wallets have changed: at most one event a second and customer, with the balance of then."""
    if wallet_ids:
        await db.execute(_QUERIES["webhooks.tell_balances"], list(wallet_ids))
