"""Spend keys as bodies and answers, and as the values of a row."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from gateway.api.operation import Money, Time
from gateway.api.reading import invalid
from gateway.api.responses import iso, iso_or_none
from gateway.billing.principals import Merchant
from gateway.billing.spend_keys import SpendCounters, spend_key_of
from gateway.core.money import EXACT_LIMIT
from gateway.errors import ObolError
from gateway.ledger.spending import Counters, Cycle

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Status = Literal["active", "paused"]
Shape = Literal["openai", "anthropic"]
Names = Annotated[list[Annotated[str, Meta(min_length=1, max_length=512)]], Meta(min_length=1, max_length=500)]
Moment = Annotated[datetime, Meta(tz=True)]
RATE_MAX = 1_000_000
_EARLIEST, _LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


class SpendLimit(msgspec.Struct):
    """So much in each cycle. Days, weeks (from Monday) and months are UTC's."""

    amount: Money
    cycle: Cycle


class RequestLimit(msgspec.Struct):
    """So many requests in each cycle, those in flight among them."""

    count: Annotated[int, Meta(ge=0, lt=EXACT_LIMIT)]
    cycle: Cycle


class RateLimit(msgspec.Struct):
    """Requests a minute, and how many of them may come at once: null for all."""

    rpm: Annotated[int, Meta(ge=1, le=RATE_MAX)]
    burst: Annotated[int, Meta(ge=1, le=RATE_MAX)] | None = None


class NewSpendKey(msgspec.Struct, kw_only=True):
    """Of the merchant's own wallet, or of a customer's: by `connection_id`, `customer_id` or `wallet_id`.

    With a customer's wallet the customer pays, by the meter named or else what each call cost.
    """

    name: Name
    status: Status = "active"
    request_shape: Shape = "openai"
    allowed_models: Names | None = None
    allowed_providers: Names | None = None
    spend_limit: SpendLimit | None = None
    request_limit: RequestLimit | None = None
    rate_limit: RateLimit | None = None
    expires_at: Moment | None = None
    connection_id: str | None = None
    customer_id: str | None = None
    connection_secret: str | None = None
    wallet_id: str | None = None
    meter_id: str | None = None
    meter_slug: str | None = None


class ChangedSpendKey(msgspec.Struct, kw_only=True):
    """What changes; null takes a limit away, and what is left out stays."""

    name: Name | UnsetType = UNSET
    status: Status | UnsetType = UNSET
    request_shape: Shape | UnsetType = UNSET
    allowed_models: Names | UnsetType | None = UNSET
    allowed_providers: Names | UnsetType | None = UNSET
    spend_limit: SpendLimit | UnsetType | None = UNSET
    request_limit: RequestLimit | UnsetType | None = UNSET
    rate_limit: RateLimit | UnsetType | None = UNSET
    expires_at: Moment | UnsetType | None = UNSET


class SpendKey(msgspec.Struct, kw_only=True):
    """`current_*` are those of the limit's cycle, and without a limit of all time. Calls in flight are not in them."""

    spend_key_id: str
    key_preview: str
    name: str
    status: Status
    request_shape: Shape
    wallet_id: str
    connection_id: str
    customer_id: str
    meter_id: str | None
    allowed_models: list[str] | None
    allowed_providers: list[str] | None
    spend_limit: SpendLimit | None
    current_spend: Money
    total_spend: Money
    request_limit: RequestLimit | None
    current_requests: int
    total_requests: int
    rate_limit: RateLimit | None
    expires_at: Time | None
    last_used_at: Time | None
    created_at: Time


class SpendKeyWithKey(SpendKey, kw_only=True):
    """`key` is shown here and never again."""

    key: str


def settings_of(body: NewSpendKey | ChangedSpendKey, row: Any = None) -> tuple[Any, ...]:
    """Name, status, shape, lists, limits and expiry, in the order of the statements keys.spend_insert and spend_update:
    as the body gives them, else as they stand in the row. Raise ObolError naming the field."""
    given = {name: value for name in body.__struct_fields__ if (value := getattr(body, name)) is not UNSET}
    spend, requests, rate = given.get("spend_limit"), given.get("request_limit"), given.get("rate_limit")
    values = {
        **{name: given[name] for name in _PLAIN if name in given},
        **_pair(given, "spend_limit", spend and (spend.amount.nano, spend.cycle)),
        **_pair(given, "request_limit", requests and (requests.count, requests.cycle)),
        **_pair(given, "rate_limit", rate and (rate.rpm, rate.burst)),
    }
    expires = values.get("expires_at")
    if expires is not None and not _EARLIEST < expires < _LATEST:
        raise invalid("expires_at", "must be a time between 1970 and 9999")
    for name in ("allowed_models", "allowed_providers"):
        if values.get(name) is not None:
            values[name] = list(dict.fromkeys(values[name]))
    return tuple(values[column] if column in values else row[column] for column in _COLUMNS)


_PLAIN = ("name", "status", "request_shape", "allowed_models", "allowed_providers", "expires_at")
_OF_LIMITS = {
    "spend_limit": ("spend_limit_nano", "spend_limit_cycle"),
    "request_limit": ("request_limit", "request_limit_cycle"),
    "rate_limit": ("requests_per_minute", "requests_burst"),
}
_COLUMNS = (*_PLAIN[:5], *(column for pair in _OF_LIMITS.values() for column in pair), "expires_at")


def _pair(given: dict[str, Any], field: str, values: tuple[Any, Any] | None) -> dict[str, Any]:
    return dict(zip(_OF_LIMITS[field], values or (None, None), strict=True)) if field in given else {}


class Shower:
    """Shows rows of `spend_keys` with what was spent until now."""

    def __init__(self, counters: SpendCounters) -> None:
        self._counters = counters

    async def show_all(self, merchant: Merchant, rows: Sequence[Any]) -> list[SpendKey]:
        return list(await asyncio.gather(*(self.show(merchant, row) for row in rows)))

    async def show(self, merchant: Merchant, row: Any) -> SpendKey:
        return _shown(row, await self._read(merchant, row))

    async def show_with_key(self, merchant: Merchant, row: Any, key: str) -> SpendKeyWithKey:
        shown = await self.show(merchant, row)
        return SpendKeyWithKey(**msgspec.structs.asdict(shown), key=key)

    async def _read(self, merchant: Merchant, row: Any) -> Counters:
        key = spend_key_of(row, by_cost=False, clock_offset_us=merchant.clock_offset_us)
        return await self._counters.read(row["shard"], key)


def _shown(row: Any, counters: Counters) -> SpendKey:
    spend_cycle: Cycle = row["spend_limit_cycle"] or "total"
    request_cycle: Cycle = row["request_limit_cycle"] or "total"
    rpm, count = row["requests_per_minute"], row["request_limit"]
    return SpendKey(
        spend_key_id=row["spend_key_id"],
        key_preview=row["key_hint"],
        name=row["name"],
        status=row["status"],
        request_shape=row["request_shape"],
        wallet_id=row["wallet_id"],
        connection_id=row["connection_id"],
        customer_id=row["connection_id"],
        meter_id=row["meter_id"],
        allowed_models=row["allowed_models"],
        allowed_providers=row["allowed_providers"],
        spend_limit=_spend_limit(row["spend_limit_nano"], spend_cycle),
        current_spend=Money(counters.spent[spend_cycle].nano),
        total_spend=Money(counters.spent["total"].nano),
        request_limit=None if count is None else RequestLimit(count, request_cycle),
        current_requests=counters.spent[request_cycle].requests,
        total_requests=counters.spent["total"].requests,
        rate_limit=None if rpm is None else RateLimit(rpm, row["requests_burst"]),
        expires_at=iso_or_none(row["expires_at"]),
        last_used_at=iso(datetime.fromtimestamp(counters.used_ms / 1_000, UTC)) if counters.used_ms else None,
        created_at=iso(row["created_at"]),
    )


def _spend_limit(nano: int | None, cycle: Cycle) -> SpendLimit | None:
    return None if nano is None else SpendLimit(Money(nano), cycle)


def missing() -> ObolError:
    return ObolError("not_found", "this spend key is not known", param="id")
