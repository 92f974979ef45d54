"""Meters, also called products: list, read, create, change, delete."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any

import asyncpg
import msgspec

from gateway.api import paging
from gateway.api.context import ApiContext
from gateway.api.operation import Call, Deleted, Nothing, Operation, Page, Text, Time
from gateway.api.reading import invalid
from gateway.api.responses import iso
from gateway.billing.principals import Merchant
from gateway.core.meter import Payer, RateType, TierType, TokenBasis, from_definition
from gateway.errors import ObolError
from gateway.store.secrets import digest, new_id

ID_PREFIXES = {"live": "prd_", "test": "prd_test_"}
FIXED_FIELDS = ("rate_type", "tier_type")

_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_RESERVED_PREFIXES = ("prd_", "ps_")

Start = Annotated[
    Any,
    msgspec.Meta(
        description="Units from which the tier applies; the first tier's is 0.",
        extra_json_schema={"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+$"}]},
    ),
]
Rate = Annotated[
    Any,
    msgspec.Meta(
        description="Dollars a million tokens or characters, a minute, or a request; of a percentage, percent.",
        extra_json_schema={"anyOf": [{"type": "string", "examples": ["0.02"]}, {"type": "number", "minimum": 0}]},
    ),
]


class NewTier(msgspec.Struct):
    """One tier of a price. `core.meter` checks both."""

    start: Start
    rate: Rate


class ChangedPricing(msgspec.Struct, kw_only=True):
    """What may change of a meter's price."""

    tiers: list[NewTier] | None = None
    token_basis: TokenBasis | None = None
    base_cost_payer: Payer | None = None
    service_charge_payer: Payer | None = None
    rate_type: RateType | None = None
    tier_type: TierType | None = None

    def given(self) -> dict[str, Any]:
        """The fields that were sent, as `core.meter` reads them: numbers in plain decimal notation."""
        found = {name: getattr(self, name) for name in ChangedPricing.__struct_fields__}
        found = {name: value for name, value in found.items() if value is not None}
        if self.tiers is not None:
            found["tiers"] = [{"start": _plain(tier.start), "rate": _plain(tier.rate)} for tier in self.tiers]
        return found


class NewMeter(ChangedPricing, kw_only=True):
    """A meter to be made. Without a slug one is made from the name."""

    name: Text
    meter_slug: Annotated[Text | None, msgspec.Meta(description="Letters, digits, - and _.")] = None
    tiers: list[NewTier]


class ChangedMeter(ChangedPricing, kw_only=True):
    """What changes of a meter. `rate_type` and `tier_type` are fixed for good: they may only repeat what is."""

    name: Text | None = None


class MeterTier(msgspec.Struct):
    """One tier of a meter."""

    start: int
    rate: str
    type: TierType


class Meter(msgspec.Struct, kw_only=True):
    """The meter object of both vocabularies. `version` counts changes of its price."""

    meter_id: str
    product_id: str
    meter_slug: str
    name: str
    rate_type: RateType
    tier_type: TierType
    token_basis: TokenBasis
    base_cost_payer: Payer
    service_charge_payer: Payer
    tiers: list[MeterTier]
    meter_secret: str
    product_secret: str
    version: int
    created_at: Time


class MeterRoutes:
    """The calls. A meter in a path may be named by id, slug or secret."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def operations(self) -> list[Operation]:
        one, products = "/v1/meters/{id}", ("/v1/products",)
        named, missing = ("/v1/products/{id}",), ("meter_not_found",)
        return [
            Operation(
                "GET",
                "/v1/meters",
                self.list,
                "List meters",
                "Meters",
                query=Page,
                answer=paging.Listed[Meter],
                aliases=products,
            ),
            Operation(
                "POST",
                "/v1/meters",
                self.create,
                "Create a meter",
                "Meters",
                body=NewMeter,
                answer=Meter,
                status=201,
                errors=("slug_taken",),
                aliases=products,
            ),
            Operation("GET", one, self.read, "Retrieve a meter", "Meters", answer=Meter, errors=missing, aliases=named),
            Operation(
                "PATCH",
                one,
                self.change,
                "Change a meter",
                "Meters",
                body=ChangedMeter,
                answer=Meter,
                errors=missing,
                aliases=named,
            ),
            Operation(
                "DELETE", one, self.delete, "Delete a meter", "Meters", answer=Deleted, errors=missing, aliases=named
            ),
        ]

    async def list(self, call: Call[Nothing, Page]) -> paging.Listed[Meter]:
        asked, merchant = paging.window(call.query), call.merchant
        rows = await self._context.store.rows("meters.page", merchant.merchant_id, *asked.after, asked.fetch)
        return paging.page(rows, asked, _place, lambda row: self._show(merchant, row))

    async def read(self, call: Call[Nothing, Nothing]) -> Meter:
        return self._show(call.merchant, await self._find(call))

    async def create(self, call: Call[NewMeter, Nothing]) -> Meter:
        merchant, slug = call.merchant, _usable(call.body.meter_slug)
        meter_id = new_id(ID_PREFIXES[merchant.mode])
        definition = from_definition(meter_id, 1, call.body.given()).definition()
        row = await self._insert(merchant, meter_id, call.body.name, slug, definition)
        await self._context.principals.changed(merchant.merchant_id)
        return self._show(merchant, row)

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

    async def change(self, call: Call[ChangedMeter, Nothing]) -> Meter:
        merchant, body = call.merchant, call.body
        meter_id = (await self._find(call))["meter_id"]
        store = self._context.store
        async with store.transaction() as connection:
            row = await connection.fetchrow(store.sql("meters.lock"), merchant.merchant_id, meter_id)
            if row is None:
                raise _missing()
            definition = _changed(row, body)
            if body.name is not None:
                await connection.execute(store.sql("meters.rename"), meter_id, body.name)
            if definition != row["definition"]:
                await connection.execute(store.sql("meters.reprice"), meter_id, definition)
            row = await connection.fetchrow(store.sql("meters.lock"), merchant.merchant_id, meter_id)
        await self._context.principals.changed(merchant.merchant_id)
        return self._show(merchant, row)

    async def delete(self, call: Call[Nothing, Nothing]) -> Deleted:
        meter_id = (await self._find(call))["meter_id"]
        await self._context.store.execute("meters.delete", meter_id)
        await self._context.principals.changed(call.merchant.merchant_id)
        return Deleted(meter_id)

    async def _find(self, call: Call[Any, Any]) -> asyncpg.Record:
        value = call.path_id("meter_not_found")
        row = await self._context.store.row("meters.find", call.merchant.merchant_id, value, digest(value))
        if row is None:
            raise _missing()
        return row

    def _show(self, merchant: Merchant, row: asyncpg.Record) -> Meter:
        definition = from_definition(row["meter_id"], row["version"], row["definition"]).definition()
        secret = self._context.derived.meter_secret(merchant.mode, row["meter_id"])
        tiers = [MeterTier(**tier) for tier in definition.pop("tiers")]
        return Meter(
            meter_id=row["meter_id"],
            product_id=row["meter_id"],
            meter_slug=row["meter_slug"],
            name=row["name"],
            **definition,
            tiers=tiers,
            meter_secret=secret,
            product_secret=secret,
            version=row["version"],
            created_at=iso(row["created_at"]),
        )


def _missing() -> ObolError:
    return ObolError("meter_not_found", "this meter is not known", param="id")


def _place(row: asyncpg.Record) -> paging.Place:
    return paging.Place(row["created_at"], row["meter_id"])


def _changed(row: asyncpg.Record, body: ChangedMeter) -> dict[str, Any]:
    """The definition with what `body` changes of the pricing. What a charge is counted in is fixed for good."""
    old: dict[str, Any] = row["definition"]
    given = body.given()
    for field in FIXED_FIELDS:
        if given.pop(field, old[field]) != old[field]:
            raise invalid(field, f"cannot be changed (it is {old[field]}); create another meter")
    return from_definition(row["meter_id"], row["version"], {**old, **given}).definition()


def _usable(slug: str | None) -> str | None:
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


def _plain(value: Any) -> Any:
    """A rate or start that came as a JSON number (Decimal) in plain decimal notation, as the core reads."""
    if not isinstance(value, Decimal):
        return value
    plain = format(value, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain
