"""A gateway whose holds grow in small steps, and what its streams came to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from running import RunningGateway, running_gateway
from scripted_provider import ScriptedProvider, scripted

from gateway.billing.accounts import NewConnection
from gateway.testing import FakeProvider, steering_header

TOKEN_NANO = 20_000
STEP_TOKENS = 256
LONG = steering_header(completion_tokens=2_000, prompt_tokens=5, chunks=500, chunk_delay_ms=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="running")
async def running_fixture(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    settings = {"hold_step_tokens": STEP_TOKENS, "progress_interval_ms": 200, "hidden_output_tokens_per_s": 2_000}
    async with FakeProvider() as provider, running_gateway(*engines, provider, **settings) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module", name="gateway")
async def gateway_fixture(running: RunningGateway) -> RunningGateway:
    running.provider.clear()
    return running


@pytest_asyncio.fixture(loop_scope="module", name="script")
async def script_fixture(gateway: RunningGateway) -> AsyncIterator[ScriptedProvider]:
    async with scripted(gateway.parts) as provider:
        yield provider


async def ended(gateway: RunningGateway, customer: NewConnection) -> tuple[Any, dict[str, Any]]:
    """Balance and row once the only call is settled."""
    async with asyncio.timeout(20):
        while (balance := await gateway.balance(customer)).held_nano:
            await asyncio.sleep(0.02)
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    return balance, row


def tokens(count: int) -> int:
    return count * TOKEN_NANO
