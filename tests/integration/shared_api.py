"""One REST API for all tests of a module, each with its own customers and plans."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio
import redis.asyncio
from api_fixtures import Api

from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.store.postgres import Store


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="api")
async def shared_api(engines: tuple[str, str]) -> AsyncIterator[Api]:
    valkey, postgres = engines
    connection = Connection(valkey, scripts.load())
    running = asyncio.ensure_future(connection.run())
    await connection.wait_ready(5)
    store = await Store.connect(postgres)
    async with redis.asyncio.Redis.from_url(valkey) as client:
        api = Api(connection, store, client)
        await api.prepare()
        yield api
        await api.client.close()
    await store.close()
    await connection.close()
    await running
