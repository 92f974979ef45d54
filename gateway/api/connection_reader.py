"""Connections found and shown, with their balances as Redis has them now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import asyncpg

from gateway.api import paging
from gateway.api.connection_object import Connection, connection_object
from gateway.api.context import ApiContext
from gateway.billing import clock
from gateway.billing.principals import Merchant
from gateway.errors import ObolError
from gateway.ledger.wallets import Balance, WalletRef
from gateway.store.secrets import digest


class ConnectionReader:
    """What every call that shows connections works with."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    async def find(self, merchant: Merchant, value: str, field: str = "id") -> asyncpg.Record:
        """By id, secret or reference id. Raise ObolError `connection_not_found` naming `field`."""
        row = await self._context.store.row("connections.find", merchant.merchant_id, value, digest(value))
        if row is None:
            raise unknown_connection(field)
        return row

    async def page(
        self, merchant: Merchant, after: paging.Place, limit: int, reference_id: str | None = None
    ) -> Sequence[asyncpg.Record]:
        """Customers behind `after`, the newest first; the one of a reference id, if one is given."""
        given = () if reference_id is None else (reference_id,)
        scope = " AND c.reference_id = $5" if given else ""
        sql = self._context.store.sql("connections.page").replace("{scope}", scope)
        async with self._context.store.connection() as db:
            found: list[asyncpg.Record] = await db.fetch(sql, merchant.merchant_id, *after, limit, *given)
            return found

    async def show_one(self, merchant: Merchant, row: asyncpg.Record) -> Connection:
        return (await self.show(merchant, [row]))[row["connection_id"]]

    async def show(self, merchant: Merchant, rows: Sequence[asyncpg.Record]) -> Mapping[str, Connection]:
        """The objects by connection id."""
        balances, now = await self.balances(merchant, rows), clock.now(merchant)
        names = [row["connection_id"] for row in rows]
        secrets = [self._context.derived.connection_secret(merchant.mode, name) for name in names]
        return {
            name: connection_object(row, balances[name], secret, now)
            for name, row, secret in zip(names, rows, secrets, strict=True)
        }

    async def balance(self, merchant: Merchant, row: asyncpg.Record) -> Balance:
        return (await self.balances(merchant, [row]))[row["connection_id"]]

    async def balances(self, merchant: Merchant, rows: Sequence[asyncpg.Record]) -> Mapping[str, Balance]:
        """Live balances by connection. A wallet that Redis does not hold is an error: its balance is not known."""
        names = [row["connection_id"] for row in rows]
        live = await self._context.wallets.balances([wallet_of(merchant, row) for row in rows])
        found = {name: balance for name, balance in zip(names, live, strict=True) if balance is not None}
        for name in names:
            if name not in found:
                raise ObolError("wallet_unavailable", f"the wallet of {name} is being rebuilt", retry_after_s=1)
        return found


def unknown_connection(field: str = "id") -> ObolError:
    return ObolError("connection_not_found", "this connection is not known", param=field)


def wallet_of(merchant: Merchant, row: asyncpg.Record) -> WalletRef:
    """`row` has wallet_id and shard."""
    return WalletRef(row["wallet_id"], row["shard"], merchant.merchant_id)


def place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["connection_id"])
