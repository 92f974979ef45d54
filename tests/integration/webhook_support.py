"""A merchant with webhook endpoints on real engines, a receiver that does what it is told, and workers that deliver."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest_asyncio
import redis.asyncio
from aiohttp import web
from api_fixtures import SHARDS, Api

from gateway.billing import outbox
from gateway.billing.accounts import NewConnection
from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.webhooks.deliverer import Deliverer, delivering


class Received(msgspec.Struct, frozen=True):
    path: str
    headers: dict[str, str]
    """By names in lower case."""
    body: bytes

    @property
    def event(self) -> dict[str, Any]:
        return msgspec.json.decode(self.body)


class Receiver:
    """Answers 200, or what `script` says for the next request: a status, or "hang" or "drop"."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.script: deque[int | str] = deque()
        self.always: int | str = 200
        self.at_once = self.most_at_once = 0
        app = web.Application()
        app.router.add_post("/{path:.*}", self._receive)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        self.port = 0

    async def start(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def events(self, connection_id: str | None = None) -> list[dict[str, Any]]:
        found = [each.event for each in self.received]
        return [each for each in found if connection_id in (None, each["data"]["connection_id"])]

    async def is_answering(self) -> bool:
        return self.at_once > 0

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.path_qs, headers, body))
        told = self.script.popleft() if self.script else self.always
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._answer(request, told)
        finally:
            self.at_once -= 1

    async def _answer(self, request: web.Request, told: int | str) -> web.StreamResponse:
        if told == "hang":
            await asyncio.sleep(60)
        if told == "drop":
            assert request.transport is not None
            request.transport.abort()
        if told == "flood":
            response = web.StreamResponse()
            await response.prepare(request)
            for _ in range(64):
                await response.write(b"x" * 64 * 1024)
            return response
        status = told if isinstance(told, int) else 200
        headers = {"Location": self.url("/elsewhere")} if 300 <= status < 400 else {}
        return web.Response(status=status, headers=headers)


class Shop:
    """The merchant of `Api`, its receiver, and one worker's deliverer."""

    def __init__(self, api: Api, receiver: Receiver, settings: Settings, deliverer: Deliverer) -> None:
        self.api, self.receiver, self.settings, self.deliverer = api, receiver, settings, deliverer

    async def endpoint(self, path: str = "/hook", **fields: Any) -> dict[str, Any]:
        reply = await self.api.call("POST", "/v1/webhooks", {"name": "Hook", "url": self.receiver.url(path), **fields})
        assert reply.status == 201, reply
        return reply.body

    async def clean(self) -> None:
        """No endpoints, nothing waiting, a receiver that is well."""
        await self.execute("DELETE FROM webhook_lanes")
        await self.execute("DELETE FROM webhook_deliveries")
        await self.execute("DELETE FROM webhooks")
        self.receiver.received.clear()
        self.receiver.script.clear()
        self.receiver.always, self.receiver.most_at_once = 200, 0

    async def tell(self, customer: NewConnection, event: outbox.Event, data: dict[str, Any] | None = None) -> None:
        async with self.api.store.transaction() as db:
            await outbox.tell(db, self.api.merchant.merchant_id, event, customer.connection_id, data)

    async def deliver(self) -> None:
        """Until nothing is due any more and nothing is under way."""
        idle = False
        while await self.deliverer.deliver_due() or not idle:
            idle = not self.deliverer.under_way
            await asyncio.sleep(0.002)

    async def later(self) -> None:
        """Whatever waits for a time is due: claims have come back, pauses are over."""
        await self.execute("UPDATE webhook_deliveries SET due_at = now() WHERE status = 'waiting'")
        await self.execute("UPDATE webhook_lanes SET due_at = now()")

    async def log(self, webhook_id: str, **query: str) -> list[dict[str, Any]]:
        reply = await self.api.call("GET", f"/v1/webhooks/{webhook_id}/deliveries", **query)
        assert reply.status == 200, reply
        return reply.body["data"]

    async def execute(self, statement: str, *arguments: Any) -> str:
        async with self.api.store.connection() as db:
            return await db.execute(statement, *arguments)

    async def value(self, statement: str, *arguments: Any) -> Any:
        async with self.api.store.connection() as db:
            return await db.fetchval(statement, *arguments)

    @asynccontextmanager
    async def another_worker(self, **changes: Any) -> AsyncIterator[Deliverer]:
        settings = msgspec.structs.replace(self.settings, **changes)
        async with delivering(settings, self.api.wallets) as deliverer:
            yield deliverer


@asynccontextmanager
async def shop(valkey: str, postgres: str) -> AsyncIterator[Shop]:
    connection, receiver = Connection(valkey, scripts.load()), Receiver()
    keeper = asyncio.ensure_future(connection.run())
    await connection.wait_ready(5)
    store, client = await Store.connect(postgres), redis.asyncio.Redis.from_url(valkey)
    settings = Settings(
        ledger_shards=SHARDS,
        master_key="m" * 32,
        postgres_url=postgres,
        webhook_private_hosts=("127.0.0.1",),
        webhook_timeout_ms=300,
    )
    api = Api(connection, store, client)
    api.context.settings = settings
    await api.prepare()
    await receiver.start()
    try:
        async with delivering(settings, api.wallets) as deliverer:
            yield Shop(api, receiver, settings, deliverer)
    finally:
        await receiver.stop()
        await api.client.close()
        await client.aclose()
        await store.close()
        await connection.close()
        await keeper


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="opened")
async def shared_shop(engines: tuple[str, str]) -> AsyncIterator[Shop]:
    async with shop(*engines) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", name="here")
async def clean_shop(opened: Shop) -> Shop:
    await opened.clean()
    return opened
