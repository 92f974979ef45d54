"""Subscriptions: list, read, begin on a free plan, change, cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import asyncpg
import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.api import paging, subscription_reader
from gateway.api.connection_reader import ConnectionReader
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Deleted, Nothing, Operation, Page, Text, agreed, required
from gateway.api.paging import Listed
from gateway.api.plan_object import PLAN_FIELDS
from gateway.api.reading import Named, invalid
from gateway.api.subscription_object import (
    ActiveSubscription,
    ListedSubscription,
    Subscription,
    active_subscription,
    listed_subscription,
    subscription_object,
)
from gateway.billing.plans import Plans
from gateway.billing.principals import Merchant
from gateway.billing.subscriptions import Subscriptions, unknown_subscription
from gateway.errors import ObolError

PATH = "/v1/subscriptions"
OLDEST_PATH = "/v1/active-subscriptions"
TAG = "Subscriptions"
CUSTOMER_FIELDS = ("customer_id", "connection_id", "connection_secret", "reference_id")
PAY = "POST /v1/checkout_sessions with checkout_mode subscription"


class SubscriptionQuery(Page, kw_only=True):
    """A page, of all customers or of one, who is named by id, secret or reference id."""

    status: Literal["active", "cancelled", "all"] = "active"
    customer_id: Text | None = None
    connection_id: Text | None = None
    connection_secret: Text | None = None
    reference_id: Text | None = None


class NewSubscription(msgspec.Struct, kw_only=True):
    """Who is to be on which plan. Only plans that cost nothing: others are begun by a checkout."""

    customer_id: Text | None = None
    connection_id: Text | None = None
    connection_secret: Text | None = None
    reference_id: Text | None = None
    plan_id: Text | None = None
    subscription_config_id: Text | None = None


class ChangedSubscription(msgspec.Struct, kw_only=True):
    """One of the two."""

    auto_top_up_bundle_id: Annotated[
        Text | UnsetType | None, Meta(description="The bundle bought when the credit is gone; null: none.")
    ] = UNSET
    plan_id: Annotated[
        Text | None,
        Meta(description="A plan that costs no more: it follows at the cycle's end. The present one: stay on it."),
    ] = None
    subscription_config_id: Text | None = None


class Begun(msgspec.Struct):
    """The subscription that was begun."""

    subscription: Subscription


class Changed(msgspec.Struct):
    """The subscription as it is now."""

    success: bool
    subscription: Subscription


class SubscriptionRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._reader = ConnectionReader(context)
        self._plans = Plans(context.store)
        cap_nano = context.settings.overage_cap_nano
        self._subscriptions = Subscriptions(context.store, context.wallets, overage_cap_nano=cap_nano)

    def operations(self) -> list[Operation]:
        return [*self._reading(), *self._changing()]

    def _reading(self) -> list[Operation]:
        return [
            Operation(
                "GET",
                PATH,
                self.list,
                "List subscriptions",
                TAG,
                query=SubscriptionQuery,
                answer=Listed[ListedSubscription],
                errors=("connection_not_found",),
            ),
            Operation(
                "GET",
                OLDEST_PATH,
                self.bare_list,
                "List active subscriptions, for SDK 6",
                TAG,
                answer=list[ActiveSubscription],
            ),
            Operation(
                "GET",
                PATH + "/{id}",
                self.read,
                "Retrieve a subscription",
                TAG,
                answer=ListedSubscription,
                errors=("subscription_not_found",),
            ),
        ]

    def _changing(self) -> list[Operation]:
        one = PATH + "/{id}"
        return [
            Operation(
                "POST",
                PATH,
                self.create,
                "Put a customer on a plan that costs nothing",
                TAG,
                body=NewSubscription,
                answer=Begun,
                status=201,
                errors=("connection_not_found", "plan_not_found", "already_subscribed"),
            ),
            Operation(
                "PATCH",
                one,
                self.change,
                "Change a subscription",
                TAG,
                body=ChangedSubscription,
                answer=Changed,
                errors=("subscription_not_found", "plan_not_found", "credit_bundle_not_found"),
            ),
            Operation(
                "DELETE",
                one,
                self.cancel,
                "Cancel a subscription at the end of its cycle",
                TAG,
                answer=Deleted,
                errors=("subscription_not_found",),
                aliases=(OLDEST_PATH + "/{id}",),
            ),
        ]

    async def list(self, call: Call[Nothing, SubscriptionQuery]) -> Listed[ListedSubscription]:
        merchant, asked, status = call.merchant, paging.window(call.query), call.query.status
        named = agreed(call.query, *CUSTOMER_FIELDS)
        connection_id = await self._connection_id(merchant, named) if named else None
        scope = {"connection_id": connection_id, "status": None if status == "all" else status}
        rows = await subscription_reader.page(self._context.store, merchant, asked.after, asked.fetch, **scope)
        balances = await self._reader.balances(merchant, rows[: asked.limit])
        return paging.page(rows, asked, _place, lambda row: listed_subscription(row, balances[row["connection_id"]]))

    async def bare_list(self, call: Call[Nothing, Nothing]) -> Sequence[ActiveSubscription]:
        merchant = call.merchant
        rows = await subscription_reader.page(
            self._context.store, merchant, paging.NEWEST, paging.BARE_LIST_MAX, status="active"
        )
        balances = await self._reader.balances(merchant, rows)
        return [active_subscription(row, balances[row["connection_id"]]) for row in rows]

    async def read(self, call: Call[Nothing, Nothing]) -> ListedSubscription:
        row = await self._find(call.merchant, call.path_id("subscription_not_found"))
        return listed_subscription(row, await self._reader.balance(call.merchant, row))

    async def create(self, call: Call[NewSubscription, Nothing]) -> Begun:
        merchant, plan = call.merchant, required(call.body, *PLAN_FIELDS)
        connection_id = await self._connection_id(merchant, required(call.body, *CUSTOMER_FIELDS))
        if (await self._plans.find(merchant.merchant_id, plan.value, plan.field)).period_amount_nano > 0:
            raise invalid(plan.field, f"names a plan that has to be paid for: {PAY}")
        try:
            name = await self._subscriptions.subscribe(merchant.merchant_id, connection_id, plan.value)
        except ObolError as error:
            name = await self._begun_before(error, merchant, connection_id, plan.value)
        await self._context.principals.changed(merchant.merchant_id)
        return Begun(await self._show(merchant, name))

    async def _begun_before(self, error: ObolError, merchant: Merchant, connection_id: str, plan_id: str) -> str:
        """The same call again finds the subscription that it began. Raise `error` otherwise."""
        if error.code != "already_subscribed":
            raise error
        rows = await subscription_reader.page(
            self._context.store, merchant, paging.NEWEST, 1, status="active", connection_id=connection_id
        )
        if not rows or rows[0]["plan_id"] != plan_id or rows[0]["pending_type"] is not None:
            raise error
        return str(rows[0]["subscription_id"])

    async def change(self, call: Call[ChangedSubscription, Nothing]) -> Changed:
        merchant, body = call.merchant, call.body
        row = await self._find(merchant, call.path_id("subscription_not_found"))
        name, plan = row["subscription_id"], agreed(body, *PLAN_FIELDS)
        if plan is not None:
            if not isinstance(body.auto_top_up_bundle_id, UnsetType):
                raise invalid("auto_top_up_bundle_id", f"cannot change together with {plan.field}; send one of them")
            await self._change_plan(merchant, row, plan)
        elif not isinstance(body.auto_top_up_bundle_id, UnsetType):
            await self._set_auto_top_up(merchant, name, body.auto_top_up_bundle_id)
        await self._context.principals.changed(merchant.merchant_id)
        return Changed(True, await self._show(merchant, name))

    async def _change_plan(self, merchant: Merchant, row: asyncpg.Record, plan: Named) -> None:
        if row["status"] != "active":
            raise unknown_subscription()
        changing = self._subscriptions.change_plan(merchant.merchant_id, row["connection_id"], plan.value, paid=False)
        try:
            await changing
        except ObolError as error:
            if error.code == "invalid_request":
                raise invalid(plan.field, f"names a plan that costs more, which has to be paid for: {PAY}") from None
            raise _renamed(error, "plan_id", plan.field) from None

    async def _set_auto_top_up(self, merchant: Merchant, subscription_id: str, bundle_id: str | None) -> None:
        try:
            await self._subscriptions.set_auto_top_up(merchant.merchant_id, subscription_id, bundle_id)
        except ObolError as error:
            raise _renamed(error, "credit_bundle_id", "auto_top_up_bundle_id") from None

    async def cancel(self, call: Call[Nothing, Nothing]) -> Deleted:
        merchant, name = call.merchant, call.path_id("subscription_not_found")
        await self._subscriptions.cancel(merchant.merchant_id, name)
        await self._context.principals.changed(merchant.merchant_id)
        return Deleted(name)

    async def _connection_id(self, merchant: Merchant, named: Named) -> str:
        row = await self._reader.find(merchant, named.value, named.field)
        return str(row["connection_id"])

    async def _find(self, merchant: Merchant, subscription_id: str) -> asyncpg.Record:
        row = await subscription_reader.find(self._context.store, merchant, subscription_id)
        if row is None:
            raise unknown_subscription()
        return row

    async def _show(self, merchant: Merchant, subscription_id: str) -> Subscription:
        row = await self._find(merchant, subscription_id)
        return subscription_object(row, await self._reader.balance(merchant, row))


def _renamed(error: ObolError, param: str, field: str) -> ObolError:
    """The same, where it is about `param`, about the `field` that the caller sent."""
    return ObolError(error.code, error.message, param=field) if error.param == param else error


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["started_at"], row["subscription_id"])
