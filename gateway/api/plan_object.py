"""The plan object, also called subscription configuration, and what a plan is made and changed with."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.api.operation import Money, Text, Time
from gateway.api.responses import iso
from gateway.billing.plans import Bundle, Overage, Plan, Rollover, UnlinkedMeters
from gateway.core.cycle import Interval
from gateway.core.meter import from_definition

BUNDLES_MAX = 20
METERS_MAX = 100
PLAN_FIELDS = ("plan_id", "subscription_config_id")
"""Names of a plan's id over the eras."""

MeterNames = Annotated[list[Text], Meta(max_length=METERS_MAX, description="Ids, slugs or secrets of your meters.")]


class NewBundle(msgspec.Struct):
    """Credit that a subscriber may buy. `cost` may differ from `credit_amount`."""

    name: Text
    cost: Money
    credit_amount: Money


class ChangedBundle(msgspec.Struct):
    """With an id it changes, or goes where `is_deleted`; without one it is made, from all three."""

    credit_bundle_id: Text | None = None
    name: Text | None = None
    cost: Money | None = None
    credit_amount: Money | None = None
    is_deleted: bool = False


class NewPlan(msgspec.Struct, kw_only=True):
    """A plan to be made. With `markup_percent` it costs nothing itself: its subscribers pay the providers' prices and
    so much on top of them."""

    name: Text
    period_amount: Money | None = None
    billing_interval: Interval = "month"
    included_credit: Annotated[Money | None, Meta(description="Default: period_amount.")] = None
    rollover_type: Rollover = "none"
    bundle_rollover_type: Rollover = "full"
    meter_ids: MeterNames | None = None
    product_ids: MeterNames | None = None
    credit_bundles: Annotated[list[NewBundle], Meta(max_length=BUNDLES_MAX)] = []
    default_auto_top_up_bundle_index: Annotated[int, Meta(ge=0, lt=BUNDLES_MAX)] | None = None
    overage: Overage = "charge"
    overage_cap: Annotated[Money | None, Meta(description="Null: what the installation allows.")] = None
    unlinked_meters: UnlinkedMeters = "refuse"
    markup_percent: Decimal | None = None


class ChangedPlan(msgspec.Struct, kw_only=True):
    """What changes. `meter_ids` replaces all. `period_amount` and `billing_interval` may only repeat what is."""

    name: Text | None = None
    period_amount: Money | None = None
    billing_interval: Interval | None = None
    included_credit: Money | None = None
    rollover_type: Rollover | None = None
    bundle_rollover_type: Rollover | None = None
    meter_ids: MeterNames | None = None
    product_ids: MeterNames | None = None
    credit_bundles: Annotated[list[ChangedBundle], Meta(max_length=2 * BUNDLES_MAX)] = []
    default_auto_top_up_bundle_id: Text | UnsetType | None = UNSET
    overage: Overage | None = None
    overage_cap: Money | UnsetType | None = UNSET
    unlinked_meters: UnlinkedMeters | None = None


class PlanMeter(msgspec.Struct):
    """A meter that a plan allows."""

    meter_id: str
    product_id: str
    name: str


class PlanBundle(msgspec.Struct):
    """A credit bundle of a plan."""

    credit_bundle_id: str
    name: str
    cost: Money
    credit_amount: Money


class PlanPrice(msgspec.Struct):
    """Of a plan that is nothing but a markup: its meter's id and percentage."""

    id: str
    type: Literal["payg"]
    markup_type: Literal["percentage"]
    markup_amount: str


class PlanObject(msgspec.Struct, kw_only=True):
    """A plan. `linked_meters` empty: all are allowed. `overage_cap` null: what the installation allows."""

    plan_id: str
    subscription_config_id: str
    id: str
    merchant_id: str
    name: str
    status: Literal["active", "archived"]
    period_amount: Money
    included_credit: Money
    billing_interval: Interval
    rollover_type: Rollover
    bundle_rollover_type: Rollover
    default_auto_top_up_bundle_id: str | None
    linked_meters: list[PlanMeter]
    credit_bundles: list[PlanBundle]
    overage: Overage
    overage_cap: Money | None
    unlinked_meters: UnlinkedMeters
    is_free: bool
    price: PlanPrice | None
    created_at: Time


def plan_object(plan: Plan, definitions: dict[str, Any]) -> PlanObject:
    """`definitions` of its linked meters, by id."""
    return PlanObject(
        plan_id=plan.plan_id,
        subscription_config_id=plan.plan_id,
        id=plan.plan_id,
        merchant_id=plan.merchant_id,
        name=plan.name,
        status="active" if plan.archived_at is None else "archived",
        period_amount=Money(plan.period_amount_nano),
        included_credit=Money(plan.included_credit_nano),
        billing_interval=plan.billing_interval,
        rollover_type=plan.rollover_type,
        bundle_rollover_type=plan.bundle_rollover_type,
        default_auto_top_up_bundle_id=plan.default_auto_top_up_bundle_id,
        linked_meters=[PlanMeter(each.meter_id, each.meter_id, each.name) for each in plan.linked_meters],
        credit_bundles=[_bundle(each) for each in plan.bundles],
        overage=plan.overage,
        overage_cap=None if plan.overage_cap_nano is None else Money(plan.overage_cap_nano),
        unlinked_meters=plan.unlinked_meters,
        is_free=plan.is_free,
        price=_price(plan, definitions),
        created_at=iso(plan.created_at),
    )


def _bundle(bundle: Bundle) -> PlanBundle:
    return PlanBundle(bundle.credit_bundle_id, bundle.name, Money(bundle.cost_nano), Money(bundle.credit_nano))


def _price(plan: Plan, definitions: dict[str, Any]) -> PlanPrice | None:
    """Of a plan that costs nothing and allows one meter, a percentage without tiers."""
    if plan.period_amount_nano or len(plan.linked_meters) != 1:
        return None
    meter_id = plan.linked_meters[0].meter_id
    definition = from_definition(meter_id, 1, definitions[meter_id]).definition()
    if definition["rate_type"] != "percentage" or len(definition["tiers"]) != 1:
        return None
    return PlanPrice(meter_id, "payg", "percentage", definition["tiers"][0]["rate"])
