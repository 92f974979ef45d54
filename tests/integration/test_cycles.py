"""Cycles are turned once each, by the merchant's clock; what rolls over, what expires and what begins anew."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from merchant_year import Year
from subscribers import CAP_NANO, GRADUATED, GRADUATED_DEFINITION, MERCHANT, Shop, subscription, turns

from gateway.billing.plans import NewBundle, PlanChange
from gateway.core.cycle import boundary
from gateway.core.money import NANO
from gateway.core.usage import Usage
from gateway.ledger.recovery import Recovery
from gateway.ledger.row import encode
from gateway.ledger.wallets import Price, now_ms
from gateway.worker import cycles


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


async def test_among_many_clocks_that_are_ahead_each_has_its_turn(
    market: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two statements, wherever in the list its clock is."""
    ref, subscription_id = await market.subscriber("a", await market.plan(10))
    idle = await market.customer("idle")
    await market.clocks.advance(MERCHANT, timedelta(days=32))
    await market.obol.execute(
        "WITH others AS (INSERT INTO merchants (merchant_id, account_id, mode, name) "
        "SELECT 'other' || n, 'other' || n, 'test', '' FROM generate_series(1, 1001) n RETURNING merchant_id) "
        "INSERT INTO test_clocks (merchant_id, offset_us) SELECT merchant_id, 1000000 FROM others"
    )
    assert await market.turn_all()
    assert await turns(market.obol, subscription_id) == [(0, "start"), (1, "renewal")]
    assert await market.pots(ref) == (10 * NANO, 0, 0, 0) and (await market.balance(idle)).seq == 0
    assert (await market.clocks.read(MERCHANT)).turns_due == 2, "not recorded yet; no reset is left"
    asked, sql = [], market.obol.store.sql

    def noted(name: str) -> str:
        asked.append(name)
        return sql(name)

    monkeypatch.setattr(market.obol.store, "sql", noted)
    assert not await market.worker().turn_once()
    assert asked == ["subscriptions.due", "subscriptions.due_by_clock"]


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


async def test_a_changed_plan_is_seen_at_the_next_turn(market: Shop) -> None:
    plan = await market.plan(10)
    ref, _ = await market.subscriber("a", plan)
    await market.plans.change(MERCHANT, plan.plan_id, PlanChange(included_credit_nano=8 * NANO, rollover_type="full"))
    assert await market.pots(ref) == (10 * NANO, 0, 0, 0)
    await market.advance(days=32)
    assert await market.pots(ref) == (18 * NANO, 0, 0, 0)


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
