"""GET /v1/requests and /v1/requests/{id}."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from api_fixtures import FIXED, Api, api_fixture  # noqa: F401

from gateway.api import searching
from gateway.api.filters import Filters
from gateway.api.paging import NEWEST

_ROWS = """
WITH made AS (
    INSERT INTO requests (merchant_id, request_id, created_at, connection_id, wallet_id, meter_id, meter_version,
        billing_mode, provider, provider_key_type, endpoint, status, ending, usage, metadata)
    SELECT $1, 'row-' || n, timestamptz '2026-01-01' + n * interval '1 second', $2, 'w', $3, 1, 'report', 'other',
        'managed', '', 'completed', 'completed', '{"input_tokens": 5}',
        jsonb_build_object('even', (n % 2 = 0)::text, 'number', n::text)
    FROM generate_series(1, $4::integer) n
    RETURNING merchant_id, request_id, created_at
)
INSERT INTO request_index (merchant_id, request_id, created_at) SELECT * FROM made
"""


async def rows(api: Api, number: int, connection_id: str = "con_x", meter_id: str | None = None) -> None:
    async with api.store.connection() as db:
        await db.execute(_ROWS, api.merchant.merchant_id, connection_id, meter_id, number)


def ids(body: Any) -> list[str]:
    return [item["request_id"] for item in body["data"]]


async def walk(api: Api, **query: str) -> list[str]:
    found, cursor = [], ""
    while True:
        reply = await api.call("GET", "/v1/requests", **query, **({"cursor": cursor} if cursor else {}))
        assert reply.status == 200
        found += ids(reply.body)
        assert reply.body["has_more"] == ("next_cursor" in reply.body)
        if not reply.body["has_more"]:
            return found
        cursor = reply.body["next_cursor"]


async def test_pages_are_newest_first_and_end(api: Api) -> None:
    await rows(api, 25)
    first = (await api.call("GET", "/v1/requests")).body
    assert ids(first) == [f"row-{n}" for n in range(25, 15, -1)]
    assert await walk(api) == [f"row-{n}" for n in range(25, 0, -1)]
    assert await walk(api, limit="25") == await walk(api, limit="1")


async def test_rows_of_the_same_moment_are_neither_skipped_nor_repeated(api: Api) -> None:
    await rows(api, 12)
    async with api.store.connection() as db:
        await db.execute("UPDATE requests SET created_at = timestamptz '2026-01-01 00:00:00.123456'")
    found = await walk(api, limit="5")
    assert sorted(found) == sorted(f"row-{n}" for n in range(1, 13))


async def test_new_rows_do_not_shift_a_page(api: Api) -> None:
    await rows(api, 5)
    first = (await api.call("GET", "/v1/requests", limit="2")).body
    await api.report("new", input_tokens=1)
    await api.flush()
    second = (await api.call("GET", "/v1/requests", limit="2", cursor=first["next_cursor"])).body
    assert ids(second) == ["row-3", "row-2"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "0"),
        ("limit", "101"),
        ("limit", "ten"),
        ("limit", "-1"),
        ("cursor", "row-1"),
        ("cursor", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk6eA"),
        ("cursor", "ÿ"),
        ("metadata_filters", "{}"),
        ("metadata_filters", '[["a"]]'),
        ("metadata_filters", '[["a",1]]'),
        ("metadata_filters", "["),
        ("metadata_filters", '[["a","\\u0000"]]'),
        ("connection_id", "a\x00b"),
    ],
)
async def test_a_bad_parameter_is_named(api: Api, name: str, value: str) -> None:
    reply = await api.call("GET", "/v1/requests", **{name: value})
    assert (reply.status, reply.body["error"]["param"]) == (400, name)


async def test_filters_take_every_form_of_a_name(api: Api) -> None:
    other = await api.new_customer("user-2")
    await api.new_meter("second", FIXED)
    await api.report("a", input_tokens=1)
    await api.report("b", input_tokens=1, connection_secret=other.connection_secret)
    await api.report("c", input_tokens=1, product_secret="second")
    await api.flush()
    for name, value in (
        ("connection_id", api.customer.connection_id),
        ("customer_id", "user-1"),
        ("customer_id", api.customer.connection_secret),
        ("reference_id", "user-1"),
    ):
        assert await walk(api, **{name: value}) == ["c", "a"]
    for name, value in (
        ("meter_id", "tokens"),
        ("product_id", api.meter.meter_id),
        ("meter_id", api.meter.meter_secret),
    ):
        assert await walk(api, **{name: value}) == ["b", "a"]
    assert await walk(api, customer_id="user-1", meter_id="tokens") == ["a"]
    missing = await api.call("GET", "/v1/requests", customer_id="nobody")
    assert (missing.status, missing.body["error"]["code"]) == (404, "connection_not_found")


async def test_metadata_filters_are_joined_with_and(api: Api) -> None:
    await rows(api, 30)

    async def matching(*pairs: list[str]) -> list[str]:
        return await walk(api, metadata_filters=json.dumps(pairs), limit="7")

    assert await matching(["even", "true"]) == [f"row-{n}" for n in range(30, 0, -2)]
    assert await matching(["even", "true"], ["number", "12"]) == ["row-12"]
    assert await matching(["even", "true"], ["number", "13"]) == []
    assert await matching(["even", "true"], ["even", "false"]) == []
    assert len(await matching()) == 30


async def test_metadata_that_only_old_rows_have_is_found(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.api.searching.RECENT_ROWS", 10)
    await rows(api, 30)
    assert await walk(api, metadata_filters='[["number","3"]]') == ["row-3"]
    assert await walk(api, metadata_filters='[["even","true"]]', limit="4") == [f"row-{n}" for n in range(30, 0, -2)]


@pytest.mark.parametrize("matches_max", [2, 5_000])
async def test_metadata_is_found_month_by_month(api: Api, monkeypatch: pytest.MonkeyPatch, matches_max: int) -> None:
    """Few matches of a month are sorted, many are met in its order; months without any are passed over."""
    monkeypatch.setattr("gateway.api.searching.RECENT_ROWS", 1)
    monkeypatch.setattr("gateway.api.searching.MATCHES_MAX", matches_max)
    await rows(api, 60)
    async with api.store.connection() as db:
        await db.execute(
            "UPDATE requests SET created_at = CASE WHEN (metadata->>'number')::integer < 30"
            " THEN timestamptz '2024-02-28' ELSE timestamptz '2025-12-30' END"
            " + (metadata->>'number')::integer / 3 * interval '1 day'"
        )
    found = await walk(api, metadata_filters='[["even","true"]]', limit="7")
    placed = sorted(((n // 3 + (10_000 if n >= 30 else 0), f"row-{n}") for n in range(2, 61, 2)), reverse=True)
    assert found == [name for _, name in placed]
    assert await walk(api, metadata_filters='[["even","true"],["number","6"]]') == ["row-6"]


async def test_others_requests_are_not_found_and_not_listed(api: Api) -> None:
    stranger = await api.accounts.create_merchant("acc_2", "live", "Other")
    await rows(api, 3)
    assert (await api.call("GET", "/v1/requests/row-1")).status == 200
    assert (await api.call("GET", "/v1/requests/row-1", key=stranger.secret_key)).status == 404
    assert (await api.call("GET", "/v1/requests", key=stranger.secret_key)).body == {"data": [], "has_more": False}
    hidden = await api.call("GET", "/v1/requests", key=stranger.secret_key, customer_id="user-1")
    assert hidden.status == 404


async def test_a_request_is_readable_at_once(api: Api) -> None:
    """The read waits for the flusher, which comes a little later."""
    reported = await api.report("r-1", input_tokens=7)

    async def flush_later() -> None:
        await asyncio.sleep(0.15)
        await api.flush()

    read, _ = await asyncio.gather(api.call("GET", "/v1/requests/r-1"), flush_later())
    assert (read.status, read.body) == (200, reported.body)


async def test_an_unknown_id_is_404_without_waiting_where_all_is_flushed(api: Api) -> None:
    await api.report("r-1", input_tokens=7)
    await api.flush()
    began = time.monotonic()
    assert (await api.call("GET", "/v1/requests/none")).status == 404
    assert time.monotonic() - began < 0.5


async def test_the_wait_for_a_flusher_that_does_not_come_ends(api: Api) -> None:
    await api.report("r-1", input_tokens=7)
    began = time.monotonic()
    assert (await api.call("GET", "/v1/requests/none")).status == 404
    assert 1.4 < time.monotonic() - began < 3


async def test_a_request_of_a_deleted_meter_is_shown_as_before(api: Api) -> None:
    before = await api.report("r-1", input_tokens=7)
    await api.flush()
    meter_id = api.meter.meter_id
    await api.call("PATCH", f"/v1/meters/{meter_id}", {"tiers": [{"start": 0, "rate": "99"}]})
    api.context.meter_versions._kept.clear()
    assert (await api.call("GET", "/v1/requests/r-1")).body == before.body
    await api.call("DELETE", f"/v1/meters/{meter_id}")
    api.context.meter_versions._kept.clear()
    assert (await api.call("GET", "/v1/requests/r-1")).body == before.body
    assert await walk(api, meter_id=meter_id) == ["r-1"]


async def test_a_row_without_a_meter(api: Api) -> None:
    await rows(api, 1)
    shown = (await api.call("GET", "/v1/requests/row-1")).body
    assert shown["fee"] == {
        "amount": "0.0000000000",
        "rate_type": "fixed",
        "token_basis": "input+output",
        "breakdown": [],
    }
    assert shown["charge"] == {"amount": "0.0000000000", "rate_type": "fixed", "breakdown": []}


MONTH = datetime(2026, 1, 1, tzinfo=UTC)
_MORE = {"page_of_recent": [20_000], "few_of_month": [MONTH, 5_001], "many_of_month": [MONTH]}
_MODES = {"few_of_month": searching._BY_INDEX, "many_of_month": searching._IN_ORDER}


@pytest.mark.parametrize(
    ("filters", "name"),
    [
        (Filters(), "page"),
        (Filters(connection_id="con_x"), "page"),
        (Filters(connection_id="con_none"), "page"),
        (Filters(meter_id="prd_none"), "page"),
        (Filters(connection_id="con_x", metadata=(("even", "true"),)), "page_of_recent"),
        (Filters(metadata=(("number", "17"),)), "few_of_month"),
        (Filters(metadata=(("even", "true"),)), "few_of_month"),
        (Filters(metadata=(("even", "true"),)), "many_of_month"),
    ],
)
async def test_no_list_reads_the_table(api: Api, filters: Filters, name: str) -> None:
    """Every plan reaches its rows by an index. With few rows a scan is cheaper, so there are some thousand."""
    await rows(api, 20_000)
    arguments = [api.merchant.merchant_id, *NEWEST, 11, *_MORE.get(name, ())]
    sql, arguments = filters.apply(api.store.sql(f"requests.{name}"), arguments)
    async with api.store.planned() as db:
        await db.execute("ANALYZE requests")
        await db.execute(_MODES.get(name, "SELECT 1"))
        plan = "\n".join(row[0] for row in await db.fetch("EXPLAIN " + sql, *arguments))
    assert "Seq Scan on requests" not in plan, plan
    assert ("Sort" in plan) == (name == "few_of_month"), plan
    assert "Index" in plan


async def test_a_deep_page_costs_as_little_as_the_first(api: Api) -> None:
    await rows(api, 20_000)
    first = (await api.call("GET", "/v1/requests", limit="100")).body
    async with api.store.connection() as db:
        await db.execute("ANALYZE requests")
        sql, arguments = Filters().apply(
            api.store.sql("requests.page"), [api.merchant.merchant_id, *NEWEST._replace(id="x"), 11]
        )
        plan = "\n".join(row[0] for row in await db.fetch("EXPLAIN (ANALYZE, BUFFERS OFF) " + sql, *arguments))
    assert "Sort" not in plan, plan
    assert len(first["data"]) == 100
