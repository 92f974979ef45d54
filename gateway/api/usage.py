"""The usage report: counters by day, in the caller's zone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple

import asyncpg
import msgspec

from gateway.api import filters
from gateway.api.context import ApiContext
from gateway.api.filters import Filtered, Filters
from gateway.api.operation import Call, Money, Nothing, Operation, Time
from gateway.api.responses import iso
from gateway.api.usage_range import MILLISECOND, UsageRange, read_range
from gateway.billing import clock
from gateway.store.postgres import Store

_Sums = Literal["usage_by_meter", "usage_by_customer", "usage_hourly", "usage_by_pair"]
_HOUR = timedelta(hours=1)
_ROOM = "SET LOCAL work_mem = '32MB'"
"""For the places of the rows that metadata leads to: kept short of room, every row of a page is looked at."""
_IN_ORDER = "SET LOCAL enable_bitmapscan = off"
"""The sums of a pair lie in the order of its index, an hour a page: read so, they take two thirds of the time."""
_ALL_METERS = "*"
"""In `usage_by_pair`, the sum over all meters."""


class Counters(msgspec.Struct):
    """Sums over requests. Money in nano-dollars."""

    requests: int = 0
    tokens: int = 0
    cost_nano: int = 0
    fee_nano: int = 0
    charge_nano: int = 0

    def add(self, other: Counters) -> None:
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def show(self) -> dict[str, Any]:
        """The fields of `UsageTotals`. The customer pays the charge, the merchant what the charge passes not on."""
        passed_on_nano = self.charge_nano - self.fee_nano
        return {
            "total_requests": self.requests,
            "total_usage_tokens": self.tokens,
            "total_usage_cost": Money(self.cost_nano),
            "total_fee_amount": Money(self.fee_nano),
            "total_service_charge_amount": Money(0),
            "total_request_cost": Money(self.cost_nano + self.fee_nano),
            "total_wallet_cost": Money(self.charge_nano),
            "total_merchant_cost": Money(self.cost_nano - passed_on_nano),
            "total_gross_volume": Money(self.charge_nano),
            "total_net_volume": Money(self.charge_nano - self.cost_nano),
            "total_cost": Money(self.cost_nano),
            "total_charge": Money(self.charge_nano),
        }


class UsageTotals(msgspec.Struct):
    """The counters of all eras."""

    total_requests: int
    total_usage_tokens: int
    total_usage_cost: Money
    total_fee_amount: Money
    total_service_charge_amount: Money
    total_request_cost: Money
    total_wallet_cost: Money
    total_merchant_cost: Money
    total_gross_volume: Money
    total_net_volume: Money
    total_cost: Money
    total_charge: Money


class UsageDay(UsageTotals, kw_only=True):
    """A day in the caller's zone, cut to the range that was asked for."""

    date: Annotated[str, msgspec.Meta(extra_json_schema={"format": "date"})]
    start: Time
    end: Time


class Usage(msgspec.Struct):
    """A row a day, also where nothing was used."""

    items: list[UsageDay]
    totals: UsageTotals


class UsageQuery(Filtered, kw_only=True):
    """The range and the filters. The UTC offset of `start` says in which zone days begin."""

    start: Annotated[str, msgspec.Meta(description="ISO-8601 date or time; its UTC offset tells the zone of the days.")]
    end: Annotated[str | None, msgspec.Meta(description="Inclusive; a date means its whole day. Default: now.")] = None


class UsageRoutes:
    """The call."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def operations(self) -> list[Operation]:
        missing = ("connection_not_found", "meter_not_found")
        return [
            Operation(
                "GET", "/v1/usage", self.read, "Usage by day", "Usage", query=UsageQuery, answer=Usage, errors=missing
            )
        ]

    async def read(self, call: Call[Nothing, UsageQuery]) -> Usage:
        asked = read_range(call.query.start, call.query.end or "", clock.now(call.merchant))
        chosen = await filters.read(self._context.store, call.merchant, call.query)
        days = await _by_day(self._context, call.merchant.merchant_id, asked, chosen)
        totals = Counters()
        for counters in days.values():
            totals.add(counters)
        return Usage(_items(asked, days), UsageTotals(**totals.show()))


def _items(asked: UsageRange, days: dict[date, Counters]) -> list[UsageDay]:
    items = []
    for day in asked.days():
        first, stop = asked.of_day(day)
        shown = days.get(day, Counters()).show()
        items.append(UsageDay(**shown, date=day.isoformat(), start=iso(first), end=iso(stop - MILLISECOND)))
    return items


async def _by_day(context: ApiContext, merchant_id: str, asked: UsageRange, chosen: Filters) -> dict[date, Counters]:
    """Whole hours from sums, the rest (and all where there are no such sums) from the rows."""
    store = context.store
    days: dict[date, Counters] = defaultdict(Counters)
    async with store.planned() as connection:
        await connection.execute(_ROOM)
        sums = await _sums(store, connection, merchant_id, asked, chosen)
        rows = _Part(None, merchant_id, chosen, asked.start, asked.stop)
        parts = [rows] if sums is None else [rows._replace(stop=sums.start), rows._replace(start=sums.stop), sums]
        for part in parts:
            if part.start < part.stop:
                if part.sums == "usage_by_pair":
                    await connection.execute(_IN_ORDER)
                given = [part.owner, part.start, part.stop, asked.offset_minutes]
                sql, arguments = part.filters.apply(part.statement(store), given)
                _collect(days, await connection.fetch(sql, *arguments))
    return days


class _Part(NamedTuple):
    """A part of the range. `sums`: the table that tells it, None for the rows. `owner`: of the rows or sums, a
    merchant's id or a pair's."""

    sums: _Sums | None
    owner: str | int
    filters: Filters
    start: datetime
    stop: datetime

    def statement(self, store: Store) -> str:
        if self.sums is None:
            return store.sql("usage.by_row")
        owner = "pair_id" if self.sums == "usage_by_pair" else "merchant_id"
        return store.sql("usage.sums").replace("{sums}", self.sums).replace("{owner}", owner)


async def _sums(
    store: Store, db: asyncpg.Connection, merchant_id: str, asked: UsageRange, chosen: Filters
) -> _Part | None:
    """The whole hours that sums can tell; None where there are none."""
    first, last = _ceil_hour(asked.start), _floor_hour(asked.stop)
    if asked.offset_minutes % 60:
        return None
    owner: str | int = merchant_id
    sums, filters = _sums_of(chosen), chosen
    if chosen.metadata:
        pair = await _summed_pair(store, db, merchant_id, chosen)
        if pair is None:
            return None
        sums, owner, filters = "usage_by_pair", pair["pair_id"], Filters(meter_id=chosen.meter_id or _ALL_METERS)
        first = max(first, pair["since"] or first)
    return _Part(sums, owner, filters, first, last) if first < last else None


def _sums_of(chosen: Filters) -> _Sums:
    if chosen.connection_id is None:
        return "usage_by_meter"
    return "usage_by_customer" if chosen.meter_id is None else "usage_hourly"


async def _summed_pair(
    store: Store, db: asyncpg.Connection, merchant_id: str, chosen: Filters
) -> asyncpg.Record | None:
    """The one pair that is asked for, of all customers, if it is summed: its id, and since when (None: ever)."""
    pairs = set(chosen.metadata)
    if len(pairs) > 1 or chosen.connection_id is not None:
        return None
    return await db.fetchrow(store.sql("usage.pair"), merchant_id, *pairs.pop())


def _collect(days: dict[date, Counters], records: Iterable[Any]) -> None:
    for record in records:
        days[record["day"]].add(Counters(*(int(record[name]) for name in Counters.__struct_fields__)))


def _floor_hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _ceil_hour(moment: datetime) -> datetime:
    floor = _floor_hour(moment)
    return floor if floor == moment else floor + _HOUR
