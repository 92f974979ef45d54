"""Who pays: a phone number and its cards. A payer pays for any number of connections, of one mode.

No card number comes here: cards are what the processor named them (`gateway/cards/contract.py`).
"""

from __future__ import annotations

from typing import Final

import asyncpg
import msgspec

from gateway.cards.contract import Card, Mode
from gateway.errors import ObolError
from gateway.store.postgres import Store
from gateway.store.sealed import Sealed
from gateway.store.secrets import Derived, new_id

_SEALED_AS: Final = "phone of a payer"


class Contact(msgspec.Struct, frozen=True):
    """What is known of somebody; "" where it is not."""

    email: str = ""
    first_name: str = ""
    last_name: str = ""


class Method(msgspec.Struct, frozen=True):
    """A card that can be charged while its owner is away."""

    payment_method_id: str
    processor: str
    customer_ref: str
    card: Card
    is_default: bool


class Payers:
    """Payers and their cards. After each change the collector looks at what they pay for (`collections`)."""

    def __init__(self, store: Store, derived: Derived, sealed: Sealed) -> None:
        self._store = store
        self._derived = derived
        self._sealed = sealed

    async def of_phone(self, mode: Mode, phone: str, contact: Contact | None = None) -> str:
        """The payer with this phone number (E.164), made where there is none; `contact` is of a new one. Its id."""
        contact = contact or Contact()
        phone_hash = self._derived.phone_hash(phone)
        payer_id = new_id("pay_")
        sealed = self._sealed.seal(phone, _SEALED_AS, mode, phone_hash.hex())
        async with self._store.transaction() as db:
            values = (payer_id, mode, phone_hash, sealed, contact.email, contact.first_name, contact.last_name)
            await db.execute(self._store.sql("payers.insert"), *values)
            return str(await db.fetchval(self._store.sql("payers.known"), mode, phone_hash))

    async def link(self, merchant_id: str, connection_id: str, payer_id: str) -> None:
        """Let `payer_id` pay for a connection. Raise ObolError `connection_not_found`: also where the modes differ."""
        async with self._store.transaction() as db:
            values = (merchant_id, connection_id, payer_id)
            if await db.fetchval(self._store.sql("payers.link"), *values) is None:
                raise ObolError("connection_not_found", "this customer is not known", param="connection_id")
            await db.execute(self._store.sql("payers.hurry"), payer_id, connection_id)

    async def add_card(self, payer_id: str, processor: str, customer_ref: str, card: Card) -> None:
        """Make a card the default of its payer; one that is there already is the default again. What the payer owes is
        charged to it at once, the oldest debt first. Raise ObolError `not_found`."""
        async with self._store.transaction() as db:
            await self._lock(db, payer_id)
            await db.execute(self._store.sql("payers.clear_default"), payer_id)
            shown = (card.brand, card.last4, card.exp_month, card.exp_year)
            known = await db.fetchval(
                self._store.sql("payers.make_default"), payer_id, processor, card.method_ref, *shown
            )
            if known is None:
                values = (new_id("pm_"), payer_id, processor, customer_ref, card.method_ref, *shown)
                await db.execute(self._store.sql("payers.insert_method"), *values)
            await db.execute(self._store.sql("payers.hurry"), payer_id, None)

    async def remove_card(self, processor: str, method_ref: str) -> None:
        """Forget a card, whoever's: it was detached. Who has no other one may owe nothing from now on."""
        async with self._store.transaction() as db:
            removed = await db.fetch(self._store.sql("payers.remove_method"), processor, method_ref)
            for row in sorted(removed, key=lambda each: str(each["payer_id"])):
                await db.execute(self._store.sql("payers.hurry"), row["payer_id"], None)

    async def card_changed(self, processor: str, card: Card) -> None:
        """The bank has given out a new one for it: the same reference, another number or expiry."""
        shown = (card.brand, card.last4, card.exp_month, card.exp_year)
        await self._store.execute("payers.change_method", processor, card.method_ref, *shown)

    async def cards(self, payer_id: str) -> list[Method]:
        """The default first, then the newest."""
        return [_method(row) for row in await self._store.rows("payers.methods", payer_id)]

    def phone_of(self, mode: str, phone_hash: bytes, phone_sealed: bytes) -> str:
        """The number (E.164) of a payer's row. Raise Unsealable."""
        return self._sealed.open(phone_sealed, _SEALED_AS, mode, phone_hash.hex())

    async def _lock(self, db: asyncpg.Connection, payer_id: str) -> None:
        if await db.fetchval(self._store.sql("payers.lock"), payer_id) is None:
            raise ObolError("not_found", "this payer is not known", param="payer_id")


def _method(row: asyncpg.Record) -> Method:
    card = Card(row["method_ref"], row["brand"], row["last4"], row["exp_month"], row["exp_year"])
    return Method(row["payment_method_id"], row["processor"], row["customer_ref"], card, row["is_default"])
