"""Credit that is owed reaches the wallet once, however often the worker tries."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from worker_support import SHARDS, Installation, installation

from gateway.ledger.wallets import WalletRef, now_ms
from gateway.worker import grants, metrics
from gateway.worker.grants import Grants


@pytest_asyncio.fixture
async def obol(valkey: str, redis_client: Any, postgres: str) -> AsyncIterator[Installation]:
    async with installation(valkey, postgres) as made:
        yield made


async def owe(obol: Installation, grant_id: str, wallet_id: str = "wal_1", age_s: int = 60) -> None:
    await obol.execute(
        "INSERT INTO grants (grant_id, wallet_id, pot, amount_nano, reason, created_at) "
        "VALUES ($1, $2, 'bundle', 100, 'test', now() - $3 * interval '1 second')",
        grant_id,
        wallet_id,
        age_s,
    )


def grants_of(obol: Installation, record_ttl_s: int = 172_800) -> Grants:
    return Grants(obol.store, obol.wallets, obol.journal, shards=SHARDS, record_ttl_s=record_ttl_s)


async def bundle(obol: Installation, ref: WalletRef) -> int:
    (balance,) = await obol.wallets.balances([ref])
    assert balance is not None
    return balance.bundle_nano


async def test_a_pending_grant_is_applied_once(obol: Installation) -> None:
    ref = await obol.wallet("wal_1")
    await owe(obol, "g1")
    await owe(obol, "young", age_s=1)
    before = metrics.GRANTS_APPLIED._value.get()
    worker = grants_of(obol)
    assert [await worker.apply_once() for _ in range(3)] == [1, 0, 0]
    assert await bundle(obol, ref) == 100
    await obol.flush()
    assert await obol.value("SELECT count(*) FROM grants WHERE applied_at IS NOT NULL") == 1
    assert metrics.GRANTS_APPLIED._value.get() == before + 1


async def test_one_applied_before_the_crash_is_not_applied_again(obol: Installation) -> None:
    ref = await obol.wallet("wal_1")
    await owe(obol, "g1")
    await obol.wallets.credit(ref, "g1", "bundle", 100, at_ms=now_ms())
    assert await grants_of(obol).apply_once() == 0
    assert await bundle(obol, ref) == 100


async def test_a_wallet_that_redis_does_not_hold_hides_no_other(
    obol: Installation, redis_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "GRANTS_A_ROUND_MAX", 2)
    ref, lost = await obol.wallet("wal_1"), await obol.wallet("wal_2")
    await redis_client.delete(obol.keys.wallet(lost.shard, lost.wallet_id))
    for number in range(4):
        await owe(obol, f"lost{number}", "wal_2", age_s=100)
    await owe(obol, "g1")
    worker = grants_of(obol)
    assert [await worker.apply_once() for _ in range(3)] == [0, 0, 1]
    assert await bundle(obol, ref) == 100


async def test_an_old_grant_waits_for_the_journal(obol: Installation, redis_client: Any) -> None:
    """Redis may have forgotten that it applied it, while the entry that says so waits to be flushed."""
    ref = await obol.wallet("wal_1")
    await owe(obol, "g1", age_s=200_000)
    await owe(obol, "never-applied", age_s=200_000)
    await obol.wallets.credit(ref, "g1", "bundle", 100, at_ms=now_ms())
    await redis_client.delete(obol.keys.credit(ref.shard, "g1"))
    worker = grants_of(obol)
    assert [await worker.apply_once() for _ in range(3)] == [0, 0, 0]
    assert await bundle(obol, ref) == 100
    await obol.flush()
    assert [await worker.apply_once() for _ in range(2)] == [1, 0]
    assert await bundle(obol, ref) == 200
