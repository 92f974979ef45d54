"""Collector and charger with the real processors: what was taken is what was credited, whatever failed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from card_payers import Till, settings
from stripe_fake import KEY, How, StripeFake
from subscribers import MERCHANT, shop

from gateway.cards.contract import Card, Processor
from gateway.cards.sandbox import Sandbox
from gateway.cards.sandbox_cards import card_of
from gateway.cards.stripe import Keys, Stripe
from gateway.core.money import NANO
from gateway.ledger.wallets import WalletRef

GOOD, LATER_DECLINED = "4242424242424242", "4000000000000341"
HOWS: tuple[How, ...] = (
    "fail_after",
    "lost_after",
    "garbage",
    "cut",
    "late",
    "slow",
    "busy",
    "fail_before",
    "lost_before",
)


class Desk(Till):
    """A till whose customers' cards are the processor's own."""

    def __init__(self, market: Any, processor: Processor) -> None:
        super().__init__(market, processor, settings(charge_resend_after_s=0))
        self.processor = processor

    async def customer_with(self, name: str, customer_ref: str, card: Card) -> WalletRef:
        ref = await self.market.customer(name)
        payer_id = await self.payers.of_phone("test", f"+1{name}")
        await self.payers.link(MERCHANT, f"con_{name}", payer_id)
        await self.payers.add_card(payer_id, self.processor.name, customer_ref, card)
        await self.market.subscribe(name, await self.plan(25), can_charge=True)
        await self.settle()
        return ref

    async def change_card(self, customer_ref: str, card: Card) -> None:
        payer_id = await self.market.obol.value("SELECT payer_id FROM payers")
        await self.payers.add_card(payer_id, self.processor.name, customer_ref, card)
        await self.settle()


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[StripeFake]:
    async with StripeFake() as running:
        yield running


@pytest_asyncio.fixture
async def desk(valkey: str, redis_client: Any, postgres: str, fake: StripeFake) -> AsyncIterator[Desk]:
    stripe = Stripe.open("test", Keys(KEY), timeout_ms=150, base_url=fake.url)
    async with shop(valkey, postgres) as market:
        yield Desk(market, stripe)
    await stripe.close()


def stripe_card(fake: StripeFake, customer_ref: str, number: str) -> Card:
    return Card(fake.objects.card(customer_ref, number), "visa", number[-4:], 12, 2040)


async def test_each_way_to_fail_ends_with_one_charge_and_one_credit(desk: Desk, fake: StripeFake) -> None:
    for number, how in enumerate(HOWS):
        customer = fake.objects.create_customer()["id"]
        ref = await desk.customer_with(f"c{number}", customer, stripe_card(fake, customer, GOOD))
        fault = fake.next(how)
        await desk.market.spend(ref, f"r{number}", 30 * NANO)
        for _ in range(3):
            await desk.round()
        fault.release.set()
        fake.forget_keys()  # a 500 that came before anything was done is told for a day
        await desk.settle()
        assert await desk.market.pots(ref) == (0, 0, 0, 0), how
    assert await desk.made() == [("overage", "succeeded", 500, 1)] * len(HOWS)
    charges = [charge_id for (charge_id,) in await desk.made("charge_id")]
    assert [fake.charged_cents(charge_id) for charge_id in charges] == [[500]] * len(HOWS)
    assert len(fake.objects.of("charge")) == len(HOWS)
    assert await desk.market.audit() == ""


async def test_a_new_card_pays_what_the_declined_one_left(desk: Desk, fake: StripeFake) -> None:
    customer = fake.objects.create_customer()["id"]
    ref = await desk.customer_with("ada", customer, stripe_card(fake, customer, LATER_DECLINED))
    await desk.market.spend(ref, "r1", 30 * NANO)
    await desk.settle()
    assert await desk.made() == [("overage", "declined", 500, 1)]
    await desk.change_card(customer, stripe_card(fake, customer, GOOD))
    ((kind, status, cents, attempt),) = await desk.made()
    assert (kind, status, cents, attempt) == ("overage", "succeeded", 500, 2)
    assert [one["amount"] for one in fake.objects.of("charge")] == [500]
    assert {one["status"] for one in fake.objects.of("payment_intent")} == {"canceled", "succeeded"}
    assert await desk.market.pots(ref) == (0, 0, 0, 0)
    assert await desk.market.audit() == ""


async def test_the_sandbox_does_as_stripe_does(valkey: str, redis_client: Any, postgres: str) -> None:
    async with shop(valkey, postgres) as market:
        sandbox = Sandbox(market.obol.store)
        desk = Desk(market, sandbox)
        customer = await sandbox.customer("pay_1", email=None, name=None, phone=None)
        poor = card_of("pm_sandbox_later_visa_0341_122040_1")
        ref = await desk.customer_with("ada", customer, poor)
        await desk.market.spend(ref, "r1", 30 * NANO)
        await desk.settle()
        assert await desk.made() == [("overage", "declined", 500, 1)]
        await desk.change_card(customer, card_of("pm_sandbox_approved_visa_4242_122040_2"))
        assert await desk.made() == [("overage", "succeeded", 500, 2)]
        taken = await market.obol.fetch("SELECT attempt, amount_cents, status FROM sandbox_charges ORDER BY attempt")
        assert [tuple(row.values()) for row in taken] == [(1, 500, "declined"), (2, 500, "succeeded")]
        assert await desk.market.pots(ref) == (0, 0, 0, 0)
        assert await desk.market.audit() == ""
