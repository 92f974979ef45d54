"""Holds of dead gateways are ended once, with what they had used; live ones are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from worker_support import SHARDS, Installation, installation

from gateway.core.usage import Usage
from gateway.ledger.row import encode
from gateway.ledger.wallets import WalletRef, now_ms
from gateway.worker import metrics, reaper
from gateway.worker.reaper import Reaper


@pytest_asyncio.fixture
async def obol(valkey: str, redis_client: Any, postgres: str) -> AsyncIterator[Installation]:
    async with installation(valkey, postgres) as made:
        yield made


def reaper_of(obol: Installation) -> Reaper:
    return Reaper(obol.connection, obol.keys, obol.wallets, shards=SHARDS)


async def held(obol: Installation, ref: WalletRef) -> int:
    (balance,) = await obol.wallets.balances([ref])
    assert balance is not None
    return balance.held_nano


async def test_expired_holds_are_ended_with_their_progress(obol: Installation) -> None:
    ref, other = await obol.wallet("wal_1", 1), await obol.wallet("wal_2", 3)
    await obol.hold(ref, "id:with:colons", expires_ms=now_ms() + 60_000)
    progress = encode(obol.row(ref, "id:with:colons", usage=Usage(output_tokens=400), ending="expired"))
    await obol.wallets.extend(ref, "id:with:colons", 0, expires_ms=now_ms() - 1, progress=(800_000, progress))
    await obol.hold(other, "no-progress", expires_ms=now_ms() - 1)
    await obol.hold(ref, "live", expires_ms=now_ms() + 60_000, amount_nano=77)
    before = metrics.HOLDS_EXPIRED._value.get()

    assert await reaper_of(obol).reap_once() == 2
    assert await reaper_of(obol).reap_once() == 0
    assert metrics.HOLDS_EXPIRED._value.get() == before + 2
    assert (await held(obol, ref), await held(obol, other)) == (77, 0)
    await obol.flush()
    rows = await obol.fetch("SELECT request_id, wallet_id, charge_nano, ending FROM requests ORDER BY 1")
    assert [tuple(row.values()) for row in rows] == [
        ("id:with:colons", "wal_1", 800_000, "expired"),
        ("no-progress", "wal_2", 0, "expired"),
    ]


async def test_two_reapers_end_a_hold_once(obol: Installation) -> None:
    ref = await obol.wallet("wal_1")
    for number in range(50):
        await obol.hold(ref, f"r{number}", expires_ms=now_ms() - 1, amount_nano=1)
    counts = await asyncio.gather(*(reaper_of(obol).reap_once() for _ in range(3)))
    assert sum(counts) == 50
    assert await held(obol, ref) == 0
    assert await obol.journal.last_number(1) == 51


async def test_a_round_is_bounded(obol: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper, "HOLDS_A_SHARD_MAX", 3)
    ref = await obol.wallet("wal_1")
    for number in range(5):
        await obol.hold(ref, f"r{number}", expires_ms=now_ms() - 1, amount_nano=1)
    assert [await reaper_of(obol).reap_once() for _ in range(3)] == [3, 2, 0]


async def test_strange_members_do_not_stop_the_others(obol: Installation, redis_client: Any) -> None:
    ref = await obol.wallet("wal_1")
    gone = obol.keys.hold(1, "mer_1", "settled-in-between")
    await redis_client.zadd(obol.keys.holds(1), {"nonsense": 1, gone: 2})
    await obol.hold(ref, "r1", expires_ms=now_ms() - 1)
    before = metrics.TICK_ERRORS.labels("reaper")._value.get()
    assert await reaper_of(obol).reap_once() == 1
    assert metrics.TICK_ERRORS.labels("reaper")._value.get() == before + 1
    assert await redis_client.zrange(obol.keys.holds(1), 0, -1) == [b"nonsense"]
