"""One REST API for all tests of a module, each with its own customers and plans."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
import redis.asyncio
from api_fixtures import Api, running_api


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="api")
async def shared_api(engines: tuple[str, str]) -> AsyncIterator[Api]:
    valkey, postgres = engines
    async with redis.asyncio.Redis.from_url(valkey) as client, running_api(valkey, postgres, client) as api:
        yield api
