"""Wallet keys, with which SDKs 9 and 10 manage the spend keys of one wallet: list, rotate, revoke."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from gateway.api import key_holder, paging
from gateway.api.context import ApiContext
from gateway.api.key_holder import WALLET_KEY_PREFIX, KeyHolders
from gateway.api.operation import Call, Deleted, Nothing, Operation, Page, Time
from gateway.api.responses import iso, iso_or_none
from gateway.errors import ObolError
from gateway.store.postgres import load_queries
from gateway.store.secrets import digest, new_id, new_key, preview

_QUERIES = load_queries()


class WalletKey(msgspec.Struct, kw_only=True):
    wallet_key_id: str
    key_preview: str
    name: str
    wallet_id: str
    last_used_at: Time | None
    created_at: Time


class WalletKeyWithKey(WalletKey, kw_only=True):
    """`key` is shown here and never again."""

    key: str


async def make_wallet_key(
    db: asyncpg.Connection, merchant_id: str, connection_id: str, name: str, *, secret_key_id: str | None = None
) -> tuple[str, str]:
    """Id and key: a new key to the spend keys of a connection's wallet, as a login hands it out.

    It ends with `secret_key_id`. Raise ObolError `connection_not_found`.
    """
    key = new_key(WALLET_KEY_PREFIX)
    made = (new_id("wlk_"), merchant_id, connection_id, name, digest(key), preview(key), secret_key_id)
    if await db.fetchrow(_QUERIES["keys.wallet_insert"], *made) is None:
        raise ObolError("connection_not_found", "this connection is not known", param="connection_id")
    return made[0], key


class WalletKeyRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._holders = KeyHolders(context)

    def operations(self) -> list[Operation]:
        every, one, tag, authorize = "/v1/wallet_keys", "/v1/wallet_keys/{id}", "Wallet keys", self._holders.authorize
        return [
            Operation(
                "GET",
                every,
                self.list,
                "List wallet keys",
                tag,
                query=Page,
                answer=paging.Listed[WalletKey],
                authorize=authorize,
            ),
            Operation(
                "DELETE",
                one,
                self.revoke,
                "Revoke a wallet key",
                tag,
                answer=Deleted,
                errors=("not_found",),
                authorize=authorize,
            ),
            Operation(
                "POST",
                one + "/rotate",
                self.rotate,
                "Give a wallet key a new secret",
                tag,
                answer=WalletKeyWithKey,
                errors=("not_found",),
                authorize=authorize,
            ),
        ]

    async def list(self, call: Call[Nothing, Page]) -> paging.Listed[WalletKey]:
        asked, scope = paging.window(call.query), key_holder.wallet_id(call.request)
        merchant_id = call.merchant.merchant_id
        rows = await self._context.store.rows("keys.wallet_page", merchant_id, *asked.after, asked.fetch, scope)
        return paging.page(rows, asked, _place, lambda row: WalletKey(**_values(row)))

    async def rotate(self, call: Call[Nothing, Nothing]) -> WalletKeyWithKey:
        """The old secret is refused from now on."""
        key = new_key(WALLET_KEY_PREFIX)
        row = await self._context.store.row("keys.wallet_rotate", *_named(call), digest(key), preview(key))
        if row is None:
            raise _missing()
        return WalletKeyWithKey(**_values(row), key=key)

    async def revoke(self, call: Call[Nothing, Nothing]) -> Deleted:
        row = await self._context.store.row("keys.wallet_revoke", *_named(call))
        if row is None:
            raise _missing()
        return Deleted(row["wallet_key_id"])


def _named(call: Call[Nothing, Nothing]) -> tuple[str, str, str | None]:
    return call.merchant.merchant_id, call.path_id(), key_holder.wallet_id(call.request)


def _values(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "wallet_key_id": row["wallet_key_id"],
        "key_preview": row["key_hint"],
        "name": row["name"],
        "wallet_id": row["wallet_id"],
        "last_used_at": iso_or_none(row["last_used_at"]),
        "created_at": iso(row["created_at"]),
    }


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["wallet_key_id"])


def _missing() -> ObolError:
    return ObolError("not_found", "this wallet key is not known", param="id")
