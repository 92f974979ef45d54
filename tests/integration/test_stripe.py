"""Stripe through its official library, against a stand-in that keeps Stripe's promises and breaks its connections."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from stripe_fake import KEY, WEBHOOK_SECRET, How, StripeFake

from gateway.cards.contract import (
    BadSignature,
    Card,
    ChargeOrder,
    ChargeResult,
    OrderChanged,
    OutcomeUnknown,
    ProcessorRefused,
    SetupResult,
)
from gateway.cards.stripe import Keys, Stripe
from gateway.cards.stripe_events import EVENT_TYPES

GOOD, LATER_DECLINED, ALWAYS_3DS = "4242424242424242", "4000000000000341", "4000002760003184"
TIMEOUT_MS = 2_000
ids = itertools.count(1)


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[StripeFake]:
    async with StripeFake() as running:
        yield running


@pytest_asyncio.fixture
async def stripe(fake: StripeFake) -> AsyncIterator[Stripe]:
    processor = opened(fake)
    yield processor
    await processor.close()


def opened(fake: StripeFake, *, key: str = KEY, timeout_ms: int = TIMEOUT_MS) -> Stripe:
    keys = Keys(key, "pk_test_fake", WEBHOOK_SECRET)
    return Stripe.open("test", keys, timeout_ms=timeout_ms, base_url=fake.url)


def order(fake: StripeFake, number: str = GOOD, **changes: Any) -> ChargeOrder:
    """An order for a new customer with this card."""
    customer = changes.pop("customer_ref", None) or fake.objects.create_customer()["id"]
    method = changes.pop("method_ref", None) or fake.objects.card(customer, number)
    values: dict[str, Any] = {
        "charge_id": f"chg_{next(ids)}",
        "amount_cents": 500,
        "description": "Overage",
        "merchant_id": "mer_1",
    }
    return ChargeOrder(customer_ref=customer, method_ref=method, **values | changes)


def now() -> int:
    return int(time.time())


# Customers and cards


async def test_a_payer_is_one_customer_however_often_and_with_whatever_it_is_made(fake: StripeFake, stripe: Stripe):
    ref = await stripe.customer("pay_1", email="a@example.com", name=None, phone="+15550100000")
    assert await stripe.customer("pay_1", email="b@example.com", name="Ann", phone=None) == ref
    (customer,) = fake.objects.of("customer")
    assert (customer["metadata"], customer["email"], customer["name"]) == (
        {"payer_id": "pay_1"},
        "b@example.com",
        "Ann",
    )


async def test_a_card_is_added_in_the_browser_and_read_here_without_anything_secret(fake: StripeFake, stripe: Stripe):
    customer = await stripe.customer("pay_1", email=None, name=None, phone=None)
    setup = await stripe.begin_setup("set_1", customer)
    assert await stripe.begin_setup("set_1", customer) == setup
    assert setup.client_secret.startswith(setup.ref)
    assert setup.publishable_key == "pk_test_fake"
    assert KEY not in repr(Keys(KEY, "pk_test_fake", WEBHOOK_SECRET))
    assert await stripe.finish_setup(setup.ref) == SetupResult("pending")
    fake.objects.enter_card(setup.ref, "4000000000009995")
    assert await stripe.finish_setup(setup.ref) == SetupResult("declined", decline_code="insufficient_funds")
    fake.objects.enter_card(setup.ref, "4000002500003155")
    assert await stripe.finish_setup(setup.ref) == SetupResult("requires_action")
    fake.objects.authenticate_setup(setup.ref)
    result = await stripe.finish_setup(setup.ref)
    assert result.card is not None
    assert result == SetupResult("succeeded", Card(result.card.method_ref, "visa", "3155", 12, 2040))


async def test_a_card_that_was_removed_is_declined_and_may_be_removed_again(fake: StripeFake, stripe: Stripe):
    removed = order(fake)
    await stripe.detach(removed.method_ref)
    await stripe.detach(removed.method_ref)
    await stripe.detach("pm_999999")
    for gone in (removed, order(fake, method_ref="pm_999999"), order(fake, method_ref=order(fake).method_ref)):
        assert await stripe.charge(gone) == ChargeResult("declined", "", "card_removed")
    assert fake.objects.of("charge") == []


# Charges


async def test_a_charge_is_made_once_with_our_id_and_found_again(fake: StripeFake, stripe: Stripe):
    wanted = order(fake)
    result = await stripe.charge(wanted)
    assert result.status == "succeeded"
    assert await stripe.charge(wanted) == result == await stripe.find(wanted, now())
    assert fake.charged_cents(wanted.charge_id) == [500]
    assert wanted.charge_id in fake.keys
    intent = fake.objects.get("payment_intent", result.processor_ref)
    assert intent["metadata"] == {"charge_id": wanted.charge_id, "attempt": "1", "merchant_id": "mer_1"}
    assert (intent["amount"], intent["currency"], intent["description"]) == (500, "usd", "Overage")


@pytest.mark.parametrize(
    ("changes", "names"), [({"amount_cents": 49}, "amount_cents"), ({"currency": "eur"}, "currency")]
)
async def test_what_cannot_be_charged_is_not_sent(fake: StripeFake, stripe: Stripe, changes: Any, names: str):
    with pytest.raises(ProcessorRefused, match=names):
        await stripe.charge(order(fake, **changes))
    assert fake.requests == []


async def test_an_order_that_changed_under_its_id_is_an_error_and_what_was_done_is_found(
    fake: StripeFake, stripe: Stripe
):
    first = order(fake)
    done = await stripe.charge(first)
    changed = msgspec.structs.replace(first, amount_cents=900)
    with pytest.raises(OrderChanged):
        await stripe.charge(changed)
    assert await stripe.find(changed, now()) == done
    assert fake.charged_cents(first.charge_id) == [500]


async def test_a_declined_charge_names_the_banks_reason_the_same_each_time(fake: StripeFake, stripe: Stripe):
    wanted = order(fake, LATER_DECLINED)
    result = await stripe.charge(wanted)
    assert (result.status, result.decline_code, result.action_url_or_secret) == ("declined", "generic_decline", None)
    assert await stripe.charge(wanted) == result == await stripe.find(wanted, now())
    assert fake.objects.of("charge") == []


async def test_a_bank_that_wants_the_customer_gets_it_by_the_client_secret(fake: StripeFake, stripe: Stripe):
    wanted = order(fake, ALWAYS_3DS)
    away = await stripe.charge(wanted)
    assert (away.status, away.decline_code) == ("requires_action", "authentication_required")
    assert away.action_url_or_secret == f"{away.processor_ref}_secret_s"
    present = await stripe.charge(order(fake, ALWAYS_3DS, customer_present=True))
    assert present.status == "requires_action"
    fake.objects.authenticate(away.processor_ref)
    found = await stripe.find(wanted, now())
    assert found == ChargeResult("succeeded", away.processor_ref)


async def test_another_attempt_calls_the_earlier_one_off(fake: StripeFake, stripe: Stripe):
    first = order(fake, ALWAYS_3DS)
    waiting = await stripe.charge(first)
    better = fake.objects.card(first.customer_ref, GOOD)
    second = msgspec.structs.replace(first, attempt=2, method_ref=better, processor_ref=waiting.processor_ref)
    assert await stripe.find(second, now()) is None
    done = await stripe.charge(second)
    assert done.status == "succeeded"
    assert await stripe.charge(second) == done == await stripe.find(second, now())
    assert fake.objects.get("payment_intent", waiting.processor_ref)["status"] == "canceled"
    assert fake.charged_cents(first.charge_id) == [500]


async def test_an_earlier_attempt_that_was_paid_after_all_is_the_result(fake: StripeFake, stripe: Stripe):
    first = order(fake, ALWAYS_3DS)
    waiting = await stripe.charge(first)
    fake.objects.authenticate(waiting.processor_ref)
    better = fake.objects.card(first.customer_ref, GOOD)
    second = msgspec.structs.replace(first, attempt=2, method_ref=better, processor_ref=waiting.processor_ref)
    paid = ChargeResult("succeeded", waiting.processor_ref)
    assert await stripe.charge(second) == paid == await stripe.find(second, now())
    assert fake.charged_cents(first.charge_id) == [500]


async def test_an_attempt_is_not_called_off_by_its_own_reference(fake: StripeFake, stripe: Stripe):
    first = order(fake, LATER_DECLINED)
    declined = await stripe.charge(first)
    second = msgspec.structs.replace(
        first,
        attempt=2,
        method_ref=fake.objects.card(first.customer_ref, ALWAYS_3DS),
        processor_ref=declined.processor_ref,
    )
    waiting = await stripe.charge(second)
    assert waiting.status == "requires_action"
    again = msgspec.structs.replace(second, processor_ref=waiting.processor_ref)
    assert await stripe.charge(again) == waiting
    fake.objects.authenticate(waiting.processor_ref)
    assert (await stripe.charge(again)).status == "succeeded"
    assert fake.charged_cents(first.charge_id) == [500]


async def test_an_earlier_attempt_that_is_paid_while_it_is_called_off_is_the_result(fake: StripeFake, stripe: Stripe):
    first = order(fake, ALWAYS_3DS)
    waiting = await stripe.charge(first)
    better = fake.objects.card(first.customer_ref, GOOD)
    second = msgspec.structs.replace(first, attempt=2, method_ref=better, processor_ref=waiting.processor_ref)
    slow = fake.next("slow", "POST payment_intents/:id/cancel")
    charging = asyncio.create_task(stripe.charge(second))
    while "POST payment_intents/:id/cancel" not in fake.requests:
        await asyncio.sleep(0.01)
    fake.objects.authenticate(waiting.processor_ref)
    slow.release.set()
    assert await charging == ChargeResult("succeeded", waiting.processor_ref)
    assert fake.charged_cents(first.charge_id) == [500]


# What is not answered


UNDONE: tuple[How, ...] = ("busy", "fail_before", "lost_before")
DONE: tuple[How, ...] = ("fail_after", "lost_after", "garbage", "cut")


@pytest.mark.parametrize("how", UNDONE)
async def test_what_was_not_done_is_unknown_and_then_found_not_to_be(fake: StripeFake, stripe: Stripe, how: How):
    wanted = order(fake)
    fake.next(how)
    with pytest.raises(OutcomeUnknown):
        await stripe.charge(wanted)
    assert fake.requests.count("POST payment_intents") == 1, "the library tried again by itself"
    assert await stripe.find(wanted, now()) is None


@pytest.mark.parametrize("how", DONE)
@pytest.mark.parametrize("number", [GOOD, LATER_DECLINED])
async def test_what_was_done_without_an_answer_is_found(fake: StripeFake, stripe: Stripe, how: How, number: str):
    wanted = order(fake, number)
    fake.next(how)
    with pytest.raises(OutcomeUnknown):
        await stripe.charge(wanted)
    found = await stripe.find(wanted, now())
    assert found is not None
    assert found.status == ("succeeded" if number == GOOD else "declined")
    assert fake.requests.count("POST payment_intents") == 1, "the library tried again by itself"


async def test_sent_again_under_its_key_a_charge_is_not_made_twice(fake: StripeFake, stripe: Stripe):
    """Also where nobody asked before. After a 500 the key says 500 for a day: that is slow, and charges nobody."""
    for how in (*DONE, *UNDONE):
        wanted = order(fake)
        fake.next(how)
        for _ in range(3):
            try:
                await stripe.charge(wanted)
            except OutcomeUnknown:
                continue
        paid = [] if how == "fail_before" else [500]
        assert fake.charged_cents(wanted.charge_id) == paid, how


async def test_a_late_answer_is_unknown_and_found_while_it_is_late(fake: StripeFake):
    stripe = opened(fake, timeout_ms=200)
    wanted = order(fake)
    fault = fake.next("late")
    with pytest.raises(OutcomeUnknown):
        await stripe.charge(wanted)
    found = await stripe.find(wanted, now())
    assert found is not None
    assert found.status == "succeeded"
    fault.release.set()
    await stripe.close()


async def test_a_request_still_under_way_is_not_found_yet_and_not_done_twice(fake: StripeFake):
    """Why "never made" is believed only after a time: this one is done after it was asked for."""
    stripe = opened(fake, timeout_ms=200)
    wanted = order(fake)
    fault = fake.next("slow")
    with pytest.raises(OutcomeUnknown):
        await stripe.charge(wanted)
    assert await stripe.find(wanted, now()) is None
    with pytest.raises(OutcomeUnknown, match="in-progress"):
        await stripe.charge(wanted)
    fault.release.set()
    await asyncio.sleep(0.05)
    assert (await stripe.charge(wanted)).status == "succeeded"
    assert fake.charged_cents(wanted.charge_id) == [500]
    await stripe.close()


async def test_nobody_there_is_unknown(fake: StripeFake):
    stripe = Stripe.open("test", Keys(KEY), timeout_ms=TIMEOUT_MS, base_url="http://127.0.0.1:1")
    with pytest.raises(OutcomeUnknown):
        await stripe.charge(order(fake))
    await stripe.close()


async def test_find_reads_on_through_a_customers_other_charges(fake: StripeFake, stripe: Stripe):
    wanted = order(fake)
    await stripe.charge(wanted)
    customer, method = wanted.customer_ref, wanted.method_ref
    for _ in range(30):
        fake.objects.create_intent(amount=50, customer=customer, payment_method=method, currency="usd", metadata={})
    found = await stripe.find(wanted, now())
    assert found is not None
    assert found.status == "succeeded"
    assert fake.requests.count("GET payment_intents") == 2
    assert await stripe.find(order(fake, customer_ref=customer), now()) is None
    assert await stripe.find(wanted, now() + 3_600) is None


async def test_find_says_unknown_rather_than_read_for_ever(fake: StripeFake, stripe: Stripe):
    wanted = order(fake)
    for _ in range(201):
        fake.objects._new("pi", "payment_intent", customer=wanted.customer_ref, status="succeeded", metadata={})
    with pytest.raises(OutcomeUnknown, match="more than 200"):
        await stripe.find(wanted, now())


async def test_a_key_that_stripe_refuses_is_our_fault_and_is_told_nowhere(
    fake: StripeFake, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    stripe = opened(fake, key="sk_test_wrongwrongwrong")
    with pytest.raises(ProcessorRefused, match="does not accept the API key") as caught:
        await stripe.charge(order(fake))
    assert caught.value.code == "api_key"
    await stripe.close()
    good = opened(fake)
    await good.charge(order(fake, ALWAYS_3DS))
    await good.close()
    told = f"{caplog.text}{caught.value!r}{caught.value.__cause__!r}"
    for secret in ("wrongwrongwrong", "fakefakefake", "_secret_s"):
        assert secret not in told


# Refunds


async def test_a_refund_is_made_once_even_after_its_key_was_forgotten(fake: StripeFake, stripe: Stripe):
    charged = await stripe.charge(order(fake))
    first = await stripe.refund("ref_1", charged.processor_ref, 200)
    assert first.status == "succeeded"
    assert await stripe.refund("ref_1", charged.processor_ref, 200) == first
    fake.forget_keys()
    assert await stripe.refund("ref_1", charged.processor_ref, 200) == first
    assert (await stripe.refund("ref_2", charged.processor_ref, 300)).status == "succeeded"
    assert [one["amount"] for one in fake.objects.of("refund")] == [300, 200]


async def test_a_refund_without_an_answer_is_found_by_sending_it_again(fake: StripeFake, stripe: Stripe):
    charged = await stripe.charge(order(fake))
    for number, how in enumerate(DONE):
        fake.next(how, "POST refunds")
        with pytest.raises(OutcomeUnknown):
            await stripe.refund(f"ref_{number}", charged.processor_ref, 100)
        assert (await stripe.refund(f"ref_{number}", charged.processor_ref, 100)).status == "succeeded"
    assert [one["amount"] for one in fake.objects.of("refund")] == [100] * len(DONE)


async def test_more_than_was_charged_is_not_given_back(fake: StripeFake, stripe: Stripe):
    charged = await stripe.charge(order(fake))
    with pytest.raises(ProcessorRefused, match="greater than"):
        await stripe.refund("ref_1", charged.processor_ref, 501)
    assert (await stripe.refund("ref_2", charged.processor_ref, 500)).status == "succeeded"
    with pytest.raises(ProcessorRefused) as caught:
        await stripe.refund("ref_3", charged.processor_ref, 1)
    assert caught.value.code == "charge_already_refunded"
    refund = fake.objects.of("refund")[0]
    fake.objects.fail_refund(refund["id"])
    failed = await stripe.refund("ref_2", charged.processor_ref, 500)
    assert (failed.status, failed.failure) == ("failed", "expired_or_canceled_card")


# Events


async def happened(fake: StripeFake, stripe: Stripe) -> ChargeOrder:
    """One of everything."""
    wanted = order(fake)
    charged = await stripe.charge(wanted)
    await stripe.charge(order(fake, LATER_DECLINED))
    await stripe.refund("ref_1", charged.processor_ref, 200)
    await stripe.refund("ref_2", charged.processor_ref, 100)
    fake.objects.fail_refund(fake.objects.of("refund")[0]["id"])
    fake.objects.decide(fake.objects.dispute(charged.processor_ref)["id"], "lost")
    await stripe.detach(wanted.method_ref)
    fake.objects.tell("payment_method.updated", fake.objects.kept[wanted.method_ref])
    fake.objects.tell("payment_method.automatically_updated", fake.objects.kept[wanted.method_ref])
    fake.objects.tell("refund.updated", fake.objects.of("refund")[0])
    return wanted


async def test_events_say_what_happened_in_any_order_and_any_number(fake: StripeFake, stripe: Stripe):
    wanted = await happened(fake, stripe)
    assert {event["type"] for event in fake.objects.events} == set(EVENT_TYPES)
    sent = [event for event in fake.objects.events for _ in range(2)]
    random.Random(7).shuffle(sent)
    heard = [stripe.event(*fake.signed(event)) for event in sent]
    once = {event.event_id: event for event in heard if event is not None}
    assert len(once) == len(fake.objects.events)
    ours = [event for event in once.values() if event.charge_id == wanted.charge_id]
    (paid,) = [event for event in ours if event.kind == "charge_succeeded"]
    assert (paid.amount_cents, paid.attempt, paid.mode, paid.currency) == (500, 1, "test", "usd")
    assert sorted(event.refunded_cents for event in ours if event.kind == "charge_refunded") == [200, 300]
    by_kind = {event.kind: event for event in once.values()}
    assert by_kind["charge_declined"].decline_code == "generic_decline"
    failed = by_kind["refund_failed"]
    assert (failed.processor_ref, failed.refund_id, failed.amount_cents) == (paid.processor_ref, "ref_2", 100)
    closed = by_kind["dispute_closed"]
    assert (closed.processor_ref, closed.dispute_status, closed.amount_cents) == (paid.processor_ref, "lost", 500)
    assert by_kind["dispute_opened"].dispute_ref == closed.dispute_ref
    assert by_kind["setup_succeeded"].method_ref is not None
    updated = by_kind["card_updated"]
    assert updated.card == Card(wanted.method_ref, "visa", "4242", 12, 2040)
    assert by_kind["card_detached"].method_ref == wanted.method_ref


async def test_what_is_not_ours_is_passed_over(fake: StripeFake, stripe: Stripe):
    customer = fake.objects.create_customer()["id"]
    card = fake.objects.card(customer, GOOD)
    fake.objects.create_intent(amount=70, customer=customer, payment_method=card, currency="usd", metadata={})
    other_shop = fake.objects.events[-1]
    assert other_shop["type"] == "payment_intent.succeeded"
    assert stripe.event(*fake.signed(other_shop)) is None
    assert stripe.event(*fake.signed(fake.objects.tell("invoice.paid", {}))) is None
    assert (
        stripe.event(*fake.signed(fake.objects.tell("refund.updated", {"id": "re_1", "status": "succeeded"}))) is None
    )


async def test_an_event_that_is_not_genuine_is_refused(fake: StripeFake, stripe: Stripe):
    await stripe.charge(order(fake))
    event = fake.objects.events[-1]
    body, headers = fake.signed(event)
    good = headers["Stripe-Signature"]
    assert stripe.event(body, {"stripe-signature": good}) is not None
    bad: list[tuple[bytes, dict[str, str]]] = [
        (body, {}),
        (body, {"Stripe-Signature": ""}),
        (body, {"Stripe-Signature": "nonsense"}),
        (body, {"Stripe-Signature": good.replace("v1=", "v0=")}),
        (body + b" ", headers),
        (b"\xff" + body, headers),
        fake.signed(event, secret="whsec_another"),
        fake.signed(event, at=time.time() - 301),
        fake.signed(event | {"livemode": True}),
        fake.signed({"object": "event"}),
        fake.signed(event | {"data": {"object": {"id": 7}}}),
    ]
    for spoiled, with_headers in bad:
        with pytest.raises(BadSignature):
            stripe.event(spoiled, with_headers)


async def test_without_a_secret_no_event_is_believed(fake: StripeFake):
    stripe = Stripe.open("test", Keys(KEY), timeout_ms=TIMEOUT_MS, base_url=fake.url)
    fake.objects.tell("invoice.paid", {})
    with pytest.raises(BadSignature, match="no webhook secret"):
        stripe.event(*fake.signed(fake.objects.events[-1], secret=""))
    await stripe.close()
