"""The usage report: counters by day, in the caller's zone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
from aiohttp import web

from gateway.api import filters
from gateway.api.context import ApiContext
from gateway.api.filters import Filters
from gateway.api.responses import iso, json_response
from gateway.api.usage_range import MILLISECOND, UsageRange, read_range
from gateway.core.money import format_nano

_HOUR = timedelta(hours=1)


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
        """The counters of all eras. The customer pays the charge, the merchant what the charge passes not on."""
        passed_on_nano = self.charge_nano - self.fee_nano
        return {
            "total_requests": self.requests,
            "total_usage_tokens": self.tokens,
            "total_usage_cost": format_nano(self.cost_nano),
            "total_fee_amount": format_nano(self.fee_nano),
            "total_service_charge_amount": format_nano(0),
            "total_request_cost": format_nano(self.cost_nano + self.fee_nano),
            "total_wallet_cost": format_nano(self.charge_nano),
            "total_merchant_cost": format_nano(self.cost_nano - passed_on_nano),
            "total_gross_volume": format_nano(self.charge_nano),
            "total_net_volume": format_nano(self.charge_nano - self.cost_nano),
            "total_cost": format_nano(self.cost_nano),
            "total_charge": format_nano(self.charge_nano),
        }


class UsageRoutes:
    """The handler."""

    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/v1/usage", self.read)]

    async def read(self, request: web.Request) -> web.Response:
        merchant = await self._context.merchant(request)
        asked = read_range(request.query.get("start", ""), request.query.get("end", ""), datetime.now(UTC))
        chosen = await filters.read(self._context.store, merchant, request.query)
        days = await _by_day(self._context, merchant.merchant_id, asked, chosen)
        totals = Counters()
        for counters in days.values():
            totals.add(counters)
        return json_response({"items": _items(asked, days), "totals": totals.show()})


def _items(asked: UsageRange, days: dict[date, Counters]) -> list[dict[str, Any]]:
    """A row a day, also where nothing was used."""
    items = []
    for day in asked.days():
        first, stop = asked.of_day(day)
        span = {"date": day.isoformat(), "start": iso(first), "end": iso(stop - MILLISECOND)}
        items.append({**span, **days.get(day, Counters()).show()})
    return items


async def _by_day(context: ApiContext, merchant_id: str, asked: UsageRange, chosen: Filters) -> dict[date, Counters]:
    """Whole hours from the roll-up, the rest (and all where the roll-up cannot tell) from the rows."""
    first, last = _ceil_hour(asked.start), _floor_hour(asked.stop)
    if chosen.metadata or asked.offset_minutes % 60 or first >= last:
        parts = [("by_row", asked.start, asked.stop)]
    else:
        parts = [("by_row", asked.start, first), ("by_hour", first, last), ("by_row", last, asked.stop)]
    days: dict[date, Counters] = defaultdict(Counters)
    async with context.store.connection() as connection:
        for name, start, stop in parts:
            if start < stop:
                sql, arguments = chosen.apply(
                    context.store.sql(f"usage.{name}"), [merchant_id, start, stop, asked.offset_minutes]
                )
                _collect(days, await connection.fetch(sql, *arguments))
    return days


def _collect(days: dict[date, Counters], records: Iterable[Any]) -> None:
    for record in records:
        days[record["day"]].add(Counters(*(int(record[name]) for name in Counters.__struct_fields__)))


def _floor_hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _ceil_hour(moment: datetime) -> datetime:
    floor = _floor_hour(moment)
    return floor if floor == moment else floor + _HOUR
