"""A running fake provider, and clients for it."""

from __future__ import annotations

import aiohttp
import anthropic
import openai
import pytest

from gateway.testing import FakeProvider


@pytest.fixture
async def provider():
    async with FakeProvider() as running:
        yield running


@pytest.fixture
async def http():
    async with aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


@pytest.fixture
async def openai_client(provider):
    async with openai.AsyncOpenAI(api_key="sk-test", base_url=f"{provider.url}/v1", max_retries=0) as client:
        yield client


@pytest.fixture
async def anthropic_client(provider):
    async with anthropic.AsyncAnthropic(api_key="sk-test", base_url=provider.url, max_retries=0) as client:
        yield client
