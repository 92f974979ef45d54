"""A Redis that loses its last second loses no charge, as long as the gateway lives, and charges nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat
from valkeys import ValkeyServer, valkey_server

from gateway.billing.accounts import NewConnection
from gateway.billing.settled_before import SettledBefore
from gateway.core.money import NANO
from gateway.ledger.connection import LedgerAway
from gateway.ledger.kept import Settle, Untold
from gateway.ledger.wallets import now_ms
from gateway.proxy import reconnection, renewal
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

CREDIT_NANO = 25 * NANO
SLOW = steering_header(chunks=30, chunk_delay_ms=30, prompt_tokens=10, completion_tokens=30)
SLOW_NANO = 40 * 20_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    with valkey_server(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@asynccontextmanager
async def gateway_on(server: ValkeyServer, postgres: str, **changes: Any) -> AsyncIterator[RunningGateway]:
    async with (
        FakeProvider() as provider,
        running_gateway(server.url, postgres, provider, **{"redis_timeout_ms": 1_000} | changes) as running,
    ):
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(server: ValkeyServer, engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with gateway_on(server, engines[1]) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shared: RunningGateway) -> RunningGateway:
    """The module's gateway, with nothing of earlier tests kept or counted."""
    await shared.rows()
    while shared.parts.kept._acknowledged:
        shared.parts.kept._acknowledged.popleft()
    shared.provider.clear()
    for outcome in ("duplicate", "settled"):
        shared.parts.metrics.settles_resent.labels(outcome).reset()
    shared.parts.metrics.holds_lost.reset()
    return shared


async def called(gateway: RunningGateway, customer: NewConnection) -> None:
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(), headers=SLOW) as answer:
        assert answer.status == 200
        await answer.read()


async def stream(gateway: RunningGateway, customer: NewConnection) -> int:
    """A call that takes a second; the status of its answer, which is read whole."""
    body = chat(stream=True, stream_options={"include_usage": True})
    async with gateway.forward(CHAT, gateway.token_for(customer), json=body, headers=SLOW) as answer:
        assert b"[DONE]" in await answer.read()
        return answer.status


async def until(condition: Any, within_s: float = 10) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():
            await asyncio.sleep(0.02)


async def balance_of(gateway: RunningGateway, customer: NewConnection) -> tuple[int, int] | None:
    """Total and held nano-dollars; None while Redis is away."""
    try:
        balance = await gateway.balance(customer)
    except LedgerAway:
        return None
    return None if balance is None else (balance.total_nano, balance.held_nano)


async def becomes(gateway: RunningGateway, customer: NewConnection, total_nano: int, held_nano: int = 0) -> None:
    async def condition() -> bool:
        return await balance_of(gateway, customer) == (total_nano, held_nano)

    try:
        await until(condition)
    except TimeoutError:
        assert await balance_of(gateway, customer) == (total_nano, held_nano)


async def held(gateway: RunningGateway, customer: NewConnection) -> bool:
    found = await balance_of(gateway, customer)
    return found is not None and found[1] > 0


async def back_from(gateway: RunningGateway, server: ValkeyServer, survives: Path) -> None:
    generation = gateway.parts.ledger.generation
    await asyncio.to_thread(server.power_cut, survives)
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(10):
        while gateway.parts.ledger.generation == generation or not gateway.parts.ledger.connected:
            await asyncio.sleep(0.01)


def resent(gateway: RunningGateway, outcome: str) -> float:
    return gateway.parts.metrics.settles_resent.labels(outcome)._value.get()


async def one_row(gateway: RunningGateway, customer: NewConnection, charge_nano: int = SLOW_NANO) -> dict[str, Any]:
    """The only row of the customer, after every journal entry was flushed."""
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert (row["charge_nano"], row["ending"], row["estimated"]) == (charge_nano, "completed", False)
    return row


def grant(customer: NewConnection) -> str:
    return f"grant-{customer.connection_id}"


@pytest.mark.parametrize("survives", ["neither", "hold", "both"])
async def test_a_settle_lost_with_or_without_its_hold_is_debited_again_once(gateway, server, survives):
    customer = await gateway.customer(CREDIT_NANO)
    copy = server.remember(grant(customer))
    call = asyncio.create_task(stream(gateway, customer))
    await until(lambda: held(gateway, customer))
    (request_id,) = (live.request_id for live in gateway.parts.live)
    if survives == "hold":
        copy = server.remember(f":h:{gateway.merchant.merchant_id}:{request_id}")
    assert await call == 200
    await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
    if survives == "both":
        copy = server.remember(f":r:{gateway.merchant.merchant_id}:{request_id}")
    assert gateway.parts.kept.entries == 1
    await back_from(gateway, server, copy)
    # The balance is right from the first moment on that anyone can read it.
    assert await balance_of(gateway, customer) == (CREDIT_NANO - SLOW_NANO, 0)
    assert resent(gateway, "duplicate" if survives == "both" else "settled") == 1
    await back_from(gateway, server, server.remember(f":r:{gateway.merchant.merchant_id}:{request_id}"))
    assert await balance_of(gateway, customer) == (CREDIT_NANO - SLOW_NANO, 0)
    assert resent(gateway, "duplicate") == (2 if survives == "both" else 1)
    await one_row(gateway, customer)


@pytest.mark.parametrize("frozen", [False, True])
async def test_an_outage_longer_than_settles_are_kept_loses_none(tmp_path, postgres, frozen):
    """Redis' machine loses its power, at once or after it has hung for a while."""
    with valkey_server(tmp_path / "valkey") as server:
        async with gateway_on(server, postgres, settle_keep_s=3, redis_timeout_ms=5_000) as gateway:
            customer = await gateway.customer(CREDIT_NANO)
            copy = server.remember(grant(customer))
            await called(gateway, customer)
            await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
            if frozen:
                server.freeze()
                await asyncio.sleep(3.8)
                assert gateway.parts.ledger.connected
            else:
                await asyncio.to_thread(server.power_cut, copy)
                await asyncio.sleep(3.8)
            assert gateway.parts.kept.entries == 1
            await back_from(gateway, server, copy)
            assert await balance_of(gateway, customer) == (CREDIT_NANO - SLOW_NANO, 0)
            await one_row(gateway, customer)


async def test_a_settle_is_forgotten_once_its_server_was_seen_alive_long_enough(tmp_path, postgres):
    with valkey_server(tmp_path / "valkey") as server:
        async with gateway_on(server, postgres, settle_keep_s=1) as gateway:
            customer = await gateway.customer(CREDIT_NANO)
            await called(gateway, customer)
            await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
            assert gateway.parts.kept.entries == 1
            async with asyncio.timeout(6):
                while gateway.parts.kept.entries:
                    await asyncio.sleep(0.05)


async def test_a_call_under_way_is_held_again_and_debited_once(gateway, server):
    customer = await gateway.customer(CREDIT_NANO)
    copy = server.remember(grant(customer))
    call = asyncio.create_task(stream(gateway, customer))
    await until(lambda: held(gateway, customer))
    before = await balance_of(gateway, customer)
    await back_from(gateway, server, copy)
    assert await balance_of(gateway, customer) == before
    assert await call == 200
    await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
    assert gateway.provider.request_count == 1
    await one_row(gateway, customer)


async def test_a_call_whose_hold_cannot_be_made_again_is_debited_all_the_same(gateway, server, monkeypatch):
    async def does_nothing(parts: Any) -> None:
        return

    monkeypatch.setattr(reconnection, "_hold_again", lambda parts, call: does_nothing(parts))
    monkeypatch.setattr(renewal, "_renewed", lambda parts, call, reply: None)
    customer = await gateway.customer(CREDIT_NANO)
    copy = server.remember(grant(customer))
    call = asyncio.create_task(stream(gateway, customer))
    await until(lambda: held(gateway, customer))
    await back_from(gateway, server, copy)
    assert await balance_of(gateway, customer) == (CREDIT_NANO, 0)
    assert await call == 200
    await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
    assert gateway.parts.metrics.holds_lost._value.get() == 1
    assert gateway.parts.metrics.lost_settles._value.get() == 0
    await one_row(gateway, customer)


async def test_a_report_that_was_acknowledged_is_not_lost(gateway, server):
    customer = await gateway.customer(CREDIT_NANO)
    copy = server.remember(grant(customer))
    report = {"request_id": "mine-1", "connection_id": customer.connection_id, "input_tokens": 40, "output_tokens": 0}
    report["meter_slug"] = gateway.meter.meter_slug
    keys = {"Authorization": f"Bearer {gateway.merchant.secret_key}"}
    async with gateway.session.post(f"{gateway.url}/v1/requests", json=report, headers=keys) as answer:
        assert answer.status == 200, await answer.text()
    await back_from(gateway, server, copy)
    assert await balance_of(gateway, customer) == (CREDIT_NANO - SLOW_NANO, 0)
    async with gateway.session.post(f"{gateway.url}/v1/requests", json=report, headers=keys) as answer:
        assert answer.status == 200, await answer.text()
    assert await balance_of(gateway, customer) == (CREDIT_NANO - SLOW_NANO, 0)
    assert len(await gateway.rows("connection_id = $1", customer.connection_id)) == 1


@pytest.mark.parametrize("flushed", [True, False])
async def test_a_settle_older_than_its_record_is_looked_up(tmp_path, postgres, flushed):
    """Redis was away for so long that it cannot know any more whether it had settled: PostgreSQL tells."""
    with valkey_server(tmp_path / "valkey") as server:
        await looked_up(server, postgres, flushed)


async def looked_up(server: ValkeyServer, postgres: str, flushed: bool) -> None:
    async with gateway_on(server, postgres, settled_record_ttl_s=10) as gateway:
        customer = await gateway.customer(CREDIT_NANO)
        copy = server.remember(grant(customer))
        await called(gateway, customer)
        await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
        make_old(gateway)
        if flushed:
            await one_row(gateway, customer)
            for record in server.client.scan_iter("*:r:*"):
                server.client.delete(record)  # as if expired
            await back_from(gateway, server, server.remember("DEL"))
        else:
            await back_from(gateway, server, copy)
            assert await balance_of(gateway, customer) == (CREDIT_NANO, 0)
            await gateway.rows()  # now PostgreSQL has whatever the journal held
        await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
        async with asyncio.timeout(5):
            while resent(gateway, "duplicate" if flushed else "settled") < 1:
                await asyncio.sleep(0.02)
        assert await balance_of(gateway, customer) == (CREDIT_NANO - SLOW_NANO, 0)
        await one_row(gateway, customer)


def make_old(gateway: RunningGateway) -> None:
    queue = gateway.parts.kept._acknowledged._kept
    for at, kept in enumerate(queue):
        settle = kept.settle
        arguments = (*settle.arguments[:2], now_ms() - 9_500, *settle.arguments[3:])
        queue[at] = kept._replace(settle=settle._replace(arguments=arguments))


async def test_what_the_journal_still_holds_is_waited_for(gateway):
    customer = await gateway.customer(CREDIT_NANO)
    await called(gateway, customer)
    await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
    settle: Settle = gateway.parts.kept._acknowledged._kept[0].settle
    recorded = SettledBefore(gateway.context.store, gateway.context.journal)
    with pytest.raises(Untold):
        await recorded(settle)
    await gateway.rows()
    assert await recorded(settle)
    assert not await recorded(settle._replace(arguments=(settle.arguments[0], "another", *settle.arguments[2:])))


async def test_where_nothing_can_be_lost_nothing_is_kept(tmp_path, postgres):
    with valkey_server(tmp_path / "valkey", durable="always") as server:
        async with gateway_on(server, postgres) as gateway:
            customer = await gateway.customer(CREDIT_NANO)
            await called(gateway, customer)
            await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
            assert (gateway.parts.kept.entries, gateway.parts.kept.bytes) == (0, 0)


async def test_a_settle_of_a_wallet_that_is_being_restored_waits_for_it(gateway, server):
    customer = await gateway.customer(CREDIT_NANO)
    wallet = gateway.parts.wallets._keys.wallet(customer.wallet.shard, customer.wallet.wallet_id)
    call = asyncio.create_task(stream(gateway, customer))
    await until(lambda: held(gateway, customer))
    server.client.rename(wallet, "aside")
    assert await call == 200
    await asyncio.sleep(0.1)
    assert gateway.parts.metrics.settles_waiting._value.get() == 1
    server.client.rename("aside", wallet)
    await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
    await one_row(gateway, customer)


async def test_a_kept_settle_of_a_wallet_that_is_being_restored_waits_for_it(gateway, server):
    customer = await gateway.customer(CREDIT_NANO)
    copy = server.remember(grant(customer))
    await called(gateway, customer)
    await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
    wallet = gateway.parts.wallets._keys.wallet(customer.wallet.shard, customer.wallet.wallet_id)
    server.power_cut(copy)
    server.start()
    server.client.rename(wallet, "aside")
    await gateway.parts.ledger.wait_ready(10)
    await asyncio.sleep(0.1)
    server.client.rename("aside", wallet)
    await becomes(gateway, customer, CREDIT_NANO - SLOW_NANO)
    await one_row(gateway, customer)
    assert resent(gateway, "settled") == 1
