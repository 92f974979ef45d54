"""Meters, also called products: list, read, create, change, delete."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import asyncpg
from aiohttp import web

from gateway.api import paging
from gateway.api.context import ApiContext
from gateway.api.reading import invalid, json_object, path_id, required_text, text
from gateway.api.responses import deleted, iso, json_response
from gateway.billing.principals import Merchant
from gateway.core.meter import from_definition
from gateway.errors import ObolError
from gateway.store.secrets import digest, new_id

ID_PREFIXES = {"live": "prd_", "test": "prd_test_"}
FIXED_FIELDS = ("rate_type", "tier_type")
PRICING_FIELDS = ("tiers", "token_basis", "base_cost_payer", "service_charge_payer")

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_RESERVED_PREFIXES = ("prd_", "ps_")
_PLAIN_DIGITS_MAX = 30


class MeterRoutes:
    """The handlers. A meter in a path may be named by id, slug or secret."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        return [route for path in ("/v1/meters", "/v1/products") for route in self._routes_at(path)]

    def _routes_at(self, path: str) -> list[web.RouteDef]:
        return [
            web.get(path, self.list),
            web.post(path, self.create),
            web.get(path + "/{id}", self.read),
            web.patch(path + "/{id}", self.change),
            web.delete(path + "/{id}", self.delete),
        ]

    async def list(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        asked = paging.window(request.query)
        rows = await self._context.store.rows("meters.page", merchant.merchant_id, *asked.after, asked.fetch)
        return json_response(paging.page(rows, asked, _place, lambda row: self._show(merchant, row)))

    async def read(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        return json_response(self._show(merchant, await self._find(merchant, request)))

    async def create(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        body = await json_object(request)
        name, slug = required_text(body, "name"), _given_slug(body)
        meter_id = new_id(ID_PREFIXES[merchant.mode])
        definition = from_definition(meter_id, 1, _plain(body)).definition()
        row = await self._insert(merchant, meter_id, name, slug, definition)
        await self._context.principals.changed(merchant.merchant_id)
        return json_response(self._show(merchant, row), 201)

    async def _insert(
        self, merchant: Merchant, meter_id: str, name: str, slug: str | None, definition: dict[str, Any]
    ) -> asyncpg.Record:
        secret_hash = digest(self._context.derived.meter_secret(merchant.mode, meter_id))
        for candidate in [slug] if slug else _slugs(name):
            row = await self._context.store.row(
                "meters.create", meter_id, merchant.merchant_id, candidate, secret_hash, name, definition
            )
            if row is not None:
                return row
        raise ObolError("slug_taken", f"another meter has the slug {slug!r}", param="meter_slug")

    async def change(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        body = await json_object(request)
        meter_id = (await self._find(merchant, request))["meter_id"]
        name = required_text(body, "name") if body.get("name") is not None else None
        store = self._context.store
        async with store.transaction() as connection:
            row = await connection.fetchrow(store.sql("meters.lock"), merchant.merchant_id, meter_id)
            if row is None:
                raise _missing()
            definition = _changed(row, body)
            if name is not None:
                await connection.execute(store.sql("meters.rename"), meter_id, name)
            if definition != row["definition"]:
                await connection.execute(store.sql("meters.reprice"), meter_id, definition)
            row = await connection.fetchrow(store.sql("meters.lock"), merchant.merchant_id, meter_id)
        await self._context.principals.changed(merchant.merchant_id)
        return json_response(self._show(merchant, row))

    async def delete(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        meter_id = (await self._find(merchant, request))["meter_id"]
        await self._context.store.execute("meters.delete", meter_id)
        await self._context.principals.changed(merchant.merchant_id)
        return deleted(meter_id)

    async def _find(self, merchant: Merchant, request: web.Request) -> asyncpg.Record:
        value = path_id(request, "meter_not_found")
        row = await self._context.store.row("meters.find", merchant.merchant_id, value, digest(value))
        if row is None:
            raise _missing()
        return row

    def _show(self, merchant: Merchant, row: asyncpg.Record) -> dict[str, Any]:
        """The meter object of both vocabularies."""
        meter = from_definition(row["meter_id"], row["version"], row["definition"])
        secret = self._context.derived.meter_secret(merchant.mode, row["meter_id"])
        return {
            "meter_id": row["meter_id"],
            "product_id": row["meter_id"],
            "meter_slug": row["meter_slug"],
            "name": row["name"],
            **meter.definition(),
            "meter_secret": secret,
            "product_secret": secret,
            "version": row["version"],
            "created_at": iso(row["created_at"]),
        }


def _missing() -> ObolError:
    return ObolError("meter_not_found", "this meter is not known", param="id")


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["meter_id"])


def _changed(row: asyncpg.Record, body: dict[str, Any]) -> dict[str, Any]:
    """The definition with what `body` changes of the pricing. What a charge is counted in is fixed for good."""
    old: dict[str, Any] = row["definition"]
    for field in FIXED_FIELDS:
        if body.get(field) not in (None, old[field]):
            raise invalid(field, f"cannot be changed (it is {old[field]}); create another meter")
    given = {field: body[field] for field in PRICING_FIELDS if body.get(field) is not None}
    return from_definition(row["meter_id"], row["version"], {**old, **_plain(given)}).definition()


def _given_slug(body: dict[str, Any]) -> str | None:
    slug = text(body, "meter_slug")
    if slug is None:
        return None
    if not _SLUG.fullmatch(slug):
        raise invalid("meter_slug", "must be 1 to 100 letters, digits, - and _, the first a letter or digit")
    if slug.startswith(_RESERVED_PREFIXES):
        raise invalid("meter_slug", f"must not begin with {' or '.join(_RESERVED_PREFIXES)}, as ids and secrets do")
    return slug


def _slugs(name: str) -> Iterator[str]:
    """Slugs made from a name: "GPT calls" -> gpt-calls, gpt-calls-2, ..., then one that nobody has."""
    base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:80].rstrip("-") or "meter"
    yield base
    for number in range(2, 6):
        yield f"{base}-{number}"
    yield f"{base}-{secrets.token_hex(6)}"


def _plain(body: dict[str, Any]) -> dict[str, Any]:
    """`body` with rates and starts that came as JSON numbers (Decimal) in plain decimal notation, as the core reads."""
    tiers = body.get("tiers")
    if not isinstance(tiers, list):
        return body
    return {**body, "tiers": [_plain_tier(tier) if isinstance(tier, dict) else tier for tier in tiers]}


def _plain_tier(tier: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain_number(value) if isinstance(value, Decimal) else value for key, value in tier.items()}


def _plain_number(value: Decimal) -> str:
    if abs(value.adjusted()) > _PLAIN_DIGITS_MAX:
        return "out of range"
    plain = format(value, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain
