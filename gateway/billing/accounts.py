"""Merchants, their meters, plans and customers: made in PostgreSQL, with their wallets opened in Redis.

A crash in between leaves a grant that is pending, which the worker applies, or, of a merchant, a wallet of its own that
Redis does not know (calls for it answer 503).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import asyncpg
import msgspec

from gateway.billing import outbox, plans
from gateway.billing.subscriptions import Subscriptions
from gateway.core.meter import from_definition
from gateway.ledger.keys import shard_of
from gateway.ledger.wallets import UNLIMITED, WalletRef, Wallets
from gateway.store.postgres import Store
from gateway.store.secrets import Derived, digest, hint, new_id, new_secret_key

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

    def __init__(
        self, store: Store, wallets: Wallets, derived: Derived, *, shards: int, overage_cap_nano: int = 0
    ) -> None:
        """`overage_cap_nano`: the overage of plans that allow it and name no cap."""
        self._store = store
        self._subscriptions = Subscriptions(store, wallets, overage_cap_nano=overage_cap_nano)
        self._wallets = wallets
        self._derived = derived
        self._shards = shards

    async def create_merchant(self, account_id: str, mode: str, name: str) -> NewMerchant:
        """With its first secret key, its own connection (a wallet without limit), a zero-fee meter and a Free plan."""
        merchant_id = new_id("mer_")
        async with self._store.transaction() as db:
            await db.execute(self._store.sql("accounts.insert_merchant"), merchant_id, account_id, mode, name)
            secret_key = await self._insert_key(db, merchant_id, mode, "Default")
            own = await self._insert_connection(db, merchant_id, mode, is_self=True, limit_nano=UNLIMITED)
            meter = await self._insert_meter(db, merchant_id, mode, "Zero fee", "zero-fee", ZERO_FEE)
            await db.execute(self._store.sql("accounts.set_own"), merchant_id, own.connection_id, meter.meter_id)
            await plans.free(db, self._store, merchant_id)
        await self._wallets.open(own.wallet, status="ok", limit_nano=UNLIMITED, create=True)
        return NewMerchant(
            merchant_id, secret_key, own.connection_id, own.connection_secret, meter.meter_id, meter.meter_secret
        )

    async def create_meter(
        self, merchant_id: str, mode: str, name: str, slug: str, definition: dict[str, Any]
    ) -> NewMeter:
        """`definition` as in core.meter.from_definition, which checks it."""
        async with self._store.transaction() as db:
            return await self._insert_meter(db, merchant_id, mode, name, slug, definition)

    async def create_plan(
        self, merchant_id: str, name: str, amount_nano: int, meter_ids: list[str], *, overage: str, cap_nano: int | None
    ) -> str:
        """Paid monthly, with as much credit as it costs. `overage`: "charge" or "block"."""
        new = plans.NewPlan(
            name=name,
            period_amount_nano=amount_nano,
            meter_ids=tuple(meter_ids),
            overage=cast(plans.Overage, overage),
            overage_cap_nano=cap_nano,
        )
        async with self._store.transaction() as db:
            return await plans.insert(db, self._store, merchant_id, new)

    async def create_customer(
        self,
        merchant_id: str,
        mode: str,
        *,
        limit_nano: int,
        reference_id: str | None = None,
        contact: Mapping[str, str] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> NewConnection:
        """`limit_nano`: the overage the wallet may run up, 0 for none. `contact`: phone, email, first_name, last_name.

        Raise asyncpg.UniqueViolationError where another customer of the merchant has this `reference_id`.
        """
        async with self._store.transaction() as db:
            made = await self._insert_connection(
                db,
                merchant_id,
                mode,
                is_self=False,
                limit_nano=limit_nano,
                reference_id=reference_id,
                contact=contact,
                metadata=metadata,
            )
            await outbox.tell(db, merchant_id, "connection.created", made.connection_id)
            # Before the commit: a customer that exists has its wallet. One that is not committed leaves an empty
            # wallet behind, of which nobody knows the id.
            await self._wallets.open(made.wallet, status="ok", limit_nano=limit_nano, create=True)
        return made

    async def prepare_customer(self, db: asyncpg.Connection, merchant_id: str, mode: str) -> NewConnection:
        """A customer without credit, in the transaction of `db`. Nobody is told of it."""
        made = await self._insert_connection(db, merchant_id, mode, is_self=False, limit_nano=0)
        await self._wallets.open(made.wallet, status="ok", limit_nano=0, create=True)
        return made

    async def subscribe(self, connection: NewConnection, plan_id: str) -> str:
        """Begin the first cycle of a customer with a card on file; return the subscription's id."""
        return await self._subscriptions.subscribe(
            connection.wallet.merchant_id, connection.connection_id, plan_id, can_charge=True
        )

    async def _insert_key(self, db: asyncpg.Connection, merchant_id: str, mode: str, name: str) -> str:
        secret_key = new_secret_key(mode)
        await db.execute(
            self._store.sql("accounts.insert_key"),
            new_id("sk_"),
            merchant_id,
            name,
            digest(secret_key),
            hint(secret_key),
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
        contact: Mapping[str, str] | None = None,
        metadata: dict[str, Any] | None = None,
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
            *(known.get(name, "") for name in ("email", "phone", "first_name", "last_name")),
            metadata,
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
