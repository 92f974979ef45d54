"""Stripe's events, of the kinds that we use. The signature has been verified before.

Stripe delivers an event at least once and in no certain order. So an event says here what it is about and when it
happened, and whoever hears it asks what holds (`find`) or compares what only grows (`refunded_cents`).
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, Final

import msgspec

from gateway.cards.contract import BadSignature, EventKind, Mode, ProcessorEvent
from gateway.cards.stripe_answers import Intent, PaymentMethod, Refund, SetupIntent


class _Data(msgspec.Struct, frozen=True):
    object: msgspec.Raw


class _Envelope(msgspec.Struct, frozen=True):
    id: str
    type: str
    created: int
    livemode: bool
    data: _Data


class _Charge(msgspec.Struct, frozen=True):
    payment_intent: str | None = None
    amount: int = 0
    amount_refunded: int = 0
    currency: str = "usd"
    customer: str | None = None
    metadata: dict[str, str] = {}


class _Dispute(msgspec.Struct, frozen=True):
    id: str
    status: str
    payment_intent: str | None = None
    amount: int = 0
    currency: str = "usd"


Fields = dict[str, Any]


def read(body: bytes, mode: Mode) -> ProcessorEvent | None:
    """None: of a kind that we do not use, or of a payment that is not ours. Raise BadSignature for what is no event of
    this mode."""
    try:
        envelope = msgspec.json.decode(body, type=_Envelope)
        if envelope.livemode != (mode == "live"):
            raise BadSignature(f"the event is not of {mode} mode")
        reader = _READERS.get(envelope.type)
        found = reader(bytes(envelope.data.object)) if reader else None
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadSignature(f"the body is not an event: {error}") from None
    if found is None:
        return None
    kind, fields = found
    return ProcessorEvent(event_id=envelope.id, kind=kind, mode=mode, occurred_at_s=envelope.created, **fields)


def _paid(raw: bytes) -> tuple[EventKind, Fields] | None:
    return _of_intent(raw, "charge_succeeded")


def _refused(raw: bytes) -> tuple[EventKind, Fields] | None:
    return _of_intent(raw, "charge_declined")


def _of_intent(raw: bytes, kind: EventKind) -> tuple[EventKind, Fields] | None:
    intent = msgspec.json.decode(raw, type=Intent)
    if "charge_id" not in intent.metadata:
        return None
    error = intent.last_payment_error
    return kind, {
        **_ours(intent.metadata),
        "processor_ref": intent.id,
        "customer_ref": intent.customer,
        "amount_cents": intent.amount,
        "currency": intent.currency,
        "decline_code": error.told() if error and kind == "charge_declined" else None,
    }


def _given_back(raw: bytes) -> tuple[EventKind, Fields] | None:
    """A charge carries the metadata of the PaymentIntent that made it."""
    charge = msgspec.json.decode(raw, type=_Charge)
    if charge.payment_intent is None or "charge_id" not in charge.metadata:
        return None
    return "charge_refunded", {
        **_ours(charge.metadata),
        "processor_ref": charge.payment_intent,
        "customer_ref": charge.customer,
        "amount_cents": charge.amount,
        "refunded_cents": charge.amount_refunded,
        "currency": charge.currency,
    }


def _refund(raw: bytes) -> tuple[EventKind, Fields] | None:
    refund = msgspec.json.decode(raw, type=Refund)
    if refund.status not in ("failed", "canceled") or refund.payment_intent is None:
        return None
    return "refund_failed", {
        "processor_ref": refund.payment_intent,
        "refund_ref": refund.id,
        "refund_id": refund.metadata.get("refund_id"),
        "amount_cents": refund.amount,
        "currency": refund.currency,
        "decline_code": refund.failure_reason or refund.status,
    }


def _disputed(raw: bytes) -> tuple[EventKind, Fields] | None:
    return _of_dispute(raw, "dispute_opened")


def _decided(raw: bytes) -> tuple[EventKind, Fields] | None:
    return _of_dispute(raw, "dispute_closed")


def _of_dispute(raw: bytes, kind: EventKind) -> tuple[EventKind, Fields] | None:
    """A dispute carries no metadata: the charge is found by its PaymentIntent."""
    dispute = msgspec.json.decode(raw, type=_Dispute)
    if dispute.payment_intent is None:
        return None
    return kind, {
        "processor_ref": dispute.payment_intent,
        "dispute_ref": dispute.id,
        "dispute_status": dispute.status,
        "amount_cents": dispute.amount,
        "currency": dispute.currency,
    }


def _set_up(raw: bytes) -> tuple[EventKind, Fields] | None:
    setup = msgspec.json.decode(raw, type=SetupIntent)
    method = setup.payment_method
    ref = method.id if isinstance(method, PaymentMethod) else method
    return "setup_succeeded", {"setup_ref": setup.id, "customer_ref": setup.customer, "method_ref": ref}


def _updated(raw: bytes) -> tuple[EventKind, Fields] | None:
    return _of_card(raw, "card_updated")


def _detached(raw: bytes) -> tuple[EventKind, Fields] | None:
    return _of_card(raw, "card_detached")


def _of_card(raw: bytes, kind: EventKind) -> tuple[EventKind, Fields] | None:
    method = msgspec.json.decode(raw, type=PaymentMethod)
    return kind, {"method_ref": method.id, "customer_ref": method.customer, "card": method.as_card()}


def _ours(metadata: dict[str, str]) -> Fields:
    attempt = metadata.get("attempt", "1")
    return {"charge_id": metadata["charge_id"], "attempt": int(attempt) if attempt.isdecimal() else 1}


_READERS: Final = MappingProxyType[str, Callable[[bytes], tuple[EventKind, Fields] | None]](
    {
        "payment_intent.succeeded": _paid,
        "payment_intent.payment_failed": _refused,
        "charge.refunded": _given_back,
        "refund.failed": _refund,
        "refund.updated": _refund,
        "charge.dispute.created": _disputed,
        "charge.dispute.closed": _decided,
        "setup_intent.succeeded": _set_up,
        "payment_method.updated": _updated,
        "payment_method.automatically_updated": _updated,
        "payment_method.detached": _detached,
    }
)
EVENT_TYPES: Final = tuple(_READERS)
"""The types that a webhook endpoint at Stripe must be subscribed to."""
