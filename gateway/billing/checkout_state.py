"""How far the customer of a checkout has come, what comes next, and what it costs. Pure.

The step is a function of what is recorded, so that a reload, a second window and an iframe that is made anew all show
the same one. What only the person with the phone may see or do needs the proof: a cookie of the browser in which the
code was entered. Without it, whoever else knows the address (the merchant does) begins at the phone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from gateway.billing.charges import Kind
from gateway.cards.contract import Card, Mode
from gateway.core.collection import CARD_MINIMUM_CENTS, NANO_A_CENT, cents_of
from gateway.core.cycle import A_YEAR, Interval
from gateway.phones.contract import CODE_TTL_S

CheckoutMode = Literal["onboarding", "topup", "subscription", "credit_bundle"]
Step = Literal[
    "phone", "code", "contact", "card", "card_approval", "confirm", "paying", "payment_approval", "done", "expired"
]
CODES_A_SESSION_MAX = 5
WRONG_CODES_A_SESSION_MAX = 10
CODES_A_PHONE_AN_HOUR_MAX = 5
RESEND_AFTER_S = 30
PAYMENTS_A_SESSION_MAX = 10
PROOF_S = 3_600
TOPUP_MIN_CENTS = 1_000
TOPUP_MAX_CENTS = 1_000_000


class CardOnFile(msgspec.Struct, frozen=True):
    """The card that will be charged."""

    processor: str
    customer_ref: str
    card: Card


class LastCharge(msgspec.Struct, frozen=True):
    """The last charge of this checkout. `action`: what a browser needs to have it approved by the bank."""

    charge_id: str
    status: str
    kind: Kind
    amount_cents: int
    connection_id: str
    processor: str
    plan_id: str | None
    decline_code: str | None
    action: str | None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A checkout as it is recorded. `phone`: the proven one, else the one that a code
    was sent to, else the one on file."""

    checkout_session_id: str
    merchant_id: str
    merchant: str
    mode: Mode
    checkout_mode: CheckoutMode
    origin_url: str
    reference_id: str | None
    session_connection_id: str | None
    plan_id: str | None
    credit_bundle_id: str | None
    completed: bool
    expired: bool
    proven: bool
    phone: str | None
    phone_on_file: bool
    codes_sent: int
    codes_wrong: int
    payments: int
    code_age_s: float | None
    payer_id: str | None
    email: str
    first_name: str
    last_name: str
    card: CardOnFile | None
    wants_card: bool
    setup_id: str | None
    setup_processor: str | None
    customer_ref: str | None
    setup_waits: bool = False
    """The bank asks the customer about the card."""
    charge: LastCharge | None = None

    @property
    def resend_after_s(self) -> int:
        """Until another code may be sent."""
        return 0 if self.code_age_s is None else max(0, RESEND_AFTER_S - int(self.code_age_s))


def step_of(progress: Progress) -> Step:
    """What the customer has to do now."""
    if progress.completed:
        return "done"
    charging = progress.charge is not None and progress.charge.status == "open"
    if progress.expired and not charging:
        return "expired"
    if charging and not (progress.charge and progress.charge.action):
        return "paying"  # which shows nothing of anybody
    if not progress.proven:
        return "code" if _awaits_code(progress) else "phone"
    if charging:
        return "payment_approval"
    if not progress.email:
        return "contact"
    if progress.setup_waits:
        return "card_approval"
    if progress.card is None or progress.wants_card:
        return "card"
    return "confirm"


def _awaits_code(progress: Progress) -> bool:
    return progress.phone is not None and progress.code_age_s is not None and progress.code_age_s < CODE_TTL_S


class PlanOffered(msgspec.Struct, frozen=True):
    plan_id: str
    name: str
    period_amount_nano: int
    included_credit_nano: int
    billing_interval: Interval
    charges_overage: bool


class BundleOffered(msgspec.Struct, frozen=True):
    credit_bundle_id: str
    name: str
    cost_nano: int
    credit_nano: int
    plan_id: str
    plan: str


class Subscribed(msgspec.Struct, frozen=True):
    """The plan that the customer is on."""

    plan_id: str
    name: str
    period_amount_nano: int
    billing_interval: Interval
    cycle_end_at: datetime


Change = Literal["start", "upgrade", "downgrade", "kept", "bundle", "topup"]


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """What is bought, and what it costs now. `amount_cents` 0: nothing is charged. `pot`, `credit_nano`: what the
    charge grants by itself; a plan's credit comes with its cycle."""

    change: Change
    amount_cents: int
    owed_nano: int = 0
    pot: Literal["bundle", "prepaid"] | None = None
    credit_nano: int = 0

    @property
    def kind(self) -> Kind:
        if self.change in ("upgrade", "bundle", "topup"):
            return self.change
        return "subscription"


def quote_plan(plan: PlanOffered, current: Subscribed | None) -> Quote:
    """To a plan that costs more a year at once; to a cheaper one at the cycle's end, for nothing now."""
    if current is not None:
        if current.plan_id == plan.plan_id:
            return Quote(change="kept", amount_cents=0)
        if _a_year_nano(plan) <= _a_year_nano(current):
            return Quote(change="downgrade", amount_cents=0)
    change: Change = "start" if current is None else "upgrade"
    cents = _charged_cents(plan.period_amount_nano)
    over_nano = cents * NANO_A_CENT - plan.period_amount_nano
    return Quote(
        change=change,
        amount_cents=cents,
        owed_nano=plan.period_amount_nano,
        pot="prepaid" if over_nano else None,
        credit_nano=over_nano,
    )


def quote_bundle(bundle: BundleOffered) -> Quote:
    cents = _charged_cents(bundle.cost_nano)
    over_nano = cents * NANO_A_CENT - bundle.cost_nano
    return Quote(
        change="bundle",
        amount_cents=cents,
        owed_nano=bundle.cost_nano,
        pot="bundle",
        credit_nano=bundle.credit_nano + over_nano,
    )


def quote_topup(amount_cents: int) -> Quote:
    nano = amount_cents * NANO_A_CENT
    return Quote(change="topup", amount_cents=amount_cents, owed_nano=nano, pot="prepaid", credit_nano=nano)


def _charged_cents(nano: int) -> int:
    """Whole cents, rounded up, and no fewer than cards can be charged; what is beyond is credit."""
    return max(cents_of(nano), CARD_MINIMUM_CENTS) if nano else 0


def _a_year_nano(plan: PlanOffered | Subscribed) -> int:
    return plan.period_amount_nano * A_YEAR[plan.billing_interval]
