"""Credit bundles: list, read. They are made and changed with their plan (plans.py)."""

from __future__ import annotations

import msgspec

from gateway.api import paging
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Money, Nothing, Operation, Page, Text, Time, agreed
from gateway.api.paging import Listed
from gateway.api.plan_object import PLAN_FIELDS
from gateway.api.responses import iso
from gateway.billing.plans import Bundle, Plans

PATH = "/v1/credit_bundles"
TAG = "Plans"


class BundleQuery(Page):
    """A page of one plan's bundles, or of all."""

    plan_id: Text | None = None
    subscription_config_id: Text | None = None


class CreditBundle(msgspec.Struct):
    """Credit that subscribers of one plan may buy."""

    credit_bundle_id: str
    plan_id: str
    subscription_config_id: str
    name: str
    cost: Money
    credit_amount: Money
    created_at: Time


class CreditBundleRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._plans = Plans(context.store)

    def operations(self) -> list[Operation]:
        return [
            Operation(
                "GET",
                PATH,
                self.list,
                "List credit bundles",
                TAG,
                query=BundleQuery,
                answer=Listed[CreditBundle],
                errors=("plan_not_found",),
            ),
            Operation(
                "GET",
                PATH + "/{id}",
                self.read,
                "Retrieve a credit bundle",
                TAG,
                answer=CreditBundle,
                errors=("credit_bundle_not_found",),
            ),
        ]

    async def list(self, call: Call[Nothing, BundleQuery]) -> Listed[CreditBundle]:
        merchant_id, asked, plan_id = call.merchant.merchant_id, paging.window(call.query), None
        named = agreed(call.query, *PLAN_FIELDS)
        if named is not None:
            plan_id = (await self._plans.find(merchant_id, named.value, named.field)).plan_id
        found = await self._plans.bundle_page(merchant_id, asked.after, asked.fetch, plan_id)
        return paging.page(found, asked, _place, _show)

    async def read(self, call: Call[Nothing, Nothing]) -> CreditBundle:
        name = call.path_id("credit_bundle_not_found")
        return _show(await self._plans.bundle(call.merchant.merchant_id, name))


def _show(bundle: Bundle) -> CreditBundle:
    return CreditBundle(
        bundle.credit_bundle_id,
        bundle.plan_id,
        bundle.plan_id,
        bundle.name,
        Money(bundle.cost_nano),
        Money(bundle.credit_nano),
        iso(bundle.created_at),
    )


def _place(bundle: Bundle) -> paging.Place:
    return paging.Place(bundle.created_at, bundle.credit_bundle_id)
