"""Migrations bring what an older version stored to what this one reads."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest_asyncio

from gateway.core.meter import from_definition
from gateway.core.usage import Usage
from gateway.local.postgres import Postgres
from gateway.store import migrate

MIGRATIONS = Path(migrate.__file__).with_name("migrations")
USAGE = Usage(input_tokens=300, output_tokens=20, input_characters=7, output_characters=5, input_us=11, output_us=2)
METERS = {
    "tokens": {"tier_type": "tokens_1m"},
    "output": {"tier_type": "tokens_1m", "token_basis": "output"},
    "characters": {"tier_type": "characters_1m"},
    "minutes": {"tier_type": "minutes"},
    "requests": {"tier_type": "requests"},
}


@pytest_asyncio.fixture
async def older(postgres_server: Postgres) -> Any:
    """The URL of a database as the version before the third migration left it."""
    name = f"older_{secrets.token_hex(6)}"
    server = await asyncpg.connect(postgres_server.url)
    await server.execute(f"CREATE DATABASE {name}")
    url = postgres_server.database_url(name)
    db = await asyncpg.connect(url)
    await db.execute("CREATE TABLE schema_migrations (name text PRIMARY KEY, applied_at timestamptz DEFAULT now())")
    for path in sorted(MIGRATIONS.glob("000[12]_*.sql")):
        await db.execute(path.read_text())
        await db.execute("INSERT INTO schema_migrations (name) VALUES ($1)", path.stem)
    yield url, db
    await db.close()
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


async def test_tier_counters_and_journal_numbers_are_filled_in(older: tuple[str, asyncpg.Connection]) -> None:
    url, db = older
    await db.execute("INSERT INTO merchants (merchant_id, account_id, mode, name) VALUES ('mer_1', 'acc', 'test', 'T')")
    await db.execute("INSERT INTO journal_cursors (shard, last_id) VALUES (0, 40), (1, 7)")
    await db.execute(
        "INSERT INTO wallets (wallet_id, merchant_id, shard, last_seq) "
        "VALUES ('used', 'mer_1', 1, 3), ('idle', 'mer_1', 0, 0)"
    )
    expected = {}
    for name, definition in METERS.items():
        tiers = {"tiers": [{"start": 0, "rate": "1"}, {"start": 1, "rate": "1"}]}
        meter = from_definition(name, 1, definition | tiers)
        stored = msgspec.json.encode(meter.definition()).decode()
        await db.execute(
            "INSERT INTO meters (meter_id, merchant_id, meter_slug, secret_hash, name, version, definition) "
            "VALUES ($1, 'mer_1', $1, $2, $1, 1, $3)",
            name,
            name.encode(),
            stored,
        )
        await db.execute("INSERT INTO meter_versions (meter_id, version, definition) VALUES ($1, 1, $2)", name, stored)
        rows = [(5_000, "customer", "completed"), (0, "report", "completed"), (9_000, "customer", "provider_error")]
        for number, (position, mode, ending) in enumerate(rows):
            await db.execute(
                "INSERT INTO requests (merchant_id, request_id, created_at, wallet_id, meter_id, meter_version, "
                "billing_mode, provider, provider_key_type, endpoint, status, ending, usage, tier_position) VALUES "
                "('mer_1', $1, now(), 'used', $2, 1, $3, 'openai', 'managed', '', 'completed', $4, $5, $6)",
                f"{name}-{number}",
                name,
                mode,
                ending,
                msgspec.json.encode(USAGE).decode(),
                position,
            )
        expected[name] = 5_000 + meter.units(USAGE)

    assert "0003_continuity" in await migrate.run(url)
    found = await db.fetch("SELECT meter_id, units FROM wallet_meters WHERE wallet_id = 'used'")
    assert {row["meter_id"]: row["units"] for row in found} == expected
    numbers = await db.fetch("SELECT wallet_id, last_number FROM wallets")
    assert {row["wallet_id"]: row["last_number"] for row in numbers} == {"used": 7, "idle": 0}
    assert await migrate.run(url) == []


async def test_a_subscription_of_before_cycles_keeps_its_overage(older: tuple[str, asyncpg.Connection]) -> None:
    """Also one that the version before writes beside the new one."""
    url, db = older

    async def subscribe(name: str, limit_nano: int) -> None:
        await db.execute("INSERT INTO wallets (wallet_id, merchant_id, shard) VALUES ($1, 'mer_1', 0)", name)
        await db.execute(
            "INSERT INTO connections (connection_id, merchant_id, wallet_id, secret_hash, overage_limit_nano) "
            "VALUES ($1, 'mer_1', $1, $2, $3)",
            name,
            name.encode(),
            limit_nano,
        )
        await db.execute(
            "INSERT INTO subscriptions "
            "(subscription_id, connection_id, plan_id, started_at, cycle_start_at, cycle_end_at) "
            "VALUES ($1, $1, 'plan', now(), now(), now() + interval '1 month')",
            name,
        )

    await db.execute("INSERT INTO merchants (merchant_id, account_id, mode, name) VALUES ('mer_1', 'acc', 'test', 'T')")
    await db.execute(
        "INSERT INTO plans (plan_id, merchant_id, name, period_amount_nano, included_credit_nano, overage) "
        "VALUES ('plan', 'mer_1', 'P', 1, 1, 'charge')"
    )
    await subscribe("paying", 5)
    await subscribe("blocked", 0)
    assert "0011_turns" in await migrate.run(url)
    await subscribe("behind", 5)
    rows = await db.fetch("SELECT subscription_id, merchant_id, anchor_at = started_at, can_charge FROM subscriptions")
    assert {tuple(row) for row in rows} == {
        ("paying", "mer_1", True, True),
        ("blocked", "mer_1", True, False),
        ("behind", "mer_1", True, True),
    }


async def test_turns_are_migrated_beside_a_batch_of_cycles(older: tuple[str, asyncpg.Connection]) -> None:
    """The batch has rows of the subscriptions and will write them: neither waits for the other in a circle."""
    url, db = older
    for path in sorted(MIGRATIONS.glob("*.sql")):
        if "0002" < path.stem[:4] < "0011":
            await db.execute(path.read_text())
            await db.execute("INSERT INTO schema_migrations (name) VALUES ($1)", path.stem)
    await db.execute("INSERT INTO merchants (merchant_id, account_id, mode, name) VALUES ('mer_1', 'acc', 'test', 'T')")
    await db.execute("INSERT INTO wallets (wallet_id, merchant_id, shard) VALUES ('w', 'mer_1', 0)")
    await db.execute(
        "INSERT INTO connections (connection_id, merchant_id, wallet_id, secret_hash) VALUES ('c', 'mer_1', 'w', 'x')"
    )
    await db.execute(
        "INSERT INTO plans (plan_id, merchant_id, name, period_amount_nano, included_credit_nano, overage) "
        "VALUES ('plan', 'mer_1', 'P', 1, 1, 'charge')"
    )
    await db.execute(
        "INSERT INTO subscriptions (subscription_id, connection_id, plan_id, started_at, cycle_start_at, cycle_end_at) "
        "VALUES ('s', 'c', 'plan', now(), now(), now())"
    )
    async with asyncio.timeout(20):
        async with db.transaction():
            await db.execute("SELECT FROM subscriptions FOR NO KEY UPDATE")
            migrated = asyncio.ensure_future(migrate.run(url))
            while not await db.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
            await db.execute("UPDATE subscriptions SET turns = 7")
        assert "0011_turns" in await migrated
    assert await db.fetchval("SELECT merchant_id || turns FROM subscriptions") == "mer_17"
