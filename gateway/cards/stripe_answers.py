"""What Stripe's objects say, in the words of the contract. Pure: it reads plain data and never the network.

Sources: Stripe's API reference for PaymentIntent, SetupIntent, Refund, PaymentMethod and their errors. Only the fields
that decide something are read, so that a later version of the API which adds others changes nothing here.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from gateway.cards.contract import Card, ChargeResult, OutcomeUnknown, RefundResult, SetupResult

T = TypeVar("T")


class PaymentError(msgspec.Struct, frozen=True):
    """Of an intent, or of an answer with status 402. `decline_code` is the bank's, where there is one."""

    code: str | None = None
    decline_code: str | None = None

    def told(self) -> str:
        return self.decline_code or self.code or "card_declined"

    def asks_for_authentication(self) -> bool:
        """The bank's demand comes as either code: Stripe foresees it, or the bank declines with it."""
        return "authentication_required" in (self.code, self.decline_code)


class Intent(msgspec.Struct, frozen=True):
    """A PaymentIntent. `created`: Unix seconds."""

    id: str
    status: str
    client_secret: str | None = None
    metadata: dict[str, str] = {}
    last_payment_error: PaymentError | None = None
    amount: int = 0
    currency: str = "usd"
    customer: str | None = None


class CardDetails(msgspec.Struct, frozen=True):
    brand: str
    last4: str
    exp_month: int
    exp_year: int


class PaymentMethod(msgspec.Struct, frozen=True):
    id: str
    card: CardDetails | None = None
    customer: str | None = None

    def as_card(self) -> Card | None:
        if self.card is None:
            return None
        return Card(self.id, self.card.brand, self.card.last4, self.card.exp_month, self.card.exp_year)


class SetupIntent(msgspec.Struct, frozen=True):
    """`payment_method` is expanded where it is asked for, and a bare id in events."""

    id: str
    status: str
    client_secret: str | None = None
    payment_method: PaymentMethod | str | None = None
    customer: str | None = None
    last_setup_error: PaymentError | None = None


class Refund(msgspec.Struct, frozen=True):
    id: str
    status: str | None = None
    failure_reason: str | None = None
    metadata: dict[str, str] = {}
    payment_intent: str | None = None
    amount: int = 0
    currency: str = "usd"


def read(value: Any, kind: type[T]) -> T:
    """`value` as `kind`. Stripe has acted when it answers, so an answer that cannot be read is OutcomeUnknown."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise OutcomeUnknown(f"Stripe's answer is not a {kind.__name__}: {error}") from None


def is_attempt(intent: Intent, charge_id: str, attempt: int) -> bool:
    return intent.metadata.get("charge_id") == charge_id and intent.metadata.get("attempt") == str(attempt)


def charge_result(intent: Intent) -> ChargeResult:
    """The statuses of a PaymentIntent. One that waits for another card has been declined, and is paid by nobody unless
    the customer authenticates with its client secret, which is given only where the bank asked for that."""
    error = intent.last_payment_error or PaymentError()
    if intent.status == "succeeded":
        return ChargeResult("succeeded", intent.id)
    if intent.status in ("processing", "requires_capture"):
        return ChargeResult("processing", intent.id)
    if intent.status == "canceled":
        return ChargeResult("declined", intent.id, "canceled")
    if intent.status in ("requires_action", "requires_source_action") or error.asks_for_authentication():
        return ChargeResult("requires_action", intent.id, "authentication_required", intent.client_secret)
    if intent.status in ("requires_payment_method", "requires_source"):
        return ChargeResult("declined", intent.id, error.told())
    if intent.status == "requires_confirmation":  # made, and never tried: it was cut off within Stripe
        return ChargeResult("declined", intent.id, "processing_error")
    raise OutcomeUnknown(f"Stripe's PaymentIntent {intent.id} has the status {intent.status!r}")


def setup_result(intent: SetupIntent) -> SetupResult:
    if intent.status == "succeeded":
        method = intent.payment_method
        card = method.as_card() if isinstance(method, PaymentMethod) else None
        return SetupResult("succeeded", card) if card else SetupResult("declined", decline_code="not_a_card")
    if intent.status == "requires_action":
        return SetupResult("requires_action")
    if intent.status == "canceled":
        return SetupResult("declined", decline_code="canceled")
    if intent.last_setup_error is not None and intent.status == "requires_payment_method":
        return SetupResult("declined", decline_code=intent.last_setup_error.told())
    return SetupResult("pending")


def refund_result(refund: Refund) -> RefundResult:
    if refund.status == "succeeded":
        return RefundResult("succeeded", refund.id)
    if refund.status in ("failed", "canceled"):
        return RefundResult("failed", refund.id, refund.failure_reason or refund.status)
    return RefundResult("pending", refund.id)
