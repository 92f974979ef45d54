"""Meters, also called products; plans, also called subscription configs; credit bundles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from msgspec import UNSET, UnsetType

from obol_sdk import models
from obol_sdk.call import Amount, Call, Resource, World, amount, body, call, get, paged, place, present, query
from obol_sdk.pages import Listed


class NewTier(TypedDict):
    """From `start` units on, a unit costs `rate`. The first one starts at 0."""

    start: Amount
    rate: Amount


class NewBundle(TypedDict):
    """Credit that subscribers of a plan may buy."""

    name: str
    cost: Amount
    credit_amount: Amount


class BundleChange(TypedDict, total=False):
    """With `credit_bundle_id` the change of a bundle, with `is_deleted` its end; without the id a new one."""

    credit_bundle_id: str
    name: str
    cost: Amount
    credit_amount: Amount
    is_deleted: bool


class Meters(Resource[World]):
    """Also called products."""

    @call
    def create(
        self,
        *,
        name: str,
        rate_type: models.RateType,
        tier_type: models.Unit,
        tiers: Sequence[NewTier],
        meter_slug: str | None = None,
        token_basis: Literal["input+output", "output"] | None = None,
    ) -> Call[models.Meter]:
        """A rate is dollars a unit for `fixed`, percent of the provider's cost for `percentage`."""
        fields = present(
            name=name,
            meter_slug=meter_slug,
            rate_type=rate_type,
            tier_type=tier_type,
            tiers=[_tier(tier) for tier in tiers],
            token_basis=token_basis,
        )
        return Call("POST", "meters", models.Meter, body=fields)

    @call
    def retrieve(self, meter_id: str) -> Call[models.Meter]:
        return get(place("meters", meter_id), models.Meter)

    @paged
    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Call[Listed[models.Meter]]:
        return get("meters", Listed[models.Meter], query(limit=limit, cursor=cursor))

    @call
    def update(
        self, meter_id: str, *, name: str | None = None, tiers: Sequence[NewTier] | None = None
    ) -> Call[models.Meter]:
        fields = present(name=name, tiers=None if tiers is None else [_tier(tier) for tier in tiers])
        return Call("PATCH", place("meters", meter_id), models.Meter, body=fields)

    @call
    def delete(self, meter_id: str) -> Call[models.Deleted]:
        return Call("DELETE", place("meters", meter_id), models.Deleted)


class Plans(Resource[World]):
    """Also called subscription configs."""

    @call
    def create(
        self,
        *,
        name: str,
        period_amount: Amount,
        billing_interval: models.Interval = "month",
        included_credit: Amount | None = None,
        rollover_type: models.Rollover | None = None,
        bundle_rollover_type: models.Rollover | None = None,
        meter_ids: Sequence[str] | None = None,
        credit_bundles: Sequence[NewBundle] | None = None,
        default_auto_top_up_bundle_index: int | None = None,
        overage: Literal["charge", "block"] | None = None,
        overage_cap: Amount | None = None,
        unlinked_meters: Literal["refuse", "allow"] | None = None,
    ) -> Call[models.Plan]:
        """`included_credit` is the period's amount by default. Without meters every meter draws on it."""
        fields = present(
            name=name,
            period_amount=amount(period_amount),
            billing_interval=billing_interval,
            included_credit=None if included_credit is None else amount(included_credit),
            rollover_type=rollover_type,
            bundle_rollover_type=bundle_rollover_type,
            meter_ids=meter_ids,
            credit_bundles=None if credit_bundles is None else [_bundle(bundle) for bundle in credit_bundles],
            default_auto_top_up_bundle_index=default_auto_top_up_bundle_index,
            overage=overage,
            overage_cap=None if overage_cap is None else amount(overage_cap),
            unlinked_meters=unlinked_meters,
        )
        return Call("POST", "plans", models.Plan, body=fields)

    @call
    def retrieve(self, plan_id: str) -> Call[models.Plan]:
        return get(place("plans", plan_id), models.Plan)

    @paged
    def list(self, *, limit: int | None = None, cursor: str | None = None) -> Call[Listed[models.Plan]]:
        return get("plans", Listed[models.Plan], query(limit=limit, cursor=cursor))

    @call
    def update(
        self,
        plan_id: str,
        *,
        name: str | None = None,
        included_credit: Amount | None = None,
        rollover_type: models.Rollover | None = None,
        bundle_rollover_type: models.Rollover | None = None,
        default_auto_top_up_bundle_id: str | UnsetType | None = UNSET,
        meter_ids: Sequence[str] | None = None,
        credit_bundles: Sequence[BundleChange] | None = None,
        overage: Literal["charge", "block"] | None = None,
        overage_cap: Amount | UnsetType | None = UNSET,
        unlinked_meters: Literal["refuse", "allow"] | None = None,
    ) -> Call[models.Plan]:
        """`meter_ids` replaces all links. Amount and interval of a plan never change."""
        fields = present(
            name=name,
            included_credit=None if included_credit is None else amount(included_credit),
            rollover_type=rollover_type,
            bundle_rollover_type=bundle_rollover_type,
            meter_ids=meter_ids,
            credit_bundles=None if credit_bundles is None else [_bundle(bundle) for bundle in credit_bundles],
            overage=overage,
            unlinked_meters=unlinked_meters,
        )
        cleared = body(
            default_auto_top_up_bundle_id=default_auto_top_up_bundle_id,
            overage_cap=overage_cap if isinstance(overage_cap, UnsetType | None) else amount(overage_cap),
        )
        return Call("PATCH", place("plans", plan_id), models.Plan, body=fields | cleared)

    @call
    def archive(self, plan_id: str) -> Call[models.Plan]:
        """Nobody new; who is subscribed stays."""
        return Call("POST", place("plans", plan_id, "archive"), models.Plan)

    @call
    def delete(self, plan_id: str) -> Call[models.Deleted]:
        return Call("DELETE", place("plans", plan_id), models.Deleted)


class CreditBundles(Resource[World]):
    """They are made and changed with their plan."""

    @paged
    def list(
        self, *, plan_id: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Call[Listed[models.CreditBundle]]:
        asked = query(plan_id=plan_id, limit=limit, cursor=cursor)
        return get("credit_bundles", Listed[models.CreditBundle], asked)

    @call
    def retrieve(self, credit_bundle_id: str) -> Call[models.CreditBundle]:
        return get(place("credit_bundles", credit_bundle_id), models.CreditBundle)


def _tier(tier: NewTier) -> dict[str, str]:
    return {"start": amount(tier["start"]), "rate": amount(tier["rate"])}


def _bundle(bundle: NewBundle | BundleChange) -> dict[str, Any]:
    given: dict[str, Any] = dict(bundle)
    return {name: amount(value) if name in ("cost", "credit_amount") else value for name, value in given.items()}
