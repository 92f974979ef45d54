"""Turns that were not applied when they were written, or not recorded, and what the audit says of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from subscribers import GRADUATED, GRADUATED_DEFINITION, MERCHANT, KilledOnce, Shop
from worker_support import SHARDS

from gateway.billing.plans import NewBundle
from gateway.core.money import NANO
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.recovery import Recovery
from gateway.ledger.wallets import now_ms
from gateway.worker.grants import Grants
from gateway.worker.record import Recorder


async def away(*_: Any, **__: Any) -> str:
    raise LedgerAway("away")


@pytest.mark.parametrize("applied", [0, 1])
async def test_a_worker_killed_between_commit_and_redis_loses_and_repeats_nothing(market: Shop, applied: int) -> None:
    plan = await market.plan(2, billing_interval="week", rollover_type="full")
    refs = [(await market.subscriber(f"c{number}", plan))[0] for number in range(2)]
    await market.obol.flush()
    await market.clocks.advance(MERCHANT, timedelta(days=15))
    with pytest.raises(KeyboardInterrupt):
        await market.worker(KilledOnce(market, applied)).turn_once()
    assert not await market.turn_all(), "the subscriptions have moved"
    assert await market.pending().apply_once() == 4 - applied
    assert [await market.pots(ref) for ref in refs] == [(6 * NANO, 0, 0, 0)] * 2
    await market.obol.flush()
    assert await market.pending().apply_once() == 0
    assert await market.obol.value("SELECT count(*) FROM turns WHERE applied_at IS NULL") == 0
    assert await market.audit() == ""


async def test_a_turn_waits_for_the_one_before_it(market: Shop) -> None:
    """A turn that cannot be applied keeps the next one, which would expire its credit, from being applied before it."""
    plan = await market.plan(2, billing_interval="week", rollover_type="full")
    ref, subscription_id = await market.subscriber("a", plan)
    other, _ = await market.subscriber("b", plan)
    await market.obol.flush()
    await market.clocks.advance(MERCHANT, timedelta(days=15))
    with pytest.raises(KeyboardInterrupt):
        await market.worker(KilledOnce(market, 0)).turn_once()
    first = f"{subscription_id}:1"
    credit = "UPDATE turns SET credit_nano = $1 WHERE turn_id = $2"
    await market.obol.execute(credit, 2**53, first)
    for _ in range(2):
        await market.turns.apply_to([ref.wallet_id, other.wallet_id])
        await market.pending().apply_once()
    assert await market.pots(ref) == (2 * NANO, 0, 0, 0)
    assert await market.pots(other) == (6 * NANO, 0, 0, 0), "other wallets are not kept waiting"
    await market.obol.execute(credit, 2 * NANO, first)
    assert await market.pending().apply_once() == 2
    entries = await market.obol.journal.read(ref.shard, 0, 100)
    assert [entry.reference for entry in entries if entry.wallet_id == "wal_a"] == [first, f"{subscription_id}:2"]
    assert await market.audit() == ""


async def test_an_old_turn_waits_for_the_journal(market: Shop, redis_client: Any) -> None:
    """Redis may have forgotten that it applied it, while the entry that says so waits to be flushed."""
    plan = await market.plan(2)
    ref, subscription_id = await market.subscriber("a", plan)
    await market.obol.execute("UPDATE turns SET created_at = now() - interval '3 days'")
    await redis_client.delete(market.obol.keys.credit(ref.shard, f"{subscription_id}:0"))
    pending = market.pending()
    assert [await pending.apply_once() for _ in range(3)] == [0, 0, 0]
    assert await market.turns.apply_to([ref.wallet_id]) == 0
    await market.obol.flush()
    assert [await pending.apply_once() for _ in range(2)] == [0, 0]
    assert await market.pots(ref) == (2 * NANO, 0, 0, 0)


async def test_an_old_turn_that_is_recorded_and_not_confirmed_is_made_no_second_time(
    market: Shop, redis_client: Any
) -> None:
    ref, subscription_id = await market.subscriber("a", await market.plan(2))
    await market.obol.flush()
    pending = market.pending()
    for _ in range(2):  # it knows by now how far the journal is flushed
        await pending.apply_once()
    await market.obol.execute("UPDATE turns SET applied_at = NULL, created_at = now() - interval '2 days'")
    await redis_client.delete(market.obol.keys.credit(ref.shard, f"{subscription_id}:0"))
    for _ in range(3):
        assert await pending.apply_once() == 0
        await market.obol.flush()
    assert await market.pots(ref) == (2 * NANO, 0, 0, 0)
    assert await market.obol.value("SELECT count(*) FROM turns WHERE applied_at IS NULL") == 0
    assert await market.audit() == ""


async def test_who_does_not_confirm_a_turn_cannot_record_it(market: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flusher of before cycles, which wins the lock of the shard while a new one is there already."""
    ref, _ = await market.subscriber("a", await market.plan(2))
    await market.spend(ref, "r-1", NANO)

    async def nothing(*_: Any) -> None:
        return None

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "_applied", nothing)
        with pytest.raises(ExceptionGroup) as refused:
            await market.obol.flush()
    assert "too old" in str(refused.value.exceptions[0])
    assert await market.obol.value("SELECT count(*) FROM ledger_entries") == 0
    assert await market.audit() == "", "the new one records all of it"


@pytest.mark.parametrize("first", ["turn", "grant"])
async def test_credit_and_turns_are_applied_in_their_order_behind_an_outage(
    market: Shop, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """A bundle bought behind a turn outlives it, one bought before it does not, whatever the worker looks at first."""
    obol = market.obol
    bundles = (NewBundle("B", NANO, 3 * NANO),)
    plan = await market.plan(2, billing_interval="week", bundle_rollover_type="none", bundles=bundles)
    ref, _ = await market.subscriber("a", plan)
    await obol.flush()

    async def buy() -> None:
        await market.subscriptions.grant_bundle(MERCHANT, "con_a", plan.bundles[0].credit_bundle_id, "g")

    async def turn() -> None:
        assert await market.advance(days=8)

    with monkeypatch.context() as patched:
        for name in ("turn", "credit"):
            patched.setattr(obol.wallets, name, away)
        for step in (turn, buy) if first == "turn" else (buy, turn):
            await step()
    pending = market.pending()
    grants = Grants(obol.store, obol.wallets, obol.journal, shards=SHARDS, record_ttl_s=172_800, min_age_s=0)
    for _ in range(2):
        for loop in (grants, pending) if first == "turn" else (pending, grants):
            await loop.apply_once()
        await obol.flush()
    assert await market.pots(ref) == (2 * NANO, 3 * NANO if first == "turn" else 0, 0, 0)
    assert await market.audit() == ""


async def test_a_reset_is_due_also_where_redis_has_lost_the_counters(market: Shop, redis_client: Any) -> None:
    await market.obol.add_meter(GRADUATED, GRADUATED_DEFINITION)
    ref = await market.customer("a")
    await market.spend(ref, "r-1", NANO, GRADUATED)
    await market.obol.flush()
    names = market.obol.keys.of_wallet(ref.shard, ref.wallet_id, ref.merchant_id)
    await redis_client.delete(names.wallet, names.tiers)
    await market.advance(days=32)
    restorer = market.restorer()
    assert (await restorer.restore_once()).restored == 1
    await market.pending().apply_once()
    assert await restorer.recovery.units(ref) == {}
    assert await market.audit() == ""
    assert await market.obol.value("SELECT count(*) FROM wallet_meters") == 0


async def test_a_wallet_that_redis_lost_comes_back_with_its_turns(market: Shop, redis_client: Any) -> None:
    """Turned, recorded or only journalled: restored, the turn has happened, and happens no second time."""
    await market.obol.add_meter(GRADUATED, GRADUATED_DEFINITION)
    plan = await market.plan(10, billing_interval="week", rollover_type="full", bundle_rollover_type="none")
    ref, subscription_id = await market.subscriber("a", plan, can_charge=True)
    await market.obol.wallets.credit(ref, "b", "bundle", NANO, at_ms=now_ms())
    await market.spend(ref, "r-1", 3 * NANO, GRADUATED)
    await market.advance(days=8)
    await market.obol.flush()
    await market.spend(ref, "r-2", 3 * NANO, GRADUATED)
    await market.advance(days=7)
    await market.spend(ref, "r-3", NANO, GRADUATED)
    before = await market.balance(ref), await Recovery(market.obol.connection, market.obol.keys).units(ref)
    names = market.obol.keys.of_wallet(ref.shard, ref.wallet_id, ref.merchant_id)
    records = [market.obol.keys.credit(ref.shard, f"{subscription_id}:{number}") for number in (0, 1)]
    await redis_client.delete(names.wallet, names.tiers, *records)
    restorer = market.restorer()
    await restorer.recovery.queue(ref.shard, [ref.wallet_id])
    assert (await restorer.restore_once()).restored == 1
    after = await market.balance(ref), await Recovery(market.obol.connection, market.obol.keys).units(ref)
    assert after == before
    assert await redis_client.exists(*records) == 2, "the recorded turns are remembered"
    assert await market.turns.apply_to([ref.wallet_id]) == 0
    assert await market.audit() == ""


@pytest.mark.parametrize("what", ["Redis", "PostgreSQL"])
async def test_an_engine_that_goes_behind_the_commit_leaves_the_turn_to_the_worker(
    market: Shop, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    plan = await market.plan(10)

    async def gone(*_: Any) -> list[Any]:
        raise ObolError("store_unavailable", "the database is not reachable")

    ref = await market.customer("a")
    with monkeypatch.context() as patched:
        if what == "Redis":
            patched.setattr(market.obol.wallets, "turn", away)
        else:
            patched.setattr(market.obol.store, "rows", gone)
        await market.subscribe("a", plan)
    assert await market.pots(ref) == (0, 0, 0, 0)
    assert await market.pending().apply_once() == 1
    assert await market.pots(ref) == (10 * NANO, 0, 0, 0)


async def test_the_audit_finds_turns_that_are_not_what_they_should_be(market: Shop) -> None:
    plan = await market.plan(10, billing_interval="week")
    names = {}
    for name in ("credit", "kept", "pending", "other", "counted", "lost", "gone", "limit", "sound"):
        ref, names[name] = await market.subscriber(name, plan)
        await market.spend(ref, f"r-{name}", NANO)
    await market.clocks.advance(MERCHANT, timedelta(days=15))
    with pytest.raises(KeyboardInterrupt):
        await market.worker(KilledOnce(market, 0)).turn_once()
    assert await market.audit() == "", "turns that are pending are no difference"
    await market.pending().apply_once()
    assert await market.audit() == ""
    for change, name in (
        ("turns SET credit_nano = credit_nano - 1", "credit"),
        ("turns SET keep_cycle = true", "kept"),
        ("turns SET applied_at = null, created_at = now() - interval '2 hours'", "pending"),
        ("turns SET turn_id = 'another'", "other"),
    ):
        await market.obol.execute(f"UPDATE {change} WHERE number = 1 AND wallet_id = 'wal_{name}'")
    await market.obol.execute("UPDATE subscriptions SET turns = 9 WHERE connection_id = 'con_counted'")
    await market.obol.execute("UPDATE connections SET overage_limit_nano = 5 WHERE connection_id = 'con_limit'")
    await market.obol.execute("DELETE FROM turns WHERE wallet_id = 'wal_gone' OR wallet_id = 'wal_lost' AND number = 1")
    found = [line for line in (await market.audit()).splitlines() if line.startswith("DIFFERENCE")]
    told = [f"DIFFERENCE  wal_{name}  turn {names[name]}:1:" for name in ("credit", "kept", "pending", "other")]
    told += [f"DIFFERENCE  wal_gone  turn {names['gone']}:{number}:" for number in range(3)]
    told += [f"DIFFERENCE  wal_lost  turn {names['lost']}:1:", "DIFFERENCE  wal_other  turn another:"]
    told += [f"DIFFERENCE  {names[name]}  turns, by its row:" for name in ("counted", "lost", "gone")]
    told += [f"DIFFERENCE  wal_pending  turn {names['pending']}:1: expected applied, found owed since "]
    told += ["DIFFERENCE  wal_limit  overage limit in Redis, by its connection: expected 5, found 0"]
    assert len(found) == len(told) and all(any(line.startswith(each) for line in found) for each in told), found
