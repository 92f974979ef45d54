"""Redis comes back with less than PostgreSQL has recorded: what it lost is not used until it is restored."""

from __future__ import annotations

import asyncio

import pytest
from restoring import (  # noqa: F401
    GRADUATED,
    LATER_MS,
    SETTLED_NANO,
    agree,
    kind_of_hold,
    obol_fixture,
    server_fixture,
    set_back,
    spent_and_set_back,
)
from setbacks import Guarded, SettableValkey, reconnected
from worker_support import SHARDS

from gateway.core.usage import Usage
from gateway.ledger.connection import LedgerAway
from gateway.ledger.recovery import Recovery
from gateway.ledger.row import encode
from gateway.ledger.wallets import Price, now_ms
from gateway.worker import metrics


async def test_a_wallet_that_lost_entries_is_out_of_use_until_restored_and_no_other(
    obol: Guarded, server: SettableValkey
) -> None:
    first, second = await spent_and_set_back(obol, server)
    assert sum(obol.lost) == 4
    (acceptance,) = await obol.fetch("SELECT lost_entries, marked_wallets FROM ledger_servers WHERE lost_entries > 0")
    assert acceptance == {"lost_entries": 4, "marked_wallets": 1}
    assert await kind_of_hold(obol, first, "new") == "unknown"
    assert (await obol.settle(first, "open")).kind == "unknown"
    assert await kind_of_hold(obol, second, "new") == "held"
    assert (await obol.settle(second, "other")).kind == "settled"
    assert await obol.flush() == 1, "the shard goes on"

    assert await obol.restore_all() == 1
    await agree(obol, first, second)
    balance = await obol.balance(first)
    assert balance is not None
    assert (balance.held_nano, balance.calls) == (5_000_000, 1), "only the call that has not ended is held"
    assert (await obol.settle(first, "open")).kind == "settled"
    assert await kind_of_hold(obol, first, "new") == "held"
    await obol.flush()
    await agree(obol, first, second)


async def test_what_was_settled_before_the_loss_is_a_duplicate_after_it(obol: Guarded, server: SettableValkey) -> None:
    first, _ = await spent_and_set_back(obol, server)
    assert (await obol.settle(first, "call")).kind == "unknown", "not known yet, so neither debited nor dropped"
    await obol.restore_all()
    settled = await obol.settle(first, "call")
    assert (settled.kind, settled.amount_nano) == ("duplicate", SETTLED_NANO)
    assert (await obol.report(first, "report", GRADUATED)).kind == "duplicate"
    assert await kind_of_hold(obol, first, "call") == "ended"
    assert await obol.wallets.credit(first, "grant-late", "bundle", 9_000, at_ms=now_ms()) == "duplicate"
    late = await obol.settle(first, "expired")
    assert (late.kind, late.amount_nano) == ("settled", SETTLED_NANO)
    await obol.flush()
    assert await obol.value("SELECT charge_nano FROM requests WHERE request_id = 'expired'") == SETTLED_NANO
    assert await obol.value("SELECT count(*) FROM requests") == 4
    await agree(obol, first)


@pytest.mark.parametrize("lost", [False, True])
async def test_a_late_settlement_costs_the_same_after_a_loss(obol: Guarded, server: SettableValkey, lost: bool) -> None:
    """The progress that an expiry debited had taken units of a graduated meter; only the rest is due."""
    ref = await obol.wallet("wal_1")
    await obol.report(ref, "before", GRADUATED)
    await obol.hold(ref, "late", expires_ms=LATER_MS)
    await obol.flush()
    copy = server.copy()
    so_far = obol.row(ref, "late", usage=Usage(output_tokens=1_000), meter_id=GRADUATED.meter_id)
    progress = Price.of(GRADUATED, 1_000, 0, 0), encode(so_far)
    await obol.wallets.extend(ref, "late", 0, expires_ms=now_ms() - 1, progress=progress)
    assert await obol.wallets.expire(ref, "late", now_ms()) == "expired"
    await obol.flush()
    if lost:
        await set_back(obol, server, copy)
        assert await obol.restore_all() == 1
    whole = obol.row(ref, "late", usage=Usage(output_tokens=4_000), meter_id=GRADUATED.meter_id)
    settled = await obol.wallets.settle(
        ref, "late", Price.of(GRADUATED, 4_000, 0, 0), at_ms=now_ms(), body=encode(whole)
    )
    fees = GRADUATED.charge(Usage(output_tokens=4_000), 0, 1_250)
    assert (settled.kind, settled.amount_nano, settled.position) == ("settled", fees.amount_nano, 1_250)
    assert await Recovery(obol.connection, obol.keys).units(ref) == {"meter_g": 5_250}
    await obol.flush()
    await agree(obol, ref)


async def test_a_balance_never_rises_above_what_postgres_says(obol: Guarded, server: SettableValkey) -> None:
    """Sampled from the moment Redis answers again until everything is restored and used."""
    refs = [await obol.wallet(f"wal_{number}", number % SHARDS) for number in range(12)]
    copy = server.copy()
    for ref in refs[::2]:
        await obol.report(ref, f"report-{ref.wallet_id}")
    await obol.flush()
    recorded = {ref: sum((await obol.recorded(ref))[1:4]) for ref in refs}
    seen: list[int] = []

    async def sample() -> None:
        while True:
            try:
                balances = await obol.wallets.balances(refs)
            except LedgerAway:
                await asyncio.sleep(0)
                continue
            for ref, balance in zip(refs, balances, strict=True):
                if balance is not None:
                    assert balance.total_nano <= recorded[ref], ref
                    seen.append(balance.total_nano)
            await asyncio.sleep(0)

    sampling = asyncio.create_task(sample())
    await set_back(obol, server, copy)
    await obol.restore_all()
    await asyncio.sleep(0.05)
    assert not sampling.done(), sampling.exception()
    sampling.cancel()
    assert len(seen) > len(refs)
    await agree(obol, *refs)


async def test_a_shorter_file_with_nothing_recorded_lost_is_simply_accepted(
    obol: Guarded, server: SettableValkey
) -> None:
    ref = await obol.wallet("wal_1")
    await obol.flush()
    copy = server.copy()
    await obol.report(ref, "never-recorded")
    await set_back(obol, server, copy)
    assert obol.lost == [] and await obol.restore_all() == 0
    assert await kind_of_hold(obol, ref, "new") == "held"
    await agree(obol, ref)


async def test_an_empty_server_is_filled_again(obol: Guarded, server: SettableValkey) -> None:
    refs = [await obol.wallet(f"wal_{number}", number % SHARDS) for number in range(8)]
    never_used = await obol.wallet("wal_idle", 2, credit_nano=0)
    for ref in refs:
        await obol.report(ref, f"report-{ref.wallet_id}", GRADUATED)
    await obol.flush()
    await obol.execute(
        "INSERT INTO connections (connection_id, merchant_id, wallet_id, secret_hash, overage_limit_nano, disabled_at) "
        "VALUES ('con_3', 'mer_1', 'wal_3', 'x', 77, now())"
    )
    generation = obol.connection.generation
    server.stop()
    for path in server.files.iterdir():
        path.unlink()
    server.start()
    await reconnected(obol.connection, generation)
    assert [await kind_of_hold(obol, ref, "new") for ref in (*refs, never_used)] == ["unknown"] * 9
    assert await obol.restore_all() == 9
    await agree(obol, *refs, never_used)
    disabled = await obol.balance(refs[3])
    assert disabled is not None and (disabled.status, disabled.limit_nano) == ("disabled", 77)
    assert (await obol.report(refs[0], f"report-{refs[0].wallet_id}", GRADUATED)).kind == "duplicate"
    again = await obol.report(refs[0], "after", GRADUATED)
    assert (again.kind, again.position) == ("settled", 1_250)
    await obol.flush()
    await agree(obol, *refs)


async def test_a_flush_of_all_keys_is_noticed_by_the_worker(obol: Guarded) -> None:
    """The connections stay, so nobody compares; a wallet made meanwhile gets numbers that were given out before."""
    refs = [await obol.wallet(f"wal_{number}", 1) for number in range(3)]
    for ref in refs:
        await obol.report(ref, f"report-{ref.wallet_id}")
    await obol.flush()
    flusher = obol.guarded_flusher()
    assert await flusher.flush_once() == 0
    before = metrics.FLUSH_ALARMS.labels("cursor_ahead")._value.get()
    await obol.connection.command("FLUSHALL")
    made = await obol.wallet("wal_new", 1)
    assert (await obol.report(made, "early")).kind == "settled"
    assert await obol.journal.last_number(1) == 2
    assert await flusher.flush_once() == 0 and flusher.stopped == {1: "cursor_ahead"}
    assert metrics.FLUSH_ALARMS.labels("cursor_ahead")._value.get() == before + 1

    healer = obol.healer(flusher)
    while await healer.heal_once():
        pass
    await flusher.flush_once()
    assert flusher.stopped == {}, "the alarm clears by itself"
    await agree(obol, *refs, made)
    assert await obol.value("SELECT count(*) FROM requests") == 4
    assert (await obol.report(made, "early")).kind == "duplicate"


async def test_a_lost_wallet_that_is_asked_for_is_restored_first(obol: Guarded) -> None:
    ref = await obol.wallet("wal_1")
    await obol.report(ref, "unrecorded")
    await obol.connection.command("DEL", obol.keys.wallet(1, "wal_1"))
    assert (await obol.wallets.credit(ref, "g1", "cycle", 5, at_ms=1)) == "unknown"
    assert await obol.restore_all() == 1
    balance = await obol.balance(ref)
    assert balance is not None and balance.total_nano == 10**9 - SETTLED_NANO, "what waits in the journal counts"
    await obol.flush()
    await agree(obol, ref)


async def test_two_states_of_redis_are_merged(obol: Guarded, server: SettableValkey) -> None:
    """The address led to an older copy without anybody noticing, and it was used: both spent the same numbers."""
    ref = await obol.wallet("wal_1")
    await obol.hold(ref, "call", expires_ms=LATER_MS)
    await obol.flush()
    state = await obol.connection.command("DUMP", obol.keys.wallet(1, "wal_1"))
    hold = await obol.connection.command("DUMP", obol.keys.hold(1, "mer_1", "call"))
    await obol.settle(ref, "call")
    await obol.report(ref, "recorded")
    await obol.flush()
    await obol.connection.command("RESTORE", obol.keys.wallet(1, "wal_1"), 0, state, "REPLACE")
    await obol.connection.command("RESTORE", obol.keys.hold(1, "mer_1", "call"), 0, hold)
    await obol.connection.command("ZADD", obol.keys.holds(1), LATER_MS, obol.keys.hold(1, "mer_1", "call"))
    await obol.connection.command("DEL", obol.keys.record(1, "mer_1", "call"), obol.keys.journal(1))
    await obol.connection.command("SET", obol.keys.journal_counter(1), 1)
    await obol.report(ref, "only-here")  # number 2, which PostgreSQL has for the call
    await obol.settle(ref, "call")  # number 3, which it has for the other report

    flusher = obol.guarded_flusher()
    await flusher.flush_once()
    assert flusher.stopped == {1: "rewound"}
    healer = obol.healer(flusher)
    while await healer.heal_once():
        pass
    await obol.flush()
    await agree(obol, ref)
    assert await obol.value("SELECT array_agg(request_id ORDER BY request_id) FROM requests") == [
        "call",
        "only-here",
        "recorded",
    ]
    assert (await obol.recorded(ref))[3] == 10**9 - 3 * SETTLED_NANO
    assert await obol.value("SELECT count(*) FROM flush_rejects") == 0


@pytest.mark.parametrize("first_spender", ["wal_1", "wal_2"])
async def test_a_state_that_went_further_does_not_hide_how_calls_ended(obol: Guarded, first_spender: str) -> None:
    """An older state was used until its wallet's sequence number passed PostgreSQL's: a call settled in the other one,
    whose hold came back, is not debited again. With `wal_2`, all that wal_1 did has numbers above the record."""
    ref, other = await obol.wallet("wal_1"), await obol.wallet("wal_2")
    await obol.hold(ref, "call", expires_ms=LATER_MS)
    await obol.flush()
    wallet, hold = obol.keys.wallet(1, "wal_1"), obol.keys.hold(1, "mer_1", "call")
    dumps = {key: await obol.connection.command("DUMP", key) for key in (wallet, hold)}
    settled = await obol.settle(ref, "call")
    await obol.flush()
    for key, dump in dumps.items():
        await obol.connection.command("RESTORE", key, 0, dump, "REPLACE")
    await obol.connection.command("ZADD", obol.keys.holds(1), LATER_MS, hold)
    await obol.connection.command("DEL", obol.keys.record(1, "mer_1", "call"), obol.keys.journal(1))
    await obol.connection.command("SET", obol.keys.journal_counter(1), 2)
    await obol.report(other if first_spender == "wal_2" else ref, "only-here-1")
    await obol.report(ref, "only-here-2")

    flusher = obol.guarded_flusher()
    await flusher.flush_once()
    assert flusher.stopped == {1: "rewound"}
    healer = obol.healer(flusher)
    while await healer.heal_once():
        pass
    assert await obol.connection.command("EXISTS", hold) == 0
    again = await obol.settle(ref, "call")
    assert (again.kind, again.amount_nano) == ("duplicate", settled.amount_nano)
    await obol.flush()
    await agree(obol, ref, other)
    debited = 10**9 - (await obol.recorded(ref))[3]
    assert debited == settled.amount_nano + (SETTLED_NANO if first_spender == "wal_2" else 2 * SETTLED_NANO)
    assert await obol.value("SELECT count(*) FROM flush_rejects") == 0


async def test_a_lost_counter_goes_on_behind_the_journal_and_not_behind_the_record(obol: Guarded) -> None:
    ref = await obol.wallet("wal_1")
    await obol.flush()
    for number in range(3):
        await obol.report(ref, f"report-{number}")
    await obol.connection.command("DEL", obol.keys.journal_counter(1))
    await obol.continuity.reconcile(obol.connection)
    assert await obol.journal.last_number(1) == 4
    await obol.restore_all()
    assert (await obol.report(ref, "after")).journal_number == 5
    await obol.flush()
    await agree(obol, ref)
    assert await obol.value("SELECT count(*) FROM requests") == 4


async def test_a_healed_shard_without_new_entries_is_not_stopped_any_more(obol: Guarded) -> None:
    """Its counter is then what the flusher had carried last."""
    ref = await obol.wallet("wal_1")
    flusher = obol.guarded_flusher()
    assert await flusher.flush_once() == 1
    await obol.connection.command("FLUSHALL")
    assert await flusher.flush_once() == 0 and flusher.stopped == {1: "cursor_ahead"}
    healer = obol.healer(flusher)
    while await healer.heal_once():
        pass
    assert await obol.journal.last_number(1) == 1
    assert await flusher.flush_once() == 0 and flusher.stopped == {}
    await agree(obol, ref)
