"""The REST API on a real Valkey and PostgreSQL, with a merchant and a customer to work with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgspec
import pytest_asyncio
import redis.asyncio
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.api.context import ApiContext
from gateway.api.routes import middlewares, routes
from gateway.billing.accounts import Accounts, NewConnection, NewMerchant, NewMeter
from gateway.billing.principals import Principals
from gateway.billing.spend_keys import SpendCounters
from gateway.ledger import scripts
from gateway.ledger.bound import JournalBound
from gateway.ledger.connection import Connection
from gateway.ledger.journal import Journal
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Recovery
from gateway.ledger.wallets import Balance, Wallets
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.sealed import Sealed
from gateway.store.secrets import Derived
from gateway.worker.flusher import Flusher

SHARDS = 4
FIXED = {"rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": 0, "rate": "2"}]}


class Reply(msgspec.Struct, frozen=True):
    """A JSON answer."""

    status: int
    body: Any
    headers: Any


class Api:
    """A client of the API, and the parts behind it."""

    def __init__(self, connection: Connection, store: Store, redis_client: redis.asyncio.Redis) -> None:
        self.settings = Settings(ledger_shards=SHARDS)
        self.connection, self.store, self.redis = connection, store, redis_client
        self.wallets = Wallets(connection, Keys(), record_ttl_s=60, report_ttl_s=600)
        self.journal = Journal(connection, Keys())
        self.derived = Derived("m" * 32)
        self.announced: list[str] = []
        self.accounts = Accounts(store, self.wallets, self.derived, shards=SHARDS)
        self.flusher = Flusher(store, self.journal, shards=SHARDS, batch_entries=1_000)
        self.journals = JournalBound(self.journal, shards=self.settings.ledger_shards, entries_max=1_000_000)
        sealed = Sealed("m" * 32)
        self.principals = Principals(store, self._announce, sealed=sealed)
        self.context = ApiContext(
            store,
            self.wallets,
            self.journal,
            self.principals,
            self.settings,
            self.derived,
            self.journals,
            spend_counters=SpendCounters(store, self.journal, Recovery(connection, Keys())),
            sealed=sealed,
            provider_names=("openai", "anthropic"),
        )
        app = web.Application(middlewares=middlewares())
        app.add_routes(routes(self.context))
        self.client = TestClient(TestServer(app))
        self.merchant: NewMerchant
        self.customer: NewConnection
        self.meter: NewMeter

    async def _announce(self, merchant_id: str) -> None:
        self.announced.append(merchant_id)

    async def prepare(self) -> None:
        await self.client.start_server()
        self.merchant = await self.accounts.create_merchant("acc_1", "live", "Shop")
        self.customer = await self.new_customer("user-1")
        self.meter = await self.new_meter("tokens", FIXED)

    async def new_customer(self, reference_id: str, merchant: NewMerchant | None = None) -> NewConnection:
        owner = merchant or self.merchant
        return await self.accounts.create_customer(
            owner.merchant_id, "live", limit_nano=10**12, reference_id=reference_id, contact={"email": "a@example.com"}
        )

    async def new_meter(self, slug: str, definition: dict[str, Any]) -> NewMeter:
        return await self.accounts.create_meter(self.merchant.merchant_id, "live", slug.title(), slug, definition)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = None,
        raw: bytes | None = None,
        **query: str,
    ) -> Reply:
        """Send a call with the merchant's key (or `key`) and an `application/json` content type, as the SDKs do."""
        headers = {
            "Authorization": f"Bearer {self.merchant.secret_key if key is None else key}",
            "Content-Type": "application/json",
        }
        data = raw if raw is not None else b"" if body is None else msgspec.json.encode(body)
        async with self.client.request(method, path, data=data, headers=headers, params=query) as response:
            assert response.content_type == "application/json"
            return Reply(response.status, msgspec.json.decode(await response.read()), response.headers)

    async def report(self, request_id: str, **fields: Any) -> Reply:
        """Report usage of the customer under the meter; `fields` add to the payload or replace parts of it."""
        payload = {
            "request_id": request_id,
            "connection_secret": self.customer.connection_secret,
            "product_secret": self.meter.meter_secret,
            **fields,
        }
        return await self.call("POST", "/v1/requests", {name: value for name, value in payload.items() if value != ""})

    async def balance(self, customer: NewConnection | None = None) -> Balance:
        balance = (await self.wallets.balances([(customer or self.customer).wallet]))[0]
        assert balance is not None
        return balance

    async def flush(self) -> None:
        while await self.flusher.flush_once():
            pass

    async def forget_in_redis(self, pattern: str) -> None:
        """Let keys run out, as their time to live does."""
        keys = [key async for key in self.redis.scan_iter(pattern)]
        assert keys
        await self.redis.delete(*keys)

    async def backdate(self, request_id: str, created_at: datetime) -> None:
        """Move a flushed request to another time."""
        async with self.store.transaction() as db:
            await db.execute("UPDATE request_index SET created_at = $2 WHERE request_id = $1", request_id, created_at)
            await db.execute("UPDATE requests SET created_at = $2 WHERE request_id = $1", request_id, created_at)
        await self.roll_up()

    async def roll_up(self) -> None:
        """Make the hourly sums anew from the rows."""
        async with self.store.transaction() as db:
            await db.execute("DELETE FROM usage_hourly")
            await db.execute(_ROLL_UP)


_ROLL_UP = """
INSERT INTO usage_hourly
SELECT merchant_id, date_trunc('hour', created_at, 'UTC'), coalesce(connection_id, ''), coalesce(meter_id, ''),
       count(*),
       sum(coalesce((usage->>'input_tokens')::bigint, 0) + coalesce((usage->>'output_tokens')::bigint, 0)),
       sum(cost_nano), sum(fee_nano), sum(charge_nano)
FROM requests GROUP BY 1, 2, 3, 4
"""


@contextlib.asynccontextmanager
async def running_api(valkey: str, postgres: str, client: redis.asyncio.Redis) -> AsyncIterator[Api]:
    connection = Connection(valkey, scripts.load())
    running = asyncio.ensure_future(connection.run())
    await connection.wait_ready(5)
    store = await Store.connect(postgres)
    api = Api(connection, store, client)
    await api.prepare()
    yield api
    await api.client.close()
    await store.close()
    await connection.close()
    await running


@pytest_asyncio.fixture(name="api")
async def api_fixture(valkey: str, redis_client: redis.asyncio.Redis, postgres: str) -> AsyncIterator[Api]:
    async with running_api(valkey, postgres, redis_client) as api:
        yield api
