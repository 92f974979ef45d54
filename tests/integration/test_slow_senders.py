"""Clients that send slowly, wait to be asked, leave, or are many: by raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from attacked import BODY, CHUNKED, LENGTH, Attacked, Place, attacked_fixture, checked, quiet  # noqa: F401
from raw_http import RawClient, raw_client, request
from running import running_gateway

from gateway.proxy import listener
from gateway.testing import FakeProvider

pytestmark = pytest.mark.asyncio(loop_scope="module")

# Slow senders


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the clock more often than each second."""
    monkeypatch.setattr(listener, "CHECK_INTERVAL_S", 0.05)
    monkeypatch.setattr(listener, "SLOW_BODY_GRACE_S", 0.4)


async def drip(client: RawClient, data: bytes, every_s: float) -> None:
    """One byte at a time, until the gateway has enough."""
    with contextlib.suppress(ConnectionError):
        for number in range(len(data)):
            client.writer.write(data[number : number + 1])
            await client.writer.drain()
            await asyncio.sleep(every_s)


@pytest.mark.usefixtures("often")
async def test_a_head_that_comes_slowly_is_408_on_every_listener(attacked: Attacked) -> None:
    async def slow(place: Place) -> None:
        async with raw_client(attacked.gateway.url) as client, asyncio.TaskGroup() as group:
            dripping = group.create_task(drip(client, place.get(), 0.05))
            answer = await client.answer()
            assert answer is not None
            checked(answer, 408, "request_timeout")
            assert await client.ended()
            dripping.cancel()

    await asyncio.gather(*map(slow, attacked.places()))
    assert await attacked.held() == (0, 0)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("name", ["chat", "rest"])
async def test_a_body_that_stops_or_drips_is_408(attacked: Attacked, name: str) -> None:
    attacked.gateway.provider.clear()
    place = attacked.place(name)

    async def stops(head: bytes) -> None:
        await refused_408([head])

    async def drips(head: bytes) -> None:
        await refused_408([head], BODY)

    async def refused_408(blocks: list[bytes], rest: bytes = b"") -> None:
        async with raw_client(attacked.gateway.url) as client, asyncio.TaskGroup() as group:
            await client.send(*blocks)
            dripping = group.create_task(drip(client, rest, 0.02))
            answer = await client.answer()
            assert answer is not None
            checked(answer, 408, "request_timeout")
            assert await client.ended()
            dripping.cancel()

    head = place.post(LENGTH, body=b"")
    await asyncio.gather(stops(head), drips(head), stops(place.post(CHUNKED, body=b"2\r\n{")))
    assert attacked.gateway.provider.request_count == 0
    assert await attacked.held() == (0, 0)


@pytest.mark.usefixtures("often")
async def test_a_slow_provider_does_not_make_an_upload_late(
    attacked: Attacked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client cannot go on where the provider does not read: that time is not its."""
    monkeypatch.setattr(attacked.raw, "until", b"END")
    monkeypatch.setattr(attacked.raw, "paused", asyncio.Event())
    size = 20 * 1024 * 1024  # more than the sockets in between hold
    head = attacked.place("raw").post(f"Content-Length: {size}", body=b"")
    async with raw_client(attacked.gateway.url) as client, asyncio.TaskGroup() as group:
        group.create_task(client.send(head, b"x" * (size - 3) + b"END"))
        await asyncio.sleep(1.5)  # beyond the second of silence that a client is allowed
        attacked.raw.paused.set()
        answer = await client.answer()
        assert answer is not None and (answer.status, answer.body) == (200, b"ok")
    await quiet(attacked)


async def test_a_client_that_leaves_within_its_body_leaves_nothing_behind(
    attacked: Attacked, caplog: pytest.LogCaptureFixture
) -> None:
    attacked.gateway.provider.clear()
    for name in ("chat", "raw", "rest"):
        async with raw_client(attacked.gateway.url) as client:
            await client.send(attacked.place(name).post("Content-Length: 100000"))
            await asyncio.sleep(0.05)
    await quiet(attacked)
    assert attacked.gateway.provider.request_count == 0
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == []


# 100 Continue


@pytest.mark.parametrize(("name", "status"), [("chat", 200), ("rest", 400)])
async def test_a_body_is_asked_for_when_it_is_going_to_be_read(attacked: Attacked, name: str, status: int) -> None:
    place = attacked.place(name)
    async with raw_client(attacked.gateway.url) as client:
        await client.send(place.post(LENGTH, "Expect: 100-continue", body=b""))
        answer = await client.answer()
        assert answer is not None and answer.status == 100
        await client.send(BODY)
        answer = await client.answer()
        assert answer is not None and answer.status == status


@pytest.mark.parametrize(
    ("name", "headers", "status"),
    [
        ("chat", ["Content-Length: 99999999"], 413),
        ("raw", ["Content-Length: 99999999"], 413),
        ("rest", ["Content-Length: 600000"], 413),
        ("chat", [LENGTH, "Authorization: Bearer aks_live_unknown"], 401),
        ("rest", [LENGTH, "Authorization: Bearer aks_live_unknown"], 401),
    ],
)
async def test_a_body_is_not_asked_for_where_it_is_refused(
    attacked: Attacked, name: str, headers: list[str], status: int
) -> None:
    place = attacked.place(name)
    if status == 401:
        place.headers[1:2] = []
    async with raw_client(attacked.gateway.url) as client:
        await client.send(place.post(*headers, "Expect: 100-continue", body=b""))
        answer = await client.answer()
        assert answer is not None and answer.status == status


# Many of them


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.usefixtures("often")
async def test_a_thousand_half_heads_cost_little_and_are_closed(attacked: Attacked) -> None:
    """Each has sent all that it may but the end; the sockets of both sides are in this process."""
    head = attacked.place("chat").get("X-A: " + "x" * 10_000)[:-2]
    before = resident_bytes()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(raw_client(attacked.gateway.url)) for _ in range(1_000)]
        await asyncio.gather(*(client.send(head) for client in clients))
        grown = resident_bytes() - before
        assert grown < 1_000 * 100_000, grown
        async with raw_client(attacked.gateway.url) as other:
            await other.send(attacked.place("probe").get())
            answer = await other.answer()
            assert answer is not None and answer.status == 200
        answers = await asyncio.gather(*(client.answer() for client in clients))
        assert {answer and answer.status for answer in answers} == {408}
        assert all(await asyncio.gather(*(client.ended() for client in clients)))
    server = attacked.gateway.server
    for _ in range(100):
        if not server.connections:
            break
        await asyncio.sleep(0.05)
    assert (server.connections, server.connections_open) == ([], 0)


async def test_idle_connections_are_closed_and_more_than_allowed_are_not_taken(valkey: str, postgres: str) -> None:
    limits = {"client_idle_connection_s": 1, "client_connections_max": 3}
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider, **limits) as gateway,
        contextlib.AsyncExitStack() as stack,
    ):
        idle = [await stack.enter_async_context(raw_client(gateway.url)) for _ in range(3)]
        await idle[0].send(request("GET /healthz HTTP/1.1", ["Host: g.test"]))
        first = await idle[0].answer()
        assert first is not None and first.status == 200
        async with raw_client(gateway.url) as further:
            answer = await further.answer()
            assert answer is not None
            checked(answer, 503, "too_many_connections")
            assert answer.headers["retry-after"] == "1"
            assert await further.ended()
        assert all(await asyncio.gather(*(client.ended() for client in idle)))
        async with raw_client(gateway.url) as again:
            await again.send(request("GET /healthz HTTP/1.1", ["Host: g.test"]))
            answer = await again.answer()
            assert answer is not None and answer.status == 200
