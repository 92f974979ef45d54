"""Secret keys: list, create, rotate, revoke. A merchant's only one cannot be revoked: nothing could make another."""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from gateway.api import paging
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Deleted, Nothing, Operation, Page, Time
from gateway.api.responses import iso
from gateway.api.spend_key_object import Name
from gateway.errors import ObolError
from gateway.store.secrets import digest, hint, new_id, new_secret_key


class NewSecretKey(msgspec.Struct):
    name: Name


class SecretKey(msgspec.Struct, kw_only=True):
    """`secret_key_hint`: the last four characters."""

    secret_key_id: str
    name: str
    secret_key_hint: str
    created_at: Time


class SecretKeyWithKey(SecretKey, kw_only=True):
    """`secret_key` is shown here and never again."""

    secret_key: str


class SecretKeyRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def operations(self) -> list[Operation]:
        every, one, tag, missing = "/v1/secret_keys", "/v1/secret_keys/{id}", "Secret keys", ("not_found",)
        listed = paging.Listed[SecretKey]
        return [
            Operation("GET", every, self.list, "List secret keys", tag, query=Page, answer=listed),
            Operation(
                "POST",
                every,
                self.create,
                "Create a secret key",
                tag,
                body=NewSecretKey,
                answer=SecretKeyWithKey,
                status=201,
            ),
            Operation(
                "DELETE",
                one,
                self.revoke,
                "Revoke a secret key",
                tag,
                answer=Deleted,
                errors=("not_found", "last_secret_key"),
            ),
            Operation(
                "POST",
                one + "/rotate",
                self.rotate,
                "Give a secret key a new secret",
                tag,
                answer=SecretKeyWithKey,
                errors=missing,
            ),
        ]

    async def list(self, call: Call[Nothing, Page]) -> paging.Listed[SecretKey]:
        asked = paging.window(call.query)
        rows = await self._context.store.rows("keys.secret_page", call.merchant.merchant_id, *asked.after, asked.fetch)
        return paging.page(rows, asked, _place, lambda row: SecretKey(**_values(row)))

    async def create(self, call: Call[NewSecretKey, Nothing]) -> SecretKeyWithKey:
        merchant, key = call.merchant, new_secret_key(call.merchant.mode)
        made = (new_id("sk_"), merchant.merchant_id, call.body.name, digest(key), hint(key))
        row = await self._context.store.row("keys.secret_insert", *made)
        assert row is not None
        await self._context.principals.changed(merchant.merchant_id)
        return SecretKeyWithKey(**_values(row), secret_key=key)

    async def rotate(self, call: Call[Nothing, Nothing]) -> SecretKeyWithKey:
        """The old secret is refused from now on, also where it made this call, and so is a login's wallet key."""
        merchant, key, store = call.merchant, new_secret_key(call.merchant.mode), self._context.store
        named = (merchant.merchant_id, call.path_id())
        async with store.transaction() as db:
            row = await db.fetchrow(store.sql("keys.secret_rotate"), *named, digest(key), hint(key))
            if row is None:
                raise _missing()
            await db.execute(store.sql("keys.wallet_end"), *named)
        await self._context.principals.changed(merchant.merchant_id)
        return SecretKeyWithKey(**_values(row), secret_key=key)

    async def revoke(self, call: Call[Nothing, Nothing]) -> Deleted:
        """The calls of its forward tokens are refused from now on, too, and those of a login's wallet key."""
        merchant_id, name, store = call.merchant.merchant_id, call.path_id(), self._context.store
        async with store.transaction() as db:
            known = [row["secret_key_id"] for row in await db.fetch(store.sql("keys.secret_lock"), merchant_id)]
            if name not in known:
                raise _missing()
            if len(known) == 1:
                why = "this is the only secret key: create another one first, or rotate it"
                raise ObolError("last_secret_key", why, param="id")
            await db.execute(store.sql("keys.secret_revoke"), merchant_id, name)
            await db.execute(store.sql("keys.wallet_end"), merchant_id, name)
        await self._context.principals.changed(merchant_id)
        return Deleted(name)


def _values(row: asyncpg.Record) -> dict[str, Any]:
    return {**row, "created_at": iso(row["created_at"])}


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["secret_key_id"])


def _missing() -> ObolError:
    return ObolError("not_found", "this secret key is not known", param="id")
