"""A gateway that is told to stop: what it still answers, what it closes when, what it cuts, and that all is settled."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

import aiohttp
import pytest
from processes import GatewayProcess, gateway_process
from prometheus_client.multiprocess import MultiProcessCollector
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat

from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio
TOKEN_NANO = 20_000
STOP_TIMEOUT_S = 20


def steer(chunk_delay_ms: int) -> dict[str, str]:
    return steering_header(prompt_tokens=10, completion_tokens=40, chunks=40, chunk_delay_ms=chunk_delay_ms)


async def _stream_of_http_1_0(
    url: str, credential: str, headers: dict[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream that has begun, whose end is the end of its connection."""
    body = json.dumps(chat(stream=True)).encode()
    lines = [f"POST /v1/forward?u={CHAT} HTTP/1.0", "Host: gateway", f"Authorization: Bearer {credential}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    reader, writer = await asyncio.open_connection(*url.removeprefix("http://").split(":"))
    writer.write("\r\n".join(lines).encode() + body)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    assert b"chunked" not in head
    return reader, writer


class Streams:
    """Streams of 40 tokens out and 10 in, one token each `chunk_delay_ms`."""

    def __init__(self, local: RunningGateway, customer, count: int, chunk_delay_ms: int) -> None:
        self._local = local
        self._customer = customer
        self._steer = steer(chunk_delay_ms)
        self.begun = 0
        self.tasks = [asyncio.ensure_future(self._one()) for _ in range(count)]

    async def _one(self) -> bytes:
        body = bytearray()
        credential = self._local.token_for(self._customer)
        async with self._local.forward(CHAT, credential, json=chat(stream=True), headers=self._steer) as answer:
            assert answer.status == 200
            self.begun += 1
            async for piece in answer.content.iter_any():
                body += piece
        return bytes(body)

    async def all_begun(self) -> None:
        async with asyncio.timeout(20):
            while self.begun < len(self.tasks):
                await asyncio.sleep(0.02)


async def _stop(gateway: GatewayProcess, number: int = signal.SIGTERM) -> float:
    """Signal it, wait for its end; return how long that took, in seconds."""
    since_s = time.monotonic()
    if number:
        gateway.process.send_signal(number)
    async with asyncio.timeout(STOP_TIMEOUT_S):
        assert await gateway.process.wait() == 0, gateway.log.read_text()
    return time.monotonic() - since_s


def _counted(directory: Path) -> dict[tuple[str, str], float]:
    """What the ended process counted, by name and the value of its label."""
    files = [str(path) for path in (directory / "metrics").glob("counter_*.db")]
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for metric in MultiProcessCollector.merge(files)
        for sample in metric.samples
    }


async def test_what_arrives_during_a_drain_is_answered_and_told_that_the_connection_ends(
    valkey, redis_client, postgres, tmp_path
):
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider) as local,
        gateway_process(valkey, postgres, provider, tmp_path, shutdown_idle_grace_s=1) as gateway,
        aiohttp.ClientSession() as probes,
        aiohttp.ClientSession() as calls,
        aiohttp.ClientSession() as idle,
    ):
        local.url = gateway.url
        customer = await local.customer()
        credential = {"Authorization": f"Bearer {local.token_for(customer)}"}
        streams = Streams(local, customer, 5, 60)
        await streams.all_begun()

        async def ready(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
            async with session.get(f"{gateway.url}/readyz") as answer:
                await answer.read()
                return answer

        async def call() -> aiohttp.ClientResponse:
            async with calls.post(f"{gateway.url}/v1/forward?u={CHAT}", headers=credential, json=chat()) as answer:
                await answer.read()
                return answer

        open_before = [await ready(probes), await call(), await ready(idle)]
        assert [(answer.status, answer.headers.get("connection")) for answer in open_before] == [(200, None)] * 3
        gateway.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        refused = [await ready(probes), await call()]
        assert [(answer.status, answer.headers["connection"]) for answer in refused] == [(503, "close"), (200, "close")]
        assert len(idle.connector._conns) == 1, "an idle connection was closed at once"
        async with aiohttp.ClientSession() as late:
            with pytest.raises(aiohttp.ClientConnectorError):
                await ready(late)
        assert all(not task.done() for task in streams.tasks)
        await asyncio.sleep(1.2)
        assert not any(conn.is_connected() for conns in idle.connector._conns.values() for conn, _ in conns)
        bodies = await asyncio.gather(*streams.tasks)
        assert all(body.rstrip().endswith(b"data: [DONE]") for body in bodies)
        await _stop(gateway, 0)
        balance = await local.balance(customer)
        assert balance.held_nano == 0
        assert {row["ending"] for row in await local.rows()} == {"completed"}
        counted = _counted(tmp_path)
        assert counted["obol_drain_requests_total", "finished"] == 5 + 2
        assert counted["obol_drain_requests_total", "cut"] == 0


async def test_a_gateway_stays_as_long_as_redis_may_forget_its_settles(valkey, redis_client, postgres, tmp_path):
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider) as local,
        gateway_process(valkey, postgres, provider, tmp_path, settle_keep_s=2) as gateway,
    ):
        local.url = gateway.url
        credential = local.token_for(await local.customer())
        async with local.forward(CHAT, credential, json=chat(), headers={"Connection": "close"}) as answer:
            assert answer.status == 200
            await answer.read()
        assert 1.5 < await _stop(gateway) < 4


@pytest.mark.parametrize("second_signal", [False, True])
async def test_what_is_under_way_at_the_bound_or_a_second_signal_is_cut_and_billed_for_what_was_produced(
    valkey, redis_client, postgres, tmp_path, second_signal
):
    bound_s = 600 if second_signal else 1
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider) as local,
        gateway_process(valkey, postgres, provider, tmp_path, shutdown_drain_s=bound_s) as gateway,
    ):
        local.url = gateway.url
        customer = await local.customer()
        streams = Streams(local, customer, 5, 500)
        left = Streams(local, customer, 1, 500)
        await streams.all_begun()
        await left.all_begun()
        left.tasks[0].cancel()  # its client is gone; the gateway reads on for the provider's usage
        old, its_writer = await _stream_of_http_1_0(gateway.url, local.token_for(customer), steer(500))
        await asyncio.sleep(1)
        if second_signal:
            gateway.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
        took_s = await _stop(gateway)
        assert took_s < 4, "the drain went past its bound"
        for outcome in await asyncio.gather(*streams.tasks, return_exceptions=True):
            assert isinstance(outcome, aiohttp.ClientPayloadError), outcome
        with pytest.raises(ConnectionResetError):  # its only sign that something is missing
            await old.read()
        its_writer.close()
        rows = await local.rows()
        assert len(rows) == 7
        assert {(row["ending"], row["estimated"]) for row in rows} == {("cancelled", True)}
        assert all(0 < row["charge_nano"] < 50 * TOKEN_NANO for row in rows), rows
        balance = await local.balance(customer)
        assert balance.held_nano == 0
        assert balance.cycle_nano == 25 * 10**9 - sum(row["charge_nano"] for row in rows)
        counted = _counted(tmp_path)
        assert counted["obol_drain_requests_total", "cut"] == 7
        drained = [json.loads(line) for line in gateway.log.read_text().splitlines() if '"drained"' in line]
        assert [(line["cut"], line["unsettled"]) for line in drained] == [(7, 0)]
