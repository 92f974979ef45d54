"""What the rest of the gateway may ask of a card processor, and what it is told.

Every amount is whole cents of a currency (ISO 4217, lower case). Nothing here is secret but `client_secret` and
`action_url_or_secret`, which are for the customer's own browser and are kept out of every log.

Three answers are told apart, because each asks for another act:
- a result: the processor has decided;
- `OutcomeUnknown`: it may have acted. Ask `find`; never conclude from silence;
- `ProcessorRefused`: it did not act, and will not until somebody mends the installation or the order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from gateway.core.collection import CARD_MAXIMUM_CENTS, CARD_MINIMUM_CENTS

Mode = Literal["test", "live"]
ChargeStatus = Literal["succeeded", "declined", "requires_action", "processing"]
SetupStatus = Literal["succeeded", "requires_action", "declined", "pending"]
RefundStatus = Literal["succeeded", "failed", "pending"]
EventKind = Literal[
    "charge_succeeded",
    "charge_declined",
    "charge_refunded",
    "refund_failed",
    "dispute_opened",
    "dispute_closed",
    "setup_succeeded",
    "card_updated",
    "card_detached",
]


class Card(msgspec.Struct, frozen=True):
    """A payment method as the processor knows it, without anything secret."""

    method_ref: str
    brand: str
    last4: str
    exp_month: int
    exp_year: int


class ChargeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Charge this, once. `charge_id` is our row's id.

    The same attempt sent twice is answered twice and done once; with anything changed it is OrderChanged.
    A charge that was declined is tried again as the same charge: the same `charge_id`, `attempt` one higher, and
    `processor_ref` as the earlier result named it, which is called off first. So a charge succeeds once, whatever the
    attempt: where the earlier attempt has succeeded after all, that is the result.
    """

    charge_id: str
    customer_ref: str
    method_ref: str
    amount_cents: int
    description: str
    merchant_id: str
    currency: str = "usd"
    attempt: int = 1
    processor_ref: str | None = None
    customer_present: bool = False


class ChargeResult(msgspec.Struct, frozen=True):
    """What became of a charge. `action_url_or_secret` is for a customer who is present to authenticate."""

    status: ChargeStatus
    processor_ref: str
    decline_code: str | None = None
    action_url_or_secret: str | None = None


class RefundResult(msgspec.Struct, frozen=True):
    """What became of a refund: `failure` is the processor's code when it failed."""

    status: RefundStatus
    processor_ref: str
    failure: str | None = None


class Setup(msgspec.Struct, frozen=True):
    """A card being added: `ref` for us, the rest for the customer's browser. `publishable_key`: "" in the sandbox."""

    ref: str
    client_secret: str
    publishable_key: str = ""


class SetupResult(msgspec.Struct, frozen=True):
    """How far a card has come. `card` is there only when it succeeded. `pending`: no card was entered yet."""

    status: SetupStatus
    card: Card | None = None
    decline_code: str | None = None


class ProcessorEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the processor tells us by itself, possibly more than once and in any order.

    `charge_id` is there when the processor was told it (not for disputes): otherwise find our row by `processor_ref`.
    `amount_cents` is the charge's, the dispute's or the failed refund's amount. `refunded_cents` is all that was
    refunded of the charge until then: it only grows, so an older event is known by a smaller number.
    """

    event_id: str
    kind: EventKind
    mode: Mode
    occurred_at_s: int
    processor_ref: str | None = None
    charge_id: str | None = None
    attempt: int = 1
    customer_ref: str | None = None
    method_ref: str | None = None
    setup_ref: str | None = None
    refund_ref: str | None = None
    refund_id: str | None = None
    dispute_ref: str | None = None
    dispute_status: str | None = None
    amount_cents: int = 0
    refunded_cents: int = 0
    currency: str = "usd"
    decline_code: str | None = None
    card: Card | None = None


class OutcomeUnknown(Exception):
    """A time-out, a cut connection or a fault of the processor's: it may have acted. Ask with `find`."""


class OrderChanged(OutcomeUnknown):
    """The same id was sent before with another amount, card or payer. What was sent first may have been done: ask."""


class ProcessorRefused(Exception):
    """The processor did nothing and says that the order or the key is at fault. `code` is its own."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


def check_order(order: ChargeOrder) -> None:
    """Raise ProcessorRefused for what no processor would charge, before it is asked."""
    if order.currency != "usd":
        raise ProcessorRefused(
            f"currency: {order.currency!r} is not charged, only 'usd'", code="currency_not_supported"
        )
    if not CARD_MINIMUM_CENTS <= order.amount_cents <= CARD_MAXIMUM_CENTS:
        text = f"amount_cents: {order.amount_cents} is not from {CARD_MINIMUM_CENTS} to {CARD_MAXIMUM_CENTS}"
        raise ProcessorRefused(text, code="amount_not_allowed")


class BadSignature(Exception):
    """An event whose signature does not hold, or is too old: it is not from the processor."""


class Processor(Protocol):
    """A card processor in one mode. Every method may raise OutcomeUnknown or ProcessorRefused."""

    name: str
    mode: Mode

    async def customer(self, payer_id: str, *, email: str | None, name: str | None, phone: str | None) -> str:
        """The processor's reference of this payer. Keep it: for a day the same `payer_id` gets the same one again."""
        ...

    async def begin_setup(self, setup_id: str, customer_ref: str) -> Setup:
        """Begin to add a card for charges while the customer is away. Once for a `setup_id`."""
        ...

    async def finish_setup(self, setup_ref: str) -> SetupResult:
        """How far the customer has come with `setup_ref`. It changes nothing and may be asked at any time."""
        ...

    async def detach(self, method_ref: str) -> None:
        """Forget a card: it can never be charged again. One that is gone already is no error."""
        ...

    async def charge(self, order: ChargeOrder) -> ChargeResult:
        """Charge a card, once for `charge_id` and `attempt`."""
        ...

    async def find(self, order: ChargeOrder, written_at_s: int) -> ChargeResult | None:
        """What became of `order`'s attempt, whose row was written at `written_at_s` (Unix seconds).

        None: the processor knows of no such attempt *now*. A request still under way may yet arrive, so send again only
        with the same `charge_id` and `attempt`, after it has timed out at both ends.
        """
        ...

    async def refund(self, refund_id: str, processor_ref: str, amount_cents: int) -> RefundResult:
        """Give back a part or all of a charge, once for `refund_id`."""
        ...

    def event(self, body: bytes, headers: Mapping[str, str]) -> ProcessorEvent | None:
        """The event in a webhook's body; None for one that we do not use. Raise BadSignature if it is not genuine."""
        ...

    async def close(self) -> None:
        """Close the connections to the processor."""
        ...
