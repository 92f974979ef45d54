"""Spend keys: list, read, create, change, rotate, revoke. By a secret key, or by a wallet key for its own wallet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import asyncpg
from aiohttp import web

from gateway.api import key_holder, paging
from gateway.api.context import ApiContext
from gateway.api.key_holder import KeyHolders
from gateway.api.operation import Call, Deleted, Nothing, Operation, Page, agreed
from gateway.api.reading import invalid
from gateway.api.spend_key_object import (
    ChangedSpendKey,
    NewSpendKey,
    Shower,
    SpendKey,
    SpendKeyWithKey,
    missing,
    settings_of,
)
from gateway.billing.principals import Customer, Merchant
from gateway.errors import ObolError, naming
from gateway.ledger.connection import LedgerAway
from gateway.store.secrets import digest, new_id, new_key, preview
from gateway.wire.credential import SPEND_KEY_PREFIX

PATHS = ("/v1/spend_keys", "/v1/manage/spend_keys", "/manage/spend_keys")


class SpendKeyRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._holders = KeyHolders(context)
        self._counters = context.spend_counters
        if self._counters is not None:
            self._shower = Shower(self._counters)

    def operations(self) -> list[Operation]:
        if self._counters is None:
            return []
        listed = paging.Listed[SpendKey]
        return [
            self._operation("GET", "", self.list, "List spend keys", query=Page, answer=listed),
            self._operation(
                "POST",
                "",
                self.create,
                "Create a spend key",
                body=NewSpendKey,
                answer=SpendKeyWithKey,
                status=201,
                errors=("connection_not_found", "meter_not_found"),
            ),
            self._operation("GET", "/{id}", self.read, "Retrieve a spend key", answer=SpendKey, errors=("not_found",)),
            self._operation(
                "PUT",
                "/{id}",
                self.change,
                "Change a spend key",
                body=ChangedSpendKey,
                answer=SpendKey,
                errors=("not_found",),
            ),
            self._operation(
                "DELETE", "/{id}", self.revoke, "Revoke a spend key", answer=Deleted, errors=("not_found",)
            ),
            self._operation(
                "POST",
                "/{id}/rotate",
                self.rotate,
                "Give a spend key a new secret",
                answer=SpendKeyWithKey,
                errors=("not_found",),
            ),
        ]

    def _operation(self, method: str, path: str, handler: Any, summary: str, **more: Any) -> Operation:
        first, *others = (base + path for base in PATHS)
        aliases, authorize = tuple(others), self._holders.authorize
        return Operation(method, first, handler, summary, "Spend keys", aliases=aliases, authorize=authorize, **more)

    async def list(self, call: Call[Nothing, Page]) -> paging.Listed[SpendKey]:
        asked, scope = paging.window(call.query), key_holder.wallet_id(call.request)
        merchant = call.merchant
        rows = await self._context.store.rows("keys.spend_page", merchant.merchant_id, *asked.after, asked.fetch, scope)
        shown = {each.spend_key_id: each for each in await self._shower.show_all(merchant, rows[: asked.limit])}
        return paging.page(rows, asked, _place, lambda row: shown[row["spend_key_id"]])

    async def read(self, call: Call[Nothing, Nothing]) -> SpendKey:
        return await self._shower.show(call.merchant, await self._find(call))

    async def create(self, call: Call[NewSpendKey, Nothing]) -> SpendKeyWithKey:
        merchant, body = call.merchant, call.body
        customer = await self._customer(call.request, merchant, body)
        meter_id = await self._meter_id(merchant, customer, body)
        key, spend_key_id = new_key(SPEND_KEY_PREFIX), new_id("spk_")
        self._check_providers(body.allowed_providers)
        name, *settings = settings_of(body)
        whose = (merchant.merchant_id, customer.wallet.wallet_id, customer.connection_id, meter_id)
        made = (spend_key_id, *whose, name, digest(key), preview(key), *settings)
        await self._context.store.execute("keys.spend_insert", *made)
        assert self._counters is not None
        with suppress(LedgerAway):  # else the first call opens them
            await self._counters.begin(customer.wallet, spend_key_id)
        await self._context.principals.changed(merchant.merchant_id)
        return await self._shower.show_with_key(merchant, await self._row(call, spend_key_id), key)

    async def change(self, call: Call[ChangedSpendKey, Nothing]) -> SpendKey:
        store = self._context.store
        self._check_providers(call.body.allowed_providers or None)
        async with store.transaction() as db:
            row = await db.fetchrow(store.sql("keys.spend_lock"), *self._named(call))
            if row is None:
                raise missing()
            await db.execute(store.sql("keys.spend_update"), row["spend_key_id"], *settings_of(call.body, row))
        await self._context.principals.changed(call.merchant.merchant_id)
        return await self._shower.show(call.merchant, await self._find(call))

    async def rotate(self, call: Call[Nothing, Nothing]) -> SpendKeyWithKey:
        """The old secret is refused from now on; settings and counters stay."""
        key = new_key(SPEND_KEY_PREFIX)
        row = await self._context.store.row("keys.spend_rotate", *self._named(call), digest(key), preview(key))
        if row is None:
            raise missing()
        await self._context.principals.changed(call.merchant.merchant_id)
        return await self._shower.show_with_key(call.merchant, await self._find(call), key)

    async def revoke(self, call: Call[Nothing, Nothing]) -> Deleted:
        """Calls under way are finished and billed."""
        row = await self._context.store.row("keys.spend_revoke", *self._named(call))
        if row is None:
            raise missing()
        await self._context.principals.changed(call.merchant.merchant_id)
        return Deleted(row["spend_key_id"])

    def _named(self, call: Call[Any, Nothing]) -> tuple[str, str, str | None]:
        return call.merchant.merchant_id, call.path_id(), key_holder.wallet_id(call.request)

    async def _find(self, call: Call[Any, Nothing]) -> asyncpg.Record:
        return await self._row(call, call.path_id())

    async def _row(self, call: Call[Any, Nothing], spend_key_id: str) -> asyncpg.Record:
        scope = key_holder.wallet_id(call.request)
        row = await self._context.store.row("keys.spend_find", call.merchant.merchant_id, spend_key_id, scope)
        if row is None:
            raise missing()
        return row

    def _check_providers(self, names: Sequence[str] | None) -> None:
        """A name that no provider has would refuse every call."""
        known = self._context.provider_names
        for index, name in enumerate(names or ()):
            if name not in known:
                raise invalid(f"allowed_providers[{index}]", f"must be one of {', '.join(known)}")

    async def _customer(self, request: web.Request, merchant: Merchant, body: NewSpendKey) -> Customer:
        """Whose wallet the key is for: the one named, else that of the wallet key, else the merchant's own."""
        principals, own = self._context.principals, key_holder.connection_id(request)
        named = agreed(body, "connection_id", "customer_id", "connection_secret")
        value = own or merchant.self_connection_id if named is None else named.value
        if named is None and body.wallet_id:
            value = await self._owner(merchant, body.wallet_id)
        if value is None:
            raise ObolError("connection_not_found", "this merchant has no connection of its own", param="connection_id")
        with naming(named.field if named else "connection_id"):
            customer = await principals.customer(merchant, value)
        if own is not None and customer.connection_id != own:
            raise ObolError("connection_not_found", "this connection is not known", param="connection_id")
        if body.wallet_id and customer.wallet.wallet_id != body.wallet_id:
            raise invalid(
                "wallet_id", f"is not that of {named.field if named else 'this wallet key'}; send one of them"
            )
        return customer

    async def _owner(self, merchant: Merchant, wallet_id: str) -> str:
        row = await self._context.store.row("keys.owner_of_wallet", merchant.merchant_id, wallet_id)
        if row is None:
            raise ObolError("connection_not_found", "this wallet is not known", param="wallet_id")
        return str(row["connection_id"])

    async def _meter_id(self, merchant: Merchant, customer: Customer, body: NewSpendKey) -> str | None:
        named = agreed(body, "meter_id", "meter_slug")
        if named is None:
            return None
        if customer.is_self:
            raise invalid(named.field, "is for a customer's spend key; on your own wallet a call spends what it cost")
        with naming(named.field):
            return (await self._context.principals.meter(merchant, named.value)).meter_id


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["spend_key_id"])
