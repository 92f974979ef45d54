"""Spend keys in the scripts: each documented return, and what is counted once whatever happens to the counters."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from gateway.ledger.spending import DAY_MS, Limit, SpendKey, Spent, cycles
from gateway.ledger.wallets import HoldResult, Price, WalletRef, now_ms

REF = WalletRef("wal_1", 3, "mer_1")
AT_MS = now_ms()
NOW = cycles(AT_MS // DAY_MS)
NOTHING = (Spent(),) * 4
COST = SpendKey(spend_key_id="spk_1", spend_limit=Limit(1_000, "monthly"), by_cost=True)


@pytest_asyncio.fixture
async def spending(ledger: Any) -> Any:
    """The merchant's own wallet, and the key's counters open."""
    await ledger.opened(limit=-1)
    assert await open_key(ledger) == "opened"
    return ledger


async def open_key(ledger: Any, *, number: int = 0, holds: Any = (), spent: Any = NOTHING) -> str:
    return await ledger.recovery.open_key(REF, "spk_1", NOW, spent, number=number, used_ms=0, holds=holds)


async def hold(
    ledger: Any, name: str, amount: int, key: SpendKey = COST, at_ms: int = AT_MS, **more: Any
) -> HoldResult:
    return await ledger.wallets.hold(
        REF, name, amount, expires_ms=AT_MS + 1, descriptor=b"{}", at_ms=at_ms, spend=key, **more
    )


async def settle(ledger: Any, name: str, cost: int, key: SpendKey = COST) -> str:
    done = await ledger.wallets.settle(
        REF, name, Price(flat_nano=0, cost_nano=cost), at_ms=AT_MS, body=b"{}", spend=key
    )
    return str(done.kind)


async def counted(ledger: Any) -> tuple[int, int, int, int]:
    """Spent and requests of the month; held and calls."""
    found = await ledger.recovery.spend_counters(REF.shard, "spk_1", NOW)
    assert found is not None
    return *found.spent["monthly"], found.held_nano, found.calls


@pytest.mark.asyncio
async def test_what_is_in_flight_counts_against_the_limit(spending):
    assert (await hold(spending, "one", 700)).kind == "held"
    assert (await hold(spending, "one", 700)).kind == "held"  # sent again
    refused = await hold(spending, "two", 301)
    assert (refused.kind, refused.available_nano, refused.held_nano) == ("key_spent", 300, 700)
    assert (await hold(spending, "two", 300)).kind == "held"
    assert await counted(spending) == (0, 0, 1_000, 2)
    assert await settle(spending, "one", 600) == "settled"
    assert await settle(spending, "one", 600) == "duplicate"
    assert await spending.wallets.release(REF, "two", COST) == "released"
    assert await counted(spending) == (600, 1, 0, 0)


@pytest.mark.asyncio
async def test_an_extension_is_refused_at_the_limit_and_leaves_the_hold(spending):
    await hold(spending, "one", 400)
    await hold(spending, "two", 500)
    more = await spending.wallets.extend(REF, "one", 501, expires_ms=AT_MS, spend=COST)
    assert (more.kind, more.why, more.available_nano, more.amount_nano) == ("refused", "key", 100, 400)
    assert (await spending.wallets.extend(REF, "one", 500, expires_ms=AT_MS, spend=COST)).kind == "extended"
    assert await counted(spending) == (0, 0, 1_000, 2)


@pytest.mark.asyncio
@pytest.mark.parametrize("by_cost", [True, False])
async def test_a_settle_behind_an_expiry_counts_the_difference(spending, by_cost):
    key = SpendKey(spend_key_id="spk_1", by_cost=by_cost)
    await hold(spending, "one", 400, key)
    so_far = Price(flat_nano=0 if by_cost else 250, cost_nano=250)
    await spending.wallets.extend(REF, "one", 400, expires_ms=AT_MS, progress=(so_far, b"{}"), spend=key)
    assert await spending.wallets.expire(REF, "one", AT_MS + 9, "spk_1") == "expired"
    assert await counted(spending) == (250, 1, 0, 0)
    price = Price(flat_nano=0 if by_cost else 390, cost_nano=390)
    late = await spending.wallets.settle(REF, "one", price, at_ms=AT_MS, body=b"{}", spend=key)
    assert late.kind == "settled"
    assert await counted(spending) == (390, 1, 0, 0)
    entries = await spending.journal.read(REF.shard, 0, 10)
    assert [(e.kind, e.spend_key_id, e.spent_nano, e.spent_requests) for e in entries] == [
        ("expired", "spk_1", 250, 1),
        ("late", "spk_1", 140, 0),
    ]


@pytest.mark.asyncio
async def test_a_call_whose_hold_is_lost_is_counted_all_the_same(spending):
    await hold(spending, "one", 400)
    await spending.client.delete(spending.keys.hold(REF.shard, REF.merchant_id, "one"))
    price = Price(flat_nano=0, cost_nano=300)
    # Of now: one of long ago may have been settled and forgotten, and is not taken.
    settled = await spending.wallets.settle_spent(REF, "one", price, at_ms=now_ms(), body=b"{}", spend=COST)
    assert settled.kind == "settled"
    assert (await counted(spending))[:2] == (300, 1)


@pytest.mark.asyncio
async def test_requests_and_their_rate(spending):
    few = SpendKey(spend_key_id="spk_1", request_limit=Limit(2, "daily"))
    assert [(await hold(spending, name, 0, few)).kind for name in "abc"] == ["held", "held", "key_requests"]
    await settle(spending, "a", 0, few)
    assert (await hold(spending, "d", 0, few)).kind == "key_requests"
    tomorrow = await hold(spending, "e", 0, few, AT_MS + DAY_MS)
    assert tomorrow.kind == "held"  # b is in flight, a was yesterday's
    slow = SpendKey(spend_key_id="spk_1", requests_per_minute=60, requests_burst=2)
    at = AT_MS + 2 * DAY_MS
    assert [(await hold(spending, f"r{n}", 0, slow, at)).kind for n in range(3)] == ["held", "held", "key_throttled"]
    assert (await hold(spending, "r3", 0, slow, at + 400)).retry_ms == 600
    assert (await hold(spending, "r3", 0, slow, at + 1_000)).kind == "held"


@pytest.mark.asyncio
async def test_counters_are_opened_before_a_call_begins_and_once(ledger):
    await ledger.opened(limit=-1)
    assert (await hold(ledger, "one", 10)).kind == "key_unopened"
    assert (await ledger.balance()).held_nano == 0
    assert await open_key(ledger, spent=[Spent(1, 1), Spent(20, 2), Spent(300, 3), Spent(4_000, 4)]) == "opened"
    assert await open_key(ledger) == "present"
    assert (await hold(ledger, "one", 701)).kind == "key_spent"
    assert (await hold(ledger, "one", 700)).kind == "held"
    await ledger.client.hdel(ledger.keys.wallet(REF.shard, REF.wallet_id), "status")
    await ledger.client.delete(ledger.keys.spend(REF.shard, "spk_1"))
    assert await open_key(ledger) == "unknown"


@pytest.mark.asyncio
async def test_what_ended_while_they_were_lost_is_counted_by_its_place_in_the_journal(spending):
    for name in ("one", "two", "three"):
        await hold(spending, name, 100)
    await spending.client.delete(spending.keys.spend(REF.shard, "spk_1"))
    assert [await settle(spending, name, nano) for name, nano in (("one", 60), ("two", 50))] == ["settled"] * 2
    # The record has the first of them, and an earlier one.
    three = spending.keys.hold(REF.shard, REF.merchant_id, "three")
    sums = [Spent(60, 1), Spent(60, 1), Spent(65, 2), Spent(65, 2)]
    assert await open_key(spending, number=1, holds=[three], spent=sums) == "opened"
    assert await counted(spending) == (115, 3, 100, 1)
    assert await settle(spending, "three", 40) == "settled"
    assert await counted(spending) == (155, 4, 0, 0)
    assert not [name for name in await spending.client.hkeys(spending.keys.spend(REF.shard, "spk_1")) if b":" in name]


@pytest.mark.asyncio
async def test_a_call_that_is_held_again_is_not_counted_again(spending):
    key = SpendKey(spend_key_id="spk_1", request_limit=Limit(1, "total"), requests_per_minute=1)
    assert (await hold(spending, "one", 0, key)).kind == "held"
    assert (await hold(spending, "two", 0, key, again=True)).kind == "held"
    assert (await hold(spending, "three", 0, key)).kind == "key_requests"
    assert (await hold(spending, "four", 1_001, COST, again=True)).kind == "key_spent"
    await spending.client.delete(spending.keys.spend(REF.shard, "spk_1"))
    assert (await hold(spending, "five", 10, COST, again=True)).kind == "held"


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["settled", "released", "expired"])
async def test_a_hold_that_the_counters_do_not_hold_takes_nothing_from_the_others(spending, how):
    """Made again while they were closed, and too late for the list that they were opened with."""
    await hold(spending, "one", 100)
    await spending.client.delete(spending.keys.spend(REF.shard, "spk_1"))
    assert (await hold(spending, "two", 70, again=True)).kind == "held"
    assert await open_key(spending, holds=[spending.keys.hold(REF.shard, REF.merchant_id, "one")]) == "opened"
    assert (await counted(spending))[2:] == (100, 1)
    match how:
        case "settled":
            assert await settle(spending, "two", 60) == how
        case "released":
            assert await spending.wallets.release(REF, "two", COST) == how
        case "expired":
            assert await spending.wallets.expire(REF, "two", AT_MS + 9, "spk_1") == how
    assert (await counted(spending))[2:] == (100, 1)
    assert await settle(spending, "one", 60) == "settled"
    assert (await counted(spending))[2:] == (0, 0)


@pytest.mark.asyncio
async def test_a_hold_that_the_counters_do_not_hold_is_counted_when_it_is_renewed(spending):
    await hold(spending, "one", 100)
    await spending.client.delete(spending.keys.spend(REF.shard, "spk_1"))
    await hold(spending, "two", 70, again=True)
    await spending.wallets.extend(REF, "two", 80, expires_ms=AT_MS, spend=COST)
    await open_key(spending)
    for name, amount in (("one", 100), ("one", 100), ("two", 80), ("two", 90)):
        assert (await spending.wallets.extend(REF, name, amount, expires_ms=AT_MS, spend=COST)).kind == "extended"
    assert (await counted(spending))[2:] == (190, 2)
    for name in ("one", "two"):
        assert await settle(spending, name, 60) == "settled"
    assert await counted(spending) == (120, 2, 0, 0)
