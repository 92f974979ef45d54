"""Counters of spend keys that Redis has lost: opened from the record, once, and with what is under way."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from spend_key_gateway import (  # noqa: F401
    COST_NANO,
    begun,
    call,
    counters_of,
    gateway_fixture,
    live,
    make,
    own_wallet,
    recorded,
    settled,
    shown,
    spend_of,
)

from gateway.billing import spend_keys
from gateway.billing.restore import Restorer
from gateway.core.money import format_nano
from gateway.ledger.keys import Keys
from gateway.ledger.spending import DAY_MS
from gateway.ledger.wallets import now_ms
from gateway.testing import steering_header
from gateway.worker.reaper import Reaper

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_counters_that_redis_lost_are_opened_from_the_record(gateway):
    key = await make(gateway, spend_limit={"amount": "1", "cycle": "total"})
    assert (await call(gateway, key)).status == 200
    under_way, held = await begun(gateway, key, steering_header(delay_ms=1_200))
    await gateway.context.wallets._connection.command("DEL", await counters_of(gateway, key))
    asked = asyncio.ensure_future(call(gateway, key))
    await asyncio.sleep(0.1)  # it waits for the record to have the first call
    assert not asked.done()
    await gateway.flusher.flush_once()
    assert (await asked).status == 200
    assert (await live(gateway, key)) == held
    await under_way
    after = await settled(gateway, key)
    assert (after["total_requests"], (await live(gateway, key)).spend_held) == (3, 0)
    await gateway.flusher.flush_once()
    assert (await recorded(gateway, key))[1] == 3


async def test_calls_that_wait_for_counters_wait_for_one_opening(gateway, monkeypatch):
    keys = [await make(gateway) for _ in range(4)]
    assert [(await call(gateway, key)).status for key in keys] == [200] * 4
    for key in keys:
        await settled(gateway, key)
        await gateway.context.wallets._connection.command("DEL", await counters_of(gateway, key))
    counters, made = gateway.parts.spend_counters, Counter()

    def counting(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: made.update([name]) or real(*given, **named))

    counting(counters, "_sums")
    counting(counters._recovery, "open_holds")
    counting(counters._recovery, "open_key")
    asked = asyncio.gather(*(call(gateway, key) for key in keys * 10))
    async with asyncio.timeout(2):
        while len(counters._openings) < len(keys):
            await asyncio.sleep(0.005)
    await gateway.flusher.flush_once()
    assert Counter(each.status for each in await asked) == {200: 40}
    assert (made["_sums"], made["open_key"]) == (4, 4)
    assert made["open_holds"] <= 2  # of all keys at once, or with those that came too late for the first
    assert [(await settled(gateway, key))["total_requests"] for key in keys] == [11] * 4
    assert not counters._openings
    assert not counters._looks


async def test_counters_opened_at_midnight_are_of_the_day_that_was_looked_up(gateway, monkeypatch):
    key = await make(gateway, spend_limit={"amount": "1", "cycle": "daily"})
    assert (await call(gateway, key)).status == 200
    await settled(gateway, key)
    await gateway.flusher.flush_once()
    name, connection = await counters_of(gateway, key), gateway.context.wallets._connection
    await connection.command("DEL", name)
    (at_ms, of_key), spend = (now_ms(), await spend_of(gateway, key)), gateway.parts.spend_counters
    hours = iter([at_ms])
    monkeypatch.setattr(spend_keys, "now_ms", lambda: next(hours, at_ms + DAY_MS))
    await spend.open(await own_wallet(gateway), of_key)
    tomorrow = of_key.cycles(at_ms + DAY_MS)
    found = await spend._recovery.spend_counters((await own_wallet(gateway)).shard, of_key.spend_key_id, tomorrow)
    assert (found.spent["daily"].nano, found.spent["total"].nano) == (0, COST_NANO)
    await connection.command("DEL", name)
    hours = iter([at_ms])
    read = await spend.read((await own_wallet(gateway)).shard, of_key)
    assert read.spent["daily"].nano == COST_NANO  # today's, whole


async def test_what_ends_while_the_counters_are_lost_is_counted_once(gateway):
    key = await make(gateway)
    assert (await call(gateway, key)).status == 200
    name, connection = await counters_of(gateway, key), gateway.context.wallets._connection
    under_way, _ = await begun(gateway, key, steering_header(delay_ms=200))
    await gateway.flusher.flush_once()
    await connection.command("DEL", name)
    await under_way
    async with asyncio.timeout(2):
        while not await connection.command("EXISTS", name):
            await asyncio.sleep(0.01)
    assert (await shown(gateway, key))["total_requests"] == 1  # as recorded so far
    asked = asyncio.ensure_future(call(gateway, key))
    await asyncio.sleep(0.05)
    await gateway.flusher.flush_once()
    assert (await asked).status == 200
    assert (await settled(gateway, key))["total_requests"] == 3


async def test_a_wallet_that_came_back_older_takes_its_keys_counters_from_the_record(gateway):
    customer = await gateway.customer()
    key = await make(gateway, connection_id=customer.connection_id, meter_slug="tokens")
    assert (await call(gateway, key)).status == 200
    await settled(gateway, key)
    await gateway.flusher.flush_once()
    wallet, connection, name = customer.wallet, gateway.parts.ledger, await counters_of(gateway, key)
    settings = gateway.context.settings
    restorer = Restorer(
        gateway.context.store,
        connection,
        Keys(),
        shards=settings.ledger_shards,
        call_ttl_s=settings.settled_record_ttl_s,
        report_ttl_s=settings.report_record_ttl_s,
    )
    await connection.command("HSET", name, "st", 0, "nt", 0)
    await restorer.recovery.mark(wallet.shard, [(wallet.wallet_id, 10**9)], whatever=True)
    assert (await call(gateway, key)).status == 503
    await restorer.restore_once()
    assert await connection.command("EXISTS", name) == 0
    assert (await call(gateway, key)).status == 200
    assert (await settled(gateway, key))["total_spend"] == format_nano(2 * 40 * 20_000)


async def test_the_hold_of_a_dead_gateway_is_counted_for_its_key(gateway):
    key = await make(gateway, spend_limit={"amount": "1", "cycle": "total"})
    under_way, _ = await begun(gateway, key, steering_header(delay_ms=300))
    (name,) = [each for each in gateway.parts.live if each.principal.spend.spend_key_id == key["spend_key_id"]]
    wallet, keys = name.principal.wallet, Keys()
    hold = keys.hold(wallet.shard, wallet.merchant_id, name.request_id)
    await gateway.parts.ledger.command("ZADD", keys.holds(wallet.shard), 1, hold)
    reaper = Reaper(gateway.parts.ledger, keys, gateway.parts.wallets, shards=wallet.shard + 1, grace_s=0)
    assert await reaper.reap_once() == 1
    assert await live(gateway, key) == (0, 0)
    assert (await shown(gateway, key))["total_requests"] == 1
    await under_way  # it was not dead: its settlement comes late
    async with asyncio.timeout(5):
        while (after := await shown(gateway, key))["total_spend"] == format_nano(0):
            await asyncio.sleep(0.01)
    assert (after["total_spend"], after["total_requests"]) == (format_nano(COST_NANO), 1)
    await gateway.flusher.flush_once()
    assert await recorded(gateway, key) == (COST_NANO, 1)
