"""Connections, also called customers: list, read, delete."""

from __future__ import annotations

import msgspec

from gateway.api import paging, subscription_reader
from gateway.api.connection_object import Connection
from gateway.api.connection_reader import ConnectionReader, place, unknown_connection, wallet_of
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Deleted, Nothing, Operation, Page, Text
from gateway.api.paging import Listed
from gateway.api.subscription_object import Subscription, subscription_object
from gateway.billing import clock, outbox
from gateway.errors import ObolError

PATH = "/v1/customers"
OLDER_PATH = "/v1/connections"
TAG = "Customers"


class ConnectionQuery(Page):
    """A page, or the one customer with this reference id."""

    reference_id: Text | None = None


class CustomersSubscription(msgspec.Struct):
    """Null: the customer has no subscription; it is on the free plan."""

    subscription: Subscription | None


class ConnectionRoutes:
    """The calls. A connection in a path may be named by id, secret or reference id."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._reader = ConnectionReader(context)

    def operations(self) -> list[Operation]:
        one, older, missing = PATH + "/{id}", (OLDER_PATH + "/{id}",), ("connection_not_found",)
        return [
            Operation(
                "GET",
                PATH,
                self.list,
                "List customers",
                TAG,
                query=ConnectionQuery,
                answer=Listed[Connection],
                aliases=(OLDER_PATH,),
            ),
            Operation(
                "GET", one, self.read, "Retrieve a customer", TAG, answer=Connection, errors=missing, aliases=older
            ),
            Operation(
                "GET",
                one + "/subscription",
                self.subscription,
                "Retrieve a customer's subscription",
                TAG,
                answer=CustomersSubscription,
                errors=missing,
                aliases=(OLDER_PATH + "/{id}/subscription",),
            ),
            Operation(
                "DELETE", one, self.delete, "Delete a customer", TAG, answer=Deleted, errors=missing, aliases=older
            ),
        ]

    async def list(self, call: Call[Nothing, ConnectionQuery]) -> Listed[Connection]:
        asked = paging.window(call.query)
        rows = await self._reader.page(call.merchant, asked.after, asked.fetch, call.query.reference_id)
        shown = await self._reader.show(call.merchant, rows[: asked.limit])
        return paging.page(rows, asked, place, lambda row: shown[row["connection_id"]])

    async def read(self, call: Call[Nothing, Nothing]) -> Connection:
        row = await self._reader.find(call.merchant, call.path_id("connection_not_found"))
        return await self._reader.show_one(call.merchant, row)

    async def subscription(self, call: Call[Nothing, Nothing]) -> CustomersSubscription:
        row = await self._reader.find(call.merchant, call.path_id("connection_not_found"))
        if row["subscription_id"] is None:
            return CustomersSubscription(None)
        found = await subscription_reader.find(self._context.store, call.merchant, row["subscription_id"])
        if found is None:
            return CustomersSubscription(None)
        balance = await self._reader.balance(call.merchant, found)
        return CustomersSubscription(subscription_object(found, balance))

    async def delete(self, call: Call[Nothing, Nothing]) -> Deleted:
        """Soft: its secrets and tokens fail from now on, its requests stay readable, its wallet keeps what it holds."""
        merchant_id = call.merchant.merchant_id
        row = await self._reader.find(call.merchant, call.path_id("connection_not_found"))
        if row["is_self"]:
            raise ObolError("invalid_request", "your own connection cannot be deleted", param="id")
        store, name = self._context.store, row["connection_id"]
        async with store.transaction() as db:
            if await db.fetchval(store.sql("connections.delete"), name) is None:
                raise unknown_connection()
            now = await clock.now_in(db, store, merchant_id)
            await db.execute(store.sql("connections.end_subscription"), name, now)
            await outbox.tell(db, merchant_id, "connection.deleted", name)
            # Before the commit: with Redis away nothing has changed, and a failed commit is healed by the next try.
            await self._context.wallets.open(
                wallet_of(call.merchant, row), status="deleted", limit_nano=row["overage_limit_nano"], create=False
            )
        await self._context.principals.changed(merchant_id)
        return Deleted(name)
