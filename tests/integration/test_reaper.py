"""Holds of dead gateways are ended once, with what they had used; live ones are left alone."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from worker_support import SHARDS, Installation, installation

from gateway import audit
from gateway.core.meter import from_definition
from gateway.core.usage import Usage
from gateway.ledger.row import encode
from gateway.ledger.wallets import LOOK_AGAIN_MS, Price, WalletRef, now_ms
from gateway.settings import Settings
from gateway.worker import metrics, reaper
from gateway.worker.reaper import Reaper


@pytest_asyncio.fixture
async def obol(valkey: str, redis_client: Any, postgres: str) -> AsyncIterator[Installation]:
    async with installation(valkey, postgres) as made:
        yield made


def reaper_of(obol: Installation) -> Reaper:
    return Reaper(obol.connection, obol.keys, obol.wallets, shards=SHARDS, grace_s=0)


async def held(obol: Installation, ref: WalletRef) -> int:
    (balance,) = await obol.wallets.balances([ref])
    assert balance is not None
    return balance.held_nano


async def test_expired_holds_are_ended_with_their_progress(obol: Installation) -> None:
    ref, other = await obol.wallet("wal_1", 1), await obol.wallet("wal_2", 3)
    await obol.hold(ref, "id:with:colons", expires_ms=now_ms() + 60_000)
    progress = encode(obol.row(ref, "id:with:colons", usage=Usage(output_tokens=400), ending="expired"))
    await obol.wallets.extend(
        ref, "id:with:colons", 0, expires_ms=now_ms() - 1, progress=(Price(flat_nano=800_000), progress)
    )
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
    assert await redis_client.zrange(obol.keys.holds(1), 0, -1) == []


TIERS = {"tiers": [{"start": 0, "rate": "5"}, {"start": 1_500, "rate": "3"}]}
TIERED = from_definition("meter_tiers", 1, TIERS)


@pytest.mark.parametrize("final_tokens", [3_000, 2_000, 500])
async def test_tiers_add_up_over_expiries_and_late_settlements(
    obol: Installation, valkey: str, postgres: str, final_tokens: int
) -> None:
    """I7 and I8: an expiry advances the counter by its progress, a settlement behind it by what is new. Whatever comes
    in between, the charges are those of all units together."""
    ref = await obol.wallet("wal_1")
    await obol.add_meter(TIERED, TIERS)
    await obol.report(ref, "before", TIERED, usage=Usage(output_tokens=700))
    await obol.hold(ref, "call", expires_ms=now_ms() + 60_000, amount_nano=100_000_000)
    usage = Usage(output_tokens=1_000)
    row = obol.row(ref, "call", usage=usage, meter_id=TIERED.meter_id, status="error", ending="expired", estimated=True)
    price = Price.of(TIERED, TIERED.units(usage), 0, 0)
    await obol.wallets.extend(ref, "call", 0, expires_ms=now_ms() - 1, progress=(price, encode(row)))
    assert await reaper_of(obol).reap_once() == 1
    await obol.flush()
    (expired,) = await obol.fetch("SELECT charge_nano, tier_position, ending FROM requests WHERE request_id = 'call'")
    assert expired == {"charge_nano": TIERED.fee(1_000, 0, 700), "tier_position": 700, "ending": "expired"}
    assert await audited((valkey, postgres)) == 0

    await obol.report(ref, "between", TIERED, usage=Usage(output_tokens=400))
    final = Usage(output_tokens=final_tokens)
    late = obol.row(ref, "call", usage=final, meter_id=TIERED.meter_id)
    price = Price.of(TIERED, TIERED.units(final), 0, 0)
    settled = await obol.wallets.settle(ref, "call", price, at_ms=now_ms(), body=encode(late))
    assert settled.kind == "settled"
    await obol.flush()
    charges = await obol.value("SELECT sum(charge_nano)::bigint FROM requests")
    assert charges == TIERED.fee(1_100 + max(final_tokens, 1_000), 0, 0)
    assert await obol.value("SELECT units FROM wallet_meters") == 1_100 + max(final_tokens, 1_000)
    assert await audited((valkey, postgres)) == 0


async def audited(urls: tuple[str, str]) -> int:
    """The exit code of `obol audit --recompute`."""
    settings = Settings(redis_url=urls[0], postgres_url=urls[1], ledger_shards=SHARDS)
    return await audit.audit(settings, io.StringIO(), recompute=True)


async def test_a_hold_whose_wallet_is_away_waits_for_it(obol: Installation, redis_client: Any) -> None:
    """It is neither dropped nor debited, and does not keep the reaper busy."""
    ref = await obol.wallet("wal_1")
    await obol.hold(ref, "r1", expires_ms=now_ms() - 1)
    key = obol.keys.wallet(1, "wal_1")
    wallet = await redis_client.hgetall(key)
    await redis_client.delete(key)
    assert await reaper_of(obol).reap_once() == 0
    expiry = await redis_client.zscore(obol.keys.holds(1), obol.keys.hold(1, "mer_1", "r1"))
    assert 0 < expiry - now_ms() <= LOOK_AGAIN_MS
    await redis_client.hset(key, mapping=wallet)
    assert await obol.wallets.expire(ref, "r1", now_ms() + LOOK_AGAIN_MS) == "expired"
    assert await held(obol, ref) == 0


async def test_gateways_may_come_back_to_a_redis_that_was_away_before_their_holds_are_ended(obol: Installation) -> None:
    ref = await obol.wallet("wal_1", 1)
    await obol.hold(ref, "r1", expires_ms=now_ms() - 1)
    patient = Reaper(obol.connection, obol.keys, obol.wallets, shards=SHARDS, grace_s=0.2)
    assert await patient.reap_once() == 0
    await asyncio.sleep(0.25)
    obol.connection.generation += 1  # it was made anew
    assert await patient.reap_once() == 0
    assert await held(obol, ref) > 0
    await asyncio.sleep(0.25)
    assert await patient.reap_once() == 1
    assert await held(obol, ref) == 0
