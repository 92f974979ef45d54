"""GET /v1/usage against sums made by hand."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from api_fixtures import FIXED, Api, api_fixture  # noqa: F401

FIRST = datetime(2026, 3, 1, tzinfo=UTC)


async def usage(api: Api, **query: str) -> Any:
    reply = await api.call("GET", "/v1/usage", **query)
    assert reply.status == 200, reply
    return reply.body


async def test_counters_of_all_eras_and_empty_days(api: Api) -> None:
    await api.report("a", input_tokens=500_000)
    await api.report("b", output_tokens=1_000_000)
    await api.flush()
    await api.backdate("a", FIRST + timedelta(hours=5))
    await api.backdate("b", FIRST + timedelta(days=2, hours=1))
    report = await usage(api, start="2026-03-01", end="2026-03-03")
    assert [(item["date"], item["total_requests"]) for item in report["items"]] == [
        ("2026-03-01", 1),
        ("2026-03-02", 0),
        ("2026-03-03", 1),
    ]
    assert report["items"][0]["start"] == "2026-03-01T00:00:00.000Z"
    assert report["items"][0]["end"] == "2026-03-01T23:59:59.999Z"
    assert report["totals"] == {
        "total_requests": 2,
        "total_usage_tokens": 1_500_000,
        "total_usage_cost": "0.0000000000",
        "total_fee_amount": "3.0000000000",
        "total_service_charge_amount": "0.0000000000",
        "total_request_cost": "3.0000000000",
        "total_wallet_cost": "3.0000000000",
        "total_merchant_cost": "0.0000000000",
        "total_gross_volume": "3.0000000000",
        "total_net_volume": "3.0000000000",
        "total_cost": "0.0000000000",
        "total_charge": "3.0000000000",
    }


@pytest.mark.parametrize("offset_minutes", [0, 120, -420, 330, 345, 840, -720])
async def test_days_are_those_of_the_zone(api: Api, offset_minutes: int) -> None:
    """Random moments, some at the very edges, ranges that begin and end within an hour."""
    rng = random.Random(offset_minutes)
    zone = timezone(timedelta(minutes=offset_minutes))
    moments = [FIRST + timedelta(seconds=rng.randrange(5 * 86_400)) for _ in range(60)]
    moments += [datetime(2026, 3, day, tzinfo=zone) - timedelta(milliseconds=ms) for day in (2, 3, 4) for ms in (0, 1)]
    await _requests_at(api, moments)
    for start, end in (
        (datetime(2026, 3, 2, tzinfo=zone), datetime(2026, 3, 4, 23, 59, 59, 999_000, tzinfo=zone)),
        (datetime(2026, 3, 1, 5, 17, 3, tzinfo=zone), datetime(2026, 3, 4, 21, 41, 9, tzinfo=zone)),
        (datetime(2026, 3, 2, 10, 5, tzinfo=zone), datetime(2026, 3, 2, 10, 50, tzinfo=zone)),
    ):
        stop = end + timedelta(milliseconds=1)
        expected = Counter(str(each.astimezone(zone).date()) for each in moments if start <= each < stop)
        report = await usage(api, start=start.isoformat(), end=end.isoformat())
        assert {item["date"]: item["total_requests"] for item in report["items"] if item["total_requests"]} == expected
        assert report["totals"]["total_requests"] == expected.total() == report["totals"]["total_usage_tokens"]
        assert len(report["items"]) == (end.date() - start.date()).days + 1


async def _requests_at(api: Api, moments: list[datetime]) -> None:
    for number in range(len(moments)):
        await api.report(f"r-{number}", input_tokens=1)
    await api.flush()
    async with api.store.connection() as db:
        names = [f"r-{number}" for number in range(len(moments))]
        await db.execute(
            "UPDATE requests r SET created_at = u.at FROM unnest($1::text[], $2::timestamptz[]) u (name, at)"
            " WHERE r.request_id = u.name",
            names,
            moments,
        )
    await api.roll_up()


async def test_filters(api: Api) -> None:
    other = await api.new_customer("user-2")
    await api.new_meter("second", FIXED)
    await api.report("a", input_tokens=1, metadata={"team": "x"})
    await api.report(
        "b", input_tokens=10, connection_secret=other.connection_secret, metadata={"team": "x", "env": "p"}
    )
    await api.report("c", input_tokens=100, product_secret="second")
    await api.flush()
    now = datetime.now(UTC)
    day = now.date().isoformat()

    async def tokens(**query: str) -> int:
        return int((await usage(api, start=day, **query))["totals"]["total_usage_tokens"])

    assert await tokens() == 111
    assert await tokens(customer_id="user-1") == 101
    assert await tokens(connection_id=other.connection_id) == 10
    assert await tokens(meter_id="second") == await tokens(product_id="second", customer_id="user-1") == 100
    assert await tokens(metadata_filters='[["team","x"]]') == 11
    assert await tokens(metadata_filters='[["team","x"],["env","p"]]') == 10
    stranger = await api.accounts.create_merchant("acc_2", "live", "Other")
    assert (await api.call("GET", "/v1/usage", start=day, key=stranger.secret_key)).body["totals"][
        "total_requests"
    ] == 0


async def test_a_plus_that_arrives_as_a_space(api: Api) -> None:
    reply = await api.call("GET", "/v1/usage?start=2026-03-01T00:00:00+02:00&end=2026-03-01T23:59:59+02:00")
    assert [item["date"] for item in reply.body["items"]] == ["2026-03-01"]
    assert reply.body["items"][0]["start"] == "2026-02-28T22:00:00.000Z"


async def test_a_bad_parameter_is_named(api: Api) -> None:
    for query, param in (({}, "start"), ({"start": "2026-01-01", "metadata_filters": "x"}, "metadata_filters")):
        reply = await api.call("GET", "/v1/usage", **query)
        assert (reply.status, reply.body["error"]["param"]) == (400, param)


async def test_a_leap_year_fits(api: Api) -> None:
    assert len((await usage(api, start="2024-01-01", end="2024-12-31"))["items"]) == 366


@pytest.mark.parametrize(
    ("column", "table", "rows"), [("meter_id", "usage_by_meter", 6), ("connection_id", "usage_by_customer", 5)]
)
async def test_the_sums_follow_the_hours(api: Api, column: str, table: str, rows: int) -> None:
    """Whatever is done to the hours; reports without a customer, or without a meter, are made from these sums."""
    row = "INSERT INTO usage_hourly VALUES ('m', $1, $2, $3, $4, 2, 3, 4, 5) ON CONFLICT" + (
        " (merchant_id, hour, connection_id, meter_id) DO UPDATE SET requests = usage_hourly.requests"
        " + excluded.requests, charge_nano = usage_hourly.charge_nano + 1"
    )
    async with api.store.connection() as db:
        for hour in range(3):
            for customer, meter, requests in (("a", "x", 1), ("b", "x", 10), ("b", "y", 100), ("a", "x", 1_000)):
                await db.execute(row, FIRST + timedelta(hours=hour), customer, meter, requests)
        await db.execute("UPDATE usage_hourly SET tokens = tokens + 7, meter_id = 'z' WHERE meter_id = 'y'")
        await db.execute("DELETE FROM usage_hourly WHERE connection_id = 'a' AND hour = $1", FIRST)
        sums = "sum(requests), sum(tokens), sum(cost_nano), sum(fee_nano), sum(charge_nano)"
        expected = await db.fetch(f"SELECT {column}, hour, {sums} FROM usage_hourly GROUP BY 1, 2 ORDER BY 1, 2")
        kept = f"SELECT {column}, hour, requests, tokens, cost_nano, fee_nano, charge_nano FROM {table}"
        found = await db.fetch(f"{kept} WHERE requests <> 0 ORDER BY 1, 2")
    assert [tuple(map(str, each)) for each in found] == [tuple(map(str, each)) for each in expected]
    assert len(found) == rows
