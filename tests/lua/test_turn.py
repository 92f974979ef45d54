"""The turn of a cycle on a real server: each documented return, what stays and what goes, I9 in the script itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pytest
import pytest_asyncio
from hiredis import ReplyError

from gateway.ledger.recovery import Base, Recovery
from gateway.ledger.turn import Turn, decode
from gateway.ledger.wallets import Price, WalletRef

REF = WalletRef("wal_1", 3, "mer_1")
LATER = 10**15
NOTHING_KEPT = Turn(keep_cycle=False, keep_bundle=False, credit_nano=25, reset_meters=True)


@dataclass
class Pots:
    cycle: int = 0
    bundle: int = 0
    prepaid: int = 0
    overage: int = 0


async def turn(ledger: Any, turn: Turn = NOTHING_KEPT, turn_id: str = "sub_1:1", limit_nano: int = 7) -> str:
    return await ledger.wallets.turn(REF, turn_id, turn, limit_nano=limit_nano, at_ms=5)


async def filled(ledger: Any, **pots: int) -> None:
    await ledger.opened()
    for pot, amount in pots.items():
        await ledger.wallets.credit(REF, f"c-{pot}", pot, amount, at_ms=1)


async def pots(ledger: Any) -> Pots:
    balance = await ledger.balance()
    return Pots(balance.cycle_nano, balance.bundle_nano, balance.prepaid_nano, balance.overage_nano)


@pytest_asyncio.fixture
async def recovery(ledger: Any) -> Recovery:
    return Recovery(ledger.connection, ledger.keys)


@pytest.mark.parametrize("keep_cycle", [False, True])
@pytest.mark.parametrize("keep_bundle", [False, True])
async def test_what_rolls_over_stays_and_the_credit_is_added_once(
    ledger: Any, keep_cycle: bool, keep_bundle: bool
) -> None:
    await filled(ledger, cycle=10, bundle=4, prepaid=3)
    wanted = Turn(keep_cycle, keep_bundle, 25, True)
    assert await turn(ledger, wanted) == "turned"
    expected = Pots(35 if keep_cycle else 25, 4 if keep_bundle else 0, 3, 0)
    assert await pots(ledger) == expected
    assert await turn(ledger, wanted, limit_nano=9) == "duplicate"
    assert await pots(ledger) == expected and (await ledger.balance()).limit_nano == 7
    entry = (await ledger.journal.read(3, 0, 9))[-1]
    assert (entry.kind, entry.reference, entry.seq, decode(entry.body)) == ("turn", "sub_1:1", 4, wanted)
    assert (entry.cycle_delta, entry.bundle_delta) == (25 if keep_cycle else 15, 0 if keep_bundle else -4)
    assert (entry.prepaid_delta, entry.overage_delta) == (0, 0)


async def test_a_wallet_that_redis_does_not_hold_is_unknown_and_asked_for(ledger: Any, recovery: Recovery) -> None:
    assert await turn(ledger) == "unknown"
    assert await recovery.queued(3, 9) == ["wal_1"]
    assert await ledger.client.exists(ledger.keys.credit(3, "sub_1:1")) == 0


async def test_holds_and_overage_stay(ledger: Any) -> None:
    await filled(ledger, cycle=10)
    await ledger.wallets.report(REF, "rep_1", Price(flat_nano=15), at_ms=5, body=b"{}")
    await ledger.wallets.open(REF, status="ok", limit_nano=100, create=False)
    await ledger.wallets.hold(REF, "req_1", 50, expires_ms=LATER, descriptor=b"{}")
    assert await turn(ledger, limit_nano=0) == "turned"
    balance = await ledger.balance()
    assert (balance.cycle_nano, balance.overage_nano, balance.held_nano, balance.calls) == (25, 5, 50, 1)
    assert balance.available_nano == 25 - 5 - 50, "the hold is not covered any more, and is settled all the same"
    settled = await ledger.wallets.settle(REF, "req_1", Price(flat_nano=30), at_ms=5, body=b"{}")
    assert settled.kind == "settled" and await pots(ledger) == Pots(overage=10)


@pytest.mark.parametrize("reset", [False, True])
async def test_the_tier_counters_begin_anew_where_they_are_to(ledger: Any, recovery: Recovery, reset: bool) -> None:
    from test_scripts import GRADUATED

    await filled(ledger, cycle=10**9)
    await ledger.wallets.report(REF, "rep_1", Price.of(GRADUATED, 1_500, 0, 0), at_ms=5, body=b"{}")
    await turn(ledger, Turn(True, True, 0, reset))
    assert await recovery.units(REF) == ({} if reset else {"prd_g": 1_500})


@pytest.mark.parametrize("credit_nano", [-1, 2**53])
async def test_a_turn_that_makes_or_takes_what_is_not_there_does_nothing(ledger: Any, credit_nano: int) -> None:
    await filled(ledger, cycle=10, bundle=4)
    with pytest.raises(ReplyError):
        await turn(ledger, Turn(True, False, credit_nano, True))
    assert await pots(ledger) == Pots(10, 4)
    assert (await ledger.balance()).seq == 2 and len(await ledger.journal.read(3, 0, 9)) == 2
    assert await turn(ledger) == "turned", "nothing is remembered of it"


async def restored(recovery: Recovery, numbers: list[int], recorded_number: int, seq: int, pots: Pots) -> Any:
    base = Base("ok", *asdict(pots).values(), 7, seq, {"prd_1": 12})
    await recovery.mark(3, [("wal_1", 0)], whatever=True)
    return await recovery.restore(REF, base, recorded_number=recorded_number, numbers=numbers, holds=[])


async def test_restore_takes_over_a_turn_that_follows_and_its_reset(ledger: Any, recovery: Recovery) -> None:
    await filled(ledger, cycle=10, bundle=4)
    await turn(ledger)
    await ledger.wallets.report(REF, "rep_1", Price(flat_nano=5), at_ms=5, body=b"{}")
    outcome = await restored(recovery, [3, 4], 2, 2, Pots(10, 4))
    assert (outcome.kind, outcome.seq, outcome.rewritten) == ("restored", 4, 0)
    assert await pots(ledger) == Pots(20) and await recovery.units(REF) == {}


@pytest.mark.parametrize(("wanted", "expected"), [(NOTHING_KEPT, Pots(25)), (Turn(True, True, 25, False), Pots(28, 9))])
async def test_restore_turns_anew_what_was_turned_in_another_state(
    ledger: Any, recovery: Recovery, wanted: Turn, expected: Pots
) -> None:
    """Its deltas were those of other pots: what expires is what is left in these."""
    await filled(ledger, cycle=10, bundle=4)
    await turn(ledger, wanted)
    outcome = await restored(recovery, [3], 3, 8, Pots(3, 9))
    assert (outcome.seq, outcome.rewritten) == (9, 1)
    assert await pots(ledger) == expected
    entry = (await ledger.journal.read(3, 0, 9))[-1]
    assert (entry.kind, entry.reference, entry.seq) == ("turn", "sub_1:1", 9)
    assert (entry.cycle_delta, entry.bundle_delta) == (expected.cycle - 3, expected.bundle - 9)
    assert await recovery.units(REF) == ({} if wanted.reset_meters else {"prd_1": 12})
