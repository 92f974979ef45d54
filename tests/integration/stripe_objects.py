"""What a stand-in for Stripe knows: customers, cards, intents, refunds, events. No HTTP, no idempotency.

Written from Stripe's API reference, and not from the code that it tests.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]

DETACHED = (
    "The provided PaymentMethod was previously used with a PaymentIntent without Customer attachment, shared "
    "with a connected account without Customer attachment, or was detached from a Customer. It may not be used again. "
    "To use a PaymentMethod multiple times, you must attach it to a Customer first."
)


class Refused(Exception):
    """An error that Stripe answers."""

    def __init__(self, status: int, **error: Any) -> None:
        super().__init__(error.get("message", ""))
        self.status = status
        self.body = {"error": error}


@dataclass(frozen=True)
class NumberedCard:
    """What a card number does, as Stripe's page on testing says."""

    brand: str = "visa"
    setup: str | None = None
    charge: str | None = None
    authenticate_setup: bool = False
    authenticate_charge: bool = False


CARDS = {
    "4242424242424242": NumberedCard(),
    "5555555555554444": NumberedCard("mastercard"),
    "4000000000000002": NumberedCard(setup="generic_decline", charge="generic_decline"),
    "4000000000009995": NumberedCard(setup="insufficient_funds", charge="insufficient_funds"),
    "4000000000000341": NumberedCard(charge="generic_decline"),
    "4000002500003155": NumberedCard(authenticate_setup=True),
    "4000002760003184": NumberedCard(authenticate_setup=True, authenticate_charge=True),
}


def invalid(message: str, *, code: str | None = None, param: str | None = None, status: int = 400) -> Refused:
    said = {"type": "invalid_request_error", "message": message, "code": code, "param": param}
    told = {name: value for name, value in said.items() if value}
    return Refused(status, **told)


@dataclass
class Objects:
    """`now` is Stripe's clock, in Unix seconds. Newest objects come first in lists, as at Stripe."""

    now: Callable[[], float] = time.time
    kept: dict[str, Record] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)
    events: list[Record] = field(default_factory=list)
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def of(self, kind: str) -> list[Record]:
        return [record for record in reversed(self.kept.values()) if record["object"] == kind]

    def get(self, kind: str, ref: str) -> Record:
        record = self.kept.get(ref)
        if record is None or record["object"] != kind:
            raise invalid(f"No such {kind}: '{ref}'", code="resource_missing", param="id", status=404)
        return record

    def _new(self, prefix: str, kind: str, **fields: Any) -> Record:
        number = next(self._count)
        record = {
            "id": f"{prefix}_{number:06}",
            "object": kind,
            "created": int(self.now()),
            "livemode": False,
            **fields,
        }
        self.kept[record["id"]] = record
        return record

    def tell(self, kind: str, record: Record) -> Record:
        event = {
            "id": f"evt_{next(self._count):06}",
            "object": "event",
            "type": kind,
            "created": int(self.now()),
            "livemode": False,
            "data": {"object": dict(record)},
        }
        self.events.append(event)
        return event

    # Customers and cards

    def create_customer(self, **fields: Any) -> Record:
        return self._new("cus", "customer", **fields)

    def update_customer(self, ref: str, **fields: Any) -> Record:
        self.get("customer", ref).update(fields)
        return self.get("customer", ref)

    def create_setup(self, customer: str, **fields: Any) -> Record:
        self.get("customer", customer)
        setup = self._new("seti", "setup_intent", customer=customer, status="requires_payment_method", **fields)
        setup |= {"payment_method": None, "last_setup_error": None, "client_secret": f"{setup['id']}_secret_s"}
        self.kept[setup["id"]] = setup
        return setup

    def enter_card(self, setup_ref: str, number: str) -> Record:
        """What Stripe's script in the browser does with a card: it never passes through the server under test."""
        setup, behaves = self.get("setup_intent", setup_ref), CARDS[number]
        method = self._new("pm", "payment_method", type="card", customer=None)
        method["card"] = {"brand": behaves.brand, "last4": number[-4:], "exp_month": 12, "exp_year": 2040}
        self.numbers[method["id"]] = number
        if behaves.setup:
            setup["status"] = "requires_payment_method"
            setup["last_setup_error"] = {"code": "card_declined", "decline_code": behaves.setup, "type": "card_error"}
        elif behaves.authenticate_setup:
            setup |= {"status": "requires_action", "payment_method": method["id"]}
        else:
            self._attach(setup, method["id"])
        self.kept[setup["id"]] = setup
        return setup

    def authenticate_setup(self, setup_ref: str) -> None:
        setup = self.get("setup_intent", setup_ref)
        assert setup["status"] == "requires_action"
        self._attach(setup, setup["payment_method"])

    def _attach(self, setup: Record, method: str) -> None:
        self.kept[method]["customer"] = setup["customer"]
        setup |= {"status": "succeeded", "payment_method": method, "last_setup_error": None}
        self.tell("setup_intent.succeeded", setup)

    def card(self, customer: str, number: str) -> str:
        """A card of a customer, added as a customer would: the id of its payment method."""
        setup = self.create_setup(customer)
        self.enter_card(setup["id"], number)
        if setup["status"] == "requires_action":
            self.authenticate_setup(setup["id"])
        method = setup["payment_method"]
        assert isinstance(method, str), f"{number} cannot be added"
        return method

    def detach(self, ref: str) -> Record:
        method = self.get("payment_method", ref)
        if method["customer"] is None:
            raise invalid("The payment method you provided is not attached to a customer so detachment is impossible.")
        method["customer"] = None
        self.tell("payment_method.detached", method)
        return method

    # Payments

    def create_intent(self, *, amount: int, customer: str, payment_method: str, **fields: Any) -> Record:
        """Made and confirmed at once. A decline is an error that has the intent in it."""
        method = self.kept.get(payment_method)
        if method is None:
            raise invalid(f"No such PaymentMethod: '{payment_method}'", code="resource_missing", param="payment_method")
        if method["customer"] is None:
            raise invalid(DETACHED)
        if method["customer"] != customer:
            raise invalid(f"The customer does not have a payment method with the ID {payment_method}.")
        present = not fields.pop("off_session", False)
        intent = self._new("pi", "payment_intent", amount=amount, customer=customer, **fields)
        intent |= {
            "client_secret": f"{intent['id']}_secret_s",
            "payment_method": payment_method,
            "last_payment_error": None,
            "latest_charge": None,
        }
        self.kept[intent["id"]] = intent
        self._confirm(intent, CARDS[self.numbers[payment_method]], present)
        return intent

    def authenticate(self, ref: str) -> None:
        """The customer authenticates in the browser, with the client secret."""
        intent = self.get("payment_intent", ref)
        if intent["status"] not in ("requires_action", "requires_payment_method"):
            raise invalid("unexpected state", code="payment_intent_unexpected_state")
        self._pay(intent)

    def cancel(self, ref: str) -> Record:
        intent = self.get("payment_intent", ref)
        if intent["status"] in ("succeeded", "canceled"):
            message = f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}."
            error = {"type": "invalid_request_error", "code": "payment_intent_unexpected_state", "message": message}
            raise Refused(400, **error, payment_intent=dict(intent))
        intent["status"] = "canceled"
        self.tell("payment_intent.canceled", intent)
        return intent

    def _confirm(self, intent: Record, behaves: NumberedCard, present: bool) -> None:
        if behaves.authenticate_charge and present:
            intent |= {"status": "requires_action", "next_action": {"type": "use_stripe_sdk"}}
        elif behaves.authenticate_charge:
            self._decline(intent, "authentication_required", "authentication_required")
        elif behaves.charge:
            self._decline(intent, "card_declined", behaves.charge)
        else:
            self._pay(intent)

    def _pay(self, intent: Record) -> None:
        copied = {name: intent[name] for name in ("amount", "currency", "customer", "metadata")}
        charge = self._new("ch", "charge", payment_intent=intent["id"], amount_refunded=0, status="succeeded", **copied)
        intent |= {"status": "succeeded", "latest_charge": charge["id"], "last_payment_error": None}
        self.tell("payment_intent.succeeded", intent)

    def _decline(self, intent: Record, code: str, decline_code: str) -> None:
        error = {"type": "card_error", "code": code, "decline_code": decline_code, "message": "Your card was declined."}
        intent |= {"status": "requires_payment_method", "payment_method": None, "last_payment_error": error}
        self.tell("payment_intent.payment_failed", intent)
        raise Refused(402, **error, payment_intent=dict(intent))

    def create_refund(self, *, payment_intent: str, amount: int, **fields: Any) -> Record:
        charge = next((one for one in self.of("charge") if one["payment_intent"] == payment_intent), None)
        if charge is None:
            raise invalid("This PaymentIntent does not have a successful charge to refund.")
        left = charge["amount"] - charge["amount_refunded"]
        if amount > left:
            code = "charge_already_refunded" if left == 0 else None
            raise invalid(f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})", code=code)
        charge["amount_refunded"] += amount
        refund = self._new("re", "refund", payment_intent=payment_intent, amount=amount, status="succeeded", **fields)
        self.tell("charge.refunded", charge)
        return refund

    def fail_refund(self, ref: str) -> None:
        """The bank sends the money back, days later."""
        refund = self.get("refund", ref)
        refund |= {"status": "failed", "failure_reason": "expired_or_canceled_card"}
        self.tell("refund.failed", refund)

    def dispute(self, payment_intent: str) -> Record:
        charge = next(one for one in self.of("charge") if one["payment_intent"] == payment_intent)
        dispute = self._new("du", "dispute", payment_intent=payment_intent, amount=charge["amount"], currency="usd")
        dispute |= {"status": "needs_response", "charge": charge["id"]}
        self.kept[dispute["id"]] = dispute
        self.tell("charge.dispute.created", dispute)
        return dispute

    def decide(self, dispute_ref: str, status: str) -> None:
        dispute = self.get("dispute", dispute_ref)
        dispute["status"] = status
        self.tell("charge.dispute.closed", dispute)
