"""Every limit of `docs/reliability.md`: what exceeds it, what is answered, and that it is counted under its name."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from raw_http import Answer, RawClient, raw_client, request
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat

from gateway.app import _mapped, _timeouts
from gateway.proxy import listener
from gateway.proxy.limits import CallLimits
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

RELIABILITY = Path(__file__).parents[2] / "docs" / "reliability.md"
SILENT_ORIGIN = "https://silent.example"
STEP_S = 0.02


class Seen(msgspec.Struct):
    """What the caller saw. `code` "" for an answer that was cut, or a connection that was closed."""

    status: int = 0
    code: str = ""
    retry_after_s: int | None = None
    cut: bool = False


class Limited:
    """A gateway whose limits change from test to test, and a customer of the test's own."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.gateway = gateway
        self.credential = ""
        self.customer: Any = None

    async def new_customer(self) -> None:
        self.customer = await self.gateway.customer()
        self.credential = self.gateway.token_for(self.customer)

    @contextlib.contextmanager
    def limits(self, **changes: Any) -> Iterator[None]:
        """Other settings for what is begun within."""
        parts, server = self.gateway.parts, self.gateway.server
        before, options = parts.settings, dict(server._options)
        self._set(msgspec.structs.replace(before, **changes))
        try:
            yield
        finally:
            self._set(before)
            server._options = options

    def _set(self, settings: Any) -> None:
        parts, server = self.gateway.parts, self.gateway.server
        parts.settings = server.settings = settings
        parts.limits, parts.timeouts = CallLimits(settings), _timeouts(settings)
        parts.upstream._connections_max = settings.upstream_connections_max
        parts.upstream._connect_timeout_s = settings.upstream_connect_timeout_ms / 1000
        sizes = dict.fromkeys(("max_line_size", "max_field_size"), settings.max_header_bytes)
        more = {"max_headers": settings.max_headers, "keepalive_timeout": settings.client_idle_connection_s}
        server._options = server._options | sizes | more

    async def call(self, target: str = CHAT, *, steer: dict[str, Any] | None = None, **arguments: Any) -> Seen:
        # On a connection of its own: some limits are a connection's from its beginning.
        headers = {"Connection": "close", **arguments.pop("headers", {}), **steering_header(**(steer or {}))}
        arguments.setdefault("json", chat())
        try:
            async with self.gateway.forward(target, self.credential, headers=headers, **arguments) as answer:
                body = await answer.read()
        except Exception:
            return Seen(200, cut=True)
        code = msgspec.json.decode(body)["error"]["code"] if answer.status >= 400 else ""
        retry = answer.headers.get("retry-after")
        return Seen(answer.status, code, int(retry) if retry else None)

    async def beside(self, calls: int = 1) -> Seen:
        """One more call while others are under way at the provider; those end well."""
        self.gateway.provider.clear()
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(self.call(steer={"delay_ms": 400})) for _ in range(calls)]
            while self.gateway.provider.request_count < calls:
                await asyncio.sleep(STEP_S)
            seen = await self.call()
        assert [other.result().status for other in others] == [200] * calls
        return seen

    def head(self, *headers: str) -> bytes:
        of = [f"Authorization: Bearer {self.credential}", "Content-Type: application/json"]
        return request(f"POST /v1/forward?u={CHAT} HTTP/1.1", ["Host: g.test", *of, *headers])

    async def raw(self, *blocks: bytes, client: RawClient | None = None) -> Seen:
        async with raw_client(self.gateway.url) as client:
            await client.send(*blocks)
            return seen(await client.answer())

    def counted(self, limit: str) -> float:
        sample = self.gateway.parts.metrics.registry.get_sample_value("obol_limits_reached_total", {"limit": limit})
        return sample or 0.0


def seen(answer: Answer | None) -> Seen:
    if answer is None:
        return Seen(cut=True)
    retry = answer.headers.get("retry-after")
    return Seen(answer.status, answer.code, int(retry) if retry else None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(engines: tuple[str, str]) -> AsyncIterator[Limited]:
    async with FakeProvider() as provider, running_gateway(*engines, provider) as gateway:
        yield Limited(gateway)


@pytest_asyncio.fixture(loop_scope="module")
async def limited(running: Limited, monkeypatch: pytest.MonkeyPatch) -> Limited:
    monkeypatch.setattr(listener, "CHECK_INTERVAL_S", 0.05)
    await running.new_customer()
    return running


async def twice(at: Limited) -> Seen:
    assert (await at.call()).status == 200
    return await at.call()


async def dripping(at: Limited) -> Seen:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "SLOW_BODY_GRACE_S", 0.2)
        return await dripped(at)


async def dripped(at: Limited) -> Seen:
    async with raw_client(at.gateway.url) as client:
        await client.send(at.head("Content-Length: 1000"))
        answer = asyncio.ensure_future(client.answer())  # as it comes: what is sent behind it resets the connection
        for _ in range(100):
            client.writer.write(b"x")
            await asyncio.sleep(STEP_S)
            if answer.done():
                break
        return seen(await answer)


async def unanswered(at: Limited) -> Seen:
    """A connection that nobody accepts: the listener's queue is full."""
    own = at.gateway.token_for(at.customer, provider_key="sk-own")
    with socket.socket() as listening, contextlib.ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(2):
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listening.getsockname())
        await asyncio.sleep(STEP_S)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        at.gateway.parts.origins[SILENT_ORIGIN] = _mapped(SILENT_ORIGIN, url)
        at.credential = own
        return await at.call(f"{SILENT_ORIGIN}/x")


async def idle(at: Limited) -> Seen:
    async with raw_client(at.gateway.url) as client:
        return Seen(cut=await client.ended())


async def further_connection(at: Limited) -> Seen:
    """The test's own client has connections, too."""
    with at.limits(client_connections_max=at.gateway.server.connections_open):
        return await at.raw()


Exceed = Callable[[Limited], Awaitable[Seen]]

TABLE: dict[str, tuple[dict[str, int], Exceed, Seen]] = {
    "max_request_body_bytes": (
        {"max_request_body_bytes": 1_000},
        lambda at: at.call(json=chat("x" * 2_000)),
        Seen(413, "body_too_large"),
    ),
    "max_header_bytes": (
        {"max_header_bytes": 2_000},
        lambda at: at.call(headers={"X-A": "x" * 2_000}),
        Seen(431, "headers_too_large"),
    ),
    "max_headers": (
        {"max_headers": 20},
        lambda at: at.call(headers={f"X-{number}": "x" for number in range(20)}),
        Seen(431, "headers_too_large"),
    ),
    "max_metadata_bytes": (
        {"max_metadata_bytes": 20},
        lambda at: at.call(headers={"X-Lava-Metadata": '{"feature":"more than twenty bytes"}'}),
        Seen(400, "metadata_invalid"),
    ),
    "request_head_timeout_s": (
        {"request_head_timeout_s": 1},
        lambda at: at.raw(at.head()[:-2]),
        Seen(408, "request_timeout"),
    ),
    "request_body_idle_timeout_s": (
        {"request_body_idle_timeout_s": 1, "request_body_min_bytes_per_s": 0},
        lambda at: at.raw(at.head("Content-Length: 1000")),
        Seen(408, "request_timeout"),
    ),
    "request_body_min_bytes_per_s": ({}, dripping, Seen(408, "request_timeout")),
    "client_idle_connection_s": ({"client_idle_connection_s": 1}, idle, Seen(cut=True)),
    "client_connections_max": ({}, further_connection, Seen(503, "too_many_connections", 1)),
    "connection_calls_max": ({"connection_calls_max": 2}, lambda at: at.beside(2), Seen(429, "too_many_calls", 1)),
    "connection_requests_per_minute": (
        {"connection_requests_per_minute": 2, "connection_requests_burst": 1},
        twice,
        Seen(429, "too_many_requests", 30),
    ),
    "merchant_calls_per_process_max": (
        {"merchant_calls_per_process_max": 1},
        lambda at: at.beside(),
        Seen(429, "too_many_calls", 1),
    ),
    "upstream_connections_max": (
        {"upstream_connections_max": 1},
        lambda at: at.beside(),
        Seen(429, "too_many_requests", 1),
    ),
    "upstream_connect_timeout_ms": ({"upstream_connect_timeout_ms": 100}, unanswered, Seen(504, "upstream_timeout")),
    "first_byte_timeout_s": (
        {"first_byte_timeout_s": 1},
        lambda at: at.call(steer={"delay_ms": 5_000}),
        Seen(504, "upstream_timeout"),
    ),
    "chunk_idle_timeout_s": (
        {"chunk_idle_timeout_s": 1},
        lambda at: at.call(json=chat(stream=True), steer={"chunks": 3, "chunk_delay_ms": 5_000}),
        Seen(200, cut=True),
    ),
    "request_timeout_s": (
        {"request_timeout_s": 1},
        lambda at: at.call(json=chat(stream=True), steer={"chunks": 60, "chunk_delay_ms": 100}),
        Seen(200, cut=True),
    ),
}
UNCOUNTED = {"client_idle_connection_s"}
"""Its end is the usual end of a connection."""


@pytest.mark.parametrize("limit", TABLE)
async def test_a_limit_that_is_exceeded_is_told_and_counted(limited: Limited, limit: str) -> None:
    changes, exceed, expected = TABLE[limit]
    before = limited.counted(limit)
    if limit == "upstream_connections_max":  # kept connections count, so there must be none
        for connection in list(limited.gateway.parts.upstream._open):
            connection.abort()
        await asyncio.sleep(STEP_S)
    with limited.limits(**changes):
        assert await exceed(limited) == expected
    assert limited.counted(limit) == before + (limit not in UNCOUNTED)
    await nothing_is_held(limited)
    await limited.new_customer()
    assert (await limited.call()).status == 200  # and what does not exceed it is served


async def nothing_is_held(limited: Limited) -> None:
    for _ in range(200):
        balance = await limited.gateway.balance(limited.customer)
        if (balance.held_nano, balance.calls) == (0, 0):
            break
        await asyncio.sleep(STEP_S)
    assert (balance.held_nano, balance.calls) == (0, 0)
    assert limited.gateway.parts.limits._calls == {}


async def test_the_table_is_the_documents() -> None:
    section = RELIABILITY.read_text(encoding="utf-8").partition("\n## Limits\n")[2].partition("\n## ")[0]
    told = {
        name: [cell.strip() for cell in cells.split("|")]
        for name, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", section, re.M)
    }
    assert told.keys() == TABLE.keys()
    for name, (_, _, expected) in TABLE.items():
        answer = told[name][1]
        assert answer == (f"{expected.status} `{expected.code}`" if expected.code else answer)
        assert ("Retry-After" in told[name][2]) == (expected.retry_after_s is not None), name


async def test_calls_of_one_customer_do_not_count_against_another(limited: Limited) -> None:
    first = limited.credential
    with limited.limits(connection_calls_max=1, connection_requests_per_minute=1, connection_requests_burst=1):
        assert (await limited.call()).status == 200
        await limited.new_customer()
        assert (await limited.call()).status == 200
        limited.credential = first
        refused = await limited.call()
    assert (refused.status, refused.retry_after_s) == (429, 60)


async def test_calls_that_the_merchant_bears_are_not_held_to_a_connections_limits(limited: Limited) -> None:
    limited.credential = limited.gateway.merchant.secret_key
    with limited.limits(connection_calls_max=1, connection_requests_per_minute=1, connection_requests_burst=1):
        assert [(await limited.call()).status for _ in range(3)] == [200] * 3


async def test_a_limit_is_told_in_the_callers_dialect(limited: Limited) -> None:
    body = {"model": "claude-3-5-haiku-latest", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    with limited.limits(connection_requests_per_minute=1, connection_requests_burst=1):
        for expected in (200, 429):
            async with limited.gateway.forward(
                "https://api.anthropic.com/v1/messages", limited.credential, json=body
            ) as answer:
                assert answer.status == expected
                told = await answer.json()
    assert (told["type"], told["error"]["type"]) == ("error", "rate_limit_error")


async def test_the_count_of_calls_is_exact_under_concurrency(limited: Limited) -> None:
    """Twenty at once, five allowed: five are served, and each place is given back."""
    limited.gateway.provider.clear()
    with limited.limits(connection_calls_max=5):
        for _ in range(2):
            found = await asyncio.gather(*(limited.call(steer={"delay_ms": 500}) for _ in range(20)))
            assert sorted(each.status for each in found) == [200] * 5 + [429] * 15
            await nothing_is_held(limited)
    assert limited.gateway.provider.request_count == 10


@pytest.mark.parametrize("fault", ["status:500", "reset_before_first_byte", "reset_mid_stream", "truncated"])
async def test_every_ending_gives_its_place_back(limited: Limited, fault: str) -> None:
    with limited.limits(connection_calls_max=1, merchant_calls_per_process_max=1):
        await limited.call(json=chat(stream=True), steer={"fault": fault, "chunks": 10})
        await nothing_is_held(limited)
        assert (await limited.call()).status == 200


async def test_a_client_that_leaves_gives_its_place_back(limited: Limited) -> None:
    steer = steering_header(chunks=5, chunk_delay_ms=20)
    with limited.limits(connection_calls_max=1, merchant_calls_per_process_max=1):
        async with limited.gateway.forward(CHAT, limited.credential, json=chat(stream=True), headers=steer) as answer:
            await answer.content.readany()
            answer.close()
        await nothing_is_held(limited)
        assert (await limited.call()).status == 200
