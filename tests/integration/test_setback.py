"""A gateway whose Redis is set back under it: affected customers wait, the others notice nothing."""

from __future__ import annotations

import asyncio
import io

import pytest
from running import RunningGateway, running_gateway
from setbacks import SettableValkey, background_worker, flushed, reconnected, settable_valkey
from tests_support import CHAT, chat

from gateway import audit
from gateway.testing import FakeProvider, steering_header


async def test_customers_that_lost_entries_wait_until_the_worker_has_restored_them(
    postgres: str, provider: FakeProvider
) -> None:
    with settable_valkey() as server:
        async with running_gateway(server.url, postgres, provider) as gateway:
            spender, other = await gateway.customer(), await gateway.customer()
            tokens = {customer: gateway.token_for(customer) for customer in (spender, other)}

            async def call(customer) -> tuple[int, str]:
                async with gateway.forward(CHAT, tokens[customer], json=chat()) as answer:
                    body = await answer.json()
                    return answer.status, body.get("error", {}).get("code", "")

            async with background_worker(gateway):
                assert [await call(each) for each in (spender, other)] == [(200, "")] * 2
                await flushed(gateway)
                copy = server.copy()
                for _ in range(3):
                    assert await call(spender) == (200, "")
                await flushed(gateway)
            before = await gateway.balance(spender)

            await set_back(gateway, server, copy)
            assert await call(spender) == (503, "wallet_unavailable")
            calls_upstream = provider.request_count
            assert await call(other) == (200, "")
            assert provider.request_count == calls_upstream + 1
            async with gateway.session.get(f"{gateway.url}/metrics") as answer:
                text = await answer.text()
            assert "obol_wallets_restoring 1.0" in text and "obol_ledger_lost_entries_total 3.0" in text

            async with background_worker(gateway):
                async with asyncio.timeout(10):
                    while (status := await call(spender))[0] == 503:
                        assert status[1] == "wallet_unavailable"
                        await asyncio.sleep(0.02)
                assert status == (200, "")
                await flushed(gateway)
            after = await gateway.balance(spender)
            assert after is not None and before is not None
            per_call = before.total_nano - after.total_nano
            assert per_call > 0 and (25 * 10**9 - after.total_nano) == 5 * per_call
            out = io.StringIO()
            assert await audit.audit(gateway.context.settings, out, recompute=True) == 0, out.getvalue()


async def set_back(gateway: RunningGateway, server: SettableValkey, copy) -> None:
    generation = gateway.parts.ledger.generation
    server.stop()
    server.put_back(copy)
    server.start()
    await reconnected(gateway.parts.ledger, generation)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_in_flight_while_its_wallet_is_set_back_is_debited_once(
    postgres: str, provider: FakeProvider, streamed: bool
) -> None:
    """Its hold is lost with the rest; the settle waits for the wallet, and finds neither record nor hold."""
    with settable_valkey() as server:
        async with running_gateway(server.url, postgres, provider) as gateway:
            customer = await gateway.customer()
            credential = gateway.token_for(customer)
            async with background_worker(gateway):
                await flushed(gateway)
                copy = server.copy()
                async with gateway.forward(CHAT, credential, json=chat()) as answer:
                    assert answer.status == 200
                await flushed(gateway)
            body = chat(stream=True) if streamed else chat()

            async def call() -> int:
                async with gateway.forward(
                    CHAT, credential, json=body, headers=steering_header(delay_ms=700)
                ) as answer:
                    await answer.read()
                    return answer.status

            calling = asyncio.create_task(call())
            await asyncio.sleep(0.2)
            await set_back(gateway, server, copy)
            assert await calling == 200
            async with background_worker(gateway):
                async with asyncio.timeout(15):
                    while len(await gateway.rows()) < 2 or gateway.parts.live:
                        await asyncio.sleep(0.05)
            balance = await gateway.balance(customer)
            assert balance is not None and balance.held_nano == 0
            charges = [row["charge_nano"] for row in await gateway.rows()]
            assert len(charges) == 2 and all(charges)
            assert 25 * 10**9 - balance.total_nano == sum(charges)
