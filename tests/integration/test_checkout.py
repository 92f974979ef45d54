"""The hosted checkout over HTTP: all four modes, any step twice, and what may not be done."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from checkout_customer import (
    ALWAYS_ASKS,
    ASKS,
    DECLINED,
    GOOD,
    LATER,
    ORIGIN,
    PHONE,
    Browser,
    api,
    plan,
    read,
    session,
    told,
)
from running import RunningGateway, running_gateway

from gateway.billing.checkout_state import PAYMENTS_A_SESSION_MAX
from gateway.billing.turns import Turns
from gateway.core.money import NANO
from gateway.failpoints import OF_CHARGE
from gateway.testing import FakeProvider
from gateway.worker.charger import Charger

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(shop: RunningGateway) -> AsyncIterator[RunningGateway]:
    """With no codes sent, and nobody told, before."""
    shop.merchant = await shop.accounts.create_merchant(secrets.token_hex(6), "test", "Test merchant")
    async with shop.context.store.connection() as db:
        await db.execute("TRUNCATE checkout_codes, sandbox_phone_codes, webhook_deliveries, webhook_lanes")
        await db.execute("UPDATE payers SET phone_hash = sha256(payer_id::bytea)")
    yield shop


async def value(gateway: RunningGateway, statement: str, *arguments: Any) -> Any:
    async with gateway.context.store.connection() as db:
        return await db.fetchval(statement, *arguments)


async def balance(gateway: RunningGateway, connection_id: str) -> Any:
    shown = await api(gateway, "GET", f"/v1/connections/{connection_id}")
    return shown["wallet"]["balance"]


async def listen(gateway: RunningGateway) -> None:
    """Write down what the merchant is told, without anybody there."""
    async with gateway.context.store.connection() as db:
        await db.execute(
            "INSERT INTO webhooks (webhook_id, merchant_id, name, url) VALUES ($1, $2, 'w', 'https://a.example')",
            f"wh_{gateway.merchant.merchant_id}",
            gateway.merchant.merchant_id,
        )


async def test_a_subscription_from_the_phone_to_the_receipt(gateway: RunningGateway) -> None:
    await listen(gateway)
    sold = await plan(gateway)
    made = await session(gateway, "subscription", plan_id=sold["plan_id"], reference_id="user-1")
    browser = Browser(gateway, made["secret"])
    assert (await browser.look()).heading == "Your phone number"
    assert (await browser.send("send", phone=PHONE)).heading == "Enter the code"
    assert (await browser.send("code", code="000000")).heading == "Your name and email"
    assert (await browser.introduce()).heading == "Add a card"
    confirm = await browser.card()
    assert confirm.heading == "Confirm"
    assert "$25.00 a month" in confirm.text
    assert "Visa ending in 4242, is charged $25.00 now, and $25.00 each month" in confirm.text
    assert (await api(gateway, "GET", "/v1/connections"))["data"] == []
    done = await browser.send("confirm")
    assert (done.heading, done.told["step"]) == ("Thank you", "done")
    after = await read(gateway, made)
    assert done.told["connection"] == after["connection_id"] == after["customer_id"]
    assert after["completed_at"]
    (customer,) = (await api(gateway, "GET", "/v1/connections"))["data"]
    assert customer["reference_id"] == "user-1"
    assert customer["subscription"]["plan_id"] == sold["plan_id"]
    assert customer["wallet"]["phone"] == PHONE.replace(" ", "")
    assert customer["wallet"]["email"] == "ada@example.com"
    assert float(customer["wallet"]["balance"]) == 25
    assert await told(gateway) == [
        "connection.created",
        "subscription.updated",
        "checkout.completed",
        "subscription.updated",  # of the charge
    ]
    assert (await value(gateway, "SELECT can_charge FROM subscriptions WHERE plan_id = $1", sold["plan_id"])) is True


async def test_a_finished_checkout_tells_it_again_and_charges_nothing(gateway: RunningGateway) -> None:
    made = await session(gateway, "subscription", plan_id=(await plan(gateway))["plan_id"])
    browser = Browser(gateway, made["secret"])
    await browser.arrive()
    first = await browser.send("confirm")
    for again in (await browser.send("confirm"), await browser.look(), await Browser(gateway, made["secret"]).look()):
        assert again.told == first.told
    assert (
        await value(gateway, "SELECT count(*) FROM charges WHERE merchant_id = $1", gateway.merchant.merchant_id) == 1
    )


async def test_every_step_is_shown_again_where_the_cookie_is(gateway: RunningGateway) -> None:
    made = await session(gateway, "subscription", plan_id=(await plan(gateway))["plan_id"])
    browser = Browser(gateway, made["secret"])
    steps = [
        await browser.look(),
        await browser.send("send", phone=PHONE),
        await browser.send("code", code="000000"),
        await browser.introduce(),
        await browser.card(),
    ]
    assert len({seen.heading for seen in steps}) == 5
    hosted = Browser(gateway, made["secret"], embedded=False)
    hosted.cookies = browser.cookies
    assert (await hosted.look()).heading == (await browser.look()).heading == "Confirm"


async def test_a_browser_that_keeps_no_cookie_goes_through(gateway: RunningGateway) -> None:
    """As in the frame of another site, where browsers keep none without TLS."""
    made = await session(gateway, "subscription", plan_id=(await plan(gateway))["plan_id"])
    browser = Browser(gateway, made["secret"], keeps_cookies=False)
    confirm = await browser.arrive(number=ALWAYS_ASKS)
    assert (confirm.heading, bool(browser.proof)) == ("Your bank asks", True)
    await browser.send("approve_card", approved="yes")
    assert (await browser.send("code", code="1")).heading == "Confirm"
    assert (await browser.send("confirm")).heading == "Your bank asks"
    assert (await browser.send("approve_payment", approved="yes")).heading == "Thank you"
    assert (await browser.look()).heading == "Thank you"
    keeping = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    await keeping.prove()
    assert not keeping.proof


async def test_who_only_has_the_address_may_do_nothing(gateway: RunningGateway) -> None:
    made = await session(gateway, "topup", connection_id=(await gateway.customer(0)).connection_id)
    owner, other = Browser(gateway, made["secret"]), Browser(gateway, made["secret"])
    await owner.arrive()
    other.proof = "-"
    forged = await other.send("confirm", amount="25")
    for seen in (forged, await other.look(), await other.send("confirm", amount="25"), await other.card()):
        assert seen.heading in ("Your phone number", "Enter the code")
        assert "4242" not in seen.text.replace("Test card", "")
        assert "ada@" not in seen.text
    assert (
        await value(gateway, "SELECT count(*) FROM charges WHERE merchant_id = $1", gateway.merchant.merchant_id) == 0
    )
    assert (await owner.look()).heading == "Confirm"


async def test_a_code_that_another_window_asked_for_changes_nothing_of_the_owners(gateway: RunningGateway) -> None:
    made = await session(gateway, "onboarding")
    owner, other = Browser(gateway, made["secret"]), Browser(gateway, made["secret"])
    await owner.arrive()
    await value(gateway, "UPDATE checkouts SET code_sent_at = now() - interval '1 hour'")
    assert (await other.send("send", phone="+1 555 010 0666")).heading == "Enter the code"
    await owner.send("confirm", amount="10")
    (customer,) = (await api(gateway, "GET", "/v1/connections"))["data"]
    assert customer["wallet"]["phone"] == PHONE.replace(" ", "")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://app.example.com"},
        {"Origin": "null"},
        {"Origin": "SELF", "Sec-Fetch-Site": "same-site"},
        {"Origin": "SELF", "Sec-Fetch-Site": "cross-site"},
    ],
)
async def test_a_form_of_another_page_is_refused(gateway: RunningGateway, headers: dict[str, str]) -> None:
    made = await session(gateway, "onboarding")
    browser = Browser(gateway, made["secret"])
    await browser.arrive()
    given = {name: gateway.url if text == "SELF" else text for name, text in headers.items()}
    refused = await browser.send("confirm", headers=given, amount="25")
    assert (refused.status, refused.heading) == (400, "Confirm")
    assert "must be sent from its own page" in refused.error


async def test_wrong_codes_and_too_many(gateway: RunningGateway) -> None:
    browser = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    await browser.send("send", phone=PHONE)
    for _ in range(5):
        wrong = await browser.send("code", code="123456")
        assert (wrong.status, wrong.error) == (400, "This is not the code that was sent.")
        assert 'aria-invalid="true"' in wrong.text
    assert "too many wrong codes" in (await browser.send("code", code="000000")).error.lower()
    assert set(browser.cookies.values()) <= {"-"}


async def test_codes_are_not_sent_often(gateway: RunningGateway) -> None:
    made = await session(gateway, "onboarding")
    browser = Browser(gateway, made["secret"])
    await browser.send("send", phone=PHONE)
    soon = await browser.send("send")
    assert (soon.status, "wait" in soon.error) == (429, True)
    for number in range(4):
        await value(gateway, "UPDATE checkouts SET code_sent_at = now() - interval '1 minute'")
        assert (await browser.send("send")).heading == "Enter the code", number
    await value(gateway, "UPDATE checkouts SET code_sent_at = now() - interval '1 minute'")
    assert "all of its codes" in (await browser.send("send")).error
    assert await value(gateway, "SELECT count(*) FROM checkout_codes") == 5


class Sender:
    """Of live merchants: it counts."""

    name = "counting"
    mode = "live"

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send(self, phone: str, purpose: str) -> None:
        self.sent.append(phone)


async def test_a_phone_gets_few_codes_whoever_asks(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = Sender()
    monkeypatch.setattr(gateway.context.checkouts._phones, "_live", sender)
    gateway.merchant = await gateway.accounts.create_merchant(secrets.token_hex(6), "live", "Live merchant")
    for _ in range(5):
        browser = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
        sent = await browser.send("send", phone=PHONE)
        assert (sent.heading, "000000" in sent.text) == ("Enter the code", False)
    browser = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    assert "many codes" in (await browser.send("send", phone=PHONE)).error
    assert (await browser.send("send", phone="+1 555 010 0043")).heading == "Enter the code"
    assert len(sender.sent) == 6


@pytest.mark.parametrize("phone", ["", "0555 010 0042", "+999 1", "not a number"])
async def test_what_is_no_phone_number(gateway: RunningGateway, phone: str) -> None:
    browser = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    refused = await browser.send("send", phone=phone)
    assert (refused.status, refused.heading) == (400, "Your phone number")
    assert 'aria-describedby="phone-hint error"' in refused.text


async def test_another_number_instead(gateway: RunningGateway) -> None:
    browser = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    await browser.send("send", phone="+1 555 010 0099")
    assert (await browser.send("other_phone")).heading == "Your phone number"


async def test_contact_is_checked(gateway: RunningGateway) -> None:
    browser = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    await browser.prove()
    wrong = await browser.send("contact", email="ada", first_name='"><script>', last_name="L")
    assert (wrong.status, "not an email address" in wrong.error) == (400, True)
    assert "<script>" not in wrong.text.replace('<script src="/checkout/static/page.js" defer></script>', "")
    assert 'value="&quot;&gt;&lt;script&gt;"' in wrong.text


async def test_a_declined_card_and_another(gateway: RunningGateway) -> None:
    browser = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    await browser.prove()
    await browser.introduce()
    declined = await browser.card(DECLINED)
    assert (declined.heading, declined.status) == ("Add a card", 400)
    assert DECLINED not in declined.text
    assert "security code" in (await browser.send("card", number=GOOD, expiry="12/40", cvc="1")).error
    assert (await browser.card()).heading == "Confirm"


async def test_a_card_that_is_declined_when_charged_charges_once_with_another(gateway: RunningGateway) -> None:
    await listen(gateway)
    sold = await plan(gateway)
    made = await session(gateway, "subscription", plan_id=sold["plan_id"])
    browser = Browser(gateway, made["secret"])
    await browser.arrive(number=LATER)
    declined = await browser.send("confirm")
    assert (declined.heading, declined.error) == ("Confirm", "The card was declined: try another one.")
    assert (await api(gateway, "GET", "/v1/connections"))["data"] == []
    assert await told(gateway) == []
    assert "completed_at" not in await read(gateway, made)
    assert (await browser.send("other_card")).heading == "Add a card"
    await browser.card()
    assert (await browser.send("confirm")).heading == "Thank you"
    rows = "SELECT array_agg((status, attempt)::text) FROM charges WHERE merchant_id = $1"
    assert await value(gateway, rows, gateway.merchant.merchant_id) == ["(succeeded,2)"]
    assert "connection.created" in await told(gateway)


async def test_the_bank_asks_about_the_card(gateway: RunningGateway) -> None:
    browser = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    assert (await browser.arrive(number=ASKS)).heading == "Your bank asks"
    assert (await browser.look()).heading == "Your bank asks"
    refused = await browser.send("approve_card", approved="no")
    assert (refused.heading, "declined" in refused.error or "not approved" in refused.error) == ("Add a card", True)
    await browser.card(ASKS)
    assert (await browser.send("approve_card", approved="yes")).heading == "Confirm"


async def test_the_bank_asks_about_the_payment(gateway: RunningGateway) -> None:
    made = await session(gateway, "subscription", plan_id=(await plan(gateway))["plan_id"])
    browser = Browser(gateway, made["secret"])
    await browser.arrive(number=ALWAYS_ASKS)
    await browser.send("approve_card", approved="yes")
    asked = await browser.send("confirm")
    assert asked.heading == "Your bank asks"
    assert "pay $25.00" in asked.text
    assert (await browser.look()).heading == "Your bank asks"
    assert (await browser.send("approve_payment", approved="no")).error == "The payment was not approved."
    assert (await browser.send("confirm")).heading == "Your bank asks"
    assert (await browser.send("approve_payment", approved="yes")).heading == "Thank you"


async def test_a_free_plan_takes_a_card_and_charges_nothing(gateway: RunningGateway) -> None:
    sold = await plan(gateway, 0, "Starter")
    made = await session(gateway, "subscription", plan_id=sold["plan_id"])
    browser = Browser(gateway, made["secret"])
    assert "Nothing is charged now" in (await browser.arrive()).text
    done = await browser.send("confirm")
    assert done.heading == "Thank you"
    assert (
        await value(gateway, "SELECT count(*) FROM charges WHERE merchant_id = $1", gateway.merchant.merchant_id) == 0
    )
    shown = await api(gateway, "GET", f"/v1/connections/{done.told['connection']}/subscription")
    assert shown["subscription"]["plan_id"] == sold["plan_id"]


async def test_onboarding_with_an_amount(gateway: RunningGateway) -> None:
    browser = Browser(gateway, (await session(gateway, "onboarding", reference_id="u"))["secret"])
    await browser.arrive()
    for wrong in ("9.99", "10000.01", "1e99", "NaN", "25.005", "x", ""):
        refused = await browser.send("confirm", amount="other", other_amount=wrong)
        assert (refused.status, refused.heading, "amount" in refused.error) == (400, "Confirm", True), wrong
    done = await browser.send("confirm", amount="other", other_amount="$ 12.50".replace(" ", ""))
    assert done.heading == "Thank you"
    assert float(await balance(gateway, done.told["connection"])) == 12.5


async def test_a_topup_of_a_known_customer(gateway: RunningGateway) -> None:
    onboarding = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    await onboarding.arrive()
    name = (await onboarding.send("confirm", amount="10")).told["connection"]
    browser = Browser(gateway, (await session(gateway, "topup", customer_id=name))["secret"])
    filed = await browser.look()
    assert "+15*******42" in filed.text
    assert PHONE not in filed.text
    assert "balance" not in filed.text
    await gateway.flusher.flush_once()
    await browser.send("send", phone="+1 555 010 0077")
    confirm = await browser.send("code", code="000000")
    assert confirm.heading == "Confirm"
    assert "Your balance is $10.00" in confirm.text
    done = await browser.send("confirm", amount="50")
    assert done.told["connection"] == name
    assert float(await balance(gateway, name)) == 60


async def test_a_bundle_is_for_subscribers_of_its_plan(gateway: RunningGateway) -> None:
    bundles = [{"name": "Extra", "cost": "8.00", "credit_amount": "10.00"}]
    sold = await plan(gateway, 25, credit_bundles=bundles)
    bundle_id = sold["credit_bundles"][0]["credit_bundle_id"]
    stranger = (await gateway.customer(0)).connection_id
    refused = Browser(
        gateway, (await session(gateway, "credit_bundle", customer_id=stranger, credit_bundle_id=bundle_id))["secret"]
    )
    assert "for subscribers" in (await refused.look()).error
    first = Browser(gateway, (await session(gateway, "subscription", plan_id=sold["plan_id"]))["secret"])
    await first.arrive()
    name = (await first.send("confirm")).told["connection"]
    made = await session(gateway, "credit_bundle", customer_id=name, credit_bundle_id=bundle_id)
    browser = Browser(gateway, made["secret"])
    assert "Pay $8.00" in (await browser.prove()).text
    await browser.send("confirm")
    shown = await api(gateway, "GET", f"/v1/connections/{name}/subscription")
    assert float(shown["subscription"]["credits"]["bundle_remaining"]) == 10


async def test_a_plan_is_changed_up_at_once_and_down_later(gateway: RunningGateway) -> None:
    small, large = await plan(gateway, 10, "Small"), await plan(gateway, 25, "Large")
    charged: list[int] = []
    for sold, words in ((small, "Pay $10.00"), (large, "Pay $25.00"), (large, "already"), (small, "You stay on Large")):
        browser = Browser(gateway, (await session(gateway, "subscription", plan_id=sold["plan_id"]))["secret"])
        confirm = await browser.prove()
        if confirm.heading != "Confirm":
            await browser.introduce()
            confirm = await browser.card()
        assert words in confirm.text
        done = await browser.send("confirm")
        assert done.heading == "Thank you", done.text
        sum_cents = "SELECT coalesce(sum(amount_cents), 0)::int FROM charges WHERE merchant_id = $1"
        charged.append(await value(gateway, sum_cents, gateway.merchant.merchant_id))
    assert charged == [1_000, 3_500, 3_500, 3_500]
    (customer,) = (await api(gateway, "GET", "/v1/connections"))["data"]
    shown = (await api(gateway, "GET", f"/v1/connections/{customer['connection_id']}/subscription"))["subscription"]
    assert (shown["plan_id"], shown["pending_change"]["type"]) == (large["plan_id"], "downgrade")


async def test_a_reference_of_the_merchants_own_is_its_customer(gateway: RunningGateway) -> None:
    known = await api(gateway, "POST", "/v1/customers", {"reference_id": "user-9", "email": "hint@example.com"})
    browser = Browser(gateway, (await session(gateway, "onboarding", reference_id="user-9"))["secret"])
    await browser.arrive()
    assert (await browser.send("confirm", amount="10")).told["connection"] == known["customer_id"]
    (customer,) = (await api(gateway, "GET", "/v1/connections"))["data"]
    assert customer["wallet"]["email"] == "ada@example.com"


async def test_an_expired_checkout(gateway: RunningGateway) -> None:
    made = await session(gateway, "onboarding")
    browser = Browser(gateway, made["secret"])
    await browser.arrive()
    await value(
        gateway,
        "UPDATE checkout_sessions SET expires_at = now() WHERE checkout_session_id = $1",
        made["checkout_session_id"],
    )
    for seen in (
        await browser.look(),
        await browser.send("confirm", amount="25"),
        await browser.send("send", phone=PHONE),
    ):
        assert (seen.heading, seen.told["step"]) == ("This checkout has ended", "expired")
    assert (
        await value(gateway, "SELECT count(*) FROM charges WHERE merchant_id = $1", gateway.merchant.merchant_id) == 0
    )


async def test_headers_of_both_pages(gateway: RunningGateway) -> None:
    made = await session(gateway, "onboarding", origin_url="https://App.Example.com:443/page?x=1")
    inside = await Browser(gateway, made["secret"]).look()
    assert inside.told["origin"] == ORIGIN
    policy = inside.headers["Content-Security-Policy"]
    assert f"frame-ancestors {ORIGIN}" in policy
    assert "script-src 'self';" in policy
    assert "stripe" not in policy + inside.text
    assert "X-Frame-Options" not in inside.headers
    alone = await Browser(gateway, made["secret"], embedded=False).look()
    assert "frame-ancestors 'none'" in alone.headers["Content-Security-Policy"]
    assert alone.headers["X-Frame-Options"] == "DENY"
    assert {seen.headers["Cache-Control"] for seen in (inside, alone)} == {"no-store"}


async def test_links_of_emails(gateway: RunningGateway) -> None:
    made = await session(gateway, "onboarding")
    for path in (f"/checkout/{made['checkout_session_token']}", f"/{made['checkout_session_token']}"):
        async with gateway.session.get(gateway.url + path, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, f"/checkout/{made['secret']}")
    for path in (
        "/checkout/eyJhbGc",
        "/eyJzZWNyZXQiOiJjc3NfLi4vLi4veCIsImJhc2UiOiIifQ==",
        "/checkout/css_test_unknown",
    ):
        async with gateway.session.get(gateway.url + path, allow_redirects=False) as answer:
            assert answer.status == 404
            assert "cannot be shown" in await answer.text()


async def test_two_checkouts_of_one_phone_make_one_customer(gateway: RunningGateway) -> None:
    browsers = [Browser(gateway, (await session(gateway, "onboarding"))["secret"]) for _ in range(2)]
    for browser in browsers:
        await browser.prove()
        await browser.introduce()
        await browser.card()
    names = [(await browser.send("confirm", amount="10")).told["connection"] for browser in browsers]
    assert len(set(names)) == 1
    assert float(await balance(gateway, names[0])) == 20


@pytest.mark.parametrize("acted", [True, False])
async def test_a_payment_that_this_process_lost_is_ended_by_the_worker(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, acted: bool
) -> None:
    """The processor has charged and its answer never came, or it was never reached."""
    made = await session(gateway, "subscription", plan_id=(await plan(gateway))["plan_id"])
    browser = Browser(gateway, made["secret"])
    await browser.arrive()
    payment = gateway.context.checkouts._payment
    sandbox = payment._cards.sandbox
    charge = sandbox.charge

    async def lost(order: Any) -> Any:
        if acted:
            await charge(order)
        raise TimeoutError

    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "charge", lost)
        paying = await browser.send("confirm")
    assert (paying.heading, 'http-equiv="refresh"' in paying.text) == ("Payment is being made", True)
    assert (await browser.send("confirm")).heading == "Payment is being made"
    later = "UPDATE charges SET next_attempt_at = now(), sent_at = now() - interval '1 hour' WHERE status = 'open'"
    await value(gateway, later)
    charger = Charger(gateway.context.store, payment._charges, payment._cards.named, gateway.context.settings)
    await charger.charge_due()
    await charger.idle()
    done = await browser.look()
    assert done.heading == "Thank you"
    assert float(await balance(gateway, done.told["connection"])) == 25
    paid = """SELECT sum(s.amount_cents)::int FROM sandbox_charges s JOIN charges USING (charge_id)
        WHERE merchant_id = $1 AND s.status = 'succeeded'"""
    assert await value(gateway, paid, gateway.merchant.merchant_id) == 2_500


class Killed(Exception):
    """Nothing after it happens."""


@pytest.mark.parametrize("point", OF_CHARGE)
async def test_whoever_dies_at_whichever_step_it_is_paid_and_credited_once(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    await listen(gateway)
    browser = Browser(
        gateway, (await session(gateway, "subscription", plan_id=(await plan(gateway))["plan_id"]))["secret"]
    )
    await browser.arrive()
    payment = gateway.context.checkouts._payment

    def reached(name: str) -> None:
        if name == point:
            raise Killed

    monkeypatch.setattr(payment, "_reached", reached)
    async with gateway.session.post(
        browser.url, data={"act": "confirm"}, headers={"Origin": gateway.url}, cookies=browser.cookies
    ) as answer:
        assert answer.status == 500
    later = "UPDATE charges SET next_attempt_at = now(), sent_at = now() - interval '1 hour' WHERE status = 'open'"
    await value(gateway, later)
    store, wallets = gateway.context.store, gateway.context.wallets
    charger = Charger(store, payment._charges, payment._cards.named, gateway.context.settings)
    await charger.charge_due()
    await charger.idle()
    await Turns(store, wallets).apply_in_order(await store.rows("subscriptions.pending_turns", 0, 0, 100))
    done = await browser.look()
    assert done.heading == "Thank you"
    assert float(await balance(gateway, done.told["connection"])) == 25
    assert (await told(gateway)).count("checkout.completed") == 1
    paid = """SELECT array_agg(s.amount_cents)::text FROM sandbox_charges s JOIN charges USING (charge_id)
        WHERE merchant_id = $1 AND s.status = 'succeeded'"""
    assert await value(gateway, paid, gateway.merchant.merchant_id) == "{2500}"


async def test_four_windows_that_confirm_at_once_pay_once(gateway: RunningGateway) -> None:
    made = await session(gateway, "subscription", plan_id=(await plan(gateway))["plan_id"])
    browser = Browser(gateway, made["secret"])
    await browser.arrive()
    await asyncio.gather(*(browser.send("confirm") for _ in range(4)))
    done = await browser.look()
    assert done.heading == "Thank you"
    counts = """SELECT ((SELECT count(*) FROM charges WHERE merchant_id = $1),
                        (SELECT count(*) FROM connections WHERE merchant_id = $1 AND NOT is_self),
                        (SELECT count(*) FROM subscriptions WHERE merchant_id = $1))::text"""
    assert await value(gateway, counts, gateway.merchant.merchant_id) == "(1,1,1)"


async def test_what_cannot_be_bought_any_more_is_credited(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is deleted while the payment is being made."""
    sold = await plan(gateway)
    made = await session(gateway, "subscription", plan_id=sold["plan_id"])
    browser = Browser(gateway, made["secret"])
    await browser.arrive()
    sandbox = gateway.context.checkouts._payment._cards.sandbox
    charge = sandbox.charge

    async def slow(order: Any) -> Any:
        await value(gateway, "UPDATE plans SET deleted_at = now() WHERE plan_id = $1", sold["plan_id"])
        return await charge(order)

    monkeypatch.setattr(sandbox, "charge", slow)
    done = await browser.send("confirm")
    assert done.heading == "Thank you"
    grant = """SELECT (g.pot, amount_nano)::text FROM grants g JOIN charges c ON c.charge_id = g.grant_id
        WHERE merchant_id = $1"""
    assert await value(gateway, grant, gateway.merchant.merchant_id) == f"(prepaid,{25 * NANO})"


async def test_a_payment_is_not_tried_for_ever(gateway: RunningGateway) -> None:
    made = await session(gateway, "onboarding")
    browser = Browser(gateway, made["secret"])
    await browser.arrive(number=LATER)
    await value(gateway, "UPDATE checkouts SET payments = $1", PAYMENTS_A_SESSION_MAX - 1)
    assert "card was declined" in (await browser.send("confirm", amount="25")).error
    last = await browser.send("confirm", amount="25")
    assert (last.status, "too many payments" in last.error.lower()) == (429, True)


async def test_a_plan_that_costs_is_not_begun_for_nothing_when_a_cycle_has_just_ended(gateway: RunningGateway) -> None:
    """The plan ended with its cycle, and the worker has yet to turn it: what looks like a downgrade is none."""
    large, small = await plan(gateway, 25, "Large"), await plan(gateway, 10, "Small")
    first = Browser(gateway, (await session(gateway, "subscription", plan_id=large["plan_id"]))["secret"])
    await first.arrive()
    name = (await first.send("confirm")).told["connection"]
    ended = """UPDATE subscriptions SET pending_type = 'cancellation', pending_at = now(), cycle_end_at = now()
        WHERE connection_id = $1"""
    await value(gateway, ended, name)
    asked = await session(gateway, "subscription", plan_id=small["plan_id"], customer_id=name)
    browser = Browser(gateway, asked["secret"])
    assert "You stay on Large" in (await browser.prove()).text
    assert (await browser.send("confirm")).heading == "Confirm"
    subscribed = "SELECT count(*) FROM subscriptions WHERE connection_id = $1 AND plan_id = $2"
    assert await value(gateway, subscribed, name, small["plan_id"]) == 0


async def test_a_card_that_is_added_twice_is_the_second_one(gateway: RunningGateway) -> None:
    browser = Browser(gateway, (await session(gateway, "onboarding"))["secret"])
    await browser.arrive()
    # As after a kill between the card and the end of its setup.
    left = """UPDATE checkouts SET setup_id = split_part(setup_ref, 'sandbox_', 2) FROM sandbox_setups s
        WHERE s.customer_ref = checkouts.customer_ref AND s.status = 'succeeded'"""
    await value(gateway, left)
    await browser.send("other_card")
    assert "ending in 4444" in (await browser.card("5555 5555 5555 4444")).text


@pytest.mark.parametrize(
    ("host", "public_url", "where"),
    [
        ("", "", "SameSite=None; Secure; Partitioned"),
        ("billing.internal", "https://billing.example.com/", "SameSite=None; Secure; Partitioned"),
        ("billing.internal", "", "SameSite=Lax"),
    ],
)
async def test_a_cookie_that_reaches_an_iframe_of_another_site(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, host: str, public_url: str, where: str
) -> None:
    made = await session(gateway, "subscription", plan_id=(await plan(gateway))["plan_id"])
    settings = msgspec.structs.replace(gateway.context.settings, public_url=public_url)
    monkeypatch.setattr(gateway.context, "settings", settings)
    url = Browser(gateway, made["secret"]).url
    async with gateway.session.get(url, headers={"Host": host} if host else {}) as answer:
        cookie = answer.headers["Set-Cookie"]
    assert cookie.endswith(f"=-; Path=/; Max-Age=3600; HttpOnly; {where}")
