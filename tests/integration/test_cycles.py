"""Cycles are turned once each, by the merchant's clock; what rolls over and what expires; changes and cancellations."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from merchant_year import Year
from subscribers import CAP_NANO, MERCHANT, Shop, shop
from worker_support import Installation

from gateway.billing.plans import NewBundle, PlanChange
from gateway.billing.principals import Principals
from gateway.billing.restore import Restorer
from gateway.core.cycle import boundary
from gateway.core.meter import from_definition
from gateway.core.money import NANO
from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.recovery import Recovery
from gateway.ledger.row import encode
from gateway.ledger.wallets import Price, now_ms
from gateway.store.secrets import digest
from gateway.worker import cycles

GRADUATED_DEFINITION = {"tiers": [{"start": 0, "rate": "2"}, {"start": 1_000_000, "rate": "1"}]}
GRADUATED = from_definition("meter_g", 1, GRADUATED_DEFINITION)


@pytest_asyncio.fixture
async def market(valkey: str, redis_client: Any, postgres: str) -> AsyncIterator[Shop]:
    async with shop(valkey, postgres) as made:
        yield made


async def turns(obol: Installation, subscription_id: str) -> list[tuple[int, str]]:
    rows = await obol.fetch(
        "SELECT number, kind FROM turns WHERE subscription_id = $1 ORDER BY turn_seq", subscription_id
    )
    return [(row["number"], row["kind"]) for row in rows]


async def subscription(market: Shop, subscription_id: str) -> dict[str, Any]:
    (row,) = await market.obol.fetch("SELECT * FROM subscriptions WHERE subscription_id = $1", subscription_id)
    return row


async def test_a_renewal_keeps_what_the_plan_says_and_adds_its_credit(market: Shop) -> None:
    """The example of the specification: $25, used $15, next $35."""
    refs = {}
    for rollover in ("none", "full"):
        for bundle_rollover in ("none", "full"):
            plan = await market.plan(
                25,
                rollover_type=rollover,
                bundle_rollover_type=bundle_rollover,
                bundles=(NewBundle("Small", NANO, 4 * NANO),),
            )
            name = f"{rollover}-{bundle_rollover}"
            ref, subscription_id = await market.subscriber(name, plan)
            refs[ref] = (35 if rollover == "full" else 25, 4 if bundle_rollover == "full" else 0)
            bundle_id = plan.bundles[0].credit_bundle_id
            await market.subscriptions.grant_bundle(MERCHANT, f"con_{name}", bundle_id, f"g-{name}")
            await market.obol.wallets.credit(ref, f"money-{name}", "prepaid", NANO, at_ms=now_ms())
            await market.spend(ref, f"r-{name}", 15 * NANO)
            assert await market.pots(ref) == (10 * NANO, 4 * NANO, NANO, 0)
    await market.advance(days=32)
    for ref, left in refs.items():
        assert await market.pots(ref) == (left[0] * NANO, left[1] * NANO, NANO, 0)
    assert await turns(market.obol, subscription_id) == [(0, "start"), (1, "renewal")]
    assert await market.audit() == ""


async def test_missed_cycles_are_turned_one_after_the_other_each_at_its_time(market: Shop) -> None:
    plan = await market.plan(3, billing_interval="day", rollover_type="full")
    ref, subscription_id = await market.subscriber("a", plan)
    start = (await subscription(market, subscription_id))["started_at"]
    days = 2 * cycles.TURNS_AT_ONCE_MAX + 3
    assert await market.advance(days=days, hours=1)
    rows = await market.obol.fetch("SELECT due_at FROM turns WHERE number > 0 ORDER BY turn_seq")
    assert [row["due_at"] for row in rows] == [boundary(start, "day", number) for number in range(1, days + 1)]
    assert await market.pots(ref) == ((days + 1) * 3 * NANO, 0, 0, 0)
    now = await subscription(market, subscription_id)
    assert now["cycle_start_at"] == rows[-1]["due_at"] and now["cycle_end_at"] == boundary(start, "day", days + 1)
    assert not await market.turn_all(), "nothing is due any more"
    assert await market.audit() == ""


async def test_several_workers_at_once_turn_each_cycle_once(market: Shop) -> None:
    plan = await market.plan(2, billing_interval="week", rollover_type="full")
    refs = [(await market.subscriber(f"c{number}", plan))[0] for number in range(12)]
    await market.clocks.advance(MERCHANT, timedelta(days=22))
    workers = [market.worker() for _ in range(4)]

    async def until_done(number: int) -> None:
        while await workers[number].turn_once():
            pass

    await asyncio.gather(*map(until_done, range(4)))
    await market.turn_all()
    assert [await market.pots(ref) for ref in refs] == [(8 * NANO, 0, 0, 0)] * 12
    assert await market.obol.value("SELECT count(*) FROM turns") == 12 * 4
    assert await market.audit() == ""


async def test_changes_beside_workers_disturb_nobody(market: Shop) -> None:
    """Upgrades, cancellations, bundles and edits of the plan, while two workers turn the same subscriptions."""
    bundles = (NewBundle("B", NANO, NANO),)
    plan = await market.plan(2, billing_interval="day", rollover_type="full", bundles=bundles)
    large = await market.plan(90, rollover_type="full")
    names = [f"c{number}" for number in range(9)]
    subscribed = {name: await market.subscriber(name, plan) for name in names}
    await market.clocks.advance(MERCHANT, timedelta(days=9, hours=1))
    works: list[Any] = [market.turn_all(), market.turn_all()]
    for number, name in enumerate(names):
        if number % 3 == 0:
            works.append(market.subscriptions.change_plan(MERCHANT, f"con_{name}", large.plan_id))
        elif number % 3 == 1:
            works.append(market.subscriptions.cancel(MERCHANT, subscribed[name][1]))
        else:
            bundle_id = plan.bundles[0].credit_bundle_id
            works.append(market.subscriptions.grant_bundle(MERCHANT, f"con_{name}", bundle_id, f"g-{name}"))
        works.append(market.plans.change(MERCHANT, plan.plan_id, PlanChange(name=name)))
    await asyncio.gather(*works)
    await market.turn_all()
    await market.pending().apply_once()
    for number, name in enumerate(names):
        expected = ((110, 0), (20, 0), (20, 1))[number % 3]
        assert await market.pots(subscribed[name][0]) == (expected[0] * NANO, expected[1] * NANO, 0, 0)
    assert await market.audit() == ""


class KilledOnce:
    """A worker that dies between its commit and Redis: nothing of its turns is applied, or only some."""

    def __init__(self, market: Shop, applied: int) -> None:
        self.market, self.applied = market, applied

    async def apply_to(self, wallet_ids: list[str]) -> int:
        rows = await self.market.obol.store.rows("subscriptions.pending_turns_of", wallet_ids)
        await self.market.turns.apply_in_order(rows[: self.applied])
        raise KeyboardInterrupt


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


async def test_an_upgrade_is_at_once_with_a_cycle_of_its_own(market: Shop) -> None:
    small = await market.plan(10, rollover_type="full")
    large = await market.plan(30, overage="charge", bundles=(NewBundle("Large", NANO, 9 * NANO),),
                              default_auto_top_up_bundle_index=0)  # fmt: skip
    ref, subscription_id = await market.subscriber("a", small, can_charge=True)
    assert (await market.balance(ref)).limit_nano == CAP_NANO
    await market.spend(ref, "r-1", 4 * NANO)
    await market.advance(days=10)
    before = datetime.now(UTC) + timedelta(days=10)
    assert await market.subscriptions.change_plan(MERCHANT, "con_a", large.plan_id) == "upgrade"
    assert await market.pots(ref) == (36 * NANO, 0, 0, 0), "what was left rolls over as the old plan says"
    now = await subscription(market, subscription_id)
    assert abs(now["cycle_start_at"] - before) < timedelta(minutes=1) and now["cycle_start_at"] == now["anchor_at"]
    assert now["cycle_end_at"] == boundary(now["anchor_at"], "month", 1)
    assert now["auto_top_up_bundle_id"] == large.bundles[0].credit_bundle_id
    assert await turns(market.obol, subscription_id) == [(0, "start"), (1, "upgrade")]
    await market.at(now["cycle_end_at"])
    assert await market.pots(ref) == (30 * NANO, 0, 0, 0), "the new plan lets the rest expire"
    assert await market.audit() == ""


async def test_a_downgrade_waits_for_the_end_of_the_cycle(market: Shop) -> None:
    large, small = await market.plan(30, rollover_type="full"), await market.plan(5, overage="block")
    ref, subscription_id = await market.subscriber("a", large, can_charge=True)
    end = (await subscription(market, subscription_id))["cycle_end_at"]
    assert await market.subscriptions.change_plan(MERCHANT, "con_a", small.plan_id) == "downgrade"
    pending = await subscription(market, subscription_id)
    assert (pending["plan_id"], pending["pending_type"], pending["pending_at"]) == (large.plan_id, "downgrade", end)
    assert pending["pending_plan_id"] == small.plan_id
    assert await market.pots(ref) == (30 * NANO, 0, 0, 0)
    market.told.clear()
    await market.at(end)
    now = await subscription(market, subscription_id)
    assert (now["plan_id"], now["pending_type"], now["pending_plan_id"]) == (small.plan_id, None, None)
    assert await market.pots(ref) == (35 * NANO, 0, 0, 0), "the plan of the cycle that ended lets the rest roll over"
    assert (await market.balance(ref)).limit_nano == 0
    assert market.told.count(MERCHANT) == 2, "the clock, and the meters that the customer may use"
    assert await market.obol.value("SELECT overage_limit_nano FROM connections WHERE connection_id = 'con_a'") == 0
    assert await turns(market.obol, subscription_id) == [(0, "start"), (1, "downgrade")]
    assert await market.audit() == ""


async def test_a_downgrade_that_commits_while_the_worker_looks_is_not_lost(
    market: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear, cheap = await market.plan(25), await market.plan(5)
    _, subscription_id = await market.subscriber("a", dear, can_charge=True)
    await market.obol.execute("UPDATE subscriptions SET cycle_end_at = now() - interval '1 second'")
    store = market.obol.store
    slow = store.sql("subscriptions.due").replace("WHERE ", "WHERE (SELECT pg_sleep(0.6)) IS NOT NULL AND ", 1)
    sql = store.sql
    monkeypatch.setattr(store, "sql", lambda name: slow if name == "subscriptions.due" else sql(name))
    async with store.transaction() as db:
        await db.execute(
            "UPDATE subscriptions SET pending_type = 'downgrade', pending_plan_id = $1, pending_at = cycle_end_at",
            cheap.plan_id,
        )
        turning = asyncio.create_task(market.worker().turn_once())
        await asyncio.sleep(0.3)  # the worker's statement has its snapshot, and no lock yet
    assert await turning
    found = await subscription(market, subscription_id)
    assert (found["plan_id"], found["pending_type"]) == (cheap.plan_id, None)


async def test_what_is_changed_before_the_worker_came_is_changed_in_the_cycle_of_now(market: Shop) -> None:
    """Two cycles have ended and nobody has turned them: upgrade, downgrade, bundle and cancellation come first."""
    bundles = (NewBundle("B", NANO, 3 * NANO),)
    plan = await market.plan(
        4, billing_interval="week", rollover_type="full", bundles=bundles, bundle_rollover_type="none"
    )
    large, small = await market.plan(90), await market.plan(1, billing_interval="week")
    refs, names = {}, ("up", "down", "bundle", "cancel", "ended")
    for name in names:
        refs[name], subscription_id = await market.subscriber(name, plan)
    await market.subscriptions.cancel(MERCHANT, subscription_id)
    await market.clocks.advance(MERCHANT, timedelta(days=16))
    assert await market.subscriptions.change_plan(MERCHANT, "con_up", large.plan_id) == "upgrade"
    assert await market.pots(refs["up"]) == (102 * NANO, 0, 0, 0), "three weeks, and the new plan's month"
    assert await market.subscriptions.change_plan(MERCHANT, "con_down", small.plan_id) == "downgrade"
    await market.subscriptions.grant_bundle(MERCHANT, "con_bundle", plan.bundles[0].credit_bundle_id, "g")
    assert await market.pots(refs["bundle"]) == (12 * NANO, 3 * NANO, 0, 0), "bought behind the turns, it stays"
    rows = await market.obol.fetch("SELECT subscription_id FROM subscriptions WHERE connection_id = 'con_cancel'")
    await market.subscriptions.cancel(MERCHANT, rows[0]["subscription_id"])
    again = await market.subscribe("ended", small)
    assert await market.pots(refs["ended"]) == (NANO, 0, 0, 0), "its cycle's credit had expired"
    assert await turns(market.obol, again) == [(0, "start")]
    assert not await market.turn_all(), "nothing is left to the worker"
    now = {
        row["connection_id"]: row for row in await market.obol.fetch("SELECT * FROM subscriptions ORDER BY started_at")
    }
    for name in ("down", "cancel"):
        assert await market.pots(refs[name]) == (12 * NANO, 0, 0, 0)
        assert now[f"con_{name}"]["pending_at"] == boundary(now[f"con_{name}"]["anchor_at"], "week", 3)
    assert await market.audit() == ""


async def test_a_change_back_takes_a_pending_change_back(market: Shop) -> None:
    large, small = await market.plan(30), await market.plan(5)
    _, subscription_id = await market.subscriber("a", large)
    await market.subscriptions.change_plan(MERCHANT, "con_a", small.plan_id)
    assert await market.subscriptions.change_plan(MERCHANT, "con_a", large.plan_id) == "kept"
    await market.subscriptions.cancel(MERCHANT, subscription_id)
    assert await market.subscriptions.change_plan(MERCHANT, "con_a", large.plan_id) == "kept"
    now = await subscription(market, subscription_id)
    assert (now["pending_type"], now["pending_plan_id"], now["cancelled_at"]) == (None, None, None)
    await market.advance(days=32)
    assert await turns(market.obol, subscription_id) == [(0, "start"), (1, "renewal")]


@pytest.mark.parametrize("bundle_rollover", ["none", "full"])
async def test_a_cancellation_ends_with_the_cycle_and_leaves_the_free_plan(market: Shop, bundle_rollover: str) -> None:
    plan = await market.plan(
        10, rollover_type="full", bundle_rollover_type=bundle_rollover, bundles=(NewBundle("B", NANO, 3 * NANO),)
    )
    ref, subscription_id = await market.subscriber("a", plan, can_charge=True)
    await market.subscriptions.grant_bundle(MERCHANT, "con_a", plan.bundles[0].credit_bundle_id, "g-1")
    await market.subscriptions.cancel(MERCHANT, subscription_id)
    pending = await subscription(market, subscription_id)
    await market.subscriptions.cancel(MERCHANT, subscription_id)
    assert await subscription(market, subscription_id) == pending, "a repeated one changes nothing"
    assert (pending["status"], pending["pending_type"]) == ("active", "cancellation")
    assert await market.pots(ref) == (10 * NANO, 3 * NANO, 0, 0), "the credit can be used until then"
    await market.at(pending["cycle_end_at"])
    ended = await subscription(market, subscription_id)
    assert (ended["status"], ended["ended_at"]) == ("cancelled", pending["cycle_end_at"])
    assert await market.pots(ref) == (0, 3 * NANO if bundle_rollover == "full" else 0, 0, 0)
    assert (await market.balance(ref)).limit_nano == 0
    await market.subscriptions.cancel(MERCHANT, subscription_id)
    assert not await market.advance(days=100), "a subscription that has ended is not turned"
    again = await market.subscribe("a", plan)
    assert await turns(market.obol, again) == [(0, "start")]
    assert await turns(market.obol, subscription_id) == [(0, "start"), (1, "end")]
    assert await market.audit() == ""


async def test_a_call_over_the_boundary_is_paid_from_the_new_cycle(market: Shop) -> None:
    plan = await market.plan(1, overage="block")
    ref, _ = await market.subscriber("a", plan)
    await market.obol.hold(ref, "open", expires_ms=now_ms() + 60_000)
    await market.advance(days=32)
    balance = await market.balance(ref)
    assert (balance.held_nano, balance.calls, balance.cycle_nano) == (5_000_000, 1, NANO)
    settled = await market.obol.settle(ref, "open")
    assert await market.pots(ref) == (NANO - settled.amount_nano, 0, 0, 0)
    assert await market.audit() == ""


async def test_unpaid_overage_outlives_the_cycle(market: Shop) -> None:
    plan = await market.plan(1)
    ref, _ = await market.subscriber("a", plan, can_charge=True)
    await market.spend(ref, "r-1", 3 * NANO)
    await market.advance(days=32)
    assert await market.pots(ref) == (NANO, 0, 0, 2 * NANO)
    assert (await market.balance(ref)).available_nano == CAP_NANO - NANO
    assert await market.audit() == ""


async def test_tiers_begin_anew_with_the_cycle_in_redis_and_in_the_record(market: Shop) -> None:
    await market.obol.add_meter(GRADUATED, GRADUATED_DEFINITION)
    plan = await market.plan(10)
    ref, _ = await market.subscriber("a", plan)
    recovery = Recovery(market.obol.connection, market.obol.keys)
    for number in range(3):
        # A million tokens at $2, half a million at $1, in each cycle.
        await market.spend(ref, f"r-{number}", 3 * NANO, GRADUATED)
        assert await market.pots(ref) == (10 * NANO - 25 * NANO // 10, 0, 0, 0)
        assert await recovery.units(ref) == {"meter_g": 1_500_000}
        if number == 1:  # the other turns are recorded in one batch with what came before and after them
            await market.obol.flush()
        await market.advance(days=32)
        assert await recovery.units(ref) == {}
    await market.spend(ref, "last", NANO, GRADUATED)
    assert await market.audit() == ""
    assert await market.obol.value("SELECT units FROM wallet_meters") == 500_000


async def test_without_a_subscription_tiers_begin_anew_monthly_since_the_creation(market: Shop) -> None:
    await market.obol.add_meter(GRADUATED, GRADUATED_DEFINITION)
    ref, idle = await market.customer("a"), await market.customer("idle")
    await market.obol.execute("UPDATE connections SET overage_limit_nano = 9 WHERE connection_id = 'con_a'")
    recovery = Recovery(market.obol.connection, market.obol.keys)
    created = await market.obol.value("SELECT created_at FROM connections WHERE connection_id = 'con_a'")
    for number in range(1, 4):
        end = boundary(created, "month", number)
        await market.spend(ref, f"r-{number}", NANO, GRADUATED)
        await market.at(end - timedelta(hours=1))
        assert await recovery.units(ref) == {"meter_g": 500_000}
        await market.at(end)
        assert await recovery.units(ref) == {}
    rows = await market.obol.fetch("SELECT kind, number, due_at, wallet_id FROM turns ORDER BY turn_seq")
    assert [tuple(row.values()) for row in rows] == [
        ("reset", number, boundary(created, "month", number), "wal_a") for number in range(1, 4)
    ]
    balance = await market.balance(ref)
    assert (balance.overage_nano, balance.limit_nano) == (3 * NANO, 9), "nothing else is moved"
    await market.at(boundary(created, "month", 30))
    assert await market.obol.value("SELECT count(*) FROM turns") == 3, "no counters, no turn"
    assert (await market.balance(idle)).seq == 0
    await market.subscribe("a", await market.plan(5, billing_interval="year"))
    await market.spend(ref, "r-9", NANO, GRADUATED)
    await market.at(boundary(created, "month", 35))
    assert await recovery.units(ref) == {"meter_g": 500_000}, "with a subscription its cycle counts"
    assert await market.audit() == ""
    assert (await market.clocks.read(MERCHANT)).status == "ready"


async def test_a_late_settlement_behind_a_turn_is_what_it_should_be(market: Shop) -> None:
    """Progress was debited in one cycle, the rest of the call in the next one, whose counter had begun anew."""
    obol = market.obol
    await obol.add_meter(GRADUATED, GRADUATED_DEFINITION)
    ref, _ = await market.subscriber("a", await market.plan(50))
    await market.spend(ref, "before", 1_800_000_000, GRADUATED)
    for name in ("late", "later"):
        await obol.hold(ref, name, expires_ms=now_ms() + 60_000)
        so_far = obol.row(ref, name, usage=Usage(output_tokens=300_000), meter_id="meter_g")
        progress = Price.of(GRADUATED, 300_000, 0, 0), encode(so_far)
        await obol.wallets.extend(ref, name, 0, expires_ms=now_ms() - 1, progress=progress)
        assert await obol.wallets.expire(ref, name, now_ms()) == "expired"
    await market.advance(days=32)
    for name, tokens in (("late", 1_250_000), ("later", 400_000)):
        row = obol.row(ref, name, usage=Usage(output_tokens=tokens), meter_id="meter_g", connection_id="con_a")
        settled = await obol.wallets.settle(
            ref, name, Price.of(GRADUATED, tokens, 0, 0), at_ms=now_ms(), body=encode(row)
        )
        assert settled.kind == "settled"
        await market.spend(ref, f"behind-{name}", 10_000_000, GRADUATED)
    assert await market.audit() == ""


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
    restorer = Restorer(
        market.obol.store, market.obol.connection, market.obol.keys, shards=4, call_ttl_s=900, report_ttl_s=172_800
    )
    await restorer.recovery.queue(ref.shard, [ref.wallet_id])
    assert (await restorer.restore_once()).restored == 1
    after = await market.balance(ref), await Recovery(market.obol.connection, market.obol.keys).units(ref)
    assert after == before
    assert await redis_client.exists(*records) == 2, "the recorded turns are remembered"
    assert await market.turns.apply_to([ref.wallet_id]) == 0
    assert await market.audit() == ""


async def test_redis_away_leaves_the_turn_to_the_worker(market: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = await market.plan(10)

    async def away(*_: Any, **__: Any) -> str:
        raise LedgerAway("away")

    ref = await market.customer("a")
    with monkeypatch.context() as patched:
        patched.setattr(market.obol.wallets, "turn", away)
        await market.subscribe("a", plan)
    assert await market.pots(ref) == (0, 0, 0, 0)
    assert await market.pending().apply_once() == 1
    assert await market.pots(ref) == (10 * NANO, 0, 0, 0)


async def test_what_a_merchant_does_wrong_is_told(market: Shop) -> None:
    plan = await market.plan(10)
    other = await market.plan(5, bundles=(NewBundle("B", NANO, NANO),))
    await market.customer("b")
    _, subscription_id = await market.subscriber("a", plan)
    for code, attempt in (
        ("already_subscribed", market.subscribe("a", other)),
        ("connection_not_found", market.subscribe("nobody", plan)),
        ("plan_not_found", market.subscriptions.subscribe(MERCHANT, "con_b", "subconf_x")),
        ("connection_not_found", market.subscriptions.subscribe("mer_2", "con_b", plan.plan_id)),
        ("subscription_not_found", market.subscriptions.change_plan(MERCHANT, "con_b", plan.plan_id)),
        ("subscription_not_found", market.subscriptions.cancel("mer_2", subscription_id)),
        ("subscription_not_found", market.subscriptions.set_auto_top_up("mer_2", subscription_id, None)),
        (
            "credit_bundle_not_found",
            market.subscriptions.set_auto_top_up(MERCHANT, subscription_id, other.bundles[0].credit_bundle_id),
        ),
        ("plan_in_use", market.plans.delete(MERCHANT, plan.plan_id)),
        ("plan_not_found", market.plans.delete("mer_2", plan.plan_id)),
        (
            "invalid_request",
            market.plans.change(MERCHANT, plan.plan_id, PlanChange(included_credit_nano=11 * NANO)),
        ),
    ):
        with pytest.raises(ObolError) as told:
            await attempt
        assert told.value.code == code
    await market.plans.archive(MERCHANT, plan.plan_id)
    with pytest.raises(ObolError, match="plan is not known"):
        await market.subscribe("b", plan)
    await market.advance(days=32)
    assert await turns(market.obol, subscription_id) == [(0, "start"), (1, "renewal")], "who is on it stays"


async def test_a_changed_plan_is_seen_at_the_next_turn(market: Shop) -> None:
    plan = await market.plan(10)
    ref, _ = await market.subscriber("a", plan)
    await market.plans.change(MERCHANT, plan.plan_id, PlanChange(included_credit_nano=8 * NANO, rollover_type="full"))
    assert await market.pots(ref) == (10 * NANO, 0, 0, 0)
    await market.advance(days=32)
    assert await market.pots(ref) == (18 * NANO, 0, 0, 0)


async def test_the_free_plan_is_made_once_and_stays(market: Shop) -> None:
    made = await asyncio.gather(*(market.plans.free(MERCHANT) for _ in range(5)))
    assert len(set(made)) == 1
    free = await market.plans.find(MERCHANT, made[0])
    assert (free.name, free.period_amount_nano, free.included_credit_nano, free.is_free) == ("Free", 0, 0, True)
    with pytest.raises(ObolError, match="Free plan"):
        await market.plans.delete(MERCHANT, free.plan_id)


async def test_the_audit_finds_turns_that_are_not_what_they_should_be(market: Shop) -> None:
    plan = await market.plan(10, billing_interval="week")
    names = {}
    for name in ("credit", "kept", "pending", "other", "counted", "sound"):
        ref, names[name] = await market.subscriber(name, plan)
        await market.spend(ref, f"r-{name}", NANO)
    await market.clocks.advance(MERCHANT, timedelta(days=8))
    with pytest.raises(KeyboardInterrupt):
        await market.worker(KilledOnce(market, 0)).turn_once()
    assert await market.audit() == "", "turns that are pending are no difference"
    await market.pending().apply_once()
    assert await market.audit() == ""
    for change, name in (
        ("turns SET credit_nano = credit_nano - 1", "credit"),
        ("turns SET keep_cycle = true", "kept"),
        ("turns SET applied_at = null", "pending"),
        ("turns SET turn_id = 'another'", "other"),
    ):
        await market.obol.execute(f"UPDATE {change} WHERE number = 1 AND wallet_id = 'wal_{name}'")
    await market.obol.execute("UPDATE subscriptions SET turns = 9 WHERE connection_id = 'con_counted'")
    found = [line for line in (await market.audit()).splitlines() if line.startswith("DIFFERENCE")]
    told = [f"DIFFERENCE  wal_{name}  turn {names[name]}:1:" for name in ("credit", "kept", "pending", "other")]
    told += ["DIFFERENCE  wal_other  turn another:", f"DIFFERENCE  {names['counted']}  turns, by its row:"]
    assert len(found) == len(told) and all(any(line.startswith(each) for line in found) for each in told), found


async def test_the_meters_of_the_plan_in_force_may_be_used(market: Shop) -> None:
    """Of the subscription's plan, and without one of the Free plan. No link: all. Elsewhere `refuse` or `allow`."""
    await market.obol.add_meter(GRADUATED, GRADUATED_DEFINITION)
    key = "aks_test_" + "k" * 43
    await market.obol.execute("INSERT INTO secret_keys VALUES ('sk_1', 'mer_1', 'Key', $1, 'kkkk')", digest(key))

    async def usable(name: str) -> set[str]:
        principals, found = Principals(market.obol.store, market._changed), set()
        for meter in ("meter_1", "meter_g"):
            fields = {"secret_key": key, "connection_id": f"con_{name}", "meter_slug": meter}
            try:
                await principals.principal(b64encode(msgspec.json.encode(fields)).decode())
                found.add(meter)
            except ObolError as refused:
                assert refused.code == "meter_not_on_plan"
        return found

    await market.customer("a")
    both = {"meter_1", "meter_g"}
    assert await usable("a") == both, "a merchant of before plans had a Free one"
    free = await market.plans.free(MERCHANT)
    assert await usable("a") == both
    await market.plans.change(MERCHANT, free, PlanChange(meter_ids=("meter_1",)))
    assert await usable("a") == {"meter_1"}
    plan = await market.plan(3, meter_ids=("meter_g",))
    subscription_id = await market.subscribe("a", plan)
    assert await usable("a") == {"meter_g"}
    await market.plans.change(MERCHANT, plan.plan_id, PlanChange(unlinked_meters="allow"))
    assert await usable("a") == both
    await market.plans.change(MERCHANT, plan.plan_id, PlanChange(meter_ids=(), unlinked_meters="refuse"))
    assert await usable("a") == both
    await market.subscriptions.cancel(MERCHANT, subscription_id)
    await market.advance(days=32)
    assert await usable("a") == {"meter_1"}, "back on the Free plan"


async def test_three_months_of_a_merchant(market: Shop) -> None:
    """The small sister of tests/faults/test_merchant_year.py."""

    async def turned() -> None:
        await market.turn_all()

    year = Year(market, 5, turned)
    await year.begin(14)
    for _ in range(3):
        for days in (15, 16):
            await year.step(days)
        await year.check_sums()
    assert await market.audit() == ""
    assert year.turns > 70 and all(year.changes[kind] for kind in ("upgrade", "downgrade", "bundle", "use")), (
        year.changes
    )
