"""A gateway for realtime sessions, and what their calls came to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from running import RunningGateway, running_gateway

from gateway.testing import FakeProvider

COUNTS = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "input_audio_tokens",
    "output_audio_tokens",
    "input_us",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="gateway")
async def gateway_fixture(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with (
        FakeProvider() as provider,
        running_gateway(*engines, provider, provider_keys={"openai": "sk-managed-openai"}) as running,
    ):
        yield running


async def settled(gateway: RunningGateway, customer: Any) -> list[dict[str, Any]]:
    """The rows of a customer, once nothing of theirs is open."""
    async with asyncio.timeout(5):
        while (await gateway.balance(customer)).calls:
            await asyncio.sleep(0.01)
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    return [row | dict.fromkeys(COUNTS) | row["usage"] for row in rows]
