"""What a checkout ends with, in ONE transaction: the customer, what was bought, and what the merchant is told.

Where something was charged, it is the transaction that makes the charge `succeeded` (`charges.py`), in whichever
process hears of it. So a checkout is complete if and only if it was paid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncpg

from gateway.billing import outbox
from gateway.billing.subscriptions import Subscriptions
from gateway.errors import ObolError
from gateway.store.postgres import Store


class Purchases:
    """Completes checkouts. Whoever calls locks the connection first, and applies the turns afterwards."""

    def __init__(self, store: Store, subscriptions: Subscriptions) -> None:
        self._store = store
        self._subscriptions = subscriptions

    async def paid(self, db: asyncpg.Connection, charge_id: str) -> None:
        """A charge of a checkout has succeeded. Where what it was for is not to be had any more (the checkout was
        completed by another charge, the plan was deleted, the customer was), the money is credited."""
        row = await db.fetchrow(self._store.sql("checkouts.bought_by"), charge_id)
        if row is None or row["completed"]:
            await self._credit(db, charge_id)
            return
        try:
            await self.complete(db, row, charge_id=charge_id)
        except ObolError as error:
            if error.code != "connection_not_found":
                raise
            await self._credit(db, charge_id)

    async def complete(self, db: asyncpg.Connection, row: Mapping[str, Any], *, charge_id: str | None = None) -> None:
        """`row`: as of the query checkouts.bought_by; `charge_id`: what was paid for it. Raise ObolError
        `connection_not_found`, with nothing done, and what `Subscriptions.buy` raises where nothing was paid."""
        connection_id, merchant_id = row["connection_id"], row["merchant_id"]
        shown = await db.fetchrow(self._store.sql("checkouts.show_connection"), connection_id, row["reference_id"])
        if shown is None:
            raise ObolError("connection_not_found", "this customer was deleted", param="connection_id")
        if shown["hidden"]:
            await outbox.tell(db, merchant_id, "connection.created", connection_id)
        if row["checkout_mode"] == "subscription":
            await self._subscribe(db, row, charge_id)
        await db.execute(self._store.sql("checkouts.complete"), row["checkout_session_id"], connection_id)
        await db.execute(self._store.sql("payers.hurry"), row["payer_id"], connection_id)
        await outbox.tell(db, merchant_id, "checkout.completed", connection_id, _told(row))

    async def _subscribe(self, db: asyncpg.Connection, row: Mapping[str, Any], charge_id: str | None) -> None:
        customer = (row["merchant_id"], row["connection_id"])
        try:
            await self._subscriptions.buy(db, *customer, row["plan_id"], paid=charge_id is not None)
        except ObolError as error:
            if error.code != "plan_not_found" or charge_id is None:
                raise
            await self._credit(db, charge_id)

    async def _credit(self, db: asyncpg.Connection, charge_id: str) -> None:
        """A charge that buys credit anyway has its grant."""
        row = await db.fetchrow(self._store.sql("checkouts.charge_is_credit"), charge_id)
        if row is not None:
            values = (charge_id, row["wallet_id"], "prepaid", row["credit_nano"], "charge, nothing else to buy")
            await db.execute(self._store.sql("accounts.insert_grant"), *values)


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of the checkout, on top of the customer."""
    given = {name: row[name] for name in ("reference_id", "plan_id", "credit_bundle_id") if row[name] is not None}
    return {"checkout_session_id": row["checkout_session_id"], "checkout_mode": row["checkout_mode"], **given}
