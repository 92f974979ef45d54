"""A gateway for calls with spend keys: keys made, called with, and looked at in Redis and in the record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest_asyncio
from running import RunningGateway, running_gateway

from gateway.ledger.keys import Keys
from gateway.ledger.spending import SpendKey
from gateway.local.fake.directive import Directive
from gateway.testing import FakeProvider, steering_header

COST_NANO = 30 * 150 + 10 * 600
"""Of gpt-4o-mini, for the usage that the fake provider tells."""


CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}


CLAUDE = {**CHAT, "model": "claude-3-5-haiku-20241022"}


ROUTES = {"openai": ("/v1/chat/completions", CHAT), "anthropic": ("/v1/messages", CLAUDE)}


class Reply(NamedTuple):
    status: int
    body: Any
    headers: Any


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="gateway")
async def gateway_fixture(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    answering = FakeProvider(Directive(prompt_tokens=30, completion_tokens=10, chunks=5))
    started = running_gateway(*engines, answering, provider_keys={"openai": "sk-of-installation"})
    async with answering, started as running:
        yield running


async def api(gateway: RunningGateway, method: str, path: str, body: Any = None, key: str = "") -> Reply:
    headers = {"Authorization": f"Bearer {key or gateway.merchant.secret_key}"}
    async with gateway.session.request(method, gateway.url + path, json=body, headers=headers) as answer:
        return Reply(answer.status, await answer.json(), answer.headers)


async def make(gateway: RunningGateway, **fields: Any) -> dict[str, Any]:
    made = await api(gateway, "POST", "/v1/spend_keys", {"name": "key", **fields})
    assert made.status == 201, made.body
    return made.body


async def shown(gateway: RunningGateway, key: dict[str, Any]) -> dict[str, Any]:
    return (await api(gateway, "GET", f"/v1/spend_keys/{key['spend_key_id']}")).body


async def call(gateway: RunningGateway, key: dict[str, Any], shape: str = "openai", **more: Any) -> Reply:
    path, body = ROUTES[shape]
    headers = {"Authorization": f"Bearer {key['key']}", **more.pop("headers", {})}
    url = gateway.url + more.pop("path", path)
    async with gateway.session.post(url, json={**body, **more}, headers=headers) as answer:
        return Reply(answer.status, await answer.json(), answer.headers)


async def settled(gateway: RunningGateway, key: dict[str, Any]) -> dict[str, Any]:
    """The key once none of its calls is in flight."""
    async with asyncio.timeout(5):
        while (await live(gateway, key)).spend_calls:
            await asyncio.sleep(0.01)
    return await shown(gateway, key)


class Live(NamedTuple):
    spend_calls: int
    spend_held: int


async def live(gateway: RunningGateway, key: dict[str, Any]) -> Live:
    name = await counters_of(gateway, key)
    calls, held = await gateway.context.wallets._connection.command("HMGET", name, "calls", "held")
    return Live(int(calls or 0), int(held or 0))


async def counters_of(gateway: RunningGateway, key: dict[str, Any]) -> str:
    async with gateway.context.store.connection() as db:
        shard = await db.fetchval("SELECT shard FROM wallets WHERE wallet_id = $1", key["wallet_id"])
    return Keys().spend(shard, key["spend_key_id"])


async def own_wallet(gateway: RunningGateway) -> Any:
    merchant = await gateway.context.principals.merchant(gateway.merchant.secret_key)
    return (await gateway.context.principals.customer(merchant, merchant.self_connection_id)).wallet


async def ceiling_of(gateway: RunningGateway, key: dict[str, Any]) -> int:
    """What is held for one call, which is made."""
    under_way, held = await begun(gateway, key, steering_header(delay_ms=150))
    await under_way
    await settled(gateway, key)
    return held.spend_held


async def begun(
    gateway: RunningGateway, key: dict[str, Any], steering: dict[str, str]
) -> tuple[asyncio.Future[Reply], Live]:
    """A call that is under way, and what is held for it."""
    under_way = asyncio.ensure_future(call(gateway, key, headers=steering))
    async with asyncio.timeout(5):
        while not (held := await live(gateway, key)).spend_calls:
            await asyncio.sleep(0.005)
    return under_way, held


async def recorded(gateway: RunningGateway, key: dict[str, Any]) -> tuple[int, int]:
    async with gateway.context.store.connection() as db:
        row = await db.fetchrow(
            "SELECT sum(spent_nano)::bigint AS nano, sum(requests)::bigint AS requests FROM spend_key_days "
            "WHERE spend_key_id = $1",
            key["spend_key_id"],
        )
    return row["nano"], row["requests"]


async def spend_of(gateway: RunningGateway, key: dict[str, Any]) -> SpendKey:
    spend = (await gateway.context.principals.principal(key["key"])).spend
    assert spend is not None
    return spend
