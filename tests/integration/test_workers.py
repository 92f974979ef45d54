"""Several gateway processes are one gateway: metrics add up, a change reaches all, none is lost at a stop."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from processes import gateway_processes
from running import running_gateway
from tests_support import CHAT, chat

from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio


async def test_metrics_are_right_across_workers(valkey, redis_client, postgres, tmp_path):
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider) as local,
        gateway_processes(2, valkey, postgres, provider, tmp_path) as urls,
    ):
        customer = await local.customer()
        credential = local.token_for(customer)
        steer = steering_header(prompt_tokens=100, completion_tokens=50)
        for number in range(10):
            local.url = urls[number % 2]
            async with local.forward(CHAT, credential, json=chat(), headers=steer) as answer:
                assert answer.status == 200
        await asyncio.sleep(1.2)  # the other process writes its counts twice a second
        for url in urls:
            async with local.session.get(f"{url}/metrics") as answer:
                text = await answer.text()
            name = r'obol_requests_total\{model="gpt-4o-mini",provider="openai",status="200"\} (\S+)'
            assert re.findall(name, text) == ["10.0"]
            assert 'obol_tokens_total{kind="input",model="gpt-4o-mini",provider="openai"} 1000.0' in text
            assert 'obol_money_nanodollars_total{kind="charge"} 3e+07' in text
            assert "obol_gateway_latency_seconds_count 10.0" in text
            assert text.count("\nobol_holds_open ") == 1
            assert "pid=" not in text


async def test_a_change_reaches_every_worker_within_a_second(valkey, redis_client, postgres, tmp_path):
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider) as local,
        gateway_processes(2, valkey, postgres, provider, tmp_path) as urls,
    ):
        customer = await local.customer()
        credential = local.token_for(customer)

        async def status(url):
            local.url = url
            async with local.forward(CHAT, credential, json=chat()) as answer:
                return answer.status

        assert [await status(url) for url in urls] == [200, 200]  # both have it cached
        authority = {"Authorization": f"Bearer {local.merchant.secret_key}"}
        path = f"{urls[0]}/v1/meters/{local.meter.meter_id}"
        async with local.session.delete(path, headers=authority) as answer:
            assert answer.status == 200
        changed_at = time.monotonic()
        while await status(urls[1]) != 404:
            assert time.monotonic() - changed_at < 1.0, "the other worker still serves a deleted meter"
        assert await status(urls[0]) == 404


async def test_a_stop_settles_what_is_under_way(valkey, redis_client, postgres, tmp_path):
    async with FakeProvider() as provider, running_gateway(valkey, postgres, provider) as local:
        customer = await local.customer()
        steer = steering_header(prompt_tokens=10, completion_tokens=40, chunks=40, chunk_delay_ms=40)
        async with gateway_processes(1, valkey, postgres, provider, tmp_path) as urls:
            local.url = urls[0]

            async def stream():
                async with local.forward(
                    CHAT, local.token_for(customer), json=chat(stream=True), headers=steer
                ) as answer:
                    return await answer.read()

            streams = [asyncio.ensure_future(stream()) for _ in range(20)]
            while provider.request_count < 20:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.2)
        # leaving the block sent SIGTERM and awaited exit code 0
        bodies = await asyncio.gather(*streams)
        assert all(body.rstrip().endswith(b"data: [DONE]") for body in bodies)
        balance = await local.balance(customer)
        assert (balance.held_nano, balance.cycle_nano) == (0, 25 * 10**9 - 20 * 50 * 20_000)
