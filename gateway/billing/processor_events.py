"""What card processors tell by themselves. Each event may come more than once, late, and in any order.

A payment that is told of is concluded as if the worker had asked (`charges.py`). It counts only where it is the charge
that we wrote: of the same mode, processor, amount and currency. Who can make payments in the processor's test mode
cannot pay with one for what a live customer owes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from gateway.billing.charges import Charges
from gateway.billing.payers import Payers
from gateway.cards.choice import Cards
from gateway.cards.contract import BadSignature, ChargeResult, ChargeStatus, Mode, ProcessorEvent
from gateway.errors import ObolError
from gateway.store.postgres import Store

_LOG = logging.getLogger("obol.charges")
_PAYMENTS: Final[Mapping[str, ChargeStatus]] = {"charge_succeeded": "succeeded", "charge_declined": "declined"}


class ProcessorEvents:
    """Hears them, in any process."""

    def __init__(self, store: Store, cards: Cards, charges: Charges, payers: Payers) -> None:
        self._store = store
        self._cards = cards
        self._charges = charges
        self._payers = payers

    async def heard(self, mode: Mode, name: str, body: bytes, headers: Mapping[str, str]) -> None:
        """Do what follows from an event that processor `name` sent. Raise ObolError `invalid_request` for what is not
        from it, `cards_not_configured` where there is none, `store_unavailable` with nothing done: it sends it again.
        """
        try:
            event = self._cards.named(mode, name).event(body, headers)
        except BadSignature as error:
            raise ObolError("invalid_request", f"this event is not believed: {error}", param="signature") from None
        if event is None:
            return
        if event.kind in _PAYMENTS:
            await self._paid(event, name)
        elif event.kind == "card_detached" and event.method_ref is not None:
            await self._payers.remove_card(name, event.method_ref)
        elif event.kind == "card_updated" and event.card is not None:
            await self._payers.card_changed(name, event.card)
        else:
            told = {"event_id": event.event_id, "kind": event.kind, "processor_ref": event.processor_ref}
            _LOG.warning("an event of the card processor is left to the merchant", extra=told)

    async def _paid(self, event: ProcessorEvent, name: str) -> None:
        values = (event.charge_id, event.mode, name, event.amount_cents, event.currency)
        if event.processor_ref is None or await self._store.row("charges.told_of", *values) is None:
            told = {"event_id": event.event_id, "charge_id": event.charge_id}
            _LOG.warning("an event names no charge of ours", extra=told)
            return
        result = ChargeResult(_PAYMENTS[event.kind], event.processor_ref, event.decline_code)
        await self._charges.concluded(str(event.charge_id), result, attempt=event.attempt)
