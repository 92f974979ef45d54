"""Wallets are restored while something else goes wrong: kills, other restorers, new servers, an absent PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from restoring import (  # noqa: F401
    LATER_MS,
    agree,
    kind_of_hold,
    obol_fixture,
    server_fixture,
    set_back_unaccepted,
    spent_and_set_back,
)
from setbacks import Guarded, SettableValkey, reconnected
from worker_support import SHARDS

from gateway.billing.restore import NotRestored
from gateway.billing.shard_view import ShardView
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.recovery import Recovery
from gateway.worker import metrics
from gateway.worker.record import Recorder

END_IDLE_SESSIONS = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE state = 'idle in transaction' AND datname = current_database()"""


class Killed(Exception):
    """Stands for kill -9: nobody handles it."""


STEPS = ("mark", "sweep_behind", "advance", "tell_ended", "tell_credited", "restore")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_any_step_the_next_one_does_it(
    obol: Guarded, server: SettableValkey, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    original, deaths = getattr(Recovery, step), []

    async def dies(self: Recovery, *arguments: Any, **named: Any) -> Any:
        if deaths:
            return await original(self, *arguments, **named)
        deaths.append(step)
        if when == "after":
            await original(self, *arguments, **named)
        raise Killed(step)

    monkeypatch.setattr(Recovery, step, dies)
    first, second = await spent_and_set_back(obol, server)
    recorded = sum((await obol.recorded(first))[1:4])
    for _ in range(3):
        balance = await obol.balance(first)
        assert balance is None or balance.total_nano <= recorded
        try:
            await obol.restore_all()
        except* Killed:
            pass
    assert deaths
    await agree(obol, first, second)
    assert (await obol.settle(first, "call")).kind == "duplicate"
    balance = await obol.balance(first)
    assert balance is not None and balance.held_nano == 5_000_000


async def test_two_restorers_at_once(obol: Guarded) -> None:
    refs = [await obol.wallet(f"wal_{number}", number % SHARDS) for number in range(40)]
    for ref in refs:
        await obol.report(ref, f"report-{ref.wallet_id}")
    await obol.flush()
    await obol.connection.command("FLUSHALL")
    await obol.continuity.reconcile(obol.connection)
    counts = await asyncio.gather(*(obol.restore_all() for _ in range(3)))
    assert sum(counts) >= len(refs)
    await agree(obol, *refs)


async def test_a_comparison_waits_for_a_batch_that_is_being_recorded(obol: Guarded, server: SettableValkey) -> None:
    """Read from the server of before, and committed after the new one was looked at, it would show no loss."""
    ref = await obol.wallet("wal_1")
    await obol.flush()
    copy = server.copy()
    await obol.report(ref, "in-flight")
    (entry,) = await obol.journal.read(1, 1, 10)
    async with obol.store.transaction() as db:
        assert await db.fetchval(obol.store.sql("flush.lock_cursor"), 1) == 1
        await obol.execute("DELETE FROM ledger_servers")
        await set_back_unaccepted(obol, server, copy)
        comparing = asyncio.create_task(obol.continuity.reconcile(obol.connection))
        await asyncio.sleep(0.3)
        assert not comparing.done()
        await Recorder(obol.store, db, 1).record([entry])
        await db.execute(obol.store.sql("flush.move_cursor"), 1, entry.number)
    assert [(loss.shard, loss.entries, loss.wallets) for loss in await comparing] == [(1, 1, 1)]
    assert await obol.balance(ref) is None
    await obol.restore_all()
    await agree(obol, ref)


async def test_the_journal_of_a_replaced_server_is_not_carried(obol: Guarded) -> None:
    ref = await obol.wallet("wal_1")
    await obol.execute(obol.store.sql("continuity.accept_server"), "other", "", 0, 0)
    flusher = obol.guarded_flusher()
    assert await flusher.flush_once() == 0
    assert set(flusher.stopped.values()) == {"superseded"}
    await obol.healer(flusher).heal_once()
    assert await flusher.flush_once() == 0, "this server was in use before the other: that is for an operator"
    await obol.execute("DELETE FROM ledger_servers")  # PostgreSQL was restored from a backup older than both
    await obol.healer(flusher).heal_once()
    assert await flusher.flush_once() == 1
    await agree(obol, ref)


async def test_a_server_that_was_a_replica_in_between_is_compared_again(obol: Guarded) -> None:
    """Its run id is the same, but it took over the data of another."""
    await obol.wallet("wal_1")
    await obol.flush()
    server = obol.connection.server
    await obol.continuity.accept(obol.connection, server.run_id)
    await obol.connection.command("FLUSHALL")
    await obol.continuity.accept(obol.connection, server.run_id)
    assert obol.lost == [], "the server in use is not looked at again"
    obol.connection.server = msgspec.structs.replace(server, replication_id="promoted")
    await obol.continuity.accept(obol.connection, server.run_id)
    assert obol.lost == [1]


async def test_with_postgres_away_a_new_server_is_not_used(
    obol: Guarded, server: SettableValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any) -> Any:
        raise ObolError("store_unavailable", "the database is not reachable", retry_after_s=1)

    ref = await obol.wallet("wal_1")
    await obol.flush()
    generation = obol.connection.generation
    monkeypatch.setattr(obol.store, "row", away)
    server.stop()
    server.start()
    await asyncio.sleep(0.5)
    assert not obol.connection.connected
    assert obol.continuity.refused == "the database is not reachable"
    with pytest.raises(LedgerAway):
        await kind_of_hold(obol, ref, "new")
    monkeypatch.undo()
    await reconnected(obol.connection, generation)
    assert await kind_of_hold(obol, ref, "new") == "held"


async def test_a_deletion_while_a_wallet_is_restored_is_not_forgotten(obol: Guarded) -> None:
    ref = await obol.wallet("wal_1")
    await obol.execute(
        "INSERT INTO connections (connection_id, merchant_id, wallet_id, secret_hash) "
        "VALUES ('con_1', 'mer_1', 'wal_1', 'x')"
    )
    await obol.flush()
    await Recovery(obol.connection, obol.keys).mark(1, [("wal_1", 0)], whatever=True)
    async with obol.store.transaction() as db:
        await db.execute(obol.store.sql("connections.delete"), "con_1")
        assert await obol.wallets.open(ref, status="deleted", limit_nano=0, create=False) == "unknown"
        restoring = asyncio.create_task(obol.restore_all())
        await asyncio.sleep(0.2)
        assert not restoring.done()
    await restoring
    balance = await obol.balance(ref)
    assert balance is not None and balance.status == "deleted"


@pytest.mark.parametrize("when", ["unrecorded", "open_holds"])
async def test_with_its_lock_lost_a_restore_puts_no_stale_wallet_into_use(
    obol: Guarded, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """PostgreSQL ends the session that the sums were read in; what was journalled is recorded before the restore."""
    ref = await obol.wallet("wal_1")
    await obol.flush()
    for number in range(3):
        await obol.report(ref, f"report-{number}")
    owner = ShardView if when == "unrecorded" else Recovery
    original, deaths = getattr(owner, when), []

    async def without_lock(self: Any, *arguments: Any) -> Any:
        if not deaths:
            deaths.append(await obol.value(END_IDLE_SESSIONS))
            assert await obol.flush() == 3
        return await original(self, *arguments)

    await Recovery(obol.connection, obol.keys).mark(1, [("wal_1", 0)], whatever=True)
    monkeypatch.setattr(owner, when, without_lock)
    with pytest.raises(ObolError, match=r"database|lock"):
        await obol.restorer().restore(1, ["wal_1"])
    assert deaths == [1]
    assert await obol.balance(ref) is None
    assert await obol.restore_all() == 1
    await agree(obol, ref)


async def test_a_session_that_ends_within_a_transaction_counts_as_postgres_away(obol: Guarded) -> None:
    with pytest.raises(ObolError) as raised:
        async with obol.store.transaction() as db:
            await db.execute("SELECT 1")
            assert await obol.value(END_IDLE_SESSIONS) == 1
            await asyncio.sleep(0.05)  # the pool notices first
            await db.execute("SELECT 1")
    assert raised.value.code == "store_unavailable"
    assert await obol.value("SELECT 1") == 1


@pytest.mark.parametrize("swept", [False, True])
async def test_a_wallet_that_cannot_be_restored_keeps_no_other_out_of_use(obol: Guarded, swept: bool) -> None:
    """On its own shard and on later ones, queued or only swept; it is tried again, with an alarm each time."""
    bad, *good = [await obol.wallet(f"wal_{number}", shard) for number, shard in enumerate((0, 0, 1, 3))]
    await obol.hold(bad, "broken", expires_ms=LATER_MS)
    await obol.flush()
    hold = obol.keys.hold(0, "mer_1", "broken")
    await obol.connection.command("HDEL", hold, "a")
    recovery = obol.restorer().recovery
    for ref in (bad, *good):
        await recovery.mark(ref.shard, [(ref.wallet_id, 0)], whatever=True)
        if swept:
            await recovery.unqueue(ref.shard, [ref.wallet_id])
            await recovery.sweep_behind(ref.shard, "")
    healer, before = obol.healer(), metrics.FLUSH_ALARMS.labels("not_restored")._value.get()
    with pytest.raises(ExceptionGroup) as raised:
        for _ in range(5):
            await healer.heal_once()
    assert [failure.ref for failure in raised.value.exceptions if isinstance(failure, NotRestored)] == [bad]
    assert metrics.FLUSH_ALARMS.labels("not_restored")._value.get() > before
    assert [await kind_of_hold(obol, ref, "new") for ref in (bad, *good)] == ["unknown", "held", "held", "held"]
    assert await obol.restorer().waiting() == (1, 0)

    await obol.connection.command("DEL", hold)
    assert await healer.heal_once()
    assert await kind_of_hold(obol, bad, "new") == "held"


async def test_a_shard_that_cannot_be_looked_at_keeps_no_other_out_of_use(obol: Guarded) -> None:
    bad, good = await obol.wallet("wal_0", 0), await obol.wallet("wal_1", 1)
    await obol.flush()
    recovery = obol.restorer().recovery
    for ref in (bad, good):
        await recovery.mark(ref.shard, [(ref.wallet_id, 0)], whatever=True)
    await obol.connection.command("DEL", obol.keys.holds(0))
    await obol.connection.command("SET", obol.keys.holds(0), "not a set")
    with pytest.raises(ExceptionGroup):
        await obol.healer().heal_once()
    assert [await kind_of_hold(obol, ref, "new") for ref in (bad, good)] == ["unknown", "held"]
    await obol.connection.command("DEL", obol.keys.holds(0))
    assert await obol.restore_all() == 1
