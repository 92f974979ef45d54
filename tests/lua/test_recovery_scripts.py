"""Each documented return of the scripts that bring wallets back, on a real server."""

from __future__ import annotations

import pytest

from gateway.ledger.recovery import Base, Ending, Recovery
from gateway.ledger.wallets import Price, WalletRef

REF = WalletRef("wal_1", 3, "mer_1")
LATER = 10**15


def base(**changes):
    given = {
        "status": "ok",
        "cycle_nano": 40,
        "bundle_nano": 0,
        "prepaid_nano": 5,
        "overage_nano": 0,
        "limit_nano": 7,
        "seq": 9,
        "units": {"prd_1": 12},
    }
    return Base(**(given | changes))


@pytest.fixture
def recovery(ledger):
    return Recovery(ledger.connection, ledger.keys)


async def restore(recovery, numbers=(), holds=(), recorded_number=100, **changes):
    return await recovery.restore(REF, base(**changes), recorded_number=recorded_number, numbers=numbers, holds=holds)


async def hold(ledger, request_id, amount=10, expires_ms=LATER):
    return (await ledger.wallets.hold(REF, request_id, amount, expires_ms=expires_ms, descriptor=b"{}")).kind


async def test_mark_takes_a_wallet_that_is_behind_out_of_use_and_no_other(ledger, recovery):
    await ledger.opened(cycle=100)
    assert await recovery.mark(3, [("wal_1", 1), ("wal_absent", 5)]) == 0
    assert await hold(ledger, "req_1") == "held"
    assert await recovery.queued(3, 10) == []
    assert await recovery.mark(3, [("wal_1", 2), ("wal_absent", 5)]) == 1
    assert await recovery.mark(3, [("wal_1", 2)]) == 0
    assert await recovery.queued(3, 10) == ["wal_1"]
    assert await ledger.balance() is None
    (state,) = await recovery.states([REF])
    assert (state.status, state.cycle_nano, state.seq, state.held_nano) == ("", 100, 1, 10)


async def test_mark_whatever_redis_shows(ledger, recovery):
    await ledger.opened(cycle=100)
    assert await recovery.mark(3, [("wal_1", 0)], whatever=True) == 1


async def test_a_wallet_out_of_use_is_unknown_to_every_script(ledger, recovery):
    await ledger.opened(cycle=100)
    await hold(ledger, "req_1", expires_ms=5)
    await recovery.mark(3, [("wal_1", 0)], whatever=True)
    wallets = ledger.wallets
    assert await hold(ledger, "req_2") == "unknown"
    settled = await wallets.settle(REF, "req_1", Price(flat_nano=1), at_ms=5, body=b"{}")
    assert settled.kind == "unknown"
    assert (await wallets.report(REF, "rep_1", Price(flat_nano=1), at_ms=5, body=b"{}")).kind == "unknown"
    assert (await wallets.extend(REF, "req_1", 20, expires_ms=5)).kind == "unknown"
    assert await wallets.expire(REF, "req_1", LATER) == "unknown"
    assert await wallets.credit(REF, "g2", "cycle", 5, at_ms=1) == "unknown"
    for create in (True, False):
        assert await wallets.open(REF, status="ok", limit_nano=0, create=create) == "unknown"
    assert await ledger.balance() is None
    assert await ledger.journal.last_number(3) == 1
    assert await recovery.open_holds(3) == {ledger.keys.wallet(3, "wal_1"): [ledger.keys.hold(3, "mer_1", "req_1")]}


async def test_advance_raises_the_counter_and_never_lowers_it(ledger, recovery):
    await ledger.opened(cycle=100)
    keys = [ledger.keys.journal_counter(3)]
    assert await ledger.connection.script("advance", keys, [7]) == [b"advanced", 1]
    assert await ledger.connection.script("advance", keys, [7]) == [b"ahead", 7]
    await recovery.advance(3, 5)
    await ledger.wallets.credit(REF, "g2", "cycle", 1, at_ms=1)
    assert [entry.number for entry in await ledger.journal.read(3, 0, 9)] == [1, 8]


async def test_ended_writes_records_and_ends_holds_that_came_back(ledger, recovery):
    await ledger.opened(cycle=100)
    await hold(ledger, "req_1")
    await hold(ledger, "live")
    endings = [
        Ending("req_1", "settled", 4, 0, 0, 0, 60),
        Ending("late", "expired", 3, 1, 5, 2, 60),
        Ending("late", "settled", 6, 0, 5, 0, 60),
        Ending("gone", "expired", 3, 1, 5, 2, 60),
        Ending("old", "settled", 1, 0, 0, 0, 0),
    ]
    assert await recovery.tell_ended(REF, endings, 77) == 0, "the wallet is in use"
    assert await ledger.client.keys("*:r:*") == []
    await recovery.mark(3, [("wal_1", 0)], whatever=True)
    assert await recovery.tell_ended(REF, endings, 77) == 1
    assert await recovery.tell_ended(REF, endings, 77) == 0
    assert await ledger.client.zrange(ledger.keys.holds(3), 0, -1) == [ledger.keys.hold(3, "mer_1", "live").encode()]
    records = {name: await ledger.client.get(ledger.keys.record(3, "mer_1", name)) for name in ("late", "gone", "old")}
    assert records == {"late": b"settled 6 0 5 77", "gone": b"expired 3 1 5 77 2", "old": None}
    assert 0 < await ledger.client.ttl(ledger.keys.record(3, "mer_1", "late")) <= 60
    again = await ledger.wallets.settle(REF, "req_1", Price(flat_nano=9), at_ms=5, body=b"{}")
    assert (again.kind, again.amount_nano) == ("duplicate", 4)


async def test_a_credit_that_is_told_is_not_applied_again(ledger, recovery):
    await ledger.opened()
    await recovery.tell_credited(3, {"g7": 60}, 12)
    assert await ledger.wallets.credit(REF, "g7", "cycle", 5, at_ms=1) == "duplicate"


async def test_restore_makes_an_absent_wallet_and_leaves_one_in_use_alone(ledger, recovery):
    restored = await restore(recovery)
    assert (restored.kind, restored.seq, restored.held_nano, restored.rewritten) == ("restored", 9, 0, 0)
    balance = await ledger.balance()
    assert (balance.status, balance.cycle_nano, balance.prepaid_nano, balance.limit_nano) == ("ok", 40, 5, 7)
    assert (balance.seq, balance.available_nano, balance.calls) == (9, 52, 0)
    assert await recovery.units(REF) == {"prd_1": 12}
    assert (await restore(recovery, cycle_nano=99)).kind == "present"
    assert (await ledger.balance()).cycle_nano == 40


async def test_restore_counts_the_open_holds_of_the_wallet_only(ledger, recovery):
    await ledger.opened(cycle=100)
    other = await ledger.opened(cycle=100, ref=WalletRef("wal_2", 3, "mer_1"))
    await hold(ledger, "req_1", 10)
    await hold(ledger, "req_2", 3)
    await ledger.wallets.hold(other, "req_3", 50, expires_ms=LATER, descriptor=b"{}")
    await recovery.mark(3, [("wal_1", 9)])
    await ledger.wallets.release(REF, "req_2")
    holds = [ledger.keys.hold(3, "mer_1", name) for name in ("req_1", "req_2", "req_3", "req_4")]
    restored = await restore(recovery, holds=holds)
    assert restored.held_nano == 10
    balance = await ledger.balance()
    assert (balance.held_nano, balance.calls, balance.available_nano) == (10, 1, 42)
    assert await recovery.queued(3, 10) == []


async def test_restore_takes_over_entries_that_follow(ledger, recovery):
    await ledger.opened(cycle=100, limit=1_000)
    for number in (1, 2):
        await ledger.wallets.report(REF, f"rep_{number}", Price(flat_nano=30), at_ms=5, body=b"{}")
    await recovery.mark(3, [("wal_1", 0)], whatever=True)
    restored = await restore(recovery, [2, 3], recorded_number=1, cycle_nano=100, prepaid_nano=0, seq=1)
    assert (restored.seq, restored.rewritten) == (3, 0)
    assert (await ledger.balance()).cycle_nano == 40
    assert [entry.number for entry in await ledger.journal.read(3, 0, 9)] == [1, 2, 3]


async def test_restore_writes_entries_again_whose_place_is_taken(ledger, recovery):
    """Debits are spread over the pots as they are now, and overage is paid as far as there is any."""
    await ledger.opened(cycle=100, limit=1_000)
    await ledger.wallets.report(REF, "rep_1", Price(flat_nano=130), at_ms=5, body=b"x")
    await ledger.wallets.credit(REF, "g2", "overage", 50, at_ms=6)
    await recovery.mark(3, [("wal_1", 0)], whatever=True)
    restored = await restore(recovery, [2, 3], recorded_number=3, cycle_nano=10, prepaid_nano=100, overage_nano=0)
    assert (restored.seq, restored.rewritten) == (11, 2)
    balance = await ledger.balance()
    assert (balance.cycle_nano, balance.prepaid_nano, balance.overage_nano, balance.seq) == (0, 30, 0, 11)
    first, debit, credit = await ledger.journal.read(3, 0, 9)
    assert (first.number, debit.number, credit.number) == (1, 4, 5)
    assert (debit.kind, debit.reference, debit.seq, debit.debit_nano, debit.body) == ("report", "rep_1", 10, 130, b"x")
    assert (debit.cycle_delta, debit.prepaid_delta, debit.overage_delta) == (-10, -100, 20)
    assert (credit.kind, credit.seq, credit.prepaid_delta, credit.overage_delta) == ("credit", 11, 30, -20)


async def test_an_entry_carries_the_units_of_its_meter_and_restore_adds_them(ledger, recovery):
    from test_scripts import GRADUATED

    await ledger.opened(limit=-1)
    price = Price.of(GRADUATED, 1_500, 0, 0)
    await ledger.wallets.report(REF, "rep_1", price, at_ms=5, body=b"{}")
    (entry,) = await ledger.journal.read(3, 0, 9)
    assert (entry.meter_id, entry.units, entry.position) == ("prd_g", 1_500, 0)
    await recovery.mark(3, [("wal_1", 0)], whatever=True)
    await restore(recovery, [1], recorded_number=0, limit_nano=-1, units={"prd_g": 500, "prd_1": 1})
    assert await recovery.units(REF) == {"prd_g": 2_000, "prd_1": 1}


async def test_the_queue_and_the_sweep(ledger, recovery):
    assert await recovery.pending(range(5)) == {}
    ledger.wallets.queue_restore(3, "wal_9")
    await recovery.sweep_behind(4, "")
    assert await recovery.pending(range(5)) == {3: (1, None), 4: (0, "")}
    await recovery.sweep_behind(4, None)
    await recovery.unqueue(3, ["wal_9"])
    assert await recovery.pending(range(5)) == {}


async def test_restore_changes_nothing_upon_sums_older_than_the_journal(ledger, recovery):
    """An entry that is not there any more is recorded by now: the sums that it was to be put upon lack it."""
    await ledger.opened(cycle=100, limit=1_000)
    for number in (1, 2):
        await ledger.wallets.report(REF, f"rep_{number}", Price(flat_nano=30), at_ms=5, body=b"{}")
    await recovery.mark(3, [("wal_1", 0)], whatever=True)
    await ledger.journal.trim(3, 2)
    stale = await restore(recovery, [2, 3], recorded_number=1, cycle_nano=100, prepaid_nano=0, seq=1)
    assert stale.kind == "stale"
    assert await ledger.balance() is None and await recovery.queued(3, 10) == ["wal_1"]
    assert await recovery.units(REF) == {}
    assert [entry.number for entry in await ledger.journal.read(3, 0, 9)] == [3]
