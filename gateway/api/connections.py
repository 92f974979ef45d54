"""Connections, also called customers: list, read, delete."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
from aiohttp import web

from gateway.api import paging
from gateway.api.connection_object import connection_object, subscription_object
from gateway.api.context import ApiContext
from gateway.api.reading import one_of, path_id
from gateway.api.responses import deleted, json_response
from gateway.billing.principals import Merchant
from gateway.errors import ObolError
from gateway.ledger.wallets import Balance, WalletRef
from gateway.store.secrets import digest


class ConnectionRoutes:
    """The handlers. A connection in a path may be named by id, secret or reference id."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        return [route for path in ("/v1/connections", "/v1/customers") for route in self._routes_at(path)]

    def _routes_at(self, path: str) -> list[web.RouteDef]:
        return [
            web.get(path, self.list),
            web.get(path + "/{id}", self.read),
            web.get(path + "/{id}/subscription", self.subscription),
            web.delete(path + "/{id}", self.delete),
        ]

    async def list(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        asked = paging.window(request.query)
        reference = one_of(request.query, ["reference_id"])
        rows = await self._context.store.rows(
            "connections.page",
            merchant.merchant_id,
            *asked.after,
            asked.fetch,
            reference.value if reference else None,
        )
        balances = await self._balances(merchant, rows[: asked.limit])
        now = datetime.now(UTC)
        show = lambda row: self._show(merchant, row, balances[row["connection_id"]], now)  # noqa: E731
        return json_response(paging.page(rows, asked, _place, show))

    async def read(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        row = await self._find(merchant, request)
        return json_response(self._show(merchant, row, await self._balance(merchant, row), datetime.now(UTC)))

    async def subscription(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        row = await self._find(merchant, request)
        return json_response({"subscription": subscription_object(row, await self._balance(merchant, row))})

    async def delete(self, request: web.Request) -> web.Response:
        """Soft: its secrets and tokens fail from now on, its requests stay readable, its wallet keeps what it holds."""
        merchant = await self._context.merchant(request)
        row = await self._find(merchant, request)
        if row["is_self"]:
            raise ObolError("invalid_request", "your own connection cannot be deleted", param="id")
        store, name = self._context.store, row["connection_id"]
        async with store.transaction() as connection:
            await connection.execute(store.sql("connections.delete"), name)
            await connection.execute(store.sql("connections.end_subscription"), name)
            # Before the commit: with Redis away nothing has changed, and a failed commit is healed by the next try.
            await self._context.wallets.open(
                _wallet(merchant, row), status="deleted", limit_nano=row["overage_limit_nano"], create=False
            )
        await self._context.principals.changed(merchant.merchant_id)
        return deleted(name)

    async def _find(self, merchant: Merchant, request: web.Request) -> asyncpg.Record:
        value = path_id(request, "connection_not_found")
        row = await self._context.store.row("connections.find", merchant.merchant_id, value, digest(value))
        if row is None:
            raise ObolError("connection_not_found", "this connection is not known", param="id")
        return row

    async def _balance(self, merchant: Merchant, row: asyncpg.Record) -> Balance:
        return (await self._balances(merchant, [row]))[row["connection_id"]]

    async def _balances(self, merchant: Merchant, rows: Sequence[asyncpg.Record]) -> dict[str, Balance]:
        """Live balances by connection. A wallet that Redis does not hold is an error: its balance is not known."""
        names = [row["connection_id"] for row in rows]
        live = await self._context.wallets.balances([_wallet(merchant, row) for row in rows])
        found = {name: balance for name, balance in zip(names, live, strict=True) if balance is not None}
        for name in names:
            if name not in found:
                raise ObolError("wallet_unavailable", f"the wallet of {name} is being rebuilt", retry_after_s=1)
        return found

    def _show(self, merchant: Merchant, row: asyncpg.Record, balance: Balance, now: datetime) -> dict[str, Any]:
        secret = self._context.derived.connection_secret(merchant.mode, row["connection_id"])
        return connection_object(row, balance, secret, now)


def _wallet(merchant: Merchant, row: asyncpg.Record) -> WalletRef:
    return WalletRef(row["wallet_id"], row["shard"], merchant.merchant_id)


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["connection_id"])
