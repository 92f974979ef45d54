"""Merchants, their meters, plans and customers: made in PostgreSQL first, then opened in Redis.

A crash in between leaves a wallet that Redis does not know (calls for it answer 503) and a grant that is pending:
`open_wallet` may be called again, and the worker applies pending grants.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec

from gateway.core.meter import from_definition
from gateway.ledger.keys import shard_of
from gateway.ledger.wallets import UNLIMITED, WalletRef, Wallets, now_ms
from gateway.store.postgres import Store
from gateway.store.secrets import Derived, digest, new_id, new_secret_key

ZERO_FEE = {"rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": 0, "rate": "0"}]}


class NewMerchant(msgspec.Struct, frozen=True):
    """A merchant as made: its first secret key is shown here once and stored nowhere."""

    merchant_id: str
    secret_key: str
    self_connection_id: str
    self_connection_secret: str
    self_meter_id: str
    self_meter_secret: str


class NewConnection(msgspec.Struct, frozen=True):
    connection_id: str
    connection_secret: str
    wallet: WalletRef


class NewMeter(msgspec.Struct, frozen=True):
    meter_id: str
    meter_slug: str
    meter_secret: str


class Accounts:
    """Creates what a merchant consists of."""

    def __init__(self, store: Store, wallets: Wallets, derived: Derived, *, shards: int) -> None:
        self._store = store
        self._wallets = wallets
        self._derived = derived
        self._shards = shards

    async def create_merchant(self, account_id: str, mode: str, name: str) -> NewMerchant:
        """With its first secret key, its own connection (a wallet without limit) and a zero-fee meter."""
        merchant_id = new_id("mer_")
        async with self._store.transaction() as db:
            await db.execute(self._store.sql("accounts.insert_merchant"), merchant_id, account_id, mode, name)
            secret_key = await self._insert_key(db, merchant_id, mode, "Default")
            own = await self._insert_connection(db, merchant_id, mode, is_self=True, limit_nano=UNLIMITED)
            meter = await self._insert_meter(db, merchant_id, mode, "Zero fee", "zero-fee", ZERO_FEE)
            await db.execute(self._store.sql("accounts.set_own"), merchant_id, own.connection_id, meter.meter_id)
        await self._wallets.open(own.wallet, status="ok", limit_nano=UNLIMITED, create=True)
        return NewMerchant(
            merchant_id, secret_key, own.connection_id, own.connection_secret, meter.meter_id, meter.meter_secret
        )

    async def create_key(self, merchant_id: str, mode: str, name: str) -> str:
        async with self._store.transaction() as db:
            return await self._insert_key(db, merchant_id, mode, name)

    async def create_meter(
        self, merchant_id: str, mode: str, name: str, slug: str, definition: dict[str, Any]
    ) -> NewMeter:
        """`definition` as in core.meter.from_definition, which checks it."""
        async with self._store.transaction() as db:
            return await self._insert_meter(db, merchant_id, mode, name, slug, definition)

    async def create_plan(
        self, merchant_id: str, name: str, amount_nano: int, meter_ids: list[str], *, overage: str, cap_nano: int | None
    ) -> str:
        plan_id = new_id("subconf_")
        async with self._store.transaction() as db:
            await db.execute(
                self._store.sql("accounts.insert_plan"), plan_id, merchant_id, name, amount_nano, overage, cap_nano
            )
            for meter_id in meter_ids:
                await db.execute(self._store.sql("accounts.insert_plan_meter"), plan_id, meter_id)
        return plan_id

    async def create_customer(
        self,
        merchant_id: str,
        mode: str,
        *,
        limit_nano: int,
        reference_id: str | None = None,
        contact: dict[str, str] | None = None,
    ) -> NewConnection:
        """`limit_nano`: the overage the wallet may run up, 0 for none."""
        async with self._store.transaction() as db:
            made = await self._insert_connection(
                db, merchant_id, mode, is_self=False, limit_nano=limit_nano, reference_id=reference_id, contact=contact
            )
        await self._wallets.open(made.wallet, status="ok", limit_nano=limit_nano, create=True)
        return made

    async def subscribe(self, connection: NewConnection, plan_id: str, credit_nano: int) -> str:
        """Begin the first cycle: the included credit is granted to the cycle pot."""
        subscription_id, start = new_id("sub_"), datetime.now(UTC)
        grant_id = f"{subscription_id}:{start:%Y-%m-%dT%H:%M:%SZ}"
        async with self._store.transaction() as db:
            await db.execute(
                self._store.sql("accounts.insert_subscription"),
                subscription_id,
                connection.connection_id,
                plan_id,
                start,
                _next_month(start),
            )
            if credit_nano:
                await db.execute(
                    self._store.sql("accounts.insert_grant"),
                    grant_id,
                    connection.wallet.wallet_id,
                    "cycle",
                    credit_nano,
                    "plan credit of a cycle",
                )
        if credit_nano:
            await self._wallets.credit(connection.wallet, grant_id, "cycle", credit_nano, at_ms=now_ms())
        return subscription_id

    async def _insert_key(self, db: asyncpg.Connection, merchant_id: str, mode: str, name: str) -> str:
        secret_key = new_secret_key(mode)
        await db.execute(
            self._store.sql("accounts.insert_key"),
            new_id("sk_"),
            merchant_id,
            name,
            digest(secret_key),
            secret_key[-4:],
        )
        return secret_key

    async def _insert_connection(
        self,
        db: asyncpg.Connection,
        merchant_id: str,
        mode: str,
        *,
        is_self: bool,
        limit_nano: int,
        reference_id: str | None = None,
        contact: dict[str, str] | None = None,
    ) -> NewConnection:
        connection_id, wallet_id = new_id("con_test_" if mode == "test" else "con_"), new_id("wal_")
        secret = self._derived.connection_secret(mode, connection_id)
        ref = WalletRef(wallet_id, shard_of(wallet_id, self._shards), merchant_id)
        known = contact or {}
        await db.execute(self._store.sql("accounts.insert_wallet"), wallet_id, merchant_id, ref.shard)
        await db.execute(
            self._store.sql("accounts.insert_connection"),
            connection_id,
            merchant_id,
            wallet_id,
            digest(secret),
            reference_id,
            is_self,
            known.get("email", ""),
            known.get("first_name", ""),
            known.get("last_name", ""),
            limit_nano,
        )
        return NewConnection(connection_id, secret, ref)

    async def _insert_meter(
        self, db: asyncpg.Connection, merchant_id: str, mode: str, name: str, slug: str, definition: dict[str, Any]
    ) -> NewMeter:
        meter_id = new_id("prd_test_" if mode == "test" else "prd_")
        checked = from_definition(meter_id, 1, definition).definition()
        secret = self._derived.meter_secret(mode, meter_id)
        await db.execute(
            self._store.sql("accounts.insert_meter"), meter_id, merchant_id, slug, digest(secret), name, checked
        )
        await db.execute(self._store.sql("accounts.insert_meter_version"), meter_id, 1, checked)
        return NewMeter(meter_id, slug, secret)


def _next_month(start: datetime) -> datetime:
    """The same day and time next month, or that month's last day."""
    year, month = (start.year + 1, 1) if start.month == 12 else (start.year, start.month + 1)
    for day in range(start.day, 27, -1):
        try:
            return start.replace(year=year, month=month, day=day)
        except ValueError:
            continue
    return start.replace(year=year, month=month)
