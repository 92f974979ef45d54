"""Redis away in every way: 503 before any call upstream, no settle lost or made twice, recovery by itself.

One gateway lives through all of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from flaky_proxy import FlakyProxy
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat
from valkeys import ValkeyServer, valkey_server

from gateway.billing.accounts import NewConnection
from gateway.core.money import NANO
from gateway.ledger.connection import LedgerAway
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

CREDIT_NANO = 25 * NANO
CALL = {"prompt_tokens": 10, "completion_tokens": 30}
CALL_NANO = 40 * 20_000
LOADED_KEYS = 4_000


@dataclass
class Setup:
    server: ValkeyServer
    proxy: FlakyProxy
    gateway: RunningGateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def setup(engines: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Setup]:
    directory: Path = tmp_path_factory.mktemp("valkey")
    with valkey_server(directory) as server:
        async with (
            FlakyProxy(server.port) as proxy,
            FakeProvider() as provider,
            running_gateway(f"redis://127.0.0.1:{proxy.port}/0", engines[1], provider, redis_timeout_ms=500) as running,
        ):
            yield Setup(server, proxy, running)


class Away:
    """One way to be away: `begin` brings it about, `end` ends it."""

    def __init__(self, setup: Setup) -> None:
        self.server, self.proxy = setup.server, setup.proxy

    def begin(self) -> None: ...
    def end(self) -> None: ...

    def until_answered(self, words: str) -> None:
        """Wait until the server itself refuses a write with `words`: the test is about what it says to be about."""
        deadline_s = time.monotonic() + 10
        while words not in self.server.answer_to_a_write():
            assert time.monotonic() < deadline_s, f"the server never said {words}"
            time.sleep(0.01)


class Down(Away):
    def begin(self) -> None:
        self.server.kill()

    def end(self) -> None:
        self.server.start()


class Frozen(Away):
    def begin(self) -> None:
        self.server.freeze()

    def end(self) -> None:
        self.server.thaw()


class Replica(Away):
    def begin(self) -> None:
        self.server.client.replicaof("127.0.0.1", 1)
        self.until_answered("-READONLY")

    def end(self) -> None:
        self.server.client.replicaof("NO", "ONE")


class Configured(Away):
    name, away, well, says = "", "", "", ""

    def begin(self) -> None:
        self.server.client.config_set(self.name, self.away)
        self.until_answered(self.says)

    def end(self) -> None:
        self.server.client.config_set(self.name, self.well)


class Full(Configured):
    name, away, well, says = "maxmemory", "1", "0", "-OOM"


class WithoutReplicas(Configured):
    name, away, well, says = "min-replicas-to-write", "1", "0", "-NOREPLICAS"


class DiskFull(Away):
    def begin(self) -> None:
        self.server.limit_files(0)
        self.until_answered("-MISCONF Errors writing to the AOF file")

    def end(self) -> None:
        self.server.limit_files(-1)


class Loading(Away):
    def begin(self) -> None:
        with self.server.client.pipeline(transaction=False) as pipe:
            for number in range(LOADED_KEYS):
                pipe.set(f"filler-{number}", "x")
            pipe.execute()
        self.server.kill()
        self.server.configure("key-load-delay 250")
        self.server.start(wait=False)
        self.until_answered("-LOADING")

    def end(self) -> None:
        return  # it has loaded by then


class CutMidReply(Away):
    def begin(self) -> None:
        self.proxy.cut_next_reply()

    def end(self) -> None:
        assert self.proxy.cuts > 0
        self.proxy.heal()


async def call(gateway: RunningGateway, customer: NewConnection, **steer: Any) -> tuple[int, dict[str, Any], Any]:
    """Status, body and headers of the answer; the text of a stream that was read to its end."""
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if "chunks" in steer else {}
    headers = steering_header(**CALL, **steer)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(**streamed), headers=headers) as answer:
        body = await answer.read() if streamed else await answer.json()
        return answer.status, body, answer.headers


async def balance(gateway: RunningGateway, customer: NewConnection) -> tuple[int, int] | None:
    try:
        found = await gateway.balance(customer)
    except LedgerAway:
        return None
    return None if found is None else (found.total_nano, found.held_nano)


async def becomes(gateway: RunningGateway, customer: NewConnection, total_nano: int) -> None:
    async with asyncio.timeout(15):
        while (found := await balance(gateway, customer)) != (total_nano, 0):
            assert found is None or found[0] >= total_nano, "charged twice"
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "way", [Down, Frozen, Replica, Full, WithoutReplicas, DiskFull, Loading, CutMidReply], ids=lambda way: way.__name__
)
async def test_redis_away(setup: Setup, way: type[Away]) -> None:
    gateway, away = setup.gateway, way(setup)
    customer = await gateway.customer(CREDIT_NANO)
    gateway.provider.clear()
    under_way = asyncio.create_task(call(gateway, customer, chunks=10, chunk_delay_ms=40))
    async with asyncio.timeout(5):
        while gateway.provider.request_count == 0:
            await asyncio.sleep(0.01)
    await asyncio.to_thread(away.begin)
    try:
        refused, answered = await asyncio.gather(call(gateway, customer), under_way)
        later = await call(gateway, customer)
        assert gateway.provider.request_count == 1  # of the one that was under way
    finally:
        await asyncio.to_thread(away.end)
    for status, body, headers in (refused, later):
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "ledger_unavailable", "1")
    assert answered[0] == 200
    assert answered[1].endswith(b"data: [DONE]\n\n")
    await becomes(gateway, customer, CREDIT_NANO - CALL_NANO)
    assert (await call(gateway, customer))[0] == 200
    await becomes(gateway, customer, CREDIT_NANO - 2 * CALL_NANO)
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    assert [(row["charge_nano"], row["ending"], row["estimated"]) for row in rows] == [
        (CALL_NANO, "completed", False)
    ] * 2
    async with asyncio.timeout(5):
        while gateway.parts.live or len(gateway.parts.background):
            await asyncio.sleep(0.02)
