"""However a call ends, nothing of it stays: no object, task, hold or descriptor. (The soak test measures the same.)

A census counts all objects by their type before and after a number of equal calls. What a call leaves behind would show
as that many more of some type.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from process_figures import descriptors
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat

from gateway.billing.accounts import NewConnection
from gateway.proxy.call import Call
from gateway.testing import FakeProvider, steering_header

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

CALLS = 16
TRIES = 3
LEFT = (aiohttp.ClientError, ConnectionError, TimeoutError)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    limits = {"first_byte_timeout_s": 1, "chunk_idle_timeout_s": 1, "client_gone_drain_s": 1, "settle_keep_s": 0}
    async with FakeProvider() as provider, running_gateway(*engines, provider, **limits) as running:
        gc.collect()
        gc.freeze()  # a census is of what came since
        yield running
        gc.unfreeze()


Shoot = Callable[[RunningGateway, NewConnection], Awaitable[None]]


def calling(
    *, leave: str = "", target: str = CHAT, credential: str = "", body: dict[str, Any] | None = None, **steer: Any
) -> Shoot:
    """A call. `leave`: before the head, or after the first bytes."""

    async def shoot(gateway: RunningGateway, customer: NewConnection) -> None:
        headers = steering_header(**steer)
        token = credential or gateway.token_for(customer)
        with suppress(*LEFT):
            sending = gateway.forward(target, token, json=chat() if body is None else body, headers=headers)
            if leave == "before":
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(sending, 0.03)
                return
            async with sending as answer:
                if leave == "mid-stream":
                    await answer.content.readany()
                    answer.close()
                else:
                    await answer.read()

    return shoot


STREAM = chat(stream=True)
ANTHROPIC = {"model": "claude-sonnet-4-5", "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
POOR = chat(stream=True, max_tokens=10**6)
WAYS: dict[str, Shoot] = {
    "a body": calling(),
    "a stream": calling(body=STREAM),
    "a stream with usage asked for": calling(body=STREAM | {"stream_options": {"include_usage": True}}),
    "a long stream": calling(body=STREAM, chunks=400, completion_tokens=6_000),
    "another format": calling(target="https://api.anthropic.com/v1/messages", body=ANTHROPIC | {"stream": True}),
    "no usage": calling(body=STREAM, fault="no_usage"),
    "an error status": calling(fault="status:500"),
    "a reset before the first byte": calling(fault="reset_before_first_byte"),
    "a reset in mid-stream": calling(body=STREAM, fault="reset_mid_stream", chunks=20),
    "an error event": calling(body=STREAM, fault="error_event"),
    "truncated": calling(body=STREAM, fault="truncated"),
    "a stalled provider": calling(body=STREAM, fault="stall"),
    "a silent provider": calling(delay_ms=1_500),
    "the client leaves before the first byte": calling(body=STREAM, leave="before", delay_ms=200),
    "the client leaves in mid-stream": calling(body=STREAM, leave="mid-stream", chunks=20, chunk_delay_ms=10),
    "no credential": calling(credential="aks_test_unknown"),
    "no such target": calling(target="https://127.0.0.1/v1/x"),
    "no such model": calling(body=chat(model="")),
    "too much": calling(body=chat(max_tokens=10**9)),
    "not metered": calling(target="https://api.openai.com/v1/moderations", body={"input": "hi"}),
}


def census() -> Counter[str]:
    """How many objects there are of each type."""
    loop: Any = asyncio.get_running_loop()
    loop._scheduled = [timer for timer in loop._scheduled if not timer.cancelled()]  # it forgets them late
    gc.collect()
    return Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())


async def quiet(gateway: RunningGateway) -> None:
    """Nothing is under way any more."""
    async with asyncio.timeout(15):
        while gateway.parts.live or len(gateway.parts.background):
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    gateway.provider.clear()


@pytest.mark.parametrize("way", WAYS)
async def test_nothing_of_a_call_stays(gateway: RunningGateway, way: str) -> None:
    customer, shoot = await gateway.customer(), WAYS[way]

    async def shots(count: int) -> None:
        await asyncio.gather(*(shoot(gateway, customer) for _ in range(count)))
        await quiet(gateway)

    await shots(CALLS)
    grown: dict[str, int] = {}
    for _ in range(TRIES):  # what is made once, such as a cache or a connection that is kept, is not made again
        before, open_before = census(), descriptors(os.getpid())
        await shots(CALLS)
        after = census()
        grown = {name: count - before[name] for name, count in after.items() if count - before[name] >= CALLS // 2}
        grown["descriptors"] = descriptors(os.getpid()) - open_before
        if not any(grown.values()):
            break
    assert grown == {"descriptors": 0}
    assert not any(isinstance(one, Call) for one in gc.get_objects())
    balance = await gateway.balance(customer)
    assert (balance.held_nano, balance.calls) == (0, 0)
