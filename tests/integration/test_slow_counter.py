"""The token counter has one thread. Where it does not keep up, streams wait: nothing is queued without a bound."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis.asyncio
from running import running_gateway
from streaming_provider import StreamingProvider, chat_stream, digest, received, slow_session
from tests_support import CHAT, chat
from yarl import URL

from gateway.counting import Counter

pytestmark = pytest.mark.asyncio


class SlowCounter:
    """In the place of the token counter: counts nothing until it is let go."""

    def __init__(self, counter: Counter) -> None:
        self._count = counter.count
        self.go = asyncio.Event()
        self.waiting = 0

    async def __call__(self, text: str, model: str | None) -> int:
        self.waiting += 1
        await self.go.wait()
        self.waiting -= 1
        return await self._count(text, model)


@pytest.mark.parametrize("step_tokens", [2_048, 10**8])
async def test_a_slow_token_counter_makes_streams_wait_and_nothing_pile_up(
    valkey: str, redis_client: redis.asyncio.Redis, postgres: str, monkeypatch: pytest.MonkeyPatch, step_tokens: int
) -> None:
    """What waits to be counted is bounded, whether it is covered by the hold or not, and so are the counts."""
    pieces = list(chat_stream(24 * 1024 * 1024))
    async with (
        StreamingProvider(lambda: pieces) as provider,
        running_gateway(valkey, postgres, provider, progress_interval_ms=100, hold_step_tokens=step_tokens) as own,
        slow_session() as session,
    ):
        counter = SlowCounter(own.parts.counter)
        monkeypatch.setattr(own.parts.counter, "count", counter)
        customer = await own.customer(10**15)
        target = URL(f"{own.url}/v1/forward?u={CHAT}", encoded=True)
        headers = {"Authorization": f"Bearer {own.token_for(customer)}"}

        async def call(**more: Any) -> str:
            asked = chat(stream=True, stream_options={"include_usage": True}, **more)
            async with session.post(target, json=asked, headers=headers) as answer:
                return await received(answer)

        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(call()), group.create_task(call(max_tokens=step_tokens + 50))]
            try:
                sent_bytes = await provider.paused(quiet_s=0.5)
                kept_bytes = [sum(map(len, one.rolling.text.pieces)) for one in own.parts.live if one.rolling]
                print(f"{sent_bytes:,} bytes sent, {kept_bytes} kept, {counter.waiting} counts waiting")
                assert sent_bytes < sum(map(len, pieces))
                assert len(kept_bytes) == len(calls)
                assert max(kept_bytes) < 1024 * 1024
                assert counter.waiting <= 2 * len(calls)  # of each its text and its progress
            finally:
                counter.go.set()
        assert {one.result() for one in calls} == {digest(pieces)}
