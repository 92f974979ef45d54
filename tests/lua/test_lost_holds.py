"""Settles whose hold, or whose record, Redis does not have any more: debited once, never twice, never not."""

from __future__ import annotations

import pytest

from gateway.core.meter import from_definition
from gateway.ledger.connection import LedgerAway
from gateway.ledger.kept import Settle, Untold
from gateway.ledger.wallets import Price, WalletRef, Wallets, now_ms

REF = WalletRef("wal_1", 3, "mer_1")
LATER = 10**15
GRADUATED = from_definition("prd_g", 1, {"tiers": [{"start": 0, "rate": "5"}, {"start": 1_000_000, "rate": "3"}]})


class Record:
    """What the durable record says of old settles."""

    def __init__(self, answer: bool | Exception) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def __call__(self, settle: Settle) -> bool:
        self.asked.append(settle.request_id)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def hold(ledger, amount=60, request_id="req_1"):
    return await ledger.wallets.hold(REF, request_id, amount, expires_ms=LATER, descriptor=b"{}")


async def spend(wallets: Wallets, amount=40, request_id="req_1", at_ms=None, **price):
    price = Price(flat_nano=amount, **price)
    return await wallets.settle_spent(REF, request_id, price, at_ms=now_ms() if at_ms is None else at_ms, body=b"{}")


async def lose(ledger, *kinds: str, request_id="req_1") -> None:
    """As if Redis had come back without them."""
    keys = ledger.keys
    if "hold" in kinds:
        await ledger.client.delete(keys.hold(3, "mer_1", request_id))
        await ledger.client.zrem(keys.holds(3), keys.hold(3, "mer_1", request_id))
        await ledger.client.hset(keys.wallet(3, "wal_1"), mapping={"held": 0, "calls": 0})
    if "record" in kinds:
        await ledger.client.delete(keys.record(3, "mer_1", request_id))


async def figures(ledger) -> tuple[int, int, int]:
    balance = await ledger.balance()
    return balance.total_nano, balance.held_nano, balance.seq


async def test_a_call_whose_hold_is_lost_is_debited_once_and_without_it(ledger):
    await ledger.opened(cycle=100)
    await hold(ledger)
    await lose(ledger, "hold")
    settled = await spend(ledger.wallets)
    assert (settled.kind, settled.amount_nano, settled.hold_lost) == ("settled", 40, True)
    again = await spend(ledger.wallets)
    assert (again.kind, again.journal_number, again.hold_lost) == ("duplicate", settled.journal_number, False)
    assert await figures(ledger) == (60, 0, 2)
    entry = (await ledger.journal.read(3, 1, 10))[0]
    assert (entry.kind, entry.reference, entry.seq) == ("call", "req_1", 2)


async def test_one_whose_hold_is_there_is_settled_as_ever(ledger):
    await ledger.opened(cycle=100)
    await hold(ledger)
    settled = await spend(ledger.wallets)
    assert (settled.kind, settled.hold_lost) == ("settled", False)
    assert await figures(ledger) == (60, 0, 2)


async def test_the_position_of_a_graduated_meter_advances_without_a_hold_too(ledger):
    await ledger.opened(cycle=10**10)
    price = Price.of(GRADUATED, 900_000, 0, 0)
    for number in (1, 2):
        settled = await ledger.wallets.settle_spent(REF, f"req_{number}", price, at_ms=now_ms(), body=b"{}")
        assert (settled.hold_lost, settled.position) == (True, 900_000 * (number - 1))
    assert settled.fee_nano == 100_000 * 5_000 + 800_000 * 3_000


async def test_behind_an_expiry_only_the_difference_is_debited(ledger):
    await ledger.opened(cycle=100)
    await ledger.wallets.hold(REF, "req_1", 60, expires_ms=1, descriptor=b"{}")
    await ledger.wallets.extend(REF, "req_1", 60, expires_ms=1, progress=(Price(flat_nano=15), b"{}"))
    assert await ledger.wallets.expire(REF, "req_1", now_ms()) == "expired"
    assert (await spend(ledger.wallets)).kind == "settled"
    assert (await figures(ledger))[:2] == (60, 0)


async def test_what_was_released_is_not_debited(ledger):
    await ledger.opened(cycle=100)
    await hold(ledger)
    await ledger.wallets.release(REF, "req_1")
    assert (await spend(ledger.wallets)).kind == "gone"
    assert await figures(ledger) == (100, 0, 1)


async def test_a_wallet_that_is_not_there_is_waited_for(ledger):
    assert (await spend(ledger.wallets)).kind == "unknown"
    assert await ledger.journal.last_number(3) == 0


def remembering(ledger, record: Record) -> Wallets:
    return Wallets(ledger.connection, ledger.keys, record_ttl_s=60, report_ttl_s=600, recorded=record)


@pytest.mark.parametrize(("recorded", "total"), [(True, 60), (False, 20)])
async def test_one_that_redis_may_have_forgotten_is_looked_up(ledger, recorded, total):
    await ledger.opened(cycle=100)
    record = Record(recorded)
    wallets = remembering(ledger, record)
    await hold(ledger)
    old_ms = now_ms() - 55_000
    assert (await spend(wallets, at_ms=old_ms)).kind == "settled"
    assert record.asked == []
    await lose(ledger, "record")
    assert (await spend(wallets, at_ms=old_ms)).kind == ("duplicate" if recorded else "settled")
    assert record.asked == ["req_1"]
    assert (await figures(ledger))[0] == total


async def test_one_that_it_cannot_have_forgotten_is_not(ledger):
    await ledger.opened(cycle=100)
    record = Record(True)
    assert (await spend(remembering(ledger, record), at_ms=now_ms() - 50_000)).kind == "settled"
    assert record.asked == []


async def test_while_that_cannot_be_told_nothing_is_debited(ledger):
    await ledger.opened(cycle=100)
    for error in (Untold("not flushed"), LedgerAway("away")):
        with pytest.raises(LedgerAway):
            await spend(remembering(ledger, Record(error)), at_ms=1)
    assert (await spend(ledger.wallets, at_ms=1)).kind == "gone"  # there is nobody to ask
    assert await figures(ledger) == (100, 0, 1)


async def test_a_late_hold_does_not_come_back_to_a_call_settled_without_it(ledger):
    await ledger.opened(cycle=100)
    await spend(ledger.wallets)
    assert (await hold(ledger)).kind == "ended"
    assert await figures(ledger) == (60, 0, 2)
