"""`WAIT` with a real replica: what counts as acknowledged, and a failover that loses what the replica had not got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

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

CREDIT_NANO = 25 * NANO
STEER = steering_header(prompt_tokens=10, completion_tokens=30)
CALL_NANO = 40 * 20_000


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[ValkeyServer]:
    with valkey_server(tmp_path / "primary", "repl-diskless-sync-delay 0", durable="always") as server:
        yield server


@pytest.fixture
def replica(tmp_path: Path, primary: ValkeyServer) -> Iterator[ValkeyServer]:
    with valkey_server(tmp_path / "replica", f"replicaof 127.0.0.1 {primary.port}") as server:
        yield server


@pytest_asyncio.fixture
async def proxy(primary: ValkeyServer) -> AsyncIterator[FlakyProxy]:
    async with FlakyProxy(primary.port) as running:
        yield running


@pytest_asyncio.fixture
async def gateway(
    proxy: FlakyProxy, replica: ValkeyServer, postgres: str, provider: FakeProvider
) -> AsyncIterator[RunningGateway]:
    await until(lambda: replica.client.info("replication")["master_link_status"] == "up")
    settings = {"redis_wait_replicas": 1, "redis_wait_timeout_ms": 200, "settle_keep_s": 1}
    url = f"redis://127.0.0.1:{proxy.port}/0"
    async with running_gateway(url, postgres, provider, **settings) as running:
        await until(lambda: running.parts.ledger.server.replicas == 1)
        yield running


async def until(condition: Callable[[], bool], within_s: float = 15) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def call(gateway: RunningGateway, customer: NewConnection) -> None:
    """A call, and the acknowledgement of its settle."""
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(), headers=STEER) as answer:
        assert answer.status == 200
        await answer.read()
    await until(lambda: not gateway.parts.live)


async def total_nano(gateway: RunningGateway, customer: NewConnection) -> int | None:
    try:
        balance = await gateway.balance(customer)
    except LedgerAway:
        return None
    return None if balance is None else balance.total_nano


def shortfalls(gateway: RunningGateway) -> float:
    return gateway.parts.metrics.replica_shortfalls._value.get()


async def test_an_acknowledged_settle_is_on_the_replica(gateway, replica):
    customer = await gateway.customer(CREDIT_NANO)
    names = gateway.parts.wallets._keys.of_wallet(
        customer.wallet.shard, customer.wallet.wallet_id, customer.wallet.merchant_id
    )
    for made in range(1, 6):
        await call(gateway, customer)
        assert int(replica.client.hget(names.wallet, "cycle")) == CREDIT_NANO - made * CALL_NANO
    assert shortfalls(gateway) == 0


async def test_a_replica_that_lags_is_counted_and_its_settles_stay_kept(gateway, replica):
    customer = await gateway.customer(CREDIT_NANO)
    await call(gateway, customer)
    await until(lambda: gateway.parts.kept.entries == 0)  # confirmed, and a second ago
    replica.freeze()
    await call(gateway, customer)
    assert shortfalls(gateway) >= 1
    await asyncio.sleep(1.2)
    assert gateway.parts.kept.entries == 1
    replica.thaw()
    await until(lambda: gateway.parts.kept.entries == 0)
    assert await total_nano(gateway, customer) == CREDIT_NANO - 2 * CALL_NANO


async def test_a_failover_that_loses_a_settle_loses_no_charge(gateway, proxy, primary, replica):
    customer = await gateway.customer(CREDIT_NANO)
    await call(gateway, customer)
    await asyncio.to_thread(replica.client.replicaof, "NO", "ONE")  # cut off from the primary, and promoted
    await until(lambda: primary.client.info("replication")["connected_slaves"] == 0)
    await call(gateway, customer)
    generation = gateway.parts.ledger.generation
    proxy.upstream_port = replica.port
    await asyncio.to_thread(primary.kill)
    await until(lambda: gateway.parts.ledger.generation > generation)
    assert await total_nano(gateway, customer) == CREDIT_NANO - 2 * CALL_NANO
    assert gateway.parts.metrics.settles_resent.labels("settled")._value.get() == 1
    assert sum(row["charge_nano"] for row in await gateway.rows()) == 2 * CALL_NANO
