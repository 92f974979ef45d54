"""Reads checkouts: how far each has come, what it offers, and for whom."""

from __future__ import annotations

import hmac

import asyncpg
import msgspec

from gateway.billing.checkout_state import (
    BundleOffered,
    CardOnFile,
    LastCharge,
    PlanOffered,
    Progress,
    Quote,
    Subscribed,
    quote_bundle,
    quote_plan,
    quote_topup,
)
from gateway.billing.payers import Payers
from gateway.cards.contract import Card
from gateway.errors import ObolError
from gateway.store.postgres import Store
from gateway.store.sealed import Sealed
from gateway.store.secrets import digest

SEALED_AS = "phone of a checkout"


class Offer(msgspec.Struct, frozen=True):
    """What a checkout sells: a plan, a bundle, or neither (credit for an amount that the customer chooses), to a
    customer who is on a plan or not. `balance_nano`: as it is recorded; None of a new customer."""

    plan: PlanOffered | None
    bundle: BundleOffered | None
    current: Subscribed | None
    balance_nano: int | None

    def quote(self, amount_cents: int | None) -> Quote:
        """`amount_cents`: what the customer chose, where that is asked. Raise ObolError where it is not to be had."""
        if self.plan is not None:
            return quote_plan(self.plan, self.current)
        if self.bundle is None:
            return quote_topup(amount_cents or 0)
        if self.current is None or self.current.plan_id != self.bundle.plan_id:
            raise ObolError("credit_bundle_not_found", f"this bundle is for subscribers of {self.bundle.plan}")
        return quote_bundle(self.bundle)


class CheckoutReader:
    """`db` None: read outside of a transaction."""

    def __init__(self, store: Store, payers: Payers, sealed: Sealed) -> None:
        self._store = store
        self._payers = payers
        self._sealed = sealed

    async def progress(self, secret: str, proof: str, db: asyncpg.Connection | None = None) -> Progress:
        """`proof`: of the browser's cookie, or "". Raise ObolError `not_found`."""
        if db is None:
            async with self._store.connection() as free:
                return await self.progress(secret, proof, free)
        row = await db.fetchrow(self._store.sql("checkouts.read"), digest(secret))
        if row is None:
            raise ObolError("not_found", "there is no such checkout", param="secret")
        return self._progress(row, proof)

    async def offer(self, progress: Progress, db: asyncpg.Connection | None = None) -> Offer:
        """Raise ObolError `plan_not_found`, `credit_bundle_not_found` where it is not sold any more."""
        if db is None:
            async with self._store.connection() as free:
                return await self.offer(progress, free)
        plan = bundle = None
        if progress.checkout_mode == "subscription":
            plan = await db.fetchrow(self._store.sql("checkouts.plan"), progress.plan_id)
            if plan is None:
                raise ObolError("plan_not_found", "this plan is not sold any more", param="plan_id")
        elif progress.checkout_mode == "credit_bundle":
            bundle = await db.fetchrow(self._store.sql("checkouts.bundle"), progress.credit_bundle_id)
            if bundle is None:
                raise ObolError("credit_bundle_not_found", "this bundle is not sold any more")
        found = await self.customer(progress, db)
        current = None
        if found is not None:
            current = await db.fetchrow(self._store.sql("checkouts.subscribed"), found["connection_id"])
        return Offer(
            msgspec.convert(dict(plan), PlanOffered) if plan is not None else None,
            msgspec.convert(dict(bundle), BundleOffered) if bundle is not None else None,
            msgspec.convert(dict(current), Subscribed) if current is not None else None,
            found["balance_nano"] if found is not None else None,
        )

    async def customer(self, progress: Progress, db: asyncpg.Connection) -> asyncpg.Record | None:
        """Whose the purchase is, if there is one already: connection_id, wallet_id, hidden, balance_nano."""
        named = (progress.merchant_id, progress.session_connection_id, progress.reference_id, progress.payer_id)
        found: asyncpg.Record | None = await db.fetchrow(self._store.sql("checkouts.connection"), *named)
        if found is None and progress.session_connection_id is not None:
            raise ObolError("connection_not_found", "this customer was deleted", param="connection_id")
        return found

    def _progress(self, row: asyncpg.Record, proof: str) -> Progress:
        held = row["proof_hash"]
        known = {name: row[name] for name in Progress.__struct_fields__ if name in row.keys()}  # noqa: SIM118
        given = {name: known[name] or "" for name in ("email", "first_name", "last_name")}
        counts = {name: known[name] or 0 for name in ("codes_sent", "codes_wrong", "payments")}
        flags = {name: bool(known[name]) for name in ("wants_card", "setup_waits")}
        proven = held is not None and row["proof_good"] and hmac.compare_digest(held, digest(proof))
        more = {
            "proven": proven,
            "phone": self._phone(row, proven=proven),
            "phone_on_file": row["filed_payer_id"] is not None,
            "code_age_s": known["code_age_s"] if row["phone_sealed"] is not None else None,
            "card": _card(row),
            "charge": _charge(row),
        }
        return Progress(**(known | given | counts | flags | more))

    def _phone(self, row: asyncpg.Record, *, proven: bool) -> str | None:
        """The proven one: who else has the address may have sent a code to another meanwhile."""
        if row["phone_sealed"] is not None and not proven:
            return self._sealed.open(row["phone_sealed"], SEALED_AS, row["checkout_session_id"])
        for name, sealed in (("phone_hash", "payer_phone_sealed"), ("filed_phone_hash", "filed_phone_sealed")):
            if row[name] is not None:
                return self._payers.phone_of(row["mode"], row[name], row[sealed])
        return None


def _card(row: asyncpg.Record) -> CardOnFile | None:
    if row["card_method_ref"] is None:
        return None
    shown = (row["card_brand"], row["card_last4"], row["card_exp_month"], row["card_exp_year"])
    return CardOnFile(row["card_processor"], row["card_customer_ref"], Card(row["card_method_ref"], *shown))


def _charge(row: asyncpg.Record) -> LastCharge | None:
    if row["charge_id"] is None:
        return None
    return LastCharge(
        row["charge_id"],
        row["charge_status"],
        row["charge_kind"],
        row["charge_cents"],
        row["charge_connection_id"],
        row["charge_processor"],
        row["charge_plan_id"],
        row["decline_code"],
        row["charge_action"],
    )
