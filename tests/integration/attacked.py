"""A gateway, its listeners, and what a refusal by one of them looks like: for tests of abuse and of slow senders."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import pytest_asyncio
from raw_http import Answer, RawProvider, raw_client, raw_provider, request
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat

from gateway.app import _mapped
from gateway.billing.accounts import NewConnection
from gateway.testing import FakeProvider

RAW_ORIGIN = "https://raw.example"
BODY = json.dumps(chat()).encode()
CHUNKED_BODY = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"


@dataclass
class Place:
    """One of the gateway's listeners: where a request goes, and the headers that it needs."""

    name: str
    path: str
    headers: list[str]

    def post(self, *headers: str | bytes, body: bytes = BODY, version: str = "HTTP/1.1") -> bytes:
        return request(f"POST {self.path} {version}", [*self.headers, *headers], body)

    def get(self, *headers: str | bytes) -> bytes:
        return request(f"GET {self.path} HTTP/1.1", [*self.headers, *headers])

    def line(self, line: str, *headers: str | bytes) -> bytes:
        return request(line.replace("PATH", self.path), [*self.headers, *headers])


@dataclass
class Attacked:
    gateway: RunningGateway
    customer: NewConnection
    raw: RawProvider

    def places(self) -> list[Place]:
        of, credential = self.gateway, self.gateway.token_for(self.customer)
        own = self.gateway.token_for(self.customer, provider_key="sk-own")
        json_body = "Content-Type: application/json"
        return [
            Place("chat", f"/v1/forward?u={CHAT}", ["Host: g.test", f"Authorization: Bearer {credential}", json_body]),
            Place("raw", f"/v1/forward?u={RAW_ORIGIN}/x", ["Host: g.test", f"Authorization: Bearer {own}", json_body]),
            Place(
                "rest", "/v1/requests", ["Host: g.test", f"Authorization: Bearer {of.merchant.secret_key}", json_body]
            ),
            Place("probe", "/healthz", ["Host: g.test"]),
        ]

    def place(self, name: str) -> Place:
        return next(place for place in self.places() if place.name == name)

    async def held(self) -> tuple[int, int]:
        balance = await self.gateway.balance(self.customer)
        return balance.held_nano, balance.calls


@pytest_asyncio.fixture(name="attacked", scope="module", loop_scope="module")
async def attacked_fixture(engines: tuple[str, str]) -> AsyncIterator[Attacked]:
    async with (
        FakeProvider() as provider,
        raw_provider() as raw,
        running_gateway(*engines, provider, request_head_timeout_s=1, request_body_idle_timeout_s=1) as gateway,
    ):
        gateway.parts.origins[RAW_ORIGIN] = _mapped(RAW_ORIGIN, raw.url)
        yield Attacked(gateway, await gateway.customer(), raw)


async def refused(attacked: Attacked, place: Place, sent: bytes | list[bytes], status: int, code: str) -> None:
    """`sent` gets this one answer, and is the last that the connection hears."""
    async with raw_client(attacked.gateway.url) as client:
        with contextlib.suppress(ConnectionError):
            await client.send(*([sent] if isinstance(sent, bytes) else sent))
        answer = await client.answer()
        assert answer is not None, place.name
        checked(answer, status, code)
        assert answer.headers["connection"] == "close"
        assert await client.ended()


def checked(answer: Answer, status: int, code: str) -> None:
    """An error of ours as HTTP/1.1 has it."""
    assert (answer.version, answer.status, answer.code) == ("HTTP/1.1", status, code), answer.body
    assert answer.reason
    assert answer.headers["content-type"] == "application/json"
    assert parsedate_to_datetime(answer.headers["date"])
    assert answer.json["error"]["message"]


async def quiet(attacked: Attacked) -> None:
    """Every hold is given back."""
    for _ in range(200):
        if await attacked.held() == (0, 0):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(await attacked.held())
