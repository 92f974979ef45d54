"""Upgrades, downgrades and cancellations, beside workers and before them; the plan that is in force."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from subscribers import CAP_NANO, GRADUATED, GRADUATED_DEFINITION, MERCHANT, Shop, subscription, turns

from gateway.billing.plans import NewBundle, PlanChange
from gateway.billing.principals import Principals
from gateway.core.cycle import boundary
from gateway.core.money import NANO
from gateway.errors import ObolError
from gateway.store.secrets import digest


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


async def test_a_repeated_cancellation_turns_what_has_ended(market: Shop) -> None:
    ref, subscription_id = await market.subscriber("a", await market.plan(10))
    await market.subscriptions.cancel(MERCHANT, subscription_id)
    await market.clocks.advance(MERCHANT, timedelta(days=40))
    await market.subscriptions.cancel(MERCHANT, subscription_id)
    assert await market.pots(ref) == (0, 0, 0, 0)


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


async def test_the_free_plan_is_made_once_and_stays(market: Shop) -> None:
    made = await asyncio.gather(*(market.plans.free(MERCHANT) for _ in range(5)))
    assert len(set(made)) == 1
    free = await market.plans.find(MERCHANT, made[0])
    assert (free.name, free.period_amount_nano, free.included_credit_nano, free.is_free) == ("Free", 0, 0, True)
    with pytest.raises(ObolError, match="Free plan"):
        await market.plans.delete(MERCHANT, free.plan_id)


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
