"""Customers as the unreleased SDK 6.0.1 reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import asyncpg
import msgspec

from gateway.api import paging
from gateway.api.connection_reader import ConnectionReader, place
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Money, Nothing, Operation, Page, Time
from gateway.api.paging import Listed
from gateway.api.responses import iso

PATH = "/v1/flex/customers"
TAG = "Customers"


class FlexPlan(msgspec.Struct):
    """The plan of a customer."""

    id: str
    name: str


class FlexCustomer(msgspec.Struct):
    """A customer, in that SDK's words."""

    customer_profile_id: str
    email: str | None
    display_name: str | None
    plan: FlexPlan | None
    subscribed_at: Time | None
    status: Literal["active"] = "active"


class FlexBalance(msgspec.Struct):
    """All pots less the overage, at one moment."""

    customer_profile_id: str
    balance: Money
    currency: Literal["USD"]
    as_of: Time


class FlexRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._reader = ConnectionReader(context)

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET", PATH, self.list, "List customers, for SDK 6.0.1", TAG, query=Page, answer=Listed[FlexCustomer]
            ),
            Operation(
                "GET",
                PATH + "/{id}/balance",
                self.balance,
                "Retrieve a customer's balance, for SDK 6.0.1",
                TAG,
                answer=FlexBalance,
                errors=("connection_not_found",),
            ),
        ]

    async def list(self, call: Call[Nothing, Page]) -> Listed[FlexCustomer]:
        asked = paging.window(call.query)
        rows = await self._reader.page(call.merchant, asked.after, asked.fetch)
        return paging.page(rows, asked, place, _customer)

    async def balance(self, call: Call[Nothing, Nothing]) -> FlexBalance:
        row = await self._reader.find(call.merchant, call.path_id("connection_not_found"))
        balance = await self._reader.balance(call.merchant, row)
        return FlexBalance(row["connection_id"], Money(balance.total_nano), "USD", iso(datetime.now(UTC)))


def _customer(row: asyncpg.Record) -> FlexCustomer:
    subscribed = row["subscription_id"] is not None
    return FlexCustomer(
        row["connection_id"],
        row["email"] or None,
        f"{row['first_name']} {row['last_name']}".strip() or None,
        FlexPlan(row["plan_id"], row["plan_name"]) if subscribed else None,
        iso(row["started_at"]) if subscribed else None,
    )
