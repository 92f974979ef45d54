"""Stripe, by its official library: one mode, one key.

Every call is made once (the library's own retries are off), under an idempotency key from our row's id. What was not
answered is asked for, never sent anew under another key: see `find`. Importing this module imports the library, which
takes 0.35 s of CPU and 34 MB: `choice` does so only where a key is set.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
import msgspec
import stripe

from gateway.cards import stripe_answers, stripe_events
from gateway.cards.contract import (
    BadSignature,
    ChargeOrder,
    ChargeResult,
    Mode,
    OrderChanged,
    OutcomeUnknown,
    ProcessorEvent,
    ProcessorRefused,
    RefundResult,
    Setup,
    SetupResult,
    check_order,
)
from gateway.cards.stripe_answers import Intent, PaymentMethod, Refund, SetupIntent

SIGNATURE_TOLERANCE_S: Final = 300
_CONNECT_TIMEOUT_S: Final = 10
_CONNECTIONS_MAX: Final = 32
_PAGE: Final = 20
"""Few, because the library takes about a millisecond for each intent that it reads."""
_PAGES_MAX: Final = 10
_REFUNDS_MAX: Final = 100
_CLOCKS_DIFFER_S: Final = 300


class Keys(msgspec.Struct, frozen=True):
    """Of one mode. `publishable` is for browsers; without `webhook_secret` no event is believed."""

    secret: str
    publishable: str = ""
    webhook_secret: str = ""

    def __repr__(self) -> str:
        return f"Keys({self.publishable})"


class Stripe:
    """The Processor of one mode. Make it with `open`, in a running loop."""

    name = "stripe"

    def __init__(self, mode: Mode, keys: Keys, client: stripe.StripeClient, session: aiohttp.ClientSession) -> None:
        self.mode: Mode = mode
        self._keys = keys
        self._api = client.v1
        self._session = session

    @classmethod
    def open(cls, mode: Mode, keys: Keys, *, timeout_ms: int, base_url: str = "") -> Stripe:
        """`base_url`: where Stripe is, if not at its own address (in tests). It opens no connection yet."""
        stripe.enable_telemetry = False  # it would write a file into the home directory
        logging.getLogger("stripe").setLevel(logging.WARNING)  # below, it logs bodies: names, client secrets
        timeout = aiohttp.ClientTimeout(total=timeout_ms / 1000, connect=_CONNECT_TIMEOUT_S)
        context = ssl.create_default_context(cafile=stripe.ca_bundle_path)
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS_MAX, ssl=context)
        session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        client = stripe.StripeClient(
            keys.secret,
            http_client=stripe.AIOHTTPClient(timeout=timeout, session=session),
            max_network_retries=0,
            base_addresses={"api": base_url.rstrip("/")} if base_url else None,
        )
        return cls(mode, keys, client, session)

    async def close(self) -> None:
        await self._session.close()

    # Customers and cards

    async def customer(self, payer_id: str, *, email: str | None, name: str | None, phone: str | None) -> str:
        """Made with nothing but the payer's id, so that the key's body never differs; then told the rest."""
        given = (("email", email), ("name", name), ("phone", phone))
        details: Any = {field: value for field, value in given if value}
        with _asking():
            made = await self._api.customers.create_async({"metadata": {"payer_id": payer_id}}, _once("cus", payer_id))
            if details:
                await self._api.customers.update_async(made.id, details)
        return str(made.id)

    async def begin_setup(self, setup_id: str, customer_ref: str) -> Setup:
        body: Any = {
            "customer": customer_ref,
            "usage": "off_session",
            "payment_method_types": ["card"],
            "metadata": {"setup_id": setup_id},
        }
        with _asking():
            made = await self._api.setup_intents.create_async(body, _once("seti", setup_id))
        intent = stripe_answers.read(made.to_dict(), SetupIntent)
        return Setup(intent.id, intent.client_secret or "", self._keys.publishable)

    async def finish_setup(self, setup_ref: str) -> SetupResult:
        with _asking():
            found = await self._api.setup_intents.retrieve_async(setup_ref, {"expand": ["payment_method"]})
        return stripe_answers.setup_result(stripe_answers.read(found.to_dict(), SetupIntent))

    async def detach(self, method_ref: str) -> None:
        try:
            with _asking():
                await self._api.payment_methods.detach_async(method_ref)
        except ProcessorRefused:
            if await self._holder(method_ref) is not None:
                raise

    # Charges

    async def charge(self, order: ChargeOrder) -> ChargeResult:
        check_order(order)
        before = await self._called_off(order)
        if before is not None:
            return before
        key = order.charge_id if order.attempt == 1 else f"{order.charge_id}-{order.attempt}"
        try:
            with _asking():
                try:
                    made = await self._api.payment_intents.create_async(_intent(order), {"idempotency_key": key})
                except stripe.CardError as error:
                    return _declined(error)
        except ProcessorRefused as error:
            # Stripe has no code for a card that was detached, so it is asked whose the card is.
            if error.code == "api_key" or await self._holder(order.method_ref) == order.customer_ref:
                raise
            return ChargeResult("declined", "", "card_removed")
        return stripe_answers.charge_result(stripe_answers.read(made.to_dict(), Intent))

    async def find(self, order: ChargeOrder, written_at_s: int) -> ChargeResult | None:
        """By the list of the customer's PaymentIntents since the row was written, newest first.

        Not by Stripe's search: that is behind by a minute, in outages by an hour, and would say "never made" of what
        was made.
        """
        attempt: Intent | None = None
        if (earlier := await self._earlier(order)) and earlier.status == "succeeded":
            return stripe_answers.charge_result(earlier)
        async for intent in self._intents_since(order.customer_ref, written_at_s - _CLOCKS_DIFFER_S):
            if intent.metadata.get("charge_id") == order.charge_id and intent.status == "succeeded":
                return stripe_answers.charge_result(intent)
            if stripe_answers.is_attempt(intent, order.charge_id, order.attempt):
                attempt = intent
        return None if attempt is None else stripe_answers.charge_result(attempt)

    async def refund(self, refund_id: str, processor_ref: str, amount_cents: int) -> RefundResult:
        """Looked for first: the idempotency key is forgotten after a day, the refund's metadata never."""
        with _asking():
            listed = await self._api.refunds.list_async({"payment_intent": processor_ref, "limit": _REFUNDS_MAX})
            if listed.has_more:
                raise ProcessorRefused(f"{processor_ref} has {_REFUNDS_MAX} refunds already", code="too_many_refunds")
            refunds = [stripe_answers.read(one.to_dict(), Refund) for one in listed.data]
            for refund in refunds:
                if refund.metadata.get("refund_id") == refund_id:
                    return stripe_answers.refund_result(refund)
            made = await self._api.refunds.create_async(
                {"payment_intent": processor_ref, "amount": amount_cents, "metadata": {"refund_id": refund_id}},
                _once("re", refund_id),
            )
        return stripe_answers.refund_result(stripe_answers.read(made.to_dict(), Refund))

    async def _holder(self, method_ref: str) -> str | None:
        """The customer that a card belongs to. None for one that is gone."""
        try:
            with _asking():
                found = await self._api.payment_methods.retrieve_async(method_ref)
        except ProcessorRefused as error:
            if error.code != "resource_missing":
                raise
            return None
        return stripe_answers.read(found.to_dict(), PaymentMethod).customer

    async def _called_off(self, order: ChargeOrder) -> ChargeResult | None:
        """Cancel an earlier attempt, so that it can never be paid. Its result, if it is paid, or may be yet."""
        earlier = await self._earlier(order)
        if earlier is None or earlier.status == "canceled":
            return None
        if stripe_answers.is_attempt(earlier, order.charge_id, order.attempt):
            return stripe_answers.charge_result(earlier)
        try:
            with _asking():
                await self._api.payment_intents.cancel_async(earlier.id)
            return None
        except ProcessorRefused as error:
            if error.code != "payment_intent_unexpected_state":
                raise
        now = await self._earlier(order)
        return stripe_answers.charge_result(now) if now and now.status != "canceled" else None

    async def _earlier(self, order: ChargeOrder) -> Intent | None:
        """The PaymentIntent that the order says was there before."""
        if order.attempt == 1 or not order.processor_ref:
            return None
        with _asking():
            found = await self._api.payment_intents.retrieve_async(order.processor_ref)
        return stripe_answers.read(found.to_dict(), Intent)

    async def _intents_since(self, customer_ref: str, since_s: int) -> AsyncIterator[Intent]:
        """Raise OutcomeUnknown rather than leave any out."""
        query: Any = {"customer": customer_ref, "created": {"gte": since_s}, "limit": _PAGE}
        for _ in range(_PAGES_MAX):
            with _asking():
                page = await self._api.payment_intents.list_async(query)
            for one in page.data:
                yield stripe_answers.read(one.to_dict(), Intent)
            if not page.has_more or not page.data:
                return
            query["starting_after"] = page.data[-1].id
        raise OutcomeUnknown(f"{customer_ref} has more than {_PAGE * _PAGES_MAX} charges since then")

    # Events

    def event(self, body: bytes, headers: Mapping[str, str]) -> ProcessorEvent | None:
        """`headers`: names in any case. An event of the other mode is not genuine here."""
        if not self._keys.webhook_secret:
            raise BadSignature(f"there is no webhook secret for {self.mode} mode")
        given = next((value for name, value in headers.items() if name.lower() == "stripe-signature"), None)
        try:
            stripe.WebhookSignature.verify_header(body, given, self._keys.webhook_secret, SIGNATURE_TOLERANCE_S)
        except stripe.SignatureVerificationError as error:
            raise BadSignature(error.user_message or "the signature does not hold") from None
        except UnicodeDecodeError:
            raise BadSignature("the body is not UTF-8") from None
        return stripe_events.read(body, self.mode)


def _intent(order: ChargeOrder) -> Any:
    """The body of a charge. It follows from the order alone: under the same key Stripe wants the same body."""
    body: dict[str, Any] = {
        "amount": order.amount_cents,
        "currency": order.currency,
        "customer": order.customer_ref,
        "payment_method": order.method_ref,
        "payment_method_types": ["card"],
        "confirm": True,
        "description": order.description,
        "metadata": {
            "charge_id": order.charge_id,
            "attempt": str(order.attempt),
            "merchant_id": order.merchant_id,
        },
    }
    return body | ({"use_stripe_sdk": True} if order.customer_present else {"off_session": True})


def _once(kind: str, our_id: str) -> Any:
    return {"idempotency_key": f"{kind}-{our_id}"}


def _declined(error: stripe.CardError) -> ChargeResult:
    """A card's refusal, with the PaymentIntent that it left behind."""
    said = error.json_body.get("error") if isinstance(error.json_body, dict) else None
    if not isinstance(said, dict) or "payment_intent" not in said:
        return ChargeResult("declined", "", error.code or "card_declined")
    return stripe_answers.charge_result(stripe_answers.read(said["payment_intent"], Intent))


@contextmanager
def _asking() -> Iterator[None]:
    """Stripe's errors in the words of the contract. A card's refusal is an answer, where a card is charged."""
    try:
        yield
    except stripe.IdempotencyError as error:
        raise OrderChanged(_said(error)) from None
    except (stripe.InvalidRequestError, stripe.CardError) as error:
        raise ProcessorRefused(_said(error), code=error.code) from None
    except (stripe.AuthenticationError, stripe.PermissionError) as error:
        # Their texts quote a part of the key.
        text = f"Stripe does not accept the API key (HTTP {error.http_status}, request {error.request_id})"
        raise ProcessorRefused(text, code="api_key") from None
    except stripe.StripeError as error:  # too many requests, a key in use, a fault of Stripe's, no connection
        raise OutcomeUnknown(_said(error)) from None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:  # while the answer was read
        raise OutcomeUnknown(f"Stripe's answer was cut off ({type(error).__name__})") from None


def _said(error: stripe.StripeError) -> str:
    text = (error.user_message or type(error).__name__).partition("\n")[0]
    return f"Stripe: {text} (HTTP {error.http_status}, request {error.request_id})"
