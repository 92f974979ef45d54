"""How long lists and reports take over millions of rows, and which plan the database chose.

    python -m loadtests.listing [--rows 5000000] [--data-dir DIR] [--rounds 40]

An embedded PostgreSQL is filled by itself (minutes for 5 million rows; a --data-dir is used again), then the API
is asked over HTTP, in this process. Rows are spread over 1,000 customers, of which a few have most, 20 meters and the
12 months before now. Metadata has what every row has, what one in ten has, one in a hundred, one, and `release`, which
changes every month, so that most of its values are old.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import aiohttp
import asyncpg
import uvloop
from aiohttp import web

from gateway.api import paging
from gateway.app import application, assemble
from gateway.billing.accounts import Accounts, NewMerchant
from gateway.local.engines import running
from gateway.local.postgres import Postgres
from gateway.local.valkey import Valkey
from gateway.settings import Settings
from gateway.store import migrate, partitions
from gateway.store.postgres import Store
from gateway.store.secrets import Derived

CUSTOMERS, METERS, MONTHS = 1_000, 20, 12
CHUNK_ROWS = 100_000
TARGET_MS = 300
MASTER_KEY = "listing" * 8
_PARTITION = re.compile(r"_\d{4}_\d\d|_default")

Query = Callable[[random.Random], str]

_ROWS = """
INSERT INTO requests (merchant_id, request_id, created_at, connection_id, wallet_id, meter_id, meter_version,
    billing_mode, provider, provider_key_type, model, endpoint, status, ending, http_status, usage, cost_nano, fee_nano,
    charge_nano, metadata, duration_us)
SELECT $1, 'req_' || lpad(n::text, 12, '0'), at, 'con_' || customer, 'wal_' || customer, 'prd_' || meter, 1,
    'customer', 'openai', 'managed', 'gpt-4o-mini', 'POST https://api.openai.com/v1/chat/completions', 'completed',
    'completed', 200, jsonb_build_object('input_tokens', tokens, 'output_tokens', tokens / 3), tokens * 150,
    tokens * 2000, tokens * 2000,
    jsonb_build_object('env', 'production', 'team', 'team-' || n % 10, 'feature', 'f-' || (n / 7) % 100,
        'trace', 'trace-' || n, 'release', to_char(at, 'YYYY-MM')),
    900000
FROM (
    SELECT n, $4::timestamptz + (n + random() * 1000) / ($6::bigint + 1000) * ($5::timestamptz - $4::timestamptz) AS at,
           floor(1000 * power(random(), 3))::integer AS customer, floor(random() * 20)::integer AS meter,
           100 + floor(random() * 4000)::bigint AS tokens
    FROM generate_series($2::bigint, $3::bigint) n
) made
"""
_HOURS = """
INSERT INTO usage_hourly
SELECT merchant_id, date_trunc('hour', created_at, 'UTC'), connection_id, meter_id, count(*),
       sum((usage->>'input_tokens')::bigint + (usage->>'output_tokens')::bigint), sum(cost_nano), sum(fee_nano),
       sum(charge_nano)
FROM requests WHERE merchant_id = $1 GROUP BY 1, 2, 3, 4 ORDER BY 2
"""
_NAMES = """
INSERT INTO wallets (wallet_id, merchant_id, shard) SELECT 'wal_' || n, $1, 0 FROM generate_series(0, 999) n;
INSERT INTO connections (connection_id, merchant_id, wallet_id, secret_hash)
SELECT 'con_' || n, $1, 'wal_' || n, sha256(('c' || n)::bytea) FROM generate_series(0, 999) n;
INSERT INTO meters (meter_id, merchant_id, meter_slug, secret_hash, name, version, definition)
SELECT 'prd_' || n, $1, 'slug-' || n, sha256(('m' || n)::bytea), 'Meter ' || n, 1, $2 FROM generate_series(0, 19) n;
INSERT INTO meter_versions (meter_id, version, definition)
SELECT meter_id, 1, definition FROM meters WHERE merchant_id = $1 AND meter_slug LIKE 'slug-%';
"""
_METER = {"rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": 0, "rate": "2"}]}


class Case(NamedTuple):
    """One kind of call. `query` gives a path and query, other ones each time."""

    name: str
    query: Query


class Result(NamedTuple):
    """Milliseconds, and the plans of the statements that the slowest call made."""

    case: Case
    p50: float
    p95: float
    most: float
    plans: list[str]


def cases(now: datetime) -> list[Case]:
    def listing(**fields: Any) -> Query:
        return lambda rng: f"/v1/requests?{urlencode(_drawn(fields, rng))}"

    def usage(days: int, **fields: Any) -> Query:
        start = (now - timedelta(days=days)).date().isoformat()
        return lambda rng: f"/v1/usage?{urlencode(_drawn({'start': start, **fields}, rng))}"

    def customer(rng: random.Random) -> str:
        return f"con_{int(CUSTOMERS * rng.random() ** 3)}"

    def meter(rng: random.Random) -> str:
        return f"prd_{rng.randrange(METERS)}"

    def pair(key: str, value: Callable[[random.Random], str]) -> Callable[[random.Random], str]:
        return lambda rng: json.dumps([[key, value(rng)]])

    def deep(rng: random.Random) -> str:
        place = paging.Place(now - timedelta(days=rng.uniform(30, 330)), "x")
        return str(paging.page([place, place], paging.Window(place, 1), lambda at: at, str).next_cursor)

    every = pair("env", lambda _: "production")
    common = pair("team", lambda rng: f"team-{rng.randrange(10)}")
    uncommon = pair("feature", lambda rng: f"f-{rng.randrange(100)}")
    rare = pair("trace", lambda rng: f"trace-{rng.randrange(1_000_000)}")
    none = pair("trace", lambda rng: f"none-{rng.randrange(1_000_000)}")
    old = pair("release", lambda rng: (now - timedelta(days=30 * rng.randrange(4, 12))).strftime("%Y-%m"))

    def both(rng: random.Random) -> str:
        return json.dumps(json.loads(common(rng)) + json.loads(uncommon(rng)))

    filters: list[tuple[str, dict[str, Any]]] = [
        ("no filter", {}),
        ("customer", {"customer_id": customer}),
        ("meter", {"meter_id": meter}),
        ("customer and meter", {"customer_id": customer, "meter_id": meter}),
        ("metadata, every row", {"metadata_filters": every}),
        ("metadata, 1 in 10", {"metadata_filters": common}),
        ("metadata, 1 in 100", {"metadata_filters": uncommon}),
        ("metadata, one row", {"metadata_filters": rare}),
        ("metadata, no row", {"metadata_filters": none}),
        ("metadata, old month only", {"metadata_filters": old}),
        ("metadata, 1 in 10 and 1 in 100", {"metadata_filters": both}),
        ("customer, metadata 1 in 10", {"customer_id": customer, "metadata_filters": common}),
        ("customer, metadata 1 in 100", {"customer_id": customer, "metadata_filters": uncommon}),
        ("meter, metadata 1 in 10", {"meter_id": meter, "metadata_filters": common}),
        ("meter, metadata one row", {"meter_id": meter, "metadata_filters": rare}),
    ]
    lists = [Case(f"list: {name}", listing(**fields)) for name, fields in filters]
    deeper = [Case(f"list, deep cursor: {name}", listing(cursor=deep, **fields)) for name, fields in filters]
    full = [Case("list: 100 a page", listing(limit=100))]
    reports = [
        Case(f"usage, {days} days: {name}", usage(days, **fields)) for days in (30, 365) for name, fields in filters
    ]
    return [*lists, *full, *deeper, *reports]


def _drawn(fields: dict[str, Any], rng: random.Random) -> dict[str, str]:
    return {name: str(value(rng) if callable(value) else value) for name, value in fields.items()}


async def fill(settings: Settings, rows: int, now: datetime) -> NewMerchant:
    """A merchant whose requests are these."""
    await migrate.run(settings.postgres_url)
    store = await Store.connect(settings.postgres_url, pool_max=2)
    async with assemble(settings) as (_, context, _):
        accounts = Accounts(store, context.wallets, Derived(MASTER_KEY), shards=settings.ledger_shards)
        merchant = await accounts.create_merchant("listing", "live", "Listing")
    start = now - timedelta(days=365)
    for month in range(MONTHS + 1):
        await partitions.ensure(store, start + timedelta(days=30.4 * month))
    connection = await asyncpg.connect(settings.postgres_url, command_timeout=7_200)
    try:
        await connection.execute("SET synchronous_commit = off")
        await connection.execute("SET maintenance_work_mem = '512MB'")
        for statement in filter(None, map(str.strip, _NAMES.split(";"))):
            given = [merchant.merchant_id, json.dumps(_METER)]
            await connection.execute(statement, *given[: 1 + ("$2" in statement)])
        for first in range(0, rows, CHUNK_ROWS):
            last = min(first + CHUNK_ROWS, rows) - 1
            await connection.execute(_ROWS, merchant.merchant_id, first, last, start, now, rows)
            say(f"{last + 1:,} rows")
        await connection.execute(_HOURS, merchant.merchant_id)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
        await store.close()
    return merchant


class Watched:
    """The statements that the API's store makes while it is watched."""

    def __init__(self, store: Store) -> None:
        self.seen: list[Any] = []
        self._connection = store.connection
        store.connection = self.connection  # type: ignore[method-assign]

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._connection() as connection:
            with connection.query_logger(self.seen.append):
                yield connection

    async def plans(self) -> list[str]:
        """Of each statement seen that reads requests or usage, the scans of its plan, as it was planned there."""
        found = []
        async with self._connection() as connection, connection.transaction():
            for query in self.seen:
                if query.query.startswith("SET LOCAL"):
                    await connection.execute(query.query)
                elif "FROM requests" in query.query or "FROM usage" in query.query:
                    plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query.query}", *query.args)
                    found.append(" < ".join(dict.fromkeys(_nodes(json.loads(plan)[0]["Plan"]))))
        return list(dict.fromkeys(found))


def _nodes(plan: dict[str, Any]) -> Iterator[str]:
    """Node types from the top, each once; scans with their index, whatever the partition."""
    name = str(plan["Node Type"])
    if index := plan.get("Index Name"):
        name += f" {_PARTITION.sub('', index)}"
    yield name
    for each in plan.get("Plans", ()):
        yield from _nodes(each)


async def measure(url: str, key: str, watched: Watched, case: Case, rounds: int) -> Result:
    rng, took = random.Random(case.name), []
    plans: list[str] = []
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        for _ in range(rounds):
            path = case.query(rng)
            watched.seen.clear()
            began = time.perf_counter()
            async with session.get(url + path) as response:
                body = await response.read()
                assert response.status == 200, (path, body)
            took.append((time.perf_counter() - began) * 1000)
            if took[-1] == max(took):
                plans = await watched.plans()
    ordered = sorted(took)
    return Result(case, ordered[rounds // 2], ordered[(rounds * 95 + 99) // 100 - 1], ordered[-1], plans)


async def listen(settings: Settings, key: str, rounds: int, only: str, now: datetime) -> list[Result]:
    results = []
    async with assemble(settings) as (_, context, probes):
        runner = web.AppRunner(application(context, probes))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        watched, url = Watched(context.store), f"http://127.0.0.1:{runner.addresses[0][1]}"
        for case in cases(now):
            if only in case.name:
                results.append(await measure(url, key, watched, case, rounds))
                say(row(results[-1]))
        await runner.cleanup()
    return results


def row(result: Result) -> str:
    mark = "" if result.p95 < TARGET_MS else "  OVER"
    figures = f"{result.p50:8.1f} {result.p95:8.1f} {result.most:8.1f}"
    return f"{result.case.name:48}{figures}{mark}\n" + "\n".join(f"        {plan}" for plan in result.plans)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@contextmanager
def engines(directory: Path) -> Iterator[Settings]:
    postgres, valkey = Postgres(directory), Valkey(directory, appendfsync="no")
    with ExitStack() as stack:
        stack.enter_context(running(postgres, directory / "postgres.log"))
        stack.enter_context(running(valkey, directory / "valkey.log"))
        yield Settings(redis_url=valkey.url, postgres_url=postgres.url, master_key=MASTER_KEY, ledger_shards=1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.listing", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--data-dir", type=Path, help="keep the data here, and use it if it is there already")
    parser.add_argument("--only", default="", help="measure the cases whose name has this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory: Path = arguments.data_dir or Path(temporary)
        directory.mkdir(mode=0o711, exist_ok=True)
        directory.chmod(0o711)
        note = directory / "listing.json"
        with engines(directory) as settings:
            if note.exists():
                known = json.loads(note.read_text())
                uvloop.run(_migrate(settings))
            else:
                now = datetime.now(UTC)
                made = uvloop.run(fill(settings, arguments.rows, now))
                known = {"key": made.secret_key, "rows": arguments.rows, "now": now.isoformat()}
                note.write_text(json.dumps(known))
            load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
            say(f"{known['rows']:,} rows, {arguments.rounds} calls each; load of the machine {load}")
            say(f"{'milliseconds':48}{'p50':>8} {'p95':>8} {'most':>8}")
            now = datetime.fromisoformat(known["now"])
            results = asyncio.run(listen(settings, known["key"], arguments.rounds, arguments.only, now))
        if arguments.data_dir is None:
            Postgres(directory).remove()
    over = [result.case.name for result in results if result.p95 >= TARGET_MS]
    say(f"{len(results) - len(over)} of {len(results)} below {TARGET_MS} ms at p95" + "".join(f"\n  {n}" for n in over))
    return 1 if over else 0


async def _migrate(settings: Settings) -> None:
    await migrate.run(settings.postgres_url)


if __name__ == "__main__":
    sys.exit(main())
