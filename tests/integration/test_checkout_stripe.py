"""The checkout with Stripe: card numbers never come here, and what the browser says is asked of Stripe."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
import redis.asyncio
from checkout_customer import Browser, Seen, api, plan, session
from running import RunningGateway, running_gateway
from stripe_fake import KEY, WEBHOOK_SECRET, StripeFake

from gateway.testing import FakeProvider

GOOD, DECLINED, ALWAYS_ASKS = "4242424242424242", "4000000000000002", "4000002760003184"
PUBLISHABLE = "pk_test_canary"


@pytest_asyncio.fixture
async def stripe() -> AsyncIterator[StripeFake]:
    async with StripeFake() as running:
        yield running


@pytest_asyncio.fixture
async def gateway(
    valkey: str, redis_client: redis.asyncio.Redis, postgres: str, stripe: StripeFake
) -> AsyncIterator[RunningGateway]:
    keys = {"stripe_test_key": KEY, "stripe_test_publishable_key": PUBLISHABLE, "stripe_url": stripe.url}
    keys["stripe_test_webhook_secret"] = WEBHOOK_SECRET
    async with FakeProvider() as provider, running_gateway(valkey, postgres, provider, **keys) as running:
        yield running


def given(seen: Seen, name: str) -> str:
    """What Stripe's script is told."""
    found = re.search(rf'<div id="stripe"[^>]* data-{name}="([^"]*)"', seen.text)
    assert found is not None, seen.text
    return found[1]


async def entering(gateway: RunningGateway) -> tuple[Browser, Seen]:
    made = await session(gateway, "subscription", plan_id=(await plan(gateway))["plan_id"])
    browser = Browser(gateway, made["secret"])
    await browser.prove()
    return browser, await browser.introduce()


async def test_a_card_that_stripe_has_pays(gateway: RunningGateway, stripe: StripeFake) -> None:
    browser, asked = await entering(gateway)
    policy = asked.headers["Content-Security-Policy"]
    assert "script-src 'self' https://js.stripe.com;" in policy
    assert "frame-src https://js.stripe.com https://hooks.stripe.com" in policy
    assert (given(asked, "what"), given(asked, "key")) == ("setup", PUBLISHABLE)
    assert 'name="number"' not in asked.text
    assert KEY not in asked.text
    (setup,) = stripe.objects.of("setup_intent")
    assert given(await browser.look(), "secret") == given(asked, "secret") == setup["client_secret"]
    assert (await browser.send("card_entered")).heading == "Add a card"
    stripe.objects.enter_card(setup["id"], GOOD)
    confirm = await browser.send("card_entered")
    assert "Visa ending in 4242" in confirm.text
    assert "stripe" not in confirm.headers["Content-Security-Policy"]
    assert (await browser.send("confirm")).heading == "Thank you"
    assert [one["amount"] for one in stripe.objects.of("charge")] == [2_500]
    (customer,) = (await api(gateway, "GET", "/v1/connections"))["data"]
    assert float(customer["wallet"]["balance"]) == 25


async def test_a_number_that_is_sent_here_is_not_taken(gateway: RunningGateway, stripe: StripeFake) -> None:
    browser, _ = await entering(gateway)
    refused = await browser.card()
    assert (refused.status, refused.heading) == (400, "Add a card")
    assert "are not taken here" in refused.error


async def test_a_declined_card_and_a_bank_that_asks(gateway: RunningGateway, stripe: StripeFake) -> None:
    browser, _ = await entering(gateway)
    (setup,) = stripe.objects.of("setup_intent")
    stripe.objects.enter_card(setup["id"], DECLINED)
    assert "declined" in (await browser.send("card_entered")).error
    stripe.objects.enter_card(setup["id"], ALWAYS_ASKS)
    assert (await browser.send("card_entered")).heading == "Add a card"
    stripe.objects.authenticate_setup(setup["id"])
    assert (await browser.send("card_entered")).heading == "Confirm"
    asked = await browser.send("confirm")
    (intent,) = stripe.objects.of("payment_intent")
    assert asked.heading == "Your bank asks"
    assert (given(asked, "what"), given(asked, "secret")) == ("payment", intent["client_secret"])
    assert (await browser.send("approve_payment")).heading == "Your bank asks"
    stripe.objects.authenticate(intent["id"])
    assert (await browser.send("approve_payment")).heading == "Thank you"
    assert [one["amount"] for one in stripe.objects.of("charge")] == [2_500]


async def test_an_answer_that_is_lost_leaves_it_open(gateway: RunningGateway, stripe: StripeFake) -> None:
    browser, _ = await entering(gateway)
    (setup,) = stripe.objects.of("setup_intent")
    stripe.objects.enter_card(setup["id"], GOOD)
    await browser.send("card_entered")
    stripe.next("lost_after")
    assert (await browser.send("confirm")).heading == "Payment is being made"
    assert [one["amount"] for one in stripe.objects.of("charge")] == [2_500]


async def tell(gateway: RunningGateway, signed: tuple[bytes, dict[str, str]], mode: str = "test") -> int:
    """The status that Stripe gets."""
    body, headers = signed
    url = f"{gateway.url}/v1/processor_events/stripe/{mode}"
    async with gateway.session.post(url, data=body, headers=headers) as answer:
        await answer.read()
        return answer.status


def altered(event: dict[str, Any], **fields: Any) -> dict[str, Any]:
    other = copy.deepcopy(event)
    other["data"]["object"].update(fields)
    return other


async def of_mode(gateway: RunningGateway, mode: str) -> None:
    """The charge is one of this mode."""
    async with gateway.context.store.connection() as db:
        await db.execute("UPDATE charges SET mode = $1", mode)


async def test_stripe_tells_what_became_of_a_charge(gateway: RunningGateway, stripe: StripeFake) -> None:
    browser, _ = await entering(gateway)
    (setup,) = stripe.objects.of("setup_intent")
    stripe.objects.enter_card(setup["id"], GOOD)
    await browser.send("card_entered")
    stripe.next("lost_after")
    assert (await browser.send("confirm")).heading == "Payment is being made"
    paid = next(event for event in stripe.objects.events if event["type"] == "payment_intent.succeeded")
    # What is not from Stripe, and what is not the charge that was written, concludes nothing.
    assert await tell(gateway, stripe.signed(paid, secret="whsec_another")) == 400
    assert await tell(gateway, stripe.signed(paid), mode="live") == 501
    assert await tell(gateway, stripe.signed(paid), mode="other") == 404
    for other in (
        altered(paid, amount=50),
        altered(paid, currency="eur"),
        altered(paid, metadata={"charge_id": "chg_"}),
    ):
        assert await tell(gateway, stripe.signed(other)) == 200
    await of_mode(gateway, "live")
    assert await tell(gateway, stripe.signed(paid)) == 200
    await of_mode(gateway, "test")
    assert (await browser.look()).heading == "Payment is being made"
    for _ in range(2):
        assert await tell(gateway, stripe.signed(paid)) == 200
    assert (await browser.look()).heading == "Thank you"
    (customer,) = (await api(gateway, "GET", "/v1/connections"))["data"]
    assert float(customer["wallet"]["balance"]) == 25


async def test_stripe_tells_of_a_card_that_was_renewed_and_of_one_that_is_gone(
    gateway: RunningGateway, stripe: StripeFake
) -> None:
    browser, _ = await entering(gateway)
    (setup,) = stripe.objects.of("setup_intent")
    stripe.objects.enter_card(setup["id"], GOOD)
    await browser.send("card_entered")
    (card,) = stripe.objects.of("payment_method")
    renewed = copy.deepcopy(card)
    renewed["card"].update(last4="0005", exp_year=2041)
    event = stripe.objects.tell("payment_method.automatically_updated", renewed)
    assert await tell(gateway, stripe.signed(event)) == 200
    assert "Visa ending in 0005" in (await browser.look()).text
    gone = stripe.objects.tell("payment_method.detached", renewed)
    assert await tell(gateway, stripe.signed(gone)) == 200
    assert (await browser.look()).heading == "Add a card"
