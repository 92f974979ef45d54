"""Check 3: whatever is cancelled or killed, no hold stays; and while a stream lives, its hold does."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from installation import Installation, installation
from load import Load
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat
from verdict import judge

from gateway import app
from gateway.app import _mapped
from gateway.local.fake.directive import Directive
from gateway.proxy.forward import forward
from gateway.proxy.parts import Parts
from gateway.proxy.upstream import Upstream
from gateway.testing import FakeProvider, steering_header

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]
AWAITS_MAX = 200
SHORT_TTL_S = 2
STREAMS = 50
STREAM_S = 12
A_REQUEST = {"rate_type": "fixed", "tier_type": "requests", "tiers": [{"start": 0, "rate": "0.5"}]}


class Cancelling:
    """Stands in for `forward`: the next call is cancelled at the `nth` time that it waits for something."""

    def __init__(self) -> None:
        self.nth = 0
        self.reached = 0

    async def __call__(self, parts: Parts, request: web.BaseRequest) -> web.StreamResponse:
        return await self._stepped(forward(parts, request))

    @types.coroutine
    def _stepped(self, journey: Coroutine[Any, Any, web.StreamResponse]) -> Generator[Any, Any, web.StreamResponse]:
        self.reached = 0
        sent, thrown = None, None
        while True:
            try:
                waited_for = journey.send(sent) if thrown is None else journey.throw(thrown)
            except StopIteration as ended:
                response: web.StreamResponse = ended.value
                return response
            self.reached += 1
            if self.reached == self.nth:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()  # takes effect at this very wait
            thrown = None
            try:
                sent = yield waited_for
            except BaseException as error:
                thrown = error


@asynccontextmanager
async def cancelling(
    valkey: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RunningGateway, Cancelling]]:
    canceller = Cancelling()
    monkeypatch.setattr(app, "forward", canceller)
    async with FakeProvider() as provider, running_gateway(valkey, postgres, provider) as gateway:
        yield gateway, canceller


@asynccontextmanager
async def failing_first(gateway: RunningGateway) -> AsyncIterator[None]:
    """OpenAI answers 503 from here on; the others answer."""
    async with FakeProvider(Directive(fault="status:503")) as failing:
        gateway.parts.origins["https://api.openai.com"] = _mapped("https://api.openai.com", failing.url)
        yield


@pytest.mark.parametrize("kind", ["plain", "stream", "idempotent", "fallbacks"])
async def test_a_call_that_is_cancelled_anywhere_leaves_no_hold(
    valkey: str, redis_client: Any, postgres: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """And it has one row where it reached the provider, none where it did not."""
    async with AsyncExitStack() as stack:
        gateway, canceller = await stack.enter_async_context(cancelling(valkey, postgres, monkeypatch))
        if kind == "fallbacks":
            await stack.enter_async_context(failing_first(gateway))
        customer = await gateway.customer()
        credential = gateway.token_for(customer)
        steer = steering_header(prompt_tokens=5, completion_tokens=4, chunks=4, chunk_delay_ms=5, delay_ms=5)
        cut = 0
        for nth in range(1, AWAITS_MAX):
            canceller.nth = nth
            gateway.provider.clear()
            headers = steer | ({"Idempotency-Key": f"key-{nth}"} if kind == "idempotent" else {})
            headers["x-lava-metadata"] = f'{{"call": "{nth}"}}'
            if kind == "fallbacks":
                headers["x-lava-fallbacks"] = '["groq/llama-3.3-70b-versatile"]'
            body = chat(stream=kind in ("stream", "fallbacks"))
            try:
                async with gateway.forward(CHAT, credential, json=body, headers=headers) as answer:
                    await answer.read()
            except aiohttp.ClientError:
                cut += 1
            await _nothing_held(gateway, customer)
            served = gateway.provider.request_count
            rows = len(await gateway.rows("metadata->>'call' = $1", str(nth)))
            # The provider that failed is not among those served, and may be the only one that the call reached.
            assert rows == served or (kind == "fallbacks" and not served and rows == 1), f"cancelled at wait {nth}"
            if canceller.reached < nth:
                break
        assert canceller.reached < nth, "the call waits more often than this test looks at"
        assert cut >= 3


async def test_a_client_that_leaves_while_the_provider_is_connected_to_is_charged_nothing(
    valkey: str, redis_client: Any, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its meter charges for each request, whatever it used; this one was never sent."""
    connecting = asyncio.Event()

    async def connects_never(*_: Any) -> None:
        connecting.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Upstream, "_connect", connects_never)
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider, client_gone_drain_s=0) as gateway,
    ):
        of = gateway.merchant.merchant_id
        meter = await gateway.accounts.create_meter(of, "test", "Requests", "requests", A_REQUEST)
        customer = await gateway.customer()
        calling = asyncio.ensure_future(
            gateway.forward(CHAT, gateway.token_for(customer, meter), json=chat()).__aenter__()
        )
        await connecting.wait()
        assert (await gateway.balance(customer)).held_nano
        calling.cancel()
        await _nothing_held(gateway, customer)
        assert await gateway.rows() == []


async def _nothing_held(gateway: RunningGateway, customer: Any) -> None:
    async with asyncio.timeout(5):
        while (balance := await gateway.balance(customer)).held_nano or balance.calls or gateway.parts.live:
            await asyncio.sleep(0.005)


@pytest.mark.timeout(180)
async def test_a_live_streams_hold_never_expires(seed: int, record_property: Callable[[str, object], None]) -> None:
    """Streams live six times as long as a hold; everything but the gateways dies meanwhile, one after the other."""
    began_s, name = time.monotonic(), "long-streams"
    async with installation(hold_ttl_s=SHORT_TTL_S) as made:
        load = Load(made, name, random.Random(f"{seed} {name}"), callers=0, reporters=0)
        await load.begin()
        streams = asyncio.gather(*(load.stream(f"{name}-{number}", STREAM_S) for number in range(STREAMS)))
        await asyncio.sleep(1.5)
        in_flight = load.in_flight
        victims = [made.up.state[f"{victim}_pid"] for victim in ("worker", "valkey", "postgres")]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
            await made.recovered({pid})
            await asyncio.sleep(0.5)
        assert load.in_flight == STREAMS, "the streams ended before the last one had died"
        await _holds_last(made, load)
        calls = await streams
        await load.end()
        await made.calm()
        verdict = await judge(made, load, f"{name}-")
        for column, value in {
            "scenario": "streams of 6 times to live",
            "in flight": in_flight,
            "calls": verdict.calls,
            "refused": verdict.refused,
            "rows": verdict.rows,
            "expired": verdict.expired,
            "took s": f"{time.monotonic() - began_s:.1f}",
        }.items():
            record_property(column, value)
        assert not verdict.wrong, "\n".join([f"--seed {seed}", *verdict.wrong[:20], str(load.outcomes)])
        assert all(call.answered for call in calls), load.outcomes
        assert (verdict.rows, verdict.expired) == (STREAMS, 0)


async def _holds_last(made: Installation, load: Load) -> None:
    """While the streams go on, each has a hold, and none is about to expire."""
    while load.in_flight == STREAMS:
        now_ms = time.time() * 1_000
        counts = [await made.redis.zcount(made.keys.holds(shard), now_ms, "+inf") for shard in made.shards]
        if load.in_flight == STREAMS:
            assert sum(counts) == STREAMS
        await asyncio.sleep(0.1)
