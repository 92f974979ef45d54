"""Plans and their credit bundles. Amounts are nano-dollars.

What a plan costs and how often never changes. Everything else may: a subscription sees it at its next turn. Of the
credit bundles of a plan the published clients send those to change (by id), to make (without) and to remove.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import asyncpg
import msgspec
from msgspec import UNSET, UnsetType

from gateway.core.cycle import Interval
from gateway.core.money import NANO
from gateway.errors import ObolError
from gateway.store.postgres import Store
from gateway.store.secrets import new_id

PERIOD_AMOUNT_MAX_NANO = 10_000 * NANO
BUNDLE_MAX_NANO = 100_000 * NANO
BUNDLES_A_PLAN_MAX = 20
METERS_A_PLAN_MAX = 100
FREE_NAME = "Free"

Rollover = Literal["full", "none"]
Overage = Literal["charge", "block"]
UnlinkedMeters = Literal["refuse", "allow"]


class Bundle(msgspec.Struct, frozen=True):
    """Credit that a subscriber of the plan may buy: it goes to the bundle pot."""

    credit_bundle_id: str
    plan_id: str
    name: str
    cost_nano: int
    credit_nano: int
    created_at: datetime


class LinkedMeter(msgspec.Struct, frozen=True):
    meter_id: str
    name: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """As it stands. `overage_cap_nano` None: the installation's setting. `linked_meters` empty: all are allowed."""

    plan_id: str
    merchant_id: str
    name: str
    period_amount_nano: int
    included_credit_nano: int
    billing_interval: Interval
    rollover_type: Rollover
    bundle_rollover_type: Rollover
    overage: Overage
    overage_cap_nano: int | None
    unlinked_meters: UnlinkedMeters
    default_auto_top_up_bundle_id: str | None
    is_free: bool
    linked_meters: tuple[LinkedMeter, ...]
    bundles: tuple[Bundle, ...]
    created_at: datetime
    archived_at: datetime | None


class NewBundle(msgspec.Struct, frozen=True):
    name: str
    cost_nano: int
    credit_nano: int


class NewPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`included_credit_nano` None: the period amount. `default_auto_top_up_bundle_index` counts into `bundles`."""

    name: str
    period_amount_nano: int
    billing_interval: Interval = "month"
    included_credit_nano: int | None = None
    rollover_type: Rollover = "none"
    bundle_rollover_type: Rollover = "full"
    overage: Overage = "charge"
    overage_cap_nano: int | None = None
    unlinked_meters: UnlinkedMeters = "refuse"
    meter_ids: tuple[str, ...] = ()
    bundles: tuple[NewBundle, ...] = ()
    default_auto_top_up_bundle_index: int | None = None
    is_free: bool = False
    """Not for callers: the Free plan of a merchant is made with it."""


class BundleChange(msgspec.Struct, frozen=True):
    """Without an id a new one, which needs all three; with an id those that are given, or its end."""

    credit_bundle_id: str | None = None
    name: str | None = None
    cost_nano: int | None = None
    credit_nano: int | None = None
    is_deleted: bool = False


class PlanChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is UNSET stays. `meter_ids` replaces all links."""

    name: str | UnsetType = UNSET
    included_credit_nano: int | UnsetType = UNSET
    rollover_type: Rollover | UnsetType = UNSET
    bundle_rollover_type: Rollover | UnsetType = UNSET
    overage: Overage | UnsetType = UNSET
    overage_cap_nano: int | UnsetType | None = UNSET
    unlinked_meters: UnlinkedMeters | UnsetType = UNSET
    default_auto_top_up_bundle_id: str | UnsetType | None = UNSET
    meter_ids: tuple[str, ...] | UnsetType = UNSET
    bundles: tuple[BundleChange, ...] = ()


class Plans:
    """A merchant's plans. Another merchant's are `plan_not_found`. Call `principals.changed` after a change."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, merchant_id: str, new: NewPlan) -> Plan:
        """Raise ObolError `invalid_request`, `meter_not_found`."""
        async with self._store.transaction() as db:
            plan_id = await insert(db, self._store, merchant_id, new)
            return await self._find(db, merchant_id, plan_id)

    async def change(self, merchant_id: str, plan_id: str, change: PlanChange) -> Plan:
        """Raise ObolError `plan_not_found`, `meter_not_found`, `credit_bundle_not_found`, `invalid_request`."""
        async with self._store.transaction() as db:
            await self._lock(db, merchant_id, plan_id)
            await self._change_bundles(db, plan_id, change.bundles)
            plan = await self._find(db, merchant_id, plan_id)
            given = {name: value for name, value in msgspec.structs.asdict(change).items() if value is not UNSET}
            values = msgspec.structs.asdict(plan) | given
            _check_included_credit(values["included_credit_nano"], plan.period_amount_nano)
            _check_cap(values["overage_cap_nano"])
            _check_default(values["default_auto_top_up_bundle_id"], plan.bundles)
            await db.execute(self._store.sql("plans.update"), plan_id, *(values[name] for name in _CHANGEABLE))
            if not isinstance(change.meter_ids, UnsetType):
                await db.execute(self._store.sql("plans.unlink_meters"), plan_id)
                await _link_meters(db, self._store, merchant_id, plan_id, change.meter_ids)
            return await self._find(db, merchant_id, plan_id)

    async def archive(self, merchant_id: str, plan_id: str) -> Plan:
        """Nobody new is subscribed to it. Raise ObolError `plan_not_found`."""
        async with self._store.transaction() as db:
            await self._lock(db, merchant_id, plan_id)
            await db.execute(self._store.sql("plans.archive"), plan_id)
            return await self._find(db, merchant_id, plan_id)

    async def delete(self, merchant_id: str, plan_id: str) -> None:
        """Raise ObolError `plan_not_found`; `plan_in_use` with subscribers; `invalid_request` for the Free plan."""
        async with self._store.transaction() as db:
            if (await self._lock(db, merchant_id, plan_id))["is_free"]:
                raise ObolError("invalid_request", "the Free plan cannot be deleted", param="id")
            if await db.fetchval(self._store.sql("plans.in_use"), plan_id):
                raise ObolError("plan_in_use", "customers are subscribed to this plan", param="id")
            await db.execute(self._store.sql("plans.delete"), plan_id)

    async def find(self, merchant_id: str, plan_id: str, field: str = "id") -> Plan:
        """Raise ObolError `plan_not_found` naming `field`."""
        async with self._store.connection() as db:
            return await self._find(db, merchant_id, plan_id, field)

    async def page(self, merchant_id: str, after: tuple[datetime, str], limit: int) -> list[Plan]:
        """The newest first, behind `after` (creation time and id, `paging.Window.after`)."""
        async with self._store.connection() as db:
            rows = await db.fetch(self._store.sql("plans.page"), merchant_id, *after, limit)
            return await self._with_bundles(db, rows)

    async def free(self, merchant_id: str) -> str:
        """The id of the plan that customers without a subscription are on. Made where there is none."""
        async with self._store.transaction() as db:
            return await free(db, self._store, merchant_id)

    async def bundle(self, merchant_id: str, credit_bundle_id: str, field: str = "id") -> Bundle:
        """Raise ObolError `credit_bundle_not_found` naming `field`."""
        row = await self._store.row("plans.bundle", merchant_id, credit_bundle_id)
        if row is None:
            raise _unknown_bundle(field)
        return Bundle(**row)

    async def bundle_page(
        self, merchant_id: str, after: tuple[datetime, str], limit: int, plan_id: str | None = None
    ) -> list[Bundle]:
        """The newest first, of one plan or of all."""
        rows = await self._store.rows("plans.bundle_page", merchant_id, *after, limit, plan_id)
        return [Bundle(**row) for row in rows]

    async def _lock(self, db: asyncpg.Connection, merchant_id: str, plan_id: str) -> asyncpg.Record:
        row = await db.fetchrow(self._store.sql("plans.lock"), merchant_id, plan_id)
        if row is None:
            raise unknown_plan()
        return row

    async def _find(self, db: asyncpg.Connection, merchant_id: str, plan_id: str, field: str = "id") -> Plan:
        row = await db.fetchrow(self._store.sql("plans.find"), merchant_id, plan_id)
        if row is None:
            raise unknown_plan(field)
        return (await self._with_bundles(db, [row]))[0]

    async def _with_bundles(self, db: asyncpg.Connection, rows: Sequence[asyncpg.Record]) -> list[Plan]:
        found = await db.fetch(self._store.sql("plans.bundles"), [row["plan_id"] for row in rows])
        of_plans: dict[str, list[Bundle]] = {row["plan_id"]: [] for row in rows}
        for each in found:
            of_plans[each["plan_id"]].append(Bundle(**each))
        return [_plan(row, tuple(of_plans[row["plan_id"]])) for row in rows]

    async def _change_bundles(self, db: asyncpg.Connection, plan_id: str, changes: Sequence[BundleChange]) -> None:
        for index, change in enumerate(changes):
            where = f"credit_bundles[{index}]"
            _check_bundle(change.name, change.cost_nano, change.credit_nano, where)
            if change.credit_bundle_id is None:
                await insert_bundle(db, self._store, plan_id, _whole(change, where))
                continue
            name = "plans.delete_bundle" if change.is_deleted else "plans.update_bundle"
            given = () if change.is_deleted else (change.name, change.cost_nano, change.credit_nano)
            if await db.fetchval(self._store.sql(name), change.credit_bundle_id, plan_id, *given) is None:
                raise _unknown_bundle(f"{where}.credit_bundle_id")
        gone = [change.credit_bundle_id for change in changes if change.is_deleted and change.credit_bundle_id]
        await db.execute(self._store.sql("plans.forget_bundles"), gone)
        if len(await db.fetch(self._store.sql("plans.bundles"), [plan_id])) > BUNDLES_A_PLAN_MAX:
            raise _invalid("credit_bundles", f"may be at most {BUNDLES_A_PLAN_MAX}")


_CHANGEABLE = (
    "name",
    "included_credit_nano",
    "rollover_type",
    "bundle_rollover_type",
    "overage",
    "overage_cap_nano",
    "unlinked_meters",
    "default_auto_top_up_bundle_id",
)


async def insert(db: asyncpg.Connection, store: Store, merchant_id: str, new: NewPlan) -> str:
    """Make a plan within a transaction of the caller's; return its id. Raise as `Plans.create` does."""
    included = new.period_amount_nano if new.included_credit_nano is None else new.included_credit_nano
    if not 0 <= new.period_amount_nano <= PERIOD_AMOUNT_MAX_NANO:
        raise _invalid("period_amount", f"must be from 0 to {PERIOD_AMOUNT_MAX_NANO // NANO} dollars")
    _check_included_credit(included, new.period_amount_nano)
    _check_cap(new.overage_cap_nano)
    if len(new.bundles) > BUNDLES_A_PLAN_MAX:
        raise _invalid("credit_bundles", f"may be at most {BUNDLES_A_PLAN_MAX}")
    plan_id = new_id("subconf_")
    terms = (new.billing_interval, new.rollover_type, new.bundle_rollover_type)
    rest = (new.overage, new.overage_cap_nano, new.unlinked_meters, new.is_free)
    await db.execute(
        store.sql("plans.insert"), plan_id, merchant_id, new.name, new.period_amount_nano, included, *terms, *rest
    )
    await _link_meters(db, store, merchant_id, plan_id, new.meter_ids)
    made = []
    for index, bundle in enumerate(new.bundles):
        _check_bundle(bundle.name, bundle.cost_nano, bundle.credit_nano, f"credit_bundles[{index}]")
        made.append(await insert_bundle(db, store, plan_id, bundle))
    if new.default_auto_top_up_bundle_index is not None:
        if not 0 <= new.default_auto_top_up_bundle_index < len(made):
            raise _invalid("default_auto_top_up_bundle_index", "is no place in credit_bundles")
        await db.execute(store.sql("plans.set_default_bundle"), plan_id, made[new.default_auto_top_up_bundle_index])
    return plan_id


async def insert_bundle(db: asyncpg.Connection, store: Store, plan_id: str, bundle: NewBundle) -> str:
    name = new_id("cb_")
    values = (bundle.name, bundle.cost_nano, bundle.credit_nano)
    await db.execute(store.sql("plans.insert_bundle"), name, plan_id, *values)
    return name


async def free(db: asyncpg.Connection, store: Store, merchant_id: str) -> str:
    """The id of the merchant's Free plan, which is made where there is none."""
    found = await db.fetchval(store.sql("plans.free"), merchant_id)
    if found is None:
        await insert(db, store, merchant_id, FREE)
        found = await db.fetchval(store.sql("plans.free"), merchant_id)
    return str(found)


FREE = NewPlan(name=FREE_NAME, period_amount_nano=0, overage="block", overage_cap_nano=0, is_free=True)


async def _link_meters(
    db: asyncpg.Connection, store: Store, merchant_id: str, plan_id: str, meter_ids: Sequence[str]
) -> None:
    if len(meter_ids) > METERS_A_PLAN_MAX:
        raise _invalid("meter_ids", f"may be at most {METERS_A_PLAN_MAX}")
    own = {row["meter_id"] for row in await db.fetch(store.sql("plans.own_meters"), merchant_id, list(meter_ids))}
    for index, meter_id in enumerate(meter_ids):
        if meter_id not in own:
            raise ObolError("meter_not_found", "this meter is not known", param=f"meter_ids[{index}]")
    await db.execute(store.sql("plans.link_meters"), plan_id, list(meter_ids))


def _plan(row: asyncpg.Record, bundles: tuple[Bundle, ...]) -> Plan:
    values: dict[str, Any] = dict(row)
    values.pop("deleted_at")
    linked = tuple(LinkedMeter(**each) for each in values.pop("linked_meters"))
    return Plan(**values, linked_meters=linked, bundles=bundles)


def _check_included_credit(credit_nano: int, amount_nano: int) -> None:
    if not 0 <= credit_nano <= amount_nano:
        raise _invalid("included_credit", "must be from 0 to period_amount")


def _check_cap(cap_nano: int | None) -> None:
    if cap_nano is not None and not 0 <= cap_nano <= PERIOD_AMOUNT_MAX_NANO:
        raise _invalid("overage_cap", f"must be from 0 to {PERIOD_AMOUNT_MAX_NANO // NANO} dollars")


def _check_bundle(name: str | None, cost_nano: int | None, credit_nano: int | None, where: str) -> None:
    if name == "":
        raise _invalid(f"{where}.name", "must not be empty")
    if cost_nano is not None and not 0 <= cost_nano <= BUNDLE_MAX_NANO:
        raise _invalid(f"{where}.cost", f"must be from 0 to {BUNDLE_MAX_NANO // NANO} dollars")
    if credit_nano is not None and not 0 < credit_nano <= BUNDLE_MAX_NANO:
        raise _invalid(f"{where}.credit_amount", f"must be above 0 and at most {BUNDLE_MAX_NANO // NANO} dollars")


def _check_default(credit_bundle_id: str | None, bundles: Sequence[Bundle]) -> None:
    if credit_bundle_id is not None and credit_bundle_id not in {each.credit_bundle_id for each in bundles}:
        raise _unknown_bundle("default_auto_top_up_bundle_id")


def _whole(change: BundleChange, where: str) -> NewBundle:
    for field, value in (("name", change.name), ("cost", change.cost_nano), ("credit_amount", change.credit_nano)):
        if value is None:
            raise _invalid(f"{where}.{field}", "is required of a new credit bundle")
    return NewBundle(change.name or "", change.cost_nano or 0, change.credit_nano or 0)


def unknown_plan(param: str = "id") -> ObolError:
    return ObolError("plan_not_found", "this plan is not known", param=param)


def _unknown_bundle(param: str) -> ObolError:
    return ObolError("credit_bundle_not_found", "this credit bundle is not known", param=param)


def _invalid(field: str, what: str) -> ObolError:
    return ObolError("invalid_request", f"{field} {what}", param=field)
