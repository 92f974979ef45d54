"""Plans, also called subscription configurations: list, read, create, change, archive, delete."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from msgspec import UNSET, UnsetType

from gateway.api import paging
from gateway.api.context import ApiContext
from gateway.api.meters import ID_PREFIXES
from gateway.api.operation import Call, Deleted, Money, Nothing, Operation, Page
from gateway.api.paging import Listed
from gateway.api.plan_object import ChangedBundle, ChangedPlan, NewPlan, PlanObject, plan_object
from gateway.api.reading import invalid
from gateway.billing import plans
from gateway.billing.plans import Plan, Plans
from gateway.billing.principals import Merchant
from gateway.core.meter import from_definition
from gateway.errors import ObolError
from gateway.store.secrets import digest, new_id

PATH = "/v1/plans"
OLDER_PATH = "/v1/subscription_configs"
OLDEST_PATH = "/v1/subscription-configs"
TAG = "Plans"
PERCENT_PLACES = 6


class PlanRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._plans = Plans(context.store)

    def operations(self) -> list[Operation]:
        return [*self._reading(), *self._changing()]

    def _reading(self) -> list[Operation]:
        named = _aliases("/{id}")
        missing = ("plan_not_found",)
        return [
            Operation(
                "GET",
                PATH,
                self.list,
                "List plans",
                TAG,
                query=Page,
                answer=Listed[PlanObject],
                aliases=(OLDER_PATH,),
            ),
            Operation("GET", OLDEST_PATH, self.bare_list, "List plans, for SDK 6", TAG, answer=list[PlanObject]),
            Operation(
                "GET",
                PATH + "/{id}",
                self.read,
                "Retrieve a plan",
                TAG,
                answer=PlanObject,
                errors=missing,
                aliases=named,
            ),
        ]

    def _changing(self) -> list[Operation]:
        one, named = PATH + "/{id}", _aliases("/{id}")
        missing, wrong = ("plan_not_found",), ("plan_not_found", "meter_not_found", "credit_bundle_not_found")
        change: dict[str, Any] = {"body": ChangedPlan, "answer": PlanObject, "errors": wrong}
        return [
            Operation(
                "POST",
                PATH,
                self.create,
                "Create a plan",
                TAG,
                body=NewPlan,
                answer=PlanObject,
                status=201,
                errors=("meter_not_found",),
                aliases=_aliases(""),
            ),
            Operation("PATCH", one, self.change, "Change a plan", TAG, **change, aliases=named),
            Operation("PUT", OLDEST_PATH + "/{id}", self.change, "Change a plan, for SDK 6", TAG, **change),
            Operation(
                "POST",
                one + "/archive",
                self.archive,
                "Archive a plan: nobody new subscribes to it",
                TAG,
                answer=PlanObject,
                errors=missing,
                aliases=_aliases("/{id}/archive"),
            ),
            Operation(
                "DELETE",
                one,
                self.delete,
                "Delete a plan",
                TAG,
                answer=Deleted,
                errors=("plan_not_found", "plan_in_use"),
                aliases=named,
            ),
        ]

    async def list(self, call: Call[Nothing, Page]) -> Listed[PlanObject]:
        asked = paging.window(call.query)
        found = await self._plans.page(call.merchant.merchant_id, asked.after, asked.fetch)
        definitions = await self._definitions(found[: asked.limit])
        return paging.page(found, asked, _place, lambda plan: plan_object(plan, definitions))

    async def bare_list(self, call: Call[Nothing, Nothing]) -> Sequence[PlanObject]:
        found = await self._plans.page(call.merchant.merchant_id, paging.NEWEST, paging.BARE_LIST_MAX)
        definitions = await self._definitions(found)
        return [plan_object(plan, definitions) for plan in found]

    async def read(self, call: Call[Nothing, Nothing]) -> PlanObject:
        plan = await self._plans.find(call.merchant.merchant_id, call.path_id("plan_not_found"))
        return await self._show(plan)

    async def create(self, call: Call[NewPlan, Nothing]) -> PlanObject:
        merchant, body = call.merchant, call.body
        names = _meters(body.meter_ids, body.product_ids) or []
        if body.markup_percent is not None:
            plan = await self._create_markup(merchant, body, body.markup_percent)
        elif body.period_amount is None:
            raise invalid("period_amount", "is required")
        else:
            meter_ids = await self._meter_ids(merchant, names)
            plan = await self._plans.create(merchant.merchant_id, _new(body, body.period_amount, meter_ids))
        await self._context.principals.changed(merchant.merchant_id)
        return await self._show(plan)

    async def _create_markup(self, merchant: Merchant, body: NewPlan, percent: Decimal) -> Plan:
        """The plan with a percentage meter of its own."""
        if not percent.is_finite() or not 0 <= percent <= 100 or percent != round(percent, PERCENT_PLACES):
            raise invalid("markup_percent", f"must be from 0 to 100, with at most {PERCENT_PLACES} decimal places")
        for field in ("period_amount", "meter_ids", "product_ids"):
            if getattr(body, field) is not None:
                raise invalid(field, "cannot stand beside markup_percent")
        store, meter_id = self._context.store, new_id(ID_PREFIXES[merchant.mode])
        # Rounded, which changes nothing any more: written out, 0E-999999999 would be a gigabyte.
        tiers = [{"start": 0, "rate": format(round(percent, PERCENT_PLACES), "f")}]
        definition = from_definition(meter_id, 1, {"rate_type": "percentage", "tiers": tiers}).definition()
        secret_hash = digest(self._context.derived.meter_secret(merchant.mode, meter_id))
        slug = f"payg-{secrets.token_hex(8)}"
        async with store.transaction() as db:
            await db.execute(
                store.sql("meters.create"), meter_id, merchant.merchant_id, slug, secret_hash, body.name, definition
            )
            new = _new(body, Money(0), [meter_id])
            plan_id = await plans.insert(db, store, merchant.merchant_id, new)
        return await self._plans.find(merchant.merchant_id, plan_id)

    async def change(self, call: Call[ChangedPlan, Nothing]) -> PlanObject:
        merchant, body = call.merchant, call.body
        plan = await self._plans.find(merchant.merchant_id, call.path_id("plan_not_found"))
        _refuse_fixed(plan, body)
        names = _meters(body.meter_ids, body.product_ids)
        meter_ids = UNSET if names is None else tuple(await self._meter_ids(merchant, names))
        plan = await self._plans.change(merchant.merchant_id, plan.plan_id, _change(body, meter_ids))
        await self._context.principals.changed(merchant.merchant_id)
        return await self._show(plan)

    async def archive(self, call: Call[Nothing, Nothing]) -> PlanObject:
        merchant_id, plan_id = call.merchant.merchant_id, call.path_id("plan_not_found")
        if (await self._plans.find(merchant_id, plan_id)).is_free:
            raise invalid("id", "is that of the Free plan, which cannot be archived")
        return await self._show(await self._plans.archive(merchant_id, plan_id))

    async def delete(self, call: Call[Nothing, Nothing]) -> Deleted:
        merchant_id, plan_id = call.merchant.merchant_id, call.path_id("plan_not_found")
        try:
            await self._plans.delete(merchant_id, plan_id)
        except ObolError as error:
            if error.code != "plan_in_use":
                raise
            archive = f"POST {PATH}/{plan_id}/archive"
            what = f"customers are subscribed to this plan, or will be; {archive} keeps others off it"
            raise ObolError("plan_in_use", what, param="id") from None
        await self._context.principals.changed(merchant_id)
        return Deleted(plan_id)

    async def _meter_ids(self, merchant: Merchant, names: Sequence[str]) -> Sequence[str]:
        """Ids of the meters that are named by id, slug or secret, each once. Raise ObolError `meter_not_found`."""
        if not names:
            return []
        digests = [digest(name) for name in names]
        rows = await self._context.store.rows("api_plans.meters", merchant.merchant_id, names, digests)
        of_names = {row["place"]: row["meter_id"] for row in rows}
        for index in range(len(names)):
            if index + 1 not in of_names:
                raise ObolError("meter_not_found", "this meter is not known", param=f"meter_ids[{index}]")
        return list(dict.fromkeys(of_names[index + 1] for index in range(len(names))))

    async def _show(self, plan: Plan) -> PlanObject:
        return plan_object(plan, await self._definitions([plan]))

    async def _definitions(self, shown: Sequence[Plan]) -> dict[str, Any]:
        """Of the meters of plans that cost nothing: those may be a markup."""
        wanted = {each.meter_id for plan in shown if not plan.period_amount_nano for each in plan.linked_meters}
        if not wanted:
            return {}
        rows = await self._context.store.rows("api_plans.definitions", list(wanted))
        return {row["meter_id"]: row["definition"] for row in rows}


def _aliases(rest: str) -> tuple[str, ...]:
    return (OLDER_PATH + rest, OLDEST_PATH + rest)


def _meters(meter_ids: list[str] | None, product_ids: list[str] | None) -> list[str] | None:
    """What both eras' names agree on."""
    if meter_ids is not None and product_ids is not None and meter_ids != product_ids:
        raise invalid("product_ids", "differs from meter_ids; send one of them")
    return product_ids if meter_ids is None else meter_ids


def _new(body: NewPlan, amount: Money, meter_ids: Sequence[str]) -> plans.NewPlan:
    return plans.NewPlan(
        name=body.name,
        period_amount_nano=amount.nano,
        billing_interval=body.billing_interval,
        included_credit_nano=_nano(body.included_credit),
        rollover_type=body.rollover_type,
        bundle_rollover_type=body.bundle_rollover_type,
        overage=body.overage,
        overage_cap_nano=_nano(body.overage_cap),
        unlinked_meters=body.unlinked_meters,
        meter_ids=tuple(meter_ids),
        bundles=tuple(
            plans.NewBundle(each.name, each.cost.nano, each.credit_amount.nano) for each in body.credit_bundles
        ),
        default_auto_top_up_bundle_index=body.default_auto_top_up_bundle_index,
    )


def _refuse_fixed(plan: Plan, body: ChangedPlan) -> None:
    """What a subscriber agreed to pay, and how often, is fixed for good."""
    if body.period_amount is not None and body.period_amount.nano != plan.period_amount_nano:
        raise invalid("period_amount", "cannot be changed; create another plan")
    if body.billing_interval not in (None, plan.billing_interval):
        raise invalid("billing_interval", f"cannot be changed (it is {plan.billing_interval}); create another plan")


def _change(body: ChangedPlan, meter_ids: tuple[str, ...] | UnsetType) -> plans.PlanChange:
    cap = body.overage_cap
    return plans.PlanChange(
        name=_given(body.name),
        included_credit_nano=UNSET if body.included_credit is None else body.included_credit.nano,
        rollover_type=_given(body.rollover_type),
        bundle_rollover_type=_given(body.bundle_rollover_type),
        overage=_given(body.overage),
        overage_cap_nano=cap if isinstance(cap, UnsetType) else _nano(cap),
        unlinked_meters=_given(body.unlinked_meters),
        default_auto_top_up_bundle_id=body.default_auto_top_up_bundle_id,
        meter_ids=meter_ids,
        bundles=tuple(_bundle_change(each) for each in body.credit_bundles),
    )


def _bundle_change(body: ChangedBundle) -> plans.BundleChange:
    return plans.BundleChange(
        body.credit_bundle_id, body.name, _nano(body.cost), _nano(body.credit_amount), body.is_deleted
    )


def _nano(amount: Money | None) -> int | None:
    return None if amount is None else amount.nano


def _given(value: Any) -> Any:
    return UNSET if value is None else value


def _place(plan: Plan) -> paging.Place:
    return paging.Place(plan.created_at, plan.plan_id)
