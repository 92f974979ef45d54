"""Overage is charged to cards, once, and credited, once; declined cards limit customers until they have paid."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from card_payers import ALLOWED_NANO, Till, till
from card_processor import BAD_CARD, CARD, Act, Machine
from subscribers import MERCHANT

from gateway.billing.plans import NewBundle
from gateway.cards.contract import Card, ChargeResult
from gateway.core.money import NANO
from gateway.ledger.wallets import WalletRef

PLAN_NANO = 25 * NANO
OTHER_CARD = Card("pm_other", "mastercard", "4444", 1, 2032)


@pytest_asyncio.fixture
async def paying(valkey: str, redis_client: Any, postgres: str) -> AsyncIterator[tuple[Till, Machine]]:
    async with till(valkey, postgres) as made:
        yield made


async def spend(desk: Till, ref: WalletRef, name: str, nano: int) -> None:
    await desk.market.spend(ref, name, nano)
    await desk.settle()


async def test_the_seeds_story(paying: tuple[Till, Machine]) -> None:
    """A plan of $25, usage of $30: the card is charged $5, and the ledger explains it."""
    desk, machine = paying
    ref = await desk.subscriber("ada", await desk.plan(25))
    await spend(desk, ref, "r1", PLAN_NANO + 4 * NANO)
    assert await desk.made() == [] and await desk.market.pots(ref) == (0, 0, 0, 4 * NANO)
    await spend(desk, ref, "r2", NANO)
    assert await desk.made() == [("overage", "succeeded", 500, 1)]
    assert list(machine.succeeded().values()) == [500]
    assert await desk.market.pots(ref) == (0, 0, 0, 0)
    entries = await desk.market.obol.fetch(
        "SELECT l.kind, l.overage_delta, h.amount_cents FROM ledger_entries l "
        "JOIN charges h ON h.charge_id = l.reference"
    )
    assert entries == [{"kind": "credit", "overage_delta": -5 * NANO, "amount_cents": 500}]
    await spend(desk, ref, "r3", 6 * NANO)
    assert [each[2] for each in await desk.made()] == [500, 600], "it is watched again"
    assert await desk.market.audit() == ""


async def test_cents_are_rounded_up_and_the_rest_is_credit(paying: tuple[Till, Machine]) -> None:
    desk, _ = paying
    ref = await desk.subscriber("ada", await desk.plan(1))
    await spend(desk, ref, "r1", 6 * NANO + 1_234_000)
    assert await desk.made() == [("overage", "succeeded", 501, 1)]
    assert await desk.market.pots(ref) == (0, 0, 10_000_000 - 1_234_000, 0)


async def test_what_is_owed_at_the_cycles_end_is_charged_then(paying: tuple[Till, Machine]) -> None:
    """However little, but not below what a card can be charged: that is carried over."""
    desk, _ = paying
    plan = await desk.plan(25)
    some, little = await desk.subscriber("some", plan), await desk.subscriber("little", plan)
    await spend(desk, some, "r1", PLAN_NANO + 2 * NANO)
    await spend(desk, little, "r2", PLAN_NANO + NANO // 4)
    assert await desk.made() == []
    await desk.days(31)
    assert await desk.made() == [("overage", "succeeded", 200, 1)]
    assert await desk.market.pots(some) == (PLAN_NANO, 0, 0, 0)
    assert await desk.market.pots(little) == (PLAN_NANO, 0, 0, NANO // 4)
    await spend(desk, little, "r3", PLAN_NANO + NANO // 2)
    assert len(await desk.made()) == 1, "what was carried over is not due before the next end"
    await desk.days(31)
    assert await desk.made("amount_cents") == [(200,), (75,)]
    assert await desk.market.audit() == ""


async def test_what_is_owed_when_a_subscription_ends_is_charged(paying: tuple[Till, Machine]) -> None:
    desk, _ = paying
    ref = await desk.subscriber("ada", await desk.plan(25))
    await spend(desk, ref, "r1", PLAN_NANO + 2 * NANO)
    subscription_id = await desk.market.obol.value("SELECT subscription_id FROM subscriptions")
    await desk.market.subscriptions.cancel(MERCHANT, subscription_id)
    await desk.days(31)
    assert await desk.made() == [("overage", "succeeded", 200, 1)]
    assert await desk.market.pots(ref) == (0, 0, 0, 0)
    assert await desk.market.audit() == ""


async def test_a_cap_below_the_threshold_is_charged_before_it_refuses(paying: tuple[Till, Machine]) -> None:
    desk, _ = paying
    plan = await desk.plan(25, overage_cap_nano=3 * NANO // 10)
    ref = await desk.subscriber("ada", plan)
    await spend(desk, ref, "r1", PLAN_NANO + 2 * NANO // 10)
    assert await desk.made() == [("overage", "succeeded", 50, 1)]
    assert await desk.market.pots(ref) == (0, 0, 3 * NANO // 10, 0)


async def test_nobody_is_charged_whose_plan_blocks_or_who_has_no_card(paying: tuple[Till, Machine]) -> None:
    desk, machine = paying
    blocked = await desk.subscriber("blocked", await desk.plan(25, overage="block"))
    cardless = await desk.subscriber("cardless", await desk.plan(25), card=None)
    stranger, _ = await desk.market.subscriber("stranger", await desk.plan(25), can_charge=True)
    for number, ref in enumerate((blocked, cardless, stranger)):
        await spend(desk, ref, f"r{number}", PLAN_NANO + 9 * NANO)
    await desk.days(31)
    assert await desk.made() == [] and machine.calls == {}
    assert (await desk.market.balance(stranger)).limit_nano == ALLOWED_NANO


async def test_a_bundle_is_bought_when_the_pots_are_empty_before_overage(paying: tuple[Till, Machine]) -> None:
    desk, _ = paying
    bundles = (NewBundle("Small", 8 * NANO, 10 * NANO),)
    plan = await desk.plan(25, bundles=bundles)
    ref = await desk.subscriber("ada", plan)
    subscription_id = await desk.market.obol.value("SELECT subscription_id FROM subscriptions")
    bundle_id = plan.bundles[0].credit_bundle_id
    await desk.market.subscriptions.set_auto_top_up(MERCHANT, subscription_id, bundle_id)
    await desk.settle()
    await spend(desk, ref, "r1", PLAN_NANO - NANO)
    assert await desk.made() == []
    await spend(desk, ref, "r2", NANO - NANO // 20)
    assert await desk.made() == [("auto_top_up", "succeeded", 800, 1)]
    assert await desk.market.pots(ref) == (NANO // 20, 10 * NANO, 0, 0)
    await spend(desk, ref, "r3", 15 * NANO + NANO // 20)
    assert await desk.made("kind, amount_cents") == [("auto_top_up", 800), ("auto_top_up", 800), ("overage", 500)]
    assert await desk.market.pots(ref) == (0, 10 * NANO, 0, 0)
    assert await desk.market.audit() == ""


async def test_a_declined_card_limits_until_a_new_one_pays(paying: tuple[Till, Machine]) -> None:
    desk, machine = paying
    ref = await desk.subscriber("ada", await desk.plan(25))
    payer_id = await desk.market.obol.value("SELECT payer_id FROM payers")
    await desk.payers.add_card(payer_id, "sandbox", f"cus_{payer_id}", BAD_CARD)
    await desk.settle()
    assert await desk.limits(ref) == (ALLOWED_NANO, ALLOWED_NANO, True)
    await spend(desk, ref, "r1", PLAN_NANO + 6 * NANO)
    assert await desk.made() == [("overage", "declined", 600, 1)]
    assert await desk.limits(ref) == (0, 0, False)
    refused = await desk.market.obol.wallets.hold(ref, "call", 1, expires_ms=2**50, descriptor=b"{}")
    assert refused.kind == "insufficient"
    await desk.market.spend(ref, "r2", NANO)  # a report; it adds to the debt, and not to the charge
    await desk.payers.add_card(payer_id, "sandbox", f"cus_{payer_id}", OTHER_CARD)
    await desk.settle()
    assert await desk.made() == [("overage", "succeeded", 600, 2)]
    assert await desk.market.pots(ref) == (0, 0, 0, NANO) and await desk.limits(ref) == (
        ALLOWED_NANO,
        ALLOWED_NANO,
        True,
    )
    assert [order.method_ref for order in machine.orders] == [BAD_CARD.method_ref, OTHER_CARD.method_ref]
    assert await desk.market.audit() == ""


async def test_retries_follow_the_schedule_by_the_merchants_clock_and_end(paying: tuple[Till, Machine]) -> None:
    desk, machine = paying
    ref = await desk.subscriber("ada", await desk.plan(25, billing_interval="year"), card=BAD_CARD)
    await spend(desk, ref, "r1", PLAN_NANO + 6 * NANO)
    assert machine.calls["charge"] == 1
    for days, attempts in ((0, 1), (1, 2), (1, 2), (1, 3), (2, 4), (1, 4), (1, 5), (60, 5)):
        await desk.days(days)
        assert machine.calls["charge"] == attempts
    assert await desk.made() == [("overage", "declined", 600, 5)]
    assert await desk.limits(ref) == (0, 0, False)


async def test_a_turn_gives_a_limited_customer_its_credit_and_no_overage(paying: tuple[Till, Machine]) -> None:
    desk, machine = paying
    ref = await desk.subscriber("ada", await desk.plan(25), card=BAD_CARD)
    await spend(desk, ref, "r1", PLAN_NANO + 6 * NANO)
    await desk.days(40)
    assert await desk.market.pots(ref) == (PLAN_NANO, 0, 0, 6 * NANO)
    assert await desk.limits(ref) == (0, 0, False) and machine.succeeded() == {}


async def test_a_debt_that_was_paid_otherwise_is_not_charged_again(paying: tuple[Till, Machine]) -> None:
    desk, machine = paying
    ref = await desk.subscriber("ada", await desk.plan(25), card=BAD_CARD)
    await spend(desk, ref, "r1", PLAN_NANO + 6 * NANO)
    await desk.market.obol.wallets.credit(ref, "cash", "overage", 6 * NANO, at_ms=1)
    await desk.days(1)
    assert await desk.made() == [("overage", "canceled", 600, 1)] and machine.calls["charge"] == 1
    assert await desk.limits(ref) == (ALLOWED_NANO, ALLOWED_NANO, True)


async def test_a_removed_card_ends_what_may_be_owed(paying: tuple[Till, Machine]) -> None:
    desk, _ = paying
    ref = await desk.subscriber("ada", await desk.plan(25))
    assert await desk.limits(ref) == (ALLOWED_NANO, ALLOWED_NANO, True)
    await desk.payers.remove_card("sandbox", CARD.method_ref)
    await desk.settle()
    assert await desk.limits(ref) == (0, 0, False)


async def test_one_payer_pays_the_oldest_debt_first(paying: tuple[Till, Machine]) -> None:
    desk, machine = paying
    plan = await desk.plan(25, billing_interval="year")
    refs = {name: await desk.subscriber(name, plan, card=BAD_CARD) for name in ("3", "1", "2")}
    payer_id = await desk.payers.of_phone("test", "+1 of all")
    for name, ref in refs.items():
        await desk.payers.link(MERCHANT, f"con_{name}", payer_id)
        await desk.payers.add_card(payer_id, "sandbox", f"cus_{payer_id}", BAD_CARD)
        await spend(desk, ref, f"r{name}", PLAN_NANO + (5 + int(name)) * NANO)
        await desk.days(10)
    machine.orders.clear()
    machine.script.extend(["slow", "slow", "slow"])
    await desk.payers.add_card(payer_id, "sandbox", f"cus_{payer_id}", OTHER_CARD)
    await desk.settle()
    assert [order.amount_cents for order in machine.orders] == [800, 600, 700]
    assert len(machine.succeeded()) == 3


SLOW = pytest.mark.slow
ACTS = [["lost"], ["cut"], ["undecided"], *(pytest.param([act], marks=SLOW) for act in ("late", "never", "refuse"))]


@pytest.mark.parametrize("acts", [*ACTS, pytest.param(["cut", "lost"], marks=SLOW)])
async def test_an_unknown_outcome_is_asked_about_and_never_charged_twice(
    paying: tuple[Till, Machine], acts: list[Act]
) -> None:
    desk, machine = paying
    ref = await desk.subscriber("ada", await desk.plan(25))
    machine.script.extend(acts)
    await desk.market.spend(ref, "r1", PLAN_NANO + 6 * NANO)
    async with asyncio.timeout(20):
        while not machine.succeeded() or await desk.busy():
            await desk.round()
            await asyncio.sleep(0.05)
    assert await desk.made() == [("overage", "succeeded", 600, 1)] and list(machine.succeeded().values()) == [600]
    sent = machine.calls["charge"]
    assert sent == 1 if acts in (["lost"], ["late"], ["undecided"]) else sent == len(acts) + (acts[-1] != "lost")
    assert await desk.market.pots(ref) == (0, 0, 0, 0)
    assert await desk.market.audit() == ""


async def test_answers_that_come_twice_late_and_in_the_wrong_order_count_once(paying: tuple[Till, Machine]) -> None:
    """A success that is told after a decline is believed; a decline after it is not."""
    desk, machine = paying
    ref = await desk.subscriber("ada", await desk.plan(25))
    machine.script.append("authenticate")
    await spend(desk, ref, "r1", PLAN_NANO + 6 * NANO)
    assert await desk.made("status, decline_code") == [("declined", "authentication_required")]
    ((charge_id,),) = await desk.made("charge_id")
    paid = machine.approve(charge_id)
    declined = ChargeResult("declined", paid.processor_ref, "generic_decline")
    concluded = await asyncio.gather(*(desk.charges.concluded(charge_id, paid, attempt=1) for _ in range(5)))
    assert sorted(concluded) == ["known"] * 4 + ["succeeded"]
    assert await desk.charges.concluded(charge_id, declined, attempt=1) == "known"
    await desk.days(30)
    assert await desk.made("status, attempt") == [("succeeded", 1)] and machine.calls["charge"] == 1
    assert await desk.limits(ref) == (ALLOWED_NANO, ALLOWED_NANO, True)
    assert (await desk.market.pots(ref))[3] == 0 and await desk.market.audit() == ""


async def test_what_has_just_been_paid_is_not_taken_for_owed(paying: tuple[Till, Machine]) -> None:
    """The credit is in Redis and not recorded yet, or not even there."""
    desk, _ = paying
    ref = await desk.subscriber("ada", await desk.plan(25))
    await desk.market.spend(ref, "r1", PLAN_NANO + 6 * NANO)
    await desk.market.flush()
    for _ in range(3):
        await desk.hurry()
        await desk.collector.collect_once()
        await desk.charger.charge_due()
        await desk.charger.idle()
    assert await desk.made() == [("overage", "succeeded", 600, 1)]
    await desk.settle()
    assert len(await desk.made()) == 1 and await desk.market.pots(ref) == (0, 0, 0, 0)


async def test_what_another_has_locked_is_left_for_the_next_round(paying: tuple[Till, Machine]) -> None:
    """The collector waits for nobody."""
    desk, _ = paying
    ref = await desk.subscriber("ada", await desk.plan(25))
    await desk.market.spend(ref, "r1", PLAN_NANO + 6 * NANO)
    await desk.market.flush()
    await desk.hurry()
    for table in ("connections", "wallets", "collections"):
        async with desk.market.obol.store.transaction() as db, asyncio.timeout(5):
            await db.execute(f"SELECT 1 FROM {table} FOR NO KEY UPDATE")
            await desk.collector.collect_once()
            assert await desk.made() == []
    await desk.settle()
    assert await desk.made() == [("overage", "succeeded", 600, 1)]


async def test_200_crossings_at_once_and_four_workers_make_one_charge_a_wallet(
    valkey: str, redis_client: Any, postgres: str
) -> None:
    async with till(valkey, postgres) as (desk, machine):
        plan = await desk.plan(1)
        refs = [await desk.subscriber(str(number), plan) for number in range(4)]
        machine.script.extend(["slow"] * 4)
        works = [desk.market.spend(ref, f"{ref.wallet_id}-{n}", NANO // 5) for n in range(50) for ref in refs]
        done = asyncio.gather(*works)
        while not done.done():
            await asyncio.gather(desk.market.obol.flush(), desk.collector.collect_once(), desk.collector.collect_once())
            await asyncio.gather(*(desk.charger.charge_due() for _ in range(4)))
            open_charges = (
                "SELECT max(n) FROM (SELECT count(*) AS n FROM charges WHERE status = 'open' GROUP BY wallet_id)"
            )
            assert (await desk.market.obol.value(open_charges) or 0) <= 1
        await done
        await desk.settle()
        credited = await desk.market.obol.value("SELECT sum(amount_nano)::bigint FROM grants")
        assert sum(machine.succeeded().values()) * 10_000_000 == credited
        assert max([(await desk.market.pots(ref))[3] for ref in refs]) < 5 * NANO
        assert await desk.market.audit() == ""


async def test_the_merchant_is_told_in_the_same_transaction(paying: tuple[Till, Machine]) -> None:
    desk, machine = paying
    await desk.market.obol.execute(
        "INSERT INTO webhooks (webhook_id, merchant_id, name, url) VALUES ('wh', $1, 'W', 'https://a.test')", MERCHANT
    )
    ref = await desk.subscriber("ada", await desk.plan(25))
    machine.script.append("decline")
    await spend(desk, ref, "r1", PLAN_NANO + 6 * NANO)
    await desk.days(1)
    rows = await desk.market.obol.fetch(
        "SELECT data FROM webhook_deliveries WHERE event = 'subscription.updated' AND data IS NOT NULL "
        "ORDER BY sequence"
    )
    told = [(row["data"]["charge"]["status"], row["data"]["charge"]["amount"], row["data"]["limited"]) for row in rows]
    assert told == [("declined", "6.0000000000", True), ("succeeded", "6.0000000000", False)]
    balances = "SELECT count(*) FROM webhook_deliveries WHERE event = 'connection.wallet.balance.updated'"
    assert await desk.market.obol.value(balances)


async def test_a_phone_number_is_found_and_not_to_be_read(paying: tuple[Till, Machine]) -> None:
    desk, _ = paying
    first = await desk.payers.of_phone("test", "+14155550100")
    assert await desk.payers.of_phone("test", "+14155550100") == first
    assert await desk.payers.of_phone("live", "+14155550100") != first
    (row,) = await desk.market.obol.fetch("SELECT * FROM payers WHERE payer_id = $1", first)
    assert "4155550100" not in str(row)


DAMAGES = (
    ("grants SET grant_id = 'gone' WHERE grant_id = $1", "credit granted: expected overage 6000000000, found"),
    ("grants SET grant_id = $1 WHERE grant_id = 'gone'", ""),
    ("charges SET status = 'declined' WHERE charge_id = $1", "credit granted: expected , found overage"),
    ("charges SET status = 'succeeded' WHERE charge_id = $1", ""),
    ("charges SET amount_cents = 599 WHERE charge_id = $1", "credit, by the amount: expected 5990000000"),
    ("charges SET amount_cents = 600 WHERE charge_id = $1", ""),
    ("charges SET refunded_cents = 1 WHERE charge_id = $1", "by the refunds: expected 0, found 1"),
    ("charges SET refunded_cents = 0 WHERE charge_id = $1", ""),
    ("grants SET amount_nano = 1 WHERE grant_id = $1", "how often: expected 1 1, found 6000000000 1"),
)


async def test_the_audit_finds_what_was_charged_and_not_credited(paying: tuple[Till, Machine]) -> None:
    desk, _ = paying
    ref = await desk.subscriber("ada", await desk.plan(25))
    await spend(desk, ref, "r1", PLAN_NANO + 6 * NANO)
    ((charge_id,),) = await desk.made("charge_id")
    for damage, told in DAMAGES:
        await desk.market.obol.execute(f"UPDATE {damage}", charge_id)
        said = await desk.market.audit()
        assert (told in said and f"{charge_id}: " in said) if told else not said, damage
