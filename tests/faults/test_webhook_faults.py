"""Webhooks in a whole `obol up`: workers killed, a receiver that fails in every way, and 100,000 events that wait."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from installation import Customer, Installation, installation
from tests_support import CHAT, chat
from webhook_support import Receiver

from gateway.billing import outbox

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("webhooks"), pytest.mark.asyncio(loop_scope="module")]

CUSTOMERS = 8
EVENTS_EACH = 4
KILLS = 2
FAULTS: tuple[int | str, ...] = (200, 200, 200, 500, 302, 404, "hang", "drop")
DELIVERED_TIMEOUT_S = 60.0
BACKLOG_EVENTS = 100_000
BACKLOG_CUSTOMERS = 50_000
CLEARED_TIMEOUT_S = 90.0
"""The worker looks every 30 seconds, and then goes on page by page."""
CALLS_A_WINDOW = 80
CALL_PAUSE_S = 0.01


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made() -> AsyncIterator[Installation]:
    settings = {
        "webhook_private_hosts": '["127.0.0.1"]',
        "webhook_timeout_ms": 500,
        "webhook_retry_s": json.dumps([1] * 60),
    }
    async with installation(**settings) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def receiver(made: Installation) -> AsyncIterator[Receiver]:
    running = Receiver()
    await running.start()
    yield running
    await made.fetch("UPDATE webhooks SET deleted_at = now()")
    await running.stop()


async def endpoint(made: Installation, session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {made.merchant.secret_key}"}
    async with session.post(f"{made.up.url}/v1/webhooks", json={"name": "Hook", "url": url}, headers=headers) as reply:
        assert reply.status == 201, await reply.text()
        return dict(await reply.json())


async def tell(made: Installation, customer: Customer, number: int) -> None:
    async with made.store.transaction() as db:
        name = customer.made.connection_id
        await outbox.tell(db, made.merchant.merchant_id, "subscription.updated", name, {"number": number})


async def until(what: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not await what():
            await asyncio.sleep(0.1)


async def test_every_event_arrives_in_order_whatever_is_killed(
    made: Installation, receiver: Receiver, seed: int
) -> None:
    """Workers are killed in the middle of attempts; the receiver fails, hangs, redirects, breaks off, and goes away."""
    rng = random.Random(seed)
    customers = [await made.customer(10**9) for _ in range(CUSTOMERS)]
    async with aiohttp.ClientSession() as session:
        await endpoint(made, session, receiver.url())
    receiver.script.extend(rng.choice(FAULTS) for _ in range(CUSTOMERS * EVENTS_EACH // 2))
    for number in range(EVENTS_EACH):
        for customer in customers:
            await tell(made, customer, number)
        if number < KILLS:
            receiver.script.extendleft(["hang"] * CUSTOMERS)
            await until(receiver.is_answering, 5)
            await made.recovered(made.kill(["worker"]))
    await receiver.stop()
    await asyncio.sleep(0.5)
    await receiver.start()

    async def delivered() -> bool:
        rows = await made.fetch("SELECT count(*) AS left FROM webhook_deliveries WHERE status <> 'delivered'")
        return rows[0]["left"] == 0

    await until(delivered, DELIVERED_TIMEOUT_S)
    rows = await made.fetch("SELECT event_id, connection_id, event FROM webhook_deliveries ORDER BY sequence")
    assert len([row for row in rows if row["event"] == "subscription.updated"]) == CUSTOMERS * EVENTS_EACH
    for customer in customers:
        name = customer.made.connection_id
        first_received = list(dict.fromkeys(event["id"] for event in receiver.events(name)))
        assert first_received == [row["event_id"] for row in rows if row["connection_id"] == name]
    bodies: dict[str, set[bytes]] = {}
    for each in receiver.received:
        bodies.setdefault(each.event["id"], set()).add(each.body)
    assert all(len(same) == 1 for same in bodies.values())


async def test_100_000_waiting_events_do_not_slow_the_gateway(made: Installation, receiver: Receiver) -> None:
    """Their endpoint hangs: every attempt takes its whole time, and none succeeds. Each call is charged, and told. Then
    the endpoint is deleted, in no time and in nobody's way, and they are cleared away."""
    receiver.always = "hang"
    customer = await made.customer(10**12)
    async with aiohttp.ClientSession() as session:
        hook = await endpoint(made, session, receiver.url())
        await window(made, session, customer)  # warms up
        before = await window(made, session, customer)
        await backlog(made, customer)
        during = await window(made, session, customer)
        lag_s = await flushed(made)
        waiting = await left(made)
        deleted_s = await delete(made, session, hook)
        after = await window(made, session, customer)
        lag_after_s = await flushed(made)

    async def cleared() -> bool:
        return await left(made) == 0

    await until(cleared, CLEARED_TIMEOUT_S)
    print(f"\nmedian of a call in ms: {before:.2f} before, {during:.2f} with the backlog, {after:.2f} after; ", end="")
    print(f"the endpoint was deleted in {deleted_s * 1000:.0f} ms")
    assert waiting >= BACKLOG_EVENTS
    assert deleted_s < 1
    assert lag_after_s < 2
    assert receiver.received, "the endpoint is tried meanwhile"
    assert during < 1.5 * max(before, after) + 1
    assert lag_s < 2


async def left(made: Installation) -> int:
    (row,) = await made.fetch("SELECT count(*) AS waiting FROM webhook_deliveries WHERE status = 'waiting'")
    return int(row["waiting"])


async def delete(made: Installation, session: aiohttp.ClientSession, hook: dict[str, Any]) -> float:
    """How long it takes in seconds."""
    started_s, headers = time.monotonic(), {"Authorization": f"Bearer {made.merchant.secret_key}"}
    async with session.delete(f"{made.up.url}/v1/webhooks/{hook['webhook_id']}", headers=headers) as reply:
        assert reply.status == 200, await reply.text()
    return time.monotonic() - started_s


async def window(made: Installation, session: aiohttp.ClientSession, customer: Customer) -> float:
    """The median time of calls that follow each other with a pause, in milliseconds."""
    url, body = f"{made.up.url}/v1/forward?u={CHAT}", json.dumps(chat()).encode()
    took_ms = []
    for _ in range(CALLS_A_WINDOW):
        started_s = time.perf_counter()
        async with session.post(url, data=body, headers={"Authorization": f"Bearer {customer.token}"}) as reply:
            assert reply.status == 200, await reply.text()
            await reply.read()
        took_ms.append((time.perf_counter() - started_s) * 1_000)
        await asyncio.sleep(CALL_PAUSE_S)
    return statistics.median(took_ms)


async def backlog(made: Installation, customer: Customer) -> None:
    """Events of many customers, all due now. Their bodies are there already: the customers are not."""
    events = """
INSERT INTO webhook_deliveries (event_id, webhook_id, merchant_id, connection_id, event, due_at, body)
SELECT 'evt_' || number, w.webhook_id, w.merchant_id, $1 || '_' || number % $3, 'subscription.updated', now(),
       '{"id":"evt_' || number || '","data":{}}'
FROM webhooks w, generate_series(1, $2::integer) number"""
    await made.fetch(events, customer.made.connection_id, BACKLOG_EVENTS, BACKLOG_CUSTOMERS)
    lanes = "INSERT INTO webhook_lanes SELECT DISTINCT webhook_id, connection_id, now() FROM webhook_deliveries"
    await made.fetch(lanes + " ON CONFLICT DO NOTHING")


async def flushed(made: Installation) -> float:
    """How long it takes until everything charged is recorded."""
    started_s = time.monotonic()
    await until(made.at_rest, 10)
    return time.monotonic() - started_s
