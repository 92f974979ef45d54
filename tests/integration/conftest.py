"""A whole gateway in the test's own loop: real Valkey, real PostgreSQL, the fake provider behind every origin."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio
import redis.asyncio
from running import RunningGateway, running_gateway
from subscribers import Shop, shop

from gateway.local.postgres import Postgres
from gateway.testing import FakeProvider


@pytest_asyncio.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with FakeProvider() as running:
        yield running


@pytest_asyncio.fixture
async def gateway(
    valkey: str, redis_client: redis.asyncio.Redis, postgres: str, provider: FakeProvider
) -> AsyncIterator[RunningGateway]:
    async with running_gateway(valkey, postgres, provider) as running:
        yield running


@pytest_asyncio.fixture
async def market(valkey: str, redis_client: redis.asyncio.Redis, postgres: str) -> AsyncIterator[Shop]:
    async with shop(valkey, postgres) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engines(valkey: str, postgres_server: Postgres) -> AsyncIterator[tuple[str, str]]:
    """An empty Valkey and a database of this module's own: the URLs that `running_gateway` takes.

    A gateway needs about a second to start, so a module whose tests have a customer each shares one.
    """
    async with redis.asyncio.Redis.from_url(valkey) as client:
        await client.flushall()
    name = f"module_{secrets.token_hex(6)}"
    server = await asyncpg.connect(postgres_server.url, timeout=10)
    try:
        await server.execute(f"CREATE DATABASE {name} TEMPLATE migrated STRATEGY file_copy")
        yield valkey, postgres_server.database_url(name)
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await server.close()
