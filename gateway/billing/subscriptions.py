"""Subscriptions: begun, changed, cancelled, and turned when their cycles end. Amounts are nano-dollars.

What changes when is told in `standing.py`. A subscription that ends leaves its customer on the merchant's Free plan: no
subscription, no overage, and of its credit the bundles only where they roll over.

Every change of credit is a turn (`turns.py`), written in the transaction that moves the subscription.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import asyncpg
import msgspec
from msgspec.structs import replace

from gateway.billing import outbox, turns
from gateway.billing.plans import unknown_plan
from gateway.billing.standing import Standing, Terms, read_standing, through, turn_of, turned
from gateway.billing.turns import NewTurn, Turns
from gateway.core.cycle import boundary
from gateway.errors import ObolError
from gateway.ledger.turn import Turn
from gateway.ledger.wallets import Wallets
from gateway.store.postgres import Store
from gateway.store.secrets import new_id


async def save(db: asyncpg.Connection, store: Store, moved: Sequence[tuple[Standing, Sequence[NewTurn]]]) -> None:
    """Write where subscriptions stand, and the turns that brought them there, in order. Their merchants are told."""
    made = [turn for _, each in moved for turn in each]
    await turns.insert(db, store, made)
    rows = [_columns(after) for after, _ in moved]
    await db.execute(store.sql("subscriptions.move"), *map(list, zip(*rows, strict=True)))
    limits = [(after.connection_id, each[-1].limit_nano) for after, each in moved if each]
    if limits:
        await db.execute(store.sql("subscriptions.limits"), *map(list, zip(*limits, strict=True)))
    await outbox.tell_many(db, "subscription.updated", {after.connection_id: after.merchant_id for after, _ in moved})


def _columns(after: Standing) -> tuple[Any, ...]:
    """The values of the statement subscriptions.move, in its order."""
    pending_plan_id = after.pending_terms.plan_id if after.pending_terms is not None else None
    return (
        *(after.subscription_id, after.terms.plan_id, after.status, after.anchor_at, after.cycle_number, after.turns),
        *(after.cycle_start_at, after.cycle_end_at, after.auto_top_up_bundle_id, after.cancelled_at, after.ended_at),
        *(after.pending_type, pending_plan_id, after.pending_at),
    )


class Subscriptions:
    """What a merchant does with subscriptions. Another merchant's ids are unknown. Connections are named by their id.

    After each of these call `principals.changed`: the meters a customer may use follow its plan.
    """

    def __init__(self, store: Store, wallets: Wallets, *, overage_cap_nano: int) -> None:
        """`overage_cap_nano`: the overage of plans that allow it and name no cap."""
        self._store = store
        self._turns = Turns(store, wallets)
        self._cap_nano = overage_cap_nano

    async def subscribe(self, merchant_id: str, connection_id: str, plan_id: str, *, can_charge: bool = False) -> str:
        """Begin the first cycle now, by the merchant's clock; return its id. Payment is up to the caller.

        `can_charge`: a card is on file. Raise ObolError `connection_not_found`, `plan_not_found` (also of an archived
        one), `already_subscribed`.
        """
        async with self._store.transaction() as db:
            connection = await self._lock_connection(db, merchant_id, connection_id)
            terms = await self._terms(db, merchant_id, plan_id)
            if terms.archived:
                raise unknown_plan("plan_id")
            if await self._standing(db, connection) is not None:
                raise ObolError("already_subscribed", "this customer has a subscription", param="customer_id")
            begun = await self._begin(db, connection, terms, can_charge=can_charge)
        await self._turns.apply_to([begun.wallet_id])
        return begun.subscription_id

    async def buy(
        self, db: asyncpg.Connection, merchant_id: str, connection_id: str, plan_id: str, *, paid: bool
    ) -> None:
        """What a checkout of a plan leads to, in its transaction: where it was `paid`, a cycle of the plan begins now.

        The card is on file. The caller applies the turns. Raise ObolError `connection_not_found`, `plan_not_found`;
        `request_in_progress` where it was not paid and costs something now, because a cycle has just ended.
        """
        connection = await self._lock_connection(db, merchant_id, connection_id)
        terms = await self._terms(db, merchant_id, plan_id)
        before, at = await self._standing(db, connection), connection["merchant_now"]
        if before is None:
            if terms.period_amount_nano and not paid:
                raise _just_turned()
            await self._begin(db, connection, terms, can_charge=True)
        elif paid:
            turn, after = turned("upgrade", before, before.without_pending().begun(terms, at), at, self._cap_nano)
            await save(db, self._store, [(after, [turn])])
        else:
            kind, after, made = self._changed(before, terms, at)
            if kind == "upgrade":
                raise _just_turned()
            await save(db, self._store, [(after, made)])

    async def _begin(
        self, db: asyncpg.Connection, connection: asyncpg.Record, terms: Terms, *, can_charge: bool
    ) -> Standing:
        begun = _first(connection, terms, can_charge=can_charge)
        await db.execute(
            self._store.sql("subscriptions.insert"),
            *(begun.subscription_id, begun.connection_id, begun.merchant_id, terms.plan_id),
            *(begun.started_at, begun.cycle_end_at, can_charge, begun.auto_top_up_bundle_id),
        )
        # Whatever is in the pots stays there: nothing ends.
        turn = Turn(True, True, terms.included_credit_nano, True)
        limit_nano = terms.limit_nano(self._cap_nano, can_charge=can_charge)
        first = turn_of("start", replace(begun, turns=0), begun.started_at, turn, limit_nano)
        await save(db, self._store, [(begun, [first])])
        return begun

    async def change_plan(
        self, merchant_id: str, connection_id: str, plan_id: str, *, paid: bool = True
    ) -> Literal["upgrade", "downgrade", "kept"]:
        """Put the customer's subscription on another plan: at once if that costs more a year, else at the cycle's end.

        To the plan it is on takes a pending change or cancellation back. Raise ObolError `connection_not_found`,
        `subscription_not_found` without one, `plan_not_found`; `invalid_request` for an upgrade that is not `paid`.
        """
        async with self._store.transaction() as db:
            connection = await self._lock_connection(db, merchant_id, connection_id)
            terms = await self._terms(db, merchant_id, plan_id)
            before = await self._active(db, connection)
            kind, after, made = self._changed(before, terms, connection["merchant_now"])
            if kind == "upgrade" and not paid:
                raise ObolError("invalid_request", "plan_id names a plan that costs more", param="plan_id")
            await save(db, self._store, [(after, made)])
        await self._turns.apply_to([before.wallet_id])
        return kind

    def _changed(
        self, before: Standing, terms: Terms, at: datetime
    ) -> tuple[Literal["upgrade", "downgrade", "kept"], Standing, list[NewTurn]]:
        settled = before.without_pending()
        if terms.plan_id == before.terms.plan_id:
            return "kept", settled, []
        if terms.archived:
            raise unknown_plan("plan_id")
        if terms.a_year_nano <= before.terms.a_year_nano:
            pending = replace(settled, pending_type="downgrade", pending_terms=terms, pending_at=before.cycle_end_at)
            return "downgrade", pending, []
        turn, after = turned("upgrade", before, settled.begun(terms, at), at, self._cap_nano)
        return "upgrade", after, [turn]

    async def cancel(self, merchant_id: str, subscription_id: str) -> None:
        """End it when its cycle ends; the credit can be used until then. Repeated, or where it has ended: nothing.

        Raise ObolError `subscription_not_found`.
        """
        async with self._store.transaction() as db:
            found = await self._lock_subscription(db, merchant_id, subscription_id)
            if found is None:
                return
            connection, before = found
            if before is not None and before.pending_type != "cancellation":
                after = replace(before.without_pending(), pending_type="cancellation", pending_at=before.cycle_end_at)
                await save(db, self._store, [(replace(after, cancelled_at=connection["merchant_now"]), [])])
        await self._turns.apply_to([connection["wallet_id"]])

    async def set_auto_top_up(self, merchant_id: str, subscription_id: str, credit_bundle_id: str | None) -> None:
        """The bundle that is bought when the credit is gone; None for none.

        Raise ObolError `subscription_not_found` (also of one that has ended), `credit_bundle_not_found` where its plan
        has no such bundle.
        """
        async with self._store.transaction() as db:
            found = await self._lock_subscription(db, merchant_id, subscription_id)
            before = found[1] if found is not None else None
            if before is None:
                raise unknown_subscription()
            if credit_bundle_id is not None:
                await self._bundle(db, credit_bundle_id, before.terms.plan_id)
            await db.execute(self._store.sql("subscriptions.set_auto_top_up"), subscription_id, credit_bundle_id)
            await outbox.tell(db, merchant_id, "subscription.updated", before.connection_id)
        await self._turns.apply_to([before.wallet_id])

    async def grant_bundle(self, merchant_id: str, connection_id: str, credit_bundle_id: str, grant_id: str) -> None:
        """Give a subscriber the credit of a bundle of its plan, once for each `grant_id`. Payment is up to the caller.

        Raise ObolError `connection_not_found`, `subscription_not_found`, `credit_bundle_not_found`.
        """
        async with self._store.transaction() as db:
            connection = await self._lock_connection(db, merchant_id, connection_id)
            active = await self._active(db, connection)
            bundle = await self._bundle(db, credit_bundle_id, active.terms.plan_id)
            values = (grant_id, active.wallet_id, "bundle", bundle["credit_nano"], f"credit bundle {credit_bundle_id}")
            await db.execute(self._store.sql("accounts.insert_grant"), *values)
        await self._turns.apply_to([active.wallet_id])

    async def _lock_connection(self, db: asyncpg.Connection, merchant_id: str, connection_id: str) -> asyncpg.Record:
        row = await self._locked(db, merchant_id, connection_id)
        if row is None:
            raise ObolError("connection_not_found", "this customer is not known", param="customer_id")
        if row["is_self"]:
            raise ObolError("invalid_request", "your own connection has no subscription", param="customer_id")
        return row

    async def _locked(self, db: asyncpg.Connection, merchant_id: str, connection_id: str) -> asyncpg.Record | None:
        if await db.fetchval(self._store.sql("subscriptions.lock_connection"), merchant_id, connection_id) is None:
            return None
        return await db.fetchrow(self._store.sql("subscriptions.connection"), connection_id)

    async def _lock_subscription(
        self, db: asyncpg.Connection, merchant_id: str, subscription_id: str
    ) -> tuple[asyncpg.Record, Standing | None] | None:
        """Its connection, and where it stands (None: it has ended); None where the customer has been deleted. Raise
        `subscription_not_found`."""
        connection_id = await db.fetchval(self._store.sql("subscriptions.connection_of"), merchant_id, subscription_id)
        if connection_id is None:
            raise unknown_subscription()
        row = await self._locked(db, merchant_id, connection_id)
        if row is None:
            return None
        found = await self._standing(db, row)
        return row, found if found is not None and found.subscription_id == subscription_id else None

    async def _terms(self, db: asyncpg.Connection, merchant_id: str, plan_id: str) -> Terms:
        row = await db.fetchrow(self._store.sql("subscriptions.terms"), merchant_id, plan_id)
        if row is None:
            raise unknown_plan("plan_id")
        return msgspec.convert(dict(row), Terms)

    async def _standing(self, db: asyncpg.Connection, connection: asyncpg.Record) -> Standing | None:
        """Where the subscription stands by the merchant's clock: cycles that the worker has yet to turn are turned
        here, or what is changed now would be changed in a cycle that is over."""
        row = await db.fetchrow(self._store.sql("subscriptions.standing"), connection["connection_id"])
        if row is None:
            return None
        found, made = through(read_standing(row), connection["merchant_now"], self._cap_nano)
        if made:
            await save(db, self._store, [(found, made)])
        return found if found.status == "active" else None

    async def _active(self, db: asyncpg.Connection, connection: asyncpg.Record) -> Standing:
        found = await self._standing(db, connection)
        if found is None:
            raise unknown_subscription("customer_id")
        return found

    async def _bundle(self, db: asyncpg.Connection, credit_bundle_id: str, plan_id: str) -> asyncpg.Record:
        row = await db.fetchrow(self._store.sql("subscriptions.bundle"), credit_bundle_id, plan_id)
        if row is None:
            raise ObolError(
                "credit_bundle_not_found", "the customer's plan has no such credit bundle", param="credit_bundle_id"
            )
        return row


def _first(connection: asyncpg.Record, terms: Terms, *, can_charge: bool) -> Standing:
    at = connection["merchant_now"]
    return Standing(
        subscription_id=new_id("sub_"),
        connection_id=connection["connection_id"],
        merchant_id=connection["merchant_id"],
        wallet_id=connection["wallet_id"],
        shard=connection["shard"],
        status="active",
        can_charge=can_charge,
        started_at=at,
        anchor_at=at,
        cycle_number=0,
        turns=1,
        cycle_start_at=at,
        cycle_end_at=boundary(at, terms.billing_interval, 1),
        auto_top_up_bundle_id=terms.default_auto_top_up_bundle_id,
        pending_type=None,
        pending_at=None,
        cancelled_at=None,
        ended_at=None,
        terms=terms,
        pending_terms=None,
    )


def _just_turned() -> ObolError:
    return ObolError("request_in_progress", "the customer's plan has just changed: look again")


def unknown_subscription(param: str = "id") -> ObolError:
    return ObolError("subscription_not_found", "this subscription is not known", param=param)
