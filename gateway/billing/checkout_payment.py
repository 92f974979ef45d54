"""The payment of a checkout, while its customer waits.

    confirmed    customer, charge [one transaction]; the charge is claimed, so the worker leaves it alone for a while
      -> called  the processor, from here, with the customer present. The bank may want to ask the customer first
      -> answer  the charge is concluded (`charges.py`), and with it the checkout

Where this process dies or the processor does not answer, the charge stays open, and the worker asks about it. Where
nothing is to be charged, all of it is the one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import asyncpg

from gateway.billing import charges
from gateway.billing.accounts import Accounts
from gateway.billing.charges import Charges, NewCharge, order_of
from gateway.billing.checkout_reading import CheckoutReader
from gateway.billing.checkout_state import (
    PAYMENTS_A_SESSION_MAX,
    TOPUP_MAX_CENTS,
    TOPUP_MIN_CENTS,
    Progress,
    Quote,
    step_of,
)
from gateway.billing.principals import Principals
from gateway.billing.purchases import Purchases
from gateway.billing.turns import Turns
from gateway.cards.choice import Cards
from gateway.cards.contract import ChargeResult, OutcomeUnknown, ProcessorRefused
from gateway.cards.sandbox import Sandbox
from gateway.core.collection import NANO_A_CENT
from gateway.core.money import format_nano
from gateway.errors import ObolError
from gateway.store.postgres import Store
from gateway.store.secrets import new_id

LEASE_MARGIN_MS: Final = 10_000
APPROVAL_S: Final = 900.0
"""How long the bank's question waits for the customer before the charge counts as declined."""
_WORDS: Final = {"subscription": "subscription", "upgrade": "plan change", "bundle": "credit bundle", "topup": "credit"}


class Payment:
    """Confirms, charges, and concludes."""

    def __init__(
        self,
        store: Store,
        reader: CheckoutReader,
        accounts: Accounts,
        charged: Charges,
        purchases: Purchases,
        turns: Turns,
        cards: Cards,
        principals: Principals,
        *,
        charge_timeout_ms: int,
        reached: Callable[[str], None],
    ) -> None:
        """`reached`: the fail points."""
        self._store = store
        self._reader = reader
        self._accounts = accounts
        self._charges = charged
        self._purchases = purchases
        self._turns = turns
        self._cards = cards
        self._principals = principals
        self._timeout_ms = charge_timeout_ms
        self._reached = reached

    async def confirm(self, secret: str, proof: str, amount_cents: int | None) -> None:
        """Raise ObolError `invalid_request` (`amount`), `request_in_progress`, and what an offer that is not to be had
        any more raises. Whether it was paid, the checkout then tells."""
        try:
            async with self._store.transaction() as db:
                wallet_id, merchant_id, charge = await self._placed(db, secret, proof, amount_cents)
        except asyncpg.UniqueViolationError:
            text = "another payment of yours is being made: wait until it has ended"
            raise ObolError("request_in_progress", text, retry_after_s=5) from None
        if charge is not None:
            self._reached("charge_written")
            await self._call(charge)
            return
        await self._turns.apply_to([wallet_id])
        await self._principals.changed(merchant_id)

    async def approve(self, progress: Progress, approved: bool | None) -> None:
        """The bank's question was answered: hear what became of the charge."""
        assert progress.charge is not None
        row = await self._store.row("checkouts.charge", progress.charge.charge_id)
        assert row is not None
        processor = self._cards.named(row["mode"], row["processor"])
        result: ChargeResult | None = None
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                if isinstance(processor, Sandbox) and approved is not None:
                    result = await processor.authenticate_charge(row["processor_ref"], approved)
                else:
                    result = await processor.find(order_of(row, customer_present=True), row["written_at_s"])
        except (OutcomeUnknown, TimeoutError):
            return
        if result is not None and result.status != "requires_action":
            await self._charges.concluded(row["charge_id"], result, attempt=row["attempt"])

    async def _placed(
        self, db: asyncpg.Connection, secret: str, proof: str, amount_cents: int | None
    ) -> tuple[str, str, asyncpg.Record | None]:
        """Wallet, merchant, and the charge that is to be sent, or None: the checkout is complete."""
        named = await self._reader.progress(secret, proof, db)
        await db.execute(self._store.sql("checkouts.lock"), named.checkout_session_id)
        progress = await self._reader.progress(secret, proof, db)
        if step_of(progress) != "confirm":
            raise ObolError("request_in_progress", "this step is over: go on with the one that is shown")
        connection_id, wallet_id = await self._customer(db, progress)
        offer = await self._reader.offer(progress, db)
        chosen = _amount(amount_cents) if offer.plan is None and offer.bundle is None else None
        quote = offer.quote(chosen)
        charge = None
        if quote.amount_cents:
            charge = await self._write(db, progress, quote, connection_id, wallet_id)
        else:
            await self._complete(db, progress, quote, connection_id, wallet_id)
        return wallet_id, progress.merchant_id, charge

    async def _customer(self, db: asyncpg.Connection, progress: Progress) -> tuple[str, str]:
        """The one there is, or a new one, which is hidden until the checkout is complete. The payer pays for it from
        now on. A payer's checkouts come here one after the other, so that they make one customer."""
        assert progress.payer_id is not None
        await db.fetchval(self._store.sql("payers.lock"), progress.payer_id)
        found = await self._reader.customer(progress, db)
        if found is None:
            made = await self._accounts.prepare_customer(db, progress.merchant_id, progress.mode)
            connection_id, wallet_id = made.connection_id, made.wallet.wallet_id
            await db.execute(self._store.sql("checkouts.hide_connection"), connection_id)
        else:
            connection_id, wallet_id = found["connection_id"], found["wallet_id"]
            await db.execute(self._store.sql("checkouts.lock_connection"), connection_id)
        contact = (progress.phone, progress.email, progress.first_name, progress.last_name)
        await db.execute(self._store.sql("checkouts.set_payer"), connection_id, progress.payer_id, *contact)
        return connection_id, wallet_id

    async def _complete(
        self, db: asyncpg.Connection, progress: Progress, quote: Quote, connection_id: str, wallet_id: str
    ) -> None:
        """Nothing is charged."""
        if quote.pot is not None:
            values = (f"checkout-{progress.checkout_session_id}", wallet_id, quote.pot, quote.credit_nano, "checkout")
            await db.execute(self._store.sql("accounts.insert_grant"), *values)
        fields = ("checkout_session_id", "merchant_id", "checkout_mode", "reference_id", "plan_id", "credit_bundle_id")
        row: dict[str, Any] = {name: getattr(progress, name) for name in fields}
        await self._purchases.complete(db, row | {"connection_id": connection_id, "payer_id": progress.payer_id})

    async def _write(
        self, db: asyncpg.Connection, progress: Progress, quote: Quote, connection_id: str, wallet_id: str
    ) -> asyncpg.Record:
        """A charge that was declined is tried again as the same charge, so that it cannot be paid twice."""
        assert progress.card is not None
        if progress.payments >= PAYMENTS_A_SESSION_MAX:
            text = "too many payments were declined here: begin again from the app that sent you"
            raise ObolError("too_many_requests", text, retry_after_s=60)
        last, card = progress.charge, progress.card
        if last is not None and last.status == "declined" and _same(progress, quote, connection_id):
            charge_id = last.charge_id
            await db.execute(self._store.sql("charges.retry"), charge_id, card.customer_ref, card.card.method_ref)
        else:
            new = _charge(progress, quote, connection_id, wallet_id)
            charge_id = new.charge_id
            await charges.insert(db, self._store, [new])
        values = (progress.checkout_session_id, connection_id, charge_id)
        await db.execute(self._store.sql("checkouts.charging"), *values)
        lease_ms = self._timeout_ms + LEASE_MARGIN_MS
        return await db.fetchrow(self._store.sql("checkouts.claim_charge"), charge_id, lease_ms)

    async def _call(self, row: asyncpg.Record) -> None:
        processor = self._cards.named(row["mode"], row["processor"])
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                self._reached("processor_called")
                result = await processor.charge(order_of(row, customer_present=True))
        except (OutcomeUnknown, TimeoutError):
            return  # the worker asks what became of it
        except ProcessorRefused:
            # Nothing was charged, and nothing may be charged when the customer has gone.
            result = ChargeResult("declined", row["processor_ref"], "processor_refused")
        self._reached("processor_answered")
        if result.status == "requires_action":
            values = (row["charge_id"], row["attempt"], APPROVAL_S, result.processor_ref)
            await self._store.execute("charges.ask_again", *values)
            await self._store.execute("checkouts.needs_action", row["charge_id"], result.action_url_or_secret)
            return
        conclusion, before = await self._charges.recorded(row["charge_id"], result, attempt=row["attempt"])
        self._reached("webhook_told")
        await self._charges.applied(conclusion, before)
        self._reached("credit_granted")


def _same(progress: Progress, quote: Quote, connection_id: str) -> bool:
    last, card = progress.charge, progress.card
    assert last is not None and card is not None
    asked = (quote.kind, quote.amount_cents, connection_id, card.processor, progress.plan_id)
    return (last.kind, last.amount_cents, last.connection_id, last.processor, last.plan_id) == asked


def _charge(progress: Progress, quote: Quote, connection_id: str, wallet_id: str) -> NewCharge:
    assert progress.card is not None
    return NewCharge(
        charge_id=new_id("chg_"),
        merchant_id=progress.merchant_id,
        connection_id=connection_id,
        wallet_id=wallet_id,
        kind=quote.kind,
        amount_cents=quote.amount_cents,
        owed_nano=quote.owed_nano,
        pot=quote.pot,
        credit_nano=quote.credit_nano,
        credit_bundle_id=progress.credit_bundle_id,
        plan_id=progress.plan_id,
        description=f"{progress.merchant}: {_WORDS[quote.kind]}",
        mode=progress.mode,
        processor=progress.card.processor,
        customer_ref=progress.card.customer_ref,
        method_ref=progress.card.card.method_ref,
    )


def _amount(amount_cents: int | None) -> int:
    if amount_cents is None or not TOPUP_MIN_CENTS <= amount_cents <= TOPUP_MAX_CENTS:
        least, most = (format_nano(cents * NANO_A_CENT)[:-8] for cents in (TOPUP_MIN_CENTS, TOPUP_MAX_CENTS))
        raise ObolError("invalid_request", f"the amount is from ${least} to ${most}", param="amount")
    return amount_cents
