"""The sandbox: a card processor that moves no money, keeps no secret and needs no network.

What it does follows from the card alone (`sandbox_cards`). What it did is in PostgreSQL, in tables and transactions of
its own, so that it tells the truth to whoever asks after a kill. It serves test merchants only, and sends no events.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg

from gateway.cards import sandbox_cards
from gateway.cards.card_entry import CardEntry
from gateway.cards.contract import (
    BadSignature,
    ChargeOrder,
    ChargeResult,
    ChargeStatus,
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
from gateway.errors import ObolError
from gateway.store.postgres import Store

Decision = tuple[ChargeStatus, str | None]


def _now() -> datetime:
    return datetime.now(UTC)


class Sandbox:
    """The Processor of test merchants. `now` is the time by which cards expire."""

    name = "sandbox"
    mode: Mode = "test"

    def __init__(self, store: Store, now: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._now = now

    async def customer(self, payer_id: str, *, email: str | None, name: str | None, phone: str | None) -> str:
        return f"cus_sandbox_{payer_id}"

    # Cards

    async def begin_setup(self, setup_id: str, customer_ref: str) -> Setup:
        ref = f"seti_sandbox_{setup_id}"
        async with self._acting() as connection:
            of = await connection.fetchval(self._store.sql("cards.begin_setup"), ref, customer_ref)
        if of != customer_ref:
            raise OrderChanged(f"the setup {setup_id} was begun for another customer")
        return Setup(ref, _client_secret(ref))

    async def finish_setup(self, setup_ref: str) -> SetupResult:
        async with self._acting() as connection:
            return await self._setup(connection, setup_ref)

    async def enter_card(self, setup_ref: str, entry: CardEntry) -> SetupResult:
        """What the sandbox's own form does with a card. A setup that has succeeded keeps its first card."""
        ref = sandbox_cards.method_ref(entry, secrets.token_hex(8))
        behaviour = sandbox_cards.behaviour_of(ref)
        status = "succeeded" if behaviour.authenticate == "never" else "requires_action"
        status = "declined" if behaviour.attach else status
        async with self._acting() as connection:
            await connection.execute(self._store.sql("cards.enter_card"), setup_ref, status, ref, behaviour.attach)
            return await self._setup(connection, setup_ref)

    async def authenticate_setup(self, setup_ref: str, approved: bool) -> SetupResult:
        """The customer's answer to the bank's question. Without a question nothing changes."""
        status, code = ("succeeded", None) if approved else ("declined", "authentication_failed")
        async with self._acting() as connection:
            await connection.execute(self._store.sql("cards.authenticate_setup"), setup_ref, status, code)
            return await self._setup(connection, setup_ref)

    async def detach(self, method_ref: str) -> None:
        async with self._acting() as connection:
            await connection.execute(self._store.sql("cards.detach"), method_ref)

    async def _setup(self, connection: asyncpg.Connection, setup_ref: str) -> SetupResult:
        row = await connection.fetchrow(self._store.sql("cards.setup"), setup_ref)
        if row is None:
            raise ProcessorRefused(f"setup_ref: there is no setup {setup_ref}", code="resource_missing")
        card = sandbox_cards.card_of(row["method_ref"]) if row["status"] == "succeeded" else None
        return SetupResult(row["status"], card, row["decline_code"])

    # Charges

    async def charge(self, order: ChargeOrder) -> ChargeResult:
        check_order(order)
        sandbox_cards.card_of(order.method_ref)
        async with self._acting() as connection:
            await connection.execute(self._store.sql("cards.lock_charge"), order.charge_id)
            attempts = await connection.fetch(self._store.sql("cards.attempts"), order.charge_id)
            done = [row for row in attempts if row["attempt"] == order.attempt]
            if done and not _same(done[0], order):
                raise OrderChanged(f"the charge {order.charge_id} was sent before with another amount or card")
            done = done or [row for row in attempts if row["status"] == "succeeded"]
            return _result(done[0]) if done else await self._made(connection, order)

    async def find(self, order: ChargeOrder, written_at_s: int) -> ChargeResult | None:
        async with self._acting() as connection:
            attempts = await connection.fetch(self._store.sql("cards.attempts"), order.charge_id)
        found = [row for row in attempts if row["status"] == "succeeded"]
        found = found or [row for row in attempts if row["attempt"] == order.attempt]
        return _result(found[0]) if found else None

    async def authenticate_charge(self, processor_ref: str, approved: bool) -> ChargeResult:
        """The customer's answer to the bank's question about a charge. Without a question nothing changes."""
        async with self._acting() as connection:
            row = await self._charge(connection, processor_ref)
            status, code = _charged(sandbox_cards.behaviour_of(row["method_ref"]))
            if not approved:
                status, code = "declined", "authentication_failed"
            await connection.execute(self._store.sql("cards.authenticate_charge"), processor_ref, status, code)
            return _result(await self._charge(connection, processor_ref))

    async def _made(self, connection: asyncpg.Connection, order: ChargeOrder) -> ChargeResult:
        status, code = await self._decided(connection, order)
        ref = f"pi_sandbox_{order.charge_id}_{order.attempt}"
        await connection.execute(self._store.sql("cards.call_off"), order.charge_id)
        await connection.execute(
            self._store.sql("cards.insert_charge"),
            order.charge_id,
            order.attempt,
            ref,
            order.customer_ref,
            order.method_ref,
            order.amount_cents,
            order.currency,
            status,
            code,
        )
        return _result({"status": status, "processor_ref": ref, "decline_code": code})

    async def _decided(self, connection: asyncpg.Connection, order: ChargeOrder) -> Decision:
        card, behaviour = sandbox_cards.card_of(order.method_ref), sandbox_cards.behaviour_of(order.method_ref)
        state = await connection.fetchrow(self._store.sql("cards.card_state"), order.method_ref)
        if state is not None and state["customer_ref"] != order.customer_ref:
            raise ProcessorRefused("method_ref: the card is another customer's", code="resource_missing")
        if state is not None and (state["detached"] or state["status"] != "succeeded"):
            return "declined", "card_removed"
        today = self._now()
        if (card.exp_year, card.exp_month) < (today.year, today.month):
            return "declined", "expired_card"
        if behaviour.authenticate == "always" or (behaviour.authenticate == "present" and order.customer_present):
            return "requires_action", "authentication_required"
        return _charged(behaviour)

    async def _charge(self, connection: asyncpg.Connection, processor_ref: str) -> asyncpg.Record:
        row = await connection.fetchrow(self._store.sql("cards.charge_by_ref"), processor_ref)
        if row is None:
            raise ProcessorRefused(f"processor_ref: there is no charge {processor_ref}", code="resource_missing")
        return row

    async def refund(self, refund_id: str, processor_ref: str, amount_cents: int) -> RefundResult:
        async with self._acting() as connection:
            charge = await connection.fetchrow(self._store.sql("cards.lock_charge_by_ref"), processor_ref)
            if charge is None or charge["status"] != "succeeded":
                raise ProcessorRefused(
                    f"processor_ref: there is no paid charge {processor_ref}", code="resource_missing"
                )
            before = await connection.fetchrow(self._store.sql("cards.refund"), refund_id)
            if before is None:
                await self._refunded(connection, refund_id, processor_ref, amount_cents, charge["amount_cents"])
            elif (before["processor_ref"], before["amount_cents"]) != (processor_ref, amount_cents):
                raise OrderChanged(f"the refund {refund_id} was sent before with another amount or charge")
        return RefundResult("succeeded", f"re_sandbox_{refund_id}")

    async def _refunded(
        self, connection: asyncpg.Connection, refund_id: str, processor_ref: str, amount_cents: int, charged_cents: int
    ) -> None:
        left_cents = charged_cents - await connection.fetchval(self._store.sql("cards.refunded"), processor_ref)
        if not 0 < amount_cents <= left_cents:
            text = f"amount_cents: {amount_cents} is not from 1 to the {left_cents} that are left of the charge"
            raise ProcessorRefused(text, code="amount_not_allowed")
        await connection.execute(self._store.sql("cards.insert_refund"), refund_id, processor_ref, amount_cents)

    def event(self, body: bytes, headers: Mapping[str, str]) -> ProcessorEvent | None:
        raise BadSignature("the sandbox sends no events")

    async def close(self) -> None:
        """The store is not the sandbox's own."""

    @asynccontextmanager
    async def _acting(self) -> AsyncIterator[asyncpg.Connection]:
        """A transaction. Where the database does not answer, nobody knows whether it was committed."""
        try:
            async with self._store.transaction() as connection:
                yield connection
        except ObolError as error:
            raise OutcomeUnknown(error.message) from error


def _charged(behaviour: sandbox_cards.Behaviour) -> Decision:
    return ("declined", behaviour.charge) if behaviour.charge else ("succeeded", None)


def _same(row: asyncpg.Record, order: ChargeOrder) -> bool:
    return all(
        row[field] == getattr(order, field) for field in ("customer_ref", "method_ref", "amount_cents", "currency")
    )


def _result(row: Mapping[str, Any]) -> ChargeResult:
    ref, status = row["processor_ref"], row["status"]
    return ChargeResult(status, ref, row["decline_code"], _client_secret(ref) if status == "requires_action" else None)


def _client_secret(ref: str) -> str:
    """It opens nothing: the sandbox's form is guarded by the page that it stands in."""
    return f"{ref}_secret_sandbox"
