"""The sums by metadata pair are those of the rows, whatever is done to the rows and by whom."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
from api_fixtures import FIXED, Api, api_fixture  # noqa: F401
from worker_support import installation

from gateway.ledger.wallets import now_ms
from gateway.store import migrate
from gateway.store.postgres import Store

MIGRATION = Path(migrate.__file__).with_name("migrations") / "0014_usage_by_pair.sql"
FIRST = datetime(2026, 3, 1, tzinfo=UTC)
VALUES_MAX, PAIRS_MAX = 1_000, 20_000

_ROWS = """
INSERT INTO requests (merchant_id, request_id, created_at, connection_id, wallet_id, meter_id, billing_mode, provider,
    provider_key_type, endpoint, status, ending, usage, cost_nano, fee_nano, charge_nano, metadata)
SELECT merchant_id, request_id, created_at, connection_id, 'wal', meter_id, 'report', 'other', 'managed', '',
    'completed', 'completed', usage, cost_nano, fee_nano, charge_nano, metadata
FROM jsonb_populate_recordset(NULL::requests, $1)
"""
_EXPECTED = """
SELECT merchant_id, key, value #>> '{}' AS value, meter, date_trunc('hour', created_at, 'UTC') AS hour,
       count(*) AS requests,
       sum(coalesce((usage->>'input_tokens')::bigint, 0) + coalesce((usage->>'output_tokens')::bigint, 0)) AS tokens,
       sum(cost_nano) AS cost_nano, sum(fee_nano) AS fee_nano, sum(charge_nano) AS charge_nano
FROM (SELECT *, CASE WHEN jsonb_typeof(metadata) = 'object' THEN metadata ELSE '{}' END AS pairs FROM requests) r,
     jsonb_each(r.pairs), unnest(ARRAY[coalesce(meter_id, ''), '*']) meter
WHERE jsonb_typeof(value) = 'string' AND length(value #>> '{}') <= 255
GROUP BY 1, 2, 3, 4, 5
"""
_FOUND = """
SELECT merchant_id, key, value, meter_id AS meter, hour, requests, tokens, cost_nano, fee_nano, charge_nano
FROM usage_by_pair JOIN metadata_pairs USING (pair_id)
WHERE (requests, tokens, cost_nano, fee_nano, charge_nano) <> (0, 0, 0, 0, 0)
"""


def request(number: int, metadata: Any, **changes: Any) -> dict[str, Any]:
    rng = random.Random(number)
    return {
        "merchant_id": "mer_1",
        "request_id": f"r{number}",
        "created_at": (FIRST + timedelta(seconds=rng.randrange(4 * 3_600))).isoformat(),
        "connection_id": rng.choice(["con_a", "con_b", None]),
        "meter_id": rng.choice(["prd_a", "prd_b", None]),
        "usage": rng.choice([{"input_tokens": number, "output_tokens": 3}, {"input_tokens": 5}, {}]),
        "cost_nano": rng.randrange(100),
        "fee_nano": rng.randrange(100),
        "charge_nano": rng.randrange(100),
        "metadata": metadata,
    } | changes


def any_metadata(rng: random.Random) -> Any:
    odd = [{}, {"a": "x"}, {"a": 1, "b": None, "c": {"a": "x"}, "d": ["x"]}, ["a", "x"], "a", {"a": "v" * 3_000}]
    drawn = {key: rng.choice(["x", "y", "", "1", 'q"\\', "\u00fc" * 255]) for key in "abc" if rng.random() < 0.7}
    return rng.choice([*odd, drawn, drawn, drawn])


async def differences(db: asyncpg.Connection) -> list[Any]:
    """Sums that the rows do not give, and the other way round: merchant, key, value, meter, hour and sums."""
    expected, found = [Counter(map(tuple, await db.fetch(sql))) for sql in (_EXPECTED, _FOUND)]
    return [*(expected - found), *(found - expected)]


async def test_the_sums_follow_the_rows(postgres: str) -> None:
    """Inserts of all kinds of metadata, changes of whatever a sum depends on, deletions."""
    rng = random.Random(7)
    store = await Store.connect(postgres, pool_max=1)
    async with store.connection() as db:
        for batch in range(6):
            rows = [
                request(n, any_metadata(rng), merchant_id=rng.choice(["mer_1", "mer_2"]))
                for n in range(batch * 40, batch * 40 + 40)
            ]
            await db.execute(_ROWS, rows)
        assert await db.fetchval("SELECT count(*) FROM usage_by_pair") > 100
        assert await differences(db) == []
        for change in (
            "charge_nano = charge_nano + 5, usage = '{\"input_tokens\": 9}'",
            "created_at = created_at + interval '31 days'",
            'metadata = \'{"a": "x", "z": "new"}\', meter_id = \'prd_c\'',
            "metadata = '{}'",
        ):
            await db.execute(f"UPDATE requests SET {change} WHERE request_id LIKE $1", f"%{rng.randrange(10)}")
            assert await differences(db) == [], change
        await db.execute("DELETE FROM requests WHERE request_id LIKE '%3' OR request_id LIKE '%4'")
        assert await differences(db) == []
    await store.close()


async def test_a_pair_that_is_not_summed_from_its_first_row_on_never_is(postgres: str) -> None:
    """Values and pairs are limited; a limit is used to the full, so that nothing comes in later."""
    store = await Store.connect(postgres, pool_max=1)
    async with store.connection() as db:
        kept = "SELECT count(*) FROM metadata_pairs WHERE key = $1"
        for first in (0, 400, 800):
            rows = [request(n, {"trace": f"t{n}", "team": f"team{n % 3}"}) for n in range(first, first + 400)]
            await db.execute(_ROWS, rows)
        assert (await db.fetchval(kept, "trace"), await db.fetchval(kept, "team")) == (VALUES_MAX, 3)
        assert [row for row in await differences(db) if row[1] != "trace"] == []
        await db.execute(
            "INSERT INTO metadata_pairs (merchant_id, key, value)"
            " SELECT 'mer_1', 'k' || n % 50, n FROM generate_series(1, $1 - 5 - "
            "(SELECT count(*) FROM metadata_pairs)) n",
            PAIRS_MAX,
        )
        for n in range(2):
            await db.execute(_ROWS, [request(5_000 + n, {f"many{k}": "x" for k in range(10)} | {"team": f"new{n}"})])
            assert await db.fetchval("SELECT count(*) FROM metadata_pairs") == PAIRS_MAX
        known = {tuple(row) for row in await db.fetch("SELECT key, value FROM metadata_pairs")}
        assert [row for row in await differences(db) if row[1:3] in known] == []
        await db.execute(_ROWS, [request(7_000, {"team": "x"}, merchant_id="mer_2")])
        assert await db.fetchval("SELECT count(*) FROM metadata_pairs") == PAIRS_MAX + 1
    await store.close()


async def test_flushers_side_by_side_and_late_settlements(valkey: str, redis_client: Any, postgres: str) -> None:
    async with installation(valkey, postgres) as obol:
        refs = [await obol.wallet(f"wal_{shard}", shard) for shard in range(4)]
        for ref in refs:
            await obol.hold(ref, f"late-{ref.shard}", expires_ms=now_ms() - 1)
            await obol.wallets.expire(ref, f"late-{ref.shard}", now_ms())
        await obol.flush()
        for number in range(60):
            await obol.report(refs[number % 4], f"r{number}", metadata={"team": "x", "trace": f"t{number}"})
        for ref in refs:
            await obol.settle(ref, f"late-{ref.shard}", metadata={"team": "x"})
        others = [await Store.connect(postgres, pool_max=4) for _ in range(2)]
        flushers = [obol.flusher(store=store, batch_entries=5) for store in others]
        for _ in range(20):
            await asyncio.gather(*(flusher.flush_once() for flusher in flushers))
        async with obol.store.connection() as db:
            assert await differences(db) == []
            team = "SELECT sum(requests) FROM usage_by_pair JOIN metadata_pairs USING (pair_id) WHERE key = 'team'"
            assert await db.fetchval(f"{team} AND meter_id = '*'") == 64
        for store in others:
            await store.close()


async def test_two_writers_of_a_new_pair_take_turns(postgres: str) -> None:
    store = await Store.connect(postgres, pool_max=2)
    async with store.connection() as first, store.connection() as second:
        async with first.transaction():
            await first.execute(_ROWS, [request(1, {"team": "x"})])
            other = asyncio.ensure_future(second.execute(_ROWS, [request(2, {"team": "x"})]))
            await asyncio.sleep(0.1)
            assert not other.done()
        await other
        assert await differences(first) == []
        assert await first.fetchval("SELECT count(*) FROM metadata_pairs") == 1
    await store.close()


async def totals(api: Api, **query: str) -> Any:
    reply = await api.call("GET", "/v1/usage", **query)
    assert reply.status == 200, reply
    return [reply.body["totals"], *reply.body["items"]]


async def test_a_report_of_sums_is_the_report_of_the_rows(api: Api) -> None:
    """Each filter, in ranges that begin and end within hours and in several zones."""
    rng = random.Random(3)
    customer, meter, merchant = api.customer.connection_id, api.meter.meter_id, api.merchant.merchant_id
    second = (await api.new_meter("second", FIXED)).meter_id
    rows = [
        request(
            n,
            {"env": "p", "team": rng.choice("xy"), "trace": f"t{n}"},
            merchant_id=merchant,
            connection_id=rng.choice([customer, "con_other"]),
            meter_id=rng.choice([meter, second]),
            created_at=(FIRST + timedelta(seconds=rng.randrange(5 * 86_400))).isoformat(),
        )
        for n in range(300)
    ]
    async with api.store.connection() as db:
        await db.execute(_ROWS, rows)
    await api.roll_up()
    scopes: list[dict[str, str]] = [{}, {"meter_id": meter}, {"customer_id": customer}]
    asked = [
        {"start": start, "end": end, "metadata_filters": msgspec.json.encode(pairs).decode(), **scope}
        for pairs in ([["team", "x"]], [["team", "x"], ["team", "x"]], [["env", "p"], ["team", "y"]], [["env", "q"]])
        for scope in scopes
        for start, end in (
            ("2026-03-01T00:17:00+02:00", "2026-03-04T21:41:09+02:00"),
            ("2026-03-02T10:05:00Z", "2026-03-02T10:50:00Z"),
            ("2026-02-28", "2026-03-07"),
        )
    ]
    from_sums = [await totals(api, **each) for each in asked]
    assert from_sums[2][0]["total_requests"] == sum(each["metadata"]["team"] == "x" for each in rows) > 100
    async with api.store.connection() as db:
        await db.execute("UPDATE usage_by_pair SET requests = requests + 1000")
    changed = [each for each, before in zip(asked, from_sums, strict=True) if await totals(api, **each) != before]
    assert {(each["start"], each["metadata_filters"], each.get("meter_id", "")) for each in changed} == {
        (asked[day]["start"], asked[first]["metadata_filters"], which)
        for day in (0, 2)
        for first in (0, 9)
        for which in ("", meter)
    }
    async with api.store.connection() as db:
        await db.execute("DELETE FROM metadata_pairs")
    assert [await totals(api, **each) for each in asked] == from_sums


async def test_what_was_there_before_the_migration_is_read_from_the_rows(api: Api) -> None:
    async with api.store.connection() as db:
        await db.execute("DROP TABLE metadata_pairs, usage_by_pair, usage_by_pair_since")
        await db.execute("DROP FUNCTION usage_by_pair_follow CASCADE")
        await db.execute("DROP FUNCTION metadata_texts, metadata_pairs_admit")
        merchant = api.merchant.merchant_id
        old = [request(n, {"team": "x", "env": "p"}, merchant_id=merchant) for n in range(50)]
        await db.execute(_ROWS, old)
        await db.execute(MIGRATION.read_text())
        new = [
            request(n, {"team": "x"}, merchant_id=merchant, created_at=(FIRST + timedelta(minutes=7 * n)).isoformat())
            for n in range(50, 100)
        ]
        await db.execute(_ROWS, new)
    query = {"start": "2026-03-01", "end": "2026-03-01", "metadata_filters": '[["team","x"]]'}
    assert (await totals(api, **query))[0]["total_requests"] == 100
    query["metadata_filters"] = '[["env","p"]]'
    assert (await totals(api, **query))[0]["total_requests"] == 50
    async with api.store.connection() as db:
        await db.execute("DELETE FROM usage_by_pair")
    query["metadata_filters"] = '[["team","x"]]'
    late = max(datetime.fromisoformat(each["created_at"]) for each in old).hour + 1
    summed = sum(datetime.fromisoformat(each["created_at"]).hour >= late for each in new)
    assert (await totals(api, **query))[0]["total_requests"] == 100 - summed < 100
