"""What a checkout shows next, and what it costs: functions of what is recorded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.billing.checkout_state import (
    BundleOffered,
    CardOnFile,
    LastCharge,
    PlanOffered,
    Progress,
    Subscribed,
    quote_bundle,
    quote_plan,
    quote_topup,
    step_of,
)
from gateway.cards.contract import Card
from gateway.core.money import NANO

CARD = CardOnFile("sandbox", "cus_1", Card("pm_1", "visa", "4242", 12, 2040))
OPEN = LastCharge("chg_1", "open", "subscription", 2_500, "con_1", "sandbox", "sub_1", None, None)
ASKED = LastCharge("chg_1", "open", "subscription", 2_500, "con_1", "sandbox", "sub_1", None, "secret")
ENDED = LastCharge("chg_1", "declined", "subscription", 2_500, "con_1", "sandbox", "sub_1", "generic_decline", None)
SENT = {"phone": "+15550100000", "code_age_s": 1.0}
PROVEN = {**SENT, "proven": True, "payer_id": "pay_1"}
KNOWN = {**PROVEN, "email": "a@example.com"}
READY = {**KNOWN, "card": CARD}


def progress(**given: Any) -> Progress:
    nothing: dict[str, Any] = dict.fromkeys(
        (
            *(
                "reference_id",
                "session_connection_id",
                "plan_id",
                "credit_bundle_id",
                "phone",
                "code_age_s",
                "payer_id",
            ),
            *("card", "setup_id", "setup_processor", "customer_ref", "charge"),
        )
    )
    flags = dict.fromkeys(("completed", "expired", "proven", "phone_on_file", "wants_card"), False)
    counts = dict.fromkeys(("codes_sent", "codes_wrong", "payments"), 0)
    names = dict.fromkeys(("checkout_session_id", "merchant_id", "merchant", "email", "first_name", "last_name"), "")
    fixed = {"mode": "test", "checkout_mode": "subscription", "origin_url": "https://a.example"}
    return Progress(**(nothing | flags | counts | names | fixed | given))


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ({}, "phone"),
        ({"phone": "+15550100000"}, "phone"),
        (SENT, "code"),
        ({**SENT, "code_age_s": 600.0}, "phone"),
        (PROVEN, "contact"),
        (KNOWN, "card"),
        ({**KNOWN, "setup_waits": True}, "card_approval"),
        ({**READY, "wants_card": True}, "card"),
        (READY, "confirm"),
        ({**READY, "charge": ENDED}, "confirm"),
        ({**READY, "charge": OPEN}, "paying"),
        ({**READY, "charge": OPEN, "proven": False}, "paying"),
        ({**READY, "charge": ASKED}, "payment_approval"),
        ({**READY, "charge": ASKED, "proven": False}, "code"),
        ({**READY, "expired": True}, "expired"),
        ({**READY, "expired": True, "charge": ENDED}, "expired"),
        ({**READY, "expired": True, "charge": OPEN}, "paying"),
        ({"expired": True, "completed": True}, "done"),
    ],
)
def test_the_step_follows_from_what_is_recorded(given: dict[str, Any], step: str) -> None:
    assert step_of(progress(**given)) == step


@pytest.mark.parametrize(("age_s", "wait_s"), [(None, 0), (0.0, 30), (29.9, 1), (30.0, 0), (100.0, 0)])
def test_when_a_code_may_be_sent_again(age_s: float | None, wait_s: int) -> None:
    assert progress(code_age_s=age_s).resend_after_s == wait_s


def plan(plan_id: str, amount_nano: int, interval: Any = "month") -> PlanOffered:
    return PlanOffered(plan_id, plan_id, amount_nano, amount_nano, interval, True)


def subscribed(plan_id: str, amount_nano: int, interval: Any = "month") -> Subscribed:
    return Subscribed(plan_id, plan_id, amount_nano, interval, datetime(2026, 12, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("offered", "current", "change", "cents"),
    [
        (plan("a", 25 * NANO), None, "start", 2_500),
        (plan("a", 0), None, "start", 0),
        (plan("a", 25 * NANO), subscribed("b", 10 * NANO), "upgrade", 2_500),
        (plan("a", 25 * NANO), subscribed("b", 0), "upgrade", 2_500),
        (plan("a", 25 * NANO), subscribed("b", 30 * NANO), "downgrade", 0),
        (plan("a", 25 * NANO), subscribed("b", 25 * NANO), "downgrade", 0),
        (plan("a", 100 * NANO, "year"), subscribed("b", 25 * NANO), "downgrade", 0),
        (plan("a", 1 * NANO, "day"), subscribed("b", 25 * NANO), "upgrade", 100),
        (plan("a", 25 * NANO), subscribed("a", 25 * NANO), "kept", 0),
    ],
)
def test_what_a_plan_costs_now(offered: PlanOffered, current: Subscribed | None, change: str, cents: int) -> None:
    quote = quote_plan(offered, current)
    assert (quote.change, quote.amount_cents, quote.pot, quote.credit_nano) == (change, cents, None, 0)


@pytest.mark.parametrize(("amount_nano", "cents"), [(1, 50), (490_000_000, 50), (500_000_000, 50), (500_000_001, 51)])
def test_what_is_charged_beyond_the_price_is_credit(amount_nano: int, cents: int) -> None:
    quote = quote_plan(plan("a", amount_nano), None)
    assert quote.amount_cents == cents
    assert quote.credit_nano == cents * 10_000_000 - amount_nano
    assert (quote.pot == "prepaid") is bool(quote.credit_nano)


def test_a_bundle_and_an_amount() -> None:
    bundle = quote_bundle(BundleOffered("cb", "Extra", 8_005_000_000, 10 * NANO, "a", "Pro"))
    assert (bundle.kind, bundle.amount_cents, bundle.pot, bundle.credit_nano) == (
        "bundle",
        801,
        "bundle",
        10_005_000_000,
    )
    assert quote_bundle(BundleOffered("cb", "Gift", 0, 1, "a", "Pro")).amount_cents == 0
    topup = quote_topup(1_250)
    assert (topup.kind, topup.pot, topup.credit_nano) == ("topup", "prepaid", 12_500_000_000)
