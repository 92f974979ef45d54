"""What the customer of a checkout does, step by step: proves a phone, gives a name and a card, and confirms.

    phone -> code -> contact -> card (-> card_approval) -> confirm -> (paying, payment_approval ->) done

Any step may be repeated, sent twice, or sent by two windows: each checks what is recorded and moves it only forward.
The pages (`gateway/pages/checkout.py`) show `checkout_state.step_of` what these leave.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from typing import Final

import msgspec

from gateway.billing.checkout_payment import Payment
from gateway.billing.checkout_reading import SEALED_AS, CheckoutReader, Offer
from gateway.billing.checkout_state import (
    CODES_A_PHONE_AN_HOUR_MAX,
    CODES_A_SESSION_MAX,
    PROOF_S,
    RESEND_AFTER_S,
    WRONG_CODES_A_SESSION_MAX,
    Progress,
    Step,
    step_of,
)
from gateway.billing.payers import Contact, Payers
from gateway.cards import card_entry
from gateway.cards.choice import Cards
from gateway.cards.contract import Processor, Setup, SetupResult
from gateway.cards.sandbox import Sandbox
from gateway.errors import ObolError
from gateway.phones import numbers
from gateway.phones.choice import Phones
from gateway.store.postgres import Store
from gateway.store.sealed import Sealed
from gateway.store.secrets import Derived, digest, new_id

_EMAIL: Final = re.compile(r"[^@\s]{1,64}@[^@\s.]+(\.[^@\s.]+)+")
_TEXT_MAX_CHARACTERS: Final = 100


class Checkouts:
    """All of it for one process. Sessions are named by their secret; `proof` is what `check_code` returned to this
    browser, or "". Every method raises ObolError: `not_found` without such a session, `invalid_request` naming a
    field, and `request_in_progress` where the step is not what the session waits for."""

    def __init__(
        self,
        store: Store,
        payers: Payers,
        payment: Payment,
        cards: Cards,
        phones: Phones,
        sealed: Sealed,
        derived: Derived,
    ) -> None:
        self._store = store
        self._payers = payers
        self._payment = payment
        self._cards = cards
        self._phones = phones
        self._sealed = sealed
        self._derived = derived
        self._reader = CheckoutReader(store, payers, sealed)

    async def read(self, secret: str, proof: str) -> Progress:
        return await self._reader.progress(secret, proof)

    async def offer(self, progress: Progress) -> Offer:
        return await self._reader.offer(progress)

    # The phone

    async def send_code(self, secret: str, phone: str) -> None:
        """Send a code, first or again. `phone`: as typed; "" for the number on file, or that of the last code.

        Raise ObolError `too_many_requests` when one was sent just now, or too many to this session or number.
        """
        progress = await self.read(secret, "")
        _want(progress, "phone", "code")
        number = progress.phone if (progress.phone_on_file or not phone) else numbers.read(phone)
        if number is None:
            raise ObolError("invalid_request", "enter your phone number", param="phone")
        sender = self._phones.of(progress.mode)
        await self._count_code(secret, progress, number)
        try:
            await sender.send(number, f"checkout of {progress.merchant}")
        except ObolError:
            await self._store.execute("checkouts.forget_phone", progress.checkout_session_id)
            raise

    async def _count_code(self, secret: str, progress: Progress, number: str) -> None:
        """Before it is sent, so that two windows together send no more than one."""
        name, phone_hash = progress.checkout_session_id, self._derived.phone_hash(number)
        await self._store.execute("checkouts.open", digest(secret))
        await self._store.execute("checkouts.sweep_codes")
        async with self._store.transaction() as db:
            await db.execute(self._store.sql("checkouts.lock"), name)
            await db.execute(self._store.sql("checkouts.lock_phone"), phone_hash)
            now = await self._reader.progress(secret, "", db)
            if now.codes_sent >= CODES_A_SESSION_MAX:
                raise _too_often("this checkout has sent all of its codes: begin again from the app that sent you")
            if now.resend_after_s:
                raise _too_often(f"a code was sent just now: wait {now.resend_after_s} seconds", now.resend_after_s)
            sent = await db.fetchval(self._store.sql("checkouts.codes_to_phone"), phone_hash)
            # The sandbox sends none, and is tried with one number again and again.
            if progress.mode == "live" and sent >= CODES_A_PHONE_AN_HOUR_MAX:
                raise _too_often("this phone number has got many codes: try again in an hour", 3_600)
            await db.execute(self._store.sql("checkouts.count_code"), phone_hash)
            sealed = self._sealed.seal(number, SEALED_AS, name)
            await db.execute(self._store.sql("checkouts.code_sent"), name, sealed)

    async def other_phone(self, secret: str) -> None:
        """Ask for the number again."""
        progress = await self.read(secret, "")
        if not progress.phone_on_file:
            await self._store.execute("checkouts.forget_phone", progress.checkout_session_id)

    async def check_code(self, secret: str, code: str) -> str:
        """Return the proof, for the browser to keep for PROOF_S seconds. The one before it is void."""
        progress = await self.read(secret, "")
        _want(progress, "code")
        assert progress.phone is not None
        if progress.codes_wrong >= WRONG_CODES_A_SESSION_MAX:
            raise _too_often("too many wrong codes: begin again from the app that sent you")
        checked = await self._phones.of(progress.mode).check(progress.phone, code)
        if checked != "right":
            await self._store.execute("checkouts.wrong_code", progress.checkout_session_id)
            raise _WRONG[checked].again()
        payer_id = await self._payers.of_phone(progress.mode, progress.phone)
        proof = secrets.token_urlsafe(32)
        values = (progress.checkout_session_id, payer_id, digest(proof), PROOF_S)
        await self._store.execute("checkouts.proven", *values)
        return proof

    # Name and card

    async def give_contact(self, secret: str, proof: str, contact: Contact) -> None:
        """Of a payer who has given none before."""
        progress = await self.read(secret, proof)
        _want(progress, "contact")
        checked = _checked(contact)
        values = (progress.payer_id, checked.email, checked.first_name, checked.last_name)
        await self._store.execute("checkouts.fill_contact", *values)

    async def setup(self, progress: Progress, secret: str) -> tuple[Processor, Setup]:
        """The card that is being added: begun, where none is."""
        if progress.setup_id is None:
            await self._begin_setup(progress)
            progress = await self.read(secret, "")
        assert progress.setup_id and progress.setup_processor and progress.customer_ref
        processor = self._cards.named(progress.mode, progress.setup_processor)
        return processor, await processor.begin_setup(progress.setup_id, progress.customer_ref)

    async def _begin_setup(self, progress: Progress) -> None:
        """With the processor's customer of before, where the payer has a card there."""
        processor = self._cards.of(progress.mode)
        on_file = progress.card
        if on_file is not None and on_file.processor == processor.name:
            customer_ref = on_file.customer_ref
        else:
            assert progress.payer_id is not None
            name = f"{progress.first_name} {progress.last_name}".strip()
            customer_ref = await processor.customer(
                progress.payer_id, email=progress.email, name=name, phone=progress.phone
            )
        values = (progress.checkout_session_id, new_id("set_"), processor.name, customer_ref)
        await self._store.execute("checkouts.begin_setup", *values)

    async def enter_card(self, secret: str, proof: str, number: str, expiry: str, cvc: str) -> None:
        """The sandbox's own form. Raise ObolError `invalid_request` naming `number`, `expiry` or `cvc`."""
        progress = await self.read(secret, proof)
        _want(progress, "card")
        processor, setup = await self.setup(progress, secret)
        entry = card_entry.read(number, expiry, cvc, datetime.now(UTC).date())
        if not isinstance(processor, Sandbox):
            raise ObolError("invalid_request", "card numbers are not taken here", param="number")
        await self._added(progress, processor, setup, await processor.enter_card(setup.ref, entry), secret)

    async def approve_card(self, secret: str, proof: str, *, approved: bool) -> None:
        """The customer's answer to what the sandbox's bank asks about a new card."""
        progress = await self.read(secret, proof)
        _want(progress, "card_approval")
        processor, setup = await self.setup(progress, secret)
        if isinstance(processor, Sandbox):
            result = await processor.authenticate_setup(setup.ref, approved)
            await self._added(progress, processor, setup, result, secret)

    async def card_entered(self, secret: str, proof: str) -> None:
        """The customer's browser says that the processor has the card: ask the processor."""
        progress = await self.read(secret, proof)
        _want(progress, "card", "card_approval")
        processor, setup = await self.setup(progress, secret)
        await self._added(progress, processor, setup, await processor.finish_setup(setup.ref), secret)

    async def _added(
        self, progress: Progress, processor: Processor, setup: Setup, result: SetupResult, secret: str
    ) -> None:
        now = await self.read(secret, "")
        # With a real processor the customer's browser shows what the bank asks, beside the card.
        asks = result.status == "requires_action" and isinstance(processor, Sandbox)
        await self._store.execute("checkouts.setup_waits", progress.checkout_session_id, now.setup_id, asks)
        if result.status == "declined":
            raise ObolError("invalid_request", declined_text(result.decline_code), param="number")
        if result.card is not None:
            assert progress.payer_id and now.customer_ref
            await self._payers.add_card(progress.payer_id, processor.name, now.customer_ref, result.card)
            await self._store.execute("checkouts.end_setup", progress.checkout_session_id, now.setup_id)

    async def other_card(self, secret: str, proof: str, *, wanted: bool) -> None:
        """Add another card than the one on file, or stay with that after all."""
        progress = await self.read(secret, proof)
        _want(progress, "confirm", "card", "card_approval")
        await self._store.execute("checkouts.want_card", progress.checkout_session_id, wanted)

    # Payment

    async def confirm(self, secret: str, proof: str, amount_cents: int | None) -> None:
        """Buy what is offered. `amount_cents`: where the customer chooses it."""
        progress = await self.read(secret, proof)
        _want(progress, "confirm")
        await self._payment.confirm(secret, proof, amount_cents)

    async def approve_payment(self, secret: str, proof: str, *, approved: bool | None) -> None:
        """The customer's answer to what the bank asks; None where the browser has told the bank itself."""
        progress = await self.read(secret, proof)
        _want(progress, "payment_approval")
        await self._payment.approve(progress, approved)


def _want(progress: Progress, *steps: Step) -> None:
    if step_of(progress) not in steps:
        raise ObolError("request_in_progress", "this step is over: go on with the one that is shown")


def _checked(contact: Contact) -> Contact:
    given = {name: " ".join(value.split()) for name, value in msgspec.structs.asdict(contact).items()}
    for name, words in (("email", "email address"), ("first_name", "first name"), ("last_name", "last name")):
        if not 1 <= len(given[name]) <= _TEXT_MAX_CHARACTERS or not given[name].isprintable():
            text = f"enter your {words}, of at most {_TEXT_MAX_CHARACTERS} characters"
            raise ObolError("invalid_request", text, param=name)
    if not _EMAIL.fullmatch(given["email"]):
        raise ObolError("invalid_request", "this is not an email address, such as you@example.com", param="email")
    return Contact(**given)


def declined_text(code: str | None) -> str:
    """What a customer is told. Banks' reasons such as "stolen" are not for whoever holds the card."""
    known = {
        "insufficient_funds": "the card was declined: it has insufficient funds",
        "expired_card": "the card was declined: it has expired",
        "incorrect_cvc": "the card was declined: its security code is wrong",
        "authentication_failed": "the payment was not approved",
        "authentication_required": "the payment was not approved in time",
        "processing_error": "the card could not be processed: try again in a minute",
        "processor_refused": "the payment could not be made: nothing was charged",
    }
    return known.get(code or "", "the card was declined: try another one")


def _too_often(text: str, retry_after_s: int = RESEND_AFTER_S) -> ObolError:
    return ObolError("too_many_requests", text, retry_after_s=retry_after_s)


_WRONG: Final = {
    "wrong": ObolError("invalid_request", "this is not the code that was sent", param="code"),
    "expired": ObolError("invalid_request", "this code is not good any more: get a new one", param="code"),
    "too_many": ObolError("invalid_request", "too many wrong codes: get a new one in ten minutes", param="code"),
}
