"""A merchant's own keys of providers: stored sealed, used upstream before the installation's, never shown again."""

from __future__ import annotations

from typing import Annotated

import asyncpg
import msgspec
from msgspec import Meta

from gateway.api.context import ApiContext
from gateway.api.operation import Call, Deleted, Nothing, Operation, Text, Time
from gateway.api.reading import invalid
from gateway.api.responses import iso
from gateway.billing.principals import SEALED_AS
from gateway.errors import ObolError
from gateway.store.secrets import hint
from gateway.wire.credential import MAX_FIELD_CHARACTERS

Key = Annotated[str, Meta(min_length=8, max_length=MAX_FIELD_CHARACTERS)]


class NewProviderKey(msgspec.Struct):
    """`provider`: as in GET /v1/models and the provider table, such as "openai"; or in the path."""

    key: Key
    provider: Text | None = None


class ProviderKey(msgspec.Struct, kw_only=True):
    """`key_hint`: the last four characters."""

    provider: str
    key_hint: str
    created_at: Time
    updated_at: Time


class ProviderKeys(msgspec.Struct):
    """All of them: there is at most one a provider."""

    data: list[ProviderKey]
    has_more: bool = False


class ProviderKeyRoutes:
    """The calls."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def operations(self) -> list[Operation]:
        if self._context.sealed is None:
            return []
        every, one, tag = "/v1/provider_keys", "/v1/provider_keys/{id}", "Provider keys"
        missing, stored = ("not_found",), "Store a key of a provider"
        return [
            Operation("GET", every, self.list, "List stored keys of providers", tag, answer=ProviderKeys),
            Operation("PUT", every, self.put, stored, tag, body=NewProviderKey, answer=ProviderKey),
            Operation("GET", one, self.read, "Retrieve what is known of one", tag, answer=ProviderKey, errors=missing),
            Operation("PUT", one, self.put_at, f"{stored}, by its name", tag, body=NewProviderKey, answer=ProviderKey),
            Operation("DELETE", one, self.delete, "Delete a key of a provider", tag, answer=Deleted, errors=missing),
        ]

    async def list(self, call: Call[Nothing, Nothing]) -> ProviderKeys:
        rows = await self._context.store.rows("keys.provider_list", call.merchant.merchant_id)
        return ProviderKeys([_shown(row) for row in rows])

    async def read(self, call: Call[Nothing, Nothing]) -> ProviderKey:
        row = await self._context.store.row("keys.provider_find", call.merchant.merchant_id, call.path_id())
        if row is None:
            raise _missing()
        return _shown(row)

    async def put(self, call: Call[NewProviderKey, Nothing]) -> ProviderKey:
        if call.body.provider is None:
            raise invalid("provider", "is required")
        return await self._put(call, call.body.provider)

    async def put_at(self, call: Call[NewProviderKey, Nothing]) -> ProviderKey:
        provider = call.path_id()
        if call.body.provider not in (None, provider):
            raise invalid("provider", "differs from the one in the path; send one of them")
        return await self._put(call, provider)

    async def _put(self, call: Call[NewProviderKey, Nothing], provider: str) -> ProviderKey:
        key, merchant_id, sealed = call.body.key, call.merchant.merchant_id, self._context.sealed
        if provider not in self._context.provider_names:
            raise invalid("provider", f"must be one of {', '.join(self._context.provider_names)}")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise invalid("key", "must be printable ASCII without spaces, as it becomes the value of a header")
        assert sealed is not None
        row = await self._context.store.row(
            "keys.provider_put",
            merchant_id,
            provider,
            sealed.seal(key, SEALED_AS, merchant_id, provider),
            hint(key),
        )
        assert row is not None
        await self._context.principals.changed(merchant_id)
        return _shown(row)

    async def delete(self, call: Call[Nothing, Nothing]) -> Deleted:
        row = await self._context.store.row("keys.provider_delete", call.merchant.merchant_id, call.path_id())
        if row is None:
            raise _missing()
        await self._context.principals.changed(call.merchant.merchant_id)
        return Deleted(row["provider"])


def _shown(row: asyncpg.Record) -> ProviderKey:
    return ProviderKey(
        provider=row["provider"],
        key_hint=row["key_hint"],
        created_at=iso(row["created_at"]),
        updated_at=iso(row["updated_at"]),
    )


def _missing() -> ObolError:
    return ObolError("not_found", "no key is stored for this provider", param="id")
