"""Realtime sessions whose gateway drains, is cut or dies, and whose Redis is away: nothing is lost, nothing is free."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from flaky_proxy import FlakyProxy
from realtime_client import refused, talk
from running import RunningGateway, running_gateway

from gateway.core.money import NANO
from gateway.drain import drain
from gateway.testing import FakeProvider, steering_text

FEE_NANO = 20_000
TRANSCRIBING = {"audio": {"input": {"transcription": {"model": "whisper-1"}}}}
SLOW = steering_text(chunks=1_000, chunk_delay_ms=5)


async def settled(gateway: RunningGateway, customer: Any) -> list[dict[str, Any]]:
    async with asyncio.timeout(8):
        while (await gateway.balance(customer)).calls:
            await asyncio.sleep(0.01)
    return await gateway.rows("connection_id = $1", customer.connection_id)


async def test_a_drain_closes_idle_sessions_and_lets_responses_end(gateway: RunningGateway):
    gateway.parts.settings = msgspec.structs.replace(gateway.parts.settings, shutdown_idle_grace_s=0)
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    async with talk(gateway, credential) as idle, talk(gateway, credential) as speaking:
        await speaking.write(steering_text(chunks=60, chunk_delay_ms=10))
        await speaking.say("response.create")
        await speaking.until("response.output_audio.delta")
        cut = asyncio.Event()
        draining = asyncio.create_task(drain(gateway.parts, gateway.server, cut))
        await idle.end()
        assert idle.socket.close_code == 1001
        await speaking.say("response.create", event_id="late", response={"conversation": "none"})
        error = (await speaking.until("error"))["error"]
        assert (error["code"], error["event_id"]) == ("shutting_down", "late")
        done = await speaking.until("response.done")
        assert done["response"]["status"] == "completed"
        await speaking.end()
        assert speaking.socket.close_code == 1001
        cut.set()  # else it would stay for a Redis that does not sync
        await asyncio.wait_for(draining, 10)
    (row,) = await settled(gateway, customer)
    assert (row["ending"], row["estimated"], row["usage"]["output_tokens"]) == ("completed", False, 180)
    assert (await gateway.balance(customer)).held_nano == 0


async def test_a_session_that_is_cut_pays_for_what_was_produced(gateway: RunningGateway):
    customer = await gateway.customer()
    async with talk(gateway, gateway.token_for(customer)) as one:
        await one.write(SLOW)
        await one.say("response.create")
        for _ in range(3):
            await one.until("response.output_audio.delta")
        cut = asyncio.Event()
        cut.set()
        ending = asyncio.create_task(drain(gateway.parts, gateway.server, cut))
        await one.end()
        assert one.socket.close_code == 1001
        await asyncio.wait_for(ending, 10)
    (row,) = await settled(gateway, customer)
    said = sum(event["type"] == "response.output_audio.delta" for event in one.heard)
    assert (row["ending"], row["estimated"]) == ("cancelled", True)
    assert 0 <= row["usage"]["output_audio_tokens"] - 2 * said <= 4
    assert 25 * NANO - (await gateway.balance(customer)).total_nano == row["charge_nano"] > 0


async def test_a_session_that_is_cancelled_again_while_it_settles_still_settles(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
):
    customer = await gateway.customer()
    count = gateway.parts.counter.count

    async def slow_count(text: str, model: str | None) -> int:
        await asyncio.sleep(0.2)
        return await count(text, model)

    monkeypatch.setattr(gateway.parts.counter, "count", slow_count)
    async with talk(gateway, gateway.token_for(customer)) as one:
        await one.write(SLOW)
        await one.say("response.create")
        await one.until("response.output_audio.delta")
        for connection in gateway.server.connections:
            connection._task_handler.cancel()
        await asyncio.sleep(0.05)
        for connection in gateway.server.connections:
            connection._task_handler.cancel()
        (row,) = await settled(gateway, customer)
    assert row["ending"] == "cancelled"
    assert (await gateway.balance(customer)).held_nano == 0
    assert gateway.parts.live == set()


async def test_whenever_sessions_are_cut_nothing_stays_open_and_the_sums_are_exact(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
):
    """Responses of which no usage is told are counted while they are settled: a cut may come in the middle of that."""
    customer = await gateway.customer()
    count, asked = gateway.parts.counter.count, 0

    async def slow_count(text: str, model: str | None) -> int:
        await asyncio.sleep(0.03)
        return await count(text, model)

    monkeypatch.setattr(gateway.parts.counter, "count", slow_count)

    async def session() -> None:
        nonlocal asked
        with contextlib.suppress(Exception):
            async with talk(gateway, gateway.token_for(customer)) as one:
                await one.say("session.update", session=TRANSCRIBING)
                while True:
                    asked += 1
                    await one.ask(steering_text(fault="no_usage", chunks=3) + " word" * 50)

    cut = asyncio.Event()
    cut.set()
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(session())
        await asyncio.sleep(0.5)
        group.create_task(drain(gateway.parts, gateway.server, cut))
    rows = await settled(gateway, customer)
    balance = await gateway.balance(customer)
    assert balance.held_nano == 0
    assert gateway.parts.live == set()
    assert 8 < len(rows) <= asked
    assert len({row["response_id"] for row in rows}) == len(rows)
    assert 25 * NANO - balance.total_nano == sum(row["charge_nano"] for row in rows)


async def test_the_progress_of_a_response_stands_on_its_hold_and_is_charged_once(
    valkey: str, redis_client: Any, postgres: str, provider: FakeProvider
):
    """As if this gateway had died: the reaper debits the progress. As it has not, it settles the difference."""
    async with running_gateway(valkey, postgres, provider, progress_interval_ms=100) as gateway:
        customer = await gateway.customer()
        async with talk(gateway, gateway.token_for(customer)) as one:
            await one.write(steering_text(chunks=150, chunk_delay_ms=5))
            await one.say("response.create")
            for _ in range(100):
                await one.until("response.output_audio.delta")
            (call,) = [call for call in gateway.parts.live if call.dispatched_at]
            at_ms = time.time_ns() // 1_000_000 + 10**9
            assert await gateway.parts.wallets.expire(call.principal.wallet, call.request_id, at_ms) == "expired"
            reaped_nano = 25 * NANO - (await gateway.balance(customer)).total_nano
            assert FEE_NANO * 100 < reaped_nano < FEE_NANO * 500
            done = await one.until("response.done")
        await settled(gateway, customer)
        usage = done["response"]["usage"]
        spent_nano = 25 * NANO - (await gateway.balance(customer)).total_nano
        assert spent_nano == FEE_NANO * (usage["input_tokens"] + usage["output_tokens"])


async def test_a_session_lives_through_a_redis_that_is_away(
    valkey: str, redis_client: Any, postgres: str, provider: FakeProvider
):
    """What is held for goes on and is settled when Redis is back; nothing new begins meanwhile."""
    port = urlsplit(valkey).port or 6379
    async with (
        FlakyProxy(port) as proxy,
        running_gateway(
            valkey.replace(str(port), str(proxy.port)), postgres, provider, redis_timeout_ms=500
        ) as gateway,
    ):
        customer = await gateway.customer()
        credential = gateway.token_for(customer)
        async with talk(gateway, credential) as one:
            await one.write(steering_text(chunks=60, chunk_delay_ms=5))
            await one.say("response.create")
            await one.until("response.output_audio.delta")
            proxy.cut_next_reply()
            await one.say("response.create", event_id="held", response={"conversation": "none"})
            await one.say("response.create", event_id="away", response={"conversation": "none"})
            error = (await one.until("error"))["error"]
            assert (error["code"], error["event_id"]) == ("ledger_unavailable", "away")
            answered = [await one.until("response.done"), await one.until("response.done")]
            provider.clear()
            assert (await refused(gateway, credential))[0] == 503
            assert provider.request_count == 0
            proxy.heal()
            async with asyncio.timeout(5):
                while not gateway.parts.ledger.connected:
                    await asyncio.sleep(0.02)
            answered.append(await one.ask("and again"))
        rows = await settled(gateway, customer)
        usages = {done["response"]["id"]: done["response"]["usage"] for done in answered}
        assert {row["response_id"]: row["usage"]["output_tokens"] for row in rows} == {
            response_id: usage["output_tokens"] for response_id, usage in usages.items()
        }
        spent_nano = 25 * NANO - (await gateway.balance(customer)).total_nano
        assert spent_nano == FEE_NANO * sum(usage["total_tokens"] for usage in usages.values())
