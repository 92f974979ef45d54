"""Money never moves without its journal entry: a script whose entry cannot be written has done nothing."""

from __future__ import annotations

import pytest
from hiredis import ReplyError

from gateway.ledger.turn import Turn
from gateway.ledger.wallets import Price, WalletRef, now_ms

REF = WalletRef("wal_1", 3, "mer_1")
LATER = 10**15


async def hold(ledger, request_id="req_1", expires_ms=LATER):
    return await ledger.wallets.hold(REF, request_id, 60, expires_ms=expires_ms, descriptor=b"{}")


async def settle(ledger, request_id="req_1"):
    return await ledger.wallets.settle(REF, request_id, Price(flat_nano=40), at_ms=1, body=b"{}")


async def state(ledger) -> list[object]:
    keys, client = ledger.keys, ledger.client
    return [
        await client.hgetall(keys.wallet(3, "wal_1")),
        await client.hgetall(keys.hold(3, "mer_1", "req_1")),
        await client.zcard(keys.holds(3)),
        await client.exists(keys.record(3, "mer_1", "req_1"), keys.credit(3, "more")),
        await client.get(keys.journal_counter(3)),
    ]


@pytest.mark.parametrize("script", ["settle", "expire", "credit", "turn"])
async def test_a_script_that_cannot_journal_has_done_nothing_and_does_it_once_later(ledger, script):
    attempts = {
        "settle": lambda: settle(ledger),
        "expire": lambda: ledger.wallets.expire(REF, "req_1", now_ms()),
        "credit": lambda: ledger.wallets.credit(REF, "more", "cycle", 7, at_ms=1),
        "turn": lambda: ledger.wallets.turn(REF, "more", Turn(False, True, 9, True), limit_nano=5, at_ms=1),
    }
    await ledger.opened(cycle=100)
    await hold(ledger, expires_ms=1 if script == "expire" else LATER)
    journal = ledger.keys.journal(3)
    entries = await ledger.client.xrange(journal)
    await ledger.client.rename(journal, "aside")
    await ledger.client.set(journal, "no stream")
    before = await state(ledger)
    for _ in range(2):
        with pytest.raises(ReplyError):
            await attempts[script]()
        assert await state(ledger) == before
    await ledger.client.rename("aside", journal)
    await attempts[script]()
    await attempts[script]()
    assert len(await ledger.client.xrange(journal)) == len(entries) + 1
    balance = await ledger.balance()
    assert (balance.total_nano, balance.seq) == ({"settle": 60, "expire": 100, "credit": 107, "turn": 9}[script], 2)


@pytest.mark.parametrize("trimmed", [False, True])
async def test_a_counter_that_was_lost_goes_on_behind_the_stream(ledger, trimmed):
    await ledger.opened(cycle=100)
    for number in range(4):
        await ledger.wallets.credit(REF, f"credit-{number}", "cycle", 1, at_ms=1)
    await hold(ledger)
    if trimmed:
        await ledger.journal.trim(3, 5)
    await ledger.client.delete(ledger.keys.journal_counter(3))
    settled = await settle(ledger)
    assert (settled.kind, settled.journal_number) == ("settled", 6)
    assert (await settle(ledger)).kind == "duplicate"
    assert (await ledger.balance()).total_nano == 64
    assert await ledger.client.get(ledger.keys.journal_counter(3)) == b"6"
