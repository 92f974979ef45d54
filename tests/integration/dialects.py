"""A gateway and clients of it whose provider speaks another dialect."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import orjson
import pytest_asyncio
from running import RunningGateway, running_gateway
from scripted_provider import ScriptedProvider, scripted
from yarl import URL

from gateway.billing.accounts import NewConnection
from gateway.testing import FakeProvider, steering_header

TOKEN_NANO = 20_000
CREDIT_NANO = 25 * 10**9
STEER = steering_header(prompt_tokens=300, completion_tokens=40, chunks=40)
MESSAGES = [{"role": "user", "content": "Say it in forty words."}]
CHAT = {"model": "claude-sonnet-4-5", "messages": MESSAGES}
GEMINI = {"contents": [{"role": "user", "parts": [{"text": "Say it in forty words."}]}]}
CLAUDE, GPT = "https://api.anthropic.com/v1/messages", "https://api.openai.com/v1/chat/completions"
GOOGLE = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
PIXEL = "iVBORw0KGgo="


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="gateway")
async def gateway_fixture(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    keys = {name: f"sk-of-{name}" for name in ("openai", "anthropic", "google")}
    async with FakeProvider() as provider, running_gateway(*engines, provider, provider_keys=keys) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", name="customer")
async def customer_fixture(gateway: RunningGateway) -> NewConnection:
    gateway.provider.clear()
    return await gateway.customer(CREDIT_NANO)


@pytest_asyncio.fixture(loop_scope="module", name="script")
async def script_fixture(gateway: RunningGateway) -> AsyncIterator[ScriptedProvider]:
    async with scripted(gateway.parts) as provider:
        yield provider


async def settled(gateway: RunningGateway, customer: NewConnection) -> dict[str, Any]:
    """The row of a customer's only call; its charge has left the balance, and nothing is held."""
    async with asyncio.timeout(10):
        while (balance := await gateway.balance(customer)).held_nano:
            await asyncio.sleep(0.02)
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert CREDIT_NANO - balance.cycle_nano == row["charge_nano"]
    return row


async def charged(gateway: RunningGateway, customer: NewConnection, tokens: int = 340) -> dict[str, Any]:
    row = await settled(gateway, customer)
    assert (row["ending"], row["estimated"], row["charge_nano"]) == ("completed", False, tokens * TOKEN_NANO)
    return row


def post(gateway: RunningGateway, customer: NewConnection, path: str, body: Any, **headers: str):
    given = {"Authorization": f"Bearer {gateway.token_for(customer)}", "Content-Type": "application/json"}
    url = URL(gateway.url + path, encoded=True)
    return gateway.session.post(url, data=orjson.dumps(body), headers=STEER | given | headers)


def openai_client(gateway: RunningGateway, customer: NewConnection, base: str = "/v1") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=gateway.url + base, api_key=gateway.token_for(customer), max_retries=0, default_headers=STEER
    )


def anthropic_client(gateway: RunningGateway, customer: NewConnection, base: str = "") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url=gateway.url + base, api_key=gateway.token_for(customer), max_retries=0, default_headers=STEER
    )


def sse(*events: dict[str, Any]) -> list[bytes]:
    return [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events]


def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: %b\n\n" % json.dumps({"id": "c", "model": "gpt-4o-mini", "choices": [choice]}).encode()
