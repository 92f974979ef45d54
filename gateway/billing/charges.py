"""The life of a charge: what becomes of its row, whoever is killed and whatever the processor answers, or when.

    written        its row, open, in a transaction of its own        (whoever wants it: the collector, a checkout)
      -> sent      the processor is called; the row's id is the key  (worker/charger.py)
      -> answered  succeeded   row, grant of the same id and outbox in ONE transaction; then the credit script
                   declined    row, the customer limited, outbox in ONE transaction; tried again later: another attempt
                   processing, no answer, or a worker that died: open. The processor is asked what became of it

`concluded` takes any answer, from whoever has it, any number of times and in any order. It locks the row and moves it
only forward: a success is final, also one that comes after a decline; a decline is heard of an attempt that is open.
A grant is written in the one step that makes a charge `succeeded`, so there is one for each charge that succeeded, and
no other. Where nobody is left to run the credit script, the worker applies the grant (`worker/grants.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Literal

import asyncpg
import msgspec
from hiredis import ReplyError

from gateway.billing import outbox
from gateway.billing.purchases import Purchases
from gateway.billing.subscriptions import Subscriptions
from gateway.billing.turns import Turns
from gateway.cards.contract import ChargeOrder, ChargeResult, Mode
from gateway.core.collection import NANO_A_CENT, cap_of, next_try_at
from gateway.core.money import format_nano
from gateway.ledger.connection import LedgerAway
from gateway.ledger.wallets import WalletRef, Wallets, now_ms
from gateway.store.postgres import Store

LOG = logging.getLogger("obol.charges")
Kind = Literal["overage", "auto_top_up", "renewal", "subscription", "upgrade", "bundle", "topup"]
AUTOMATIC: tuple[Kind, ...] = ("overage", "auto_top_up")
"""Made while the customer is away. Declined, they limit the customer and are tried again."""
PURCHASES: tuple[Kind, ...] = ("subscription", "upgrade", "bundle", "topup")
"""Of a checkout: paid, they complete it."""
Conclusion = Literal["succeeded", "declined", "processing", "known"]
"""What an answer did to a charge. `known`: nothing, it had been concluded before."""


class NewCharge(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `charges`. `pot` and `credit_nano`: what is granted when it succeeds, None and 0 for nothing."""

    charge_id: str
    merchant_id: str
    connection_id: str
    wallet_id: str
    kind: Kind
    amount_cents: int
    owed_nano: int
    pot: Literal["bundle", "prepaid", "overage"] | None
    credit_nano: int
    credit_bundle_id: str | None = None
    plan_id: str | None = None
    description: str
    mode: Mode
    processor: str
    customer_ref: str
    method_ref: str


async def insert(db: asyncpg.Connection, store: Store, charges: Sequence[NewCharge]) -> None:
    """Write charges that are to be sent. Raise asyncpg.UniqueViolationError where one of the wallet's is open."""
    await db.executemany(store.sql("charges.insert"), [msgspec.structs.astuple(charge) for charge in charges])


def order_of(row: asyncpg.Record, *, customer_present: bool = False) -> ChargeOrder:
    """What the processor is told of a row of `charges`."""
    return ChargeOrder(
        charge_id=row["charge_id"],
        customer_ref=row["customer_ref"],
        method_ref=row["method_ref"],
        amount_cents=row["amount_cents"],
        description=row["description"],
        merchant_id=row["merchant_id"],
        currency=row["currency"],
        attempt=row["attempt"],
        processor_ref=row["processor_ref"],
        customer_present=customer_present,
    )


class Charges:
    """Concludes charges. Any process may: the worker that asked, a gateway that was told by the processor."""

    def __init__(
        self,
        store: Store,
        wallets: Wallets,
        *,
        overage_cap_nano: int,
        retry_days: Sequence[int],
        changed: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        """`overage_cap_nano`: the overage of plans that name no cap. `retry_days`: after the first decline. `changed`:
        tells every process that a merchant's customers changed."""
        self._store = store
        self._changed = changed
        self._purchases = Purchases(store, Subscriptions(store, wallets, overage_cap_nano=overage_cap_nano))
        self._wallets = wallets
        self._turns = Turns(store, wallets)
        self._cap_nano = overage_cap_nano
        self._retry_days = retry_days

    async def concluded(self, charge_id: str, result: ChargeResult, *, attempt: int | None = None) -> Conclusion:
        """Record what the processor says of a charge, and grant what it bought: `recorded`, then `applied`.

        `attempt`: which one the answer is of, where that is known. Raise ObolError `store_unavailable`, with nothing
        recorded; KeyError for a charge that is not ours.
        """
        conclusion, row = await self.recorded(charge_id, result, attempt=attempt)
        await self.applied(conclusion, row)
        return conclusion

    async def recorded(
        self, charge_id: str, result: ChargeResult, *, attempt: int | None = None
    ) -> tuple[Conclusion, asyncpg.Record]:
        """The transaction: row, grant, limit and outbox. Also return the charge's row as it was."""
        async with self._store.transaction() as db:
            row = await self._lock(db, charge_id)
            if row["status"] in ("succeeded", "refunded"):
                return "known", row
            if result.status == "succeeded":
                await self._succeeded(db, row, result)
                return "succeeded", row
            if row["status"] != "open" or attempt not in (None, row["attempt"]):
                return "known", row
            if result.status == "processing":
                return "processing", row
            await self._declined(db, row, result)
            return "declined", row

    async def applied(self, conclusion: Conclusion, row: asyncpg.Record) -> None:
        """What follows in Redis. With Redis away, or killed before it, the worker does it later."""
        # A bundle has its place among the turns; and the limit has changed, or stands as it was.
        if conclusion == "declined" or (
            conclusion == "succeeded" and (row["pot"] == "bundle" or row["kind"] in PURCHASES or not row["can_charge"])
        ):
            await self._turns.apply_to([row["wallet_id"]])
        if conclusion == "succeeded" and row["pot"] is not None:
            await self._credit(row)
        if conclusion == "succeeded" and row["kind"] in PURCHASES and self._changed is not None:
            await self._changed(row["merchant_id"])

    async def _lock(self, db: asyncpg.Connection, charge_id: str) -> asyncpg.Record:
        """Its connection first: who turns its cycles locks that, too, before anything else of it."""
        if await db.fetchval(self._store.sql("charges.lock_connection"), charge_id) is None:
            raise KeyError(charge_id)
        return await db.fetchrow(self._store.sql("charges.lock"), charge_id)

    async def _succeeded(self, db: asyncpg.Connection, row: asyncpg.Record, result: ChargeResult) -> None:
        await db.execute(self._store.sql("charges.conclude"), row["charge_id"], "succeeded", result.processor_ref, None)
        if row["pot"] is not None:
            values = (row["charge_id"], row["wallet_id"], row["pot"], row["credit_nano"], f"charge, {row['kind']}")
            await db.execute(self._store.sql("accounts.insert_grant"), *values)
        if row["kind"] in AUTOMATIC:
            if not row["can_charge"]:
                await allow_overage(db, self._store, row["connection_id"], self._cap_nano, _turn(row, "paid"))
            await db.execute(self._store.sql("collections.look_again"), row["wallet_id"], row["merchant_id"])
        if row["kind"] in PURCHASES:
            await self._purchases.paid(db, row["charge_id"])
        await self._tell(db, row, "succeeded", None)

    async def _declined(self, db: asyncpg.Connection, row: asyncpg.Record, result: ChargeResult) -> None:
        code = result.decline_code or ("authentication_required" if result.status == "requires_action" else None)
        await db.execute(self._store.sql("charges.conclude"), row["charge_id"], "declined", result.processor_ref, code)
        if row["kind"] in AUTOMATIC:
            if row["can_charge"]:
                await forbid_overage(db, self._store, row["connection_id"], _turn(row, f"declined:{row['attempt']}"))
            await self._retry_later(db, row)
        if row["kind"] not in PURCHASES:  # there the customer is told, and the merchant may know of none yet
            await self._tell(db, row, "declined", code)

    async def _retry_later(self, db: asyncpg.Connection, row: asyncpg.Record) -> None:
        at = row["merchant_now"]
        counted = await db.fetchrow(
            self._store.sql("collections.count_decline"), row["wallet_id"], row["merchant_id"], at
        )
        again_at = next_try_at(counted["limited_at"], counted["declines"], self._retry_days)
        if again_at is not None:
            await db.execute(self._store.sql("collections.postpone"), row["wallet_id"], again_at)

    async def _tell(self, db: asyncpg.Connection, row: asyncpg.Record, status: str, code: str | None) -> None:
        """What became of the charge. The published event of a balance follows the credit, once that is recorded; where
        there is none, it tells of the limit."""
        charge = {
            "charge_id": row["charge_id"],
            "kind": row["kind"],
            "amount": format_nano(row["amount_cents"] * NANO_A_CENT),
            "currency": row["currency"],
            "status": status,
            "decline_code": code,
        }
        data: dict[str, Any] = {"charge": charge}
        if row["kind"] in AUTOMATIC:
            data["limited"] = status == "declined"
        await outbox.tell(db, row["merchant_id"], "subscription.updated", row["connection_id"], data)
        if status == "declined":
            await outbox.tell_balances(db, [row["wallet_id"]])

    async def _credit(self, row: asyncpg.Record) -> None:
        ref = WalletRef(row["wallet_id"], row["shard"], row["merchant_id"])
        try:
            await self._wallets.credit(ref, row["charge_id"], row["pot"], row["credit_nano"], at_ms=now_ms())
        except (LedgerAway, ReplyError) as error:
            LOG.warning("a grant is left to the worker", extra={"grant_id": row["charge_id"], "reason": str(error)})


class LimitTurn(msgspec.Struct, frozen=True):
    """The turn that changes a limit: once for its id, at the merchant's time."""

    turn_id: str
    at: datetime


def _turn(row: asyncpg.Record, why: str) -> LimitTurn:
    return LimitTurn(f"{row['charge_id']}:{why}", row["merchant_now"])


async def allow_overage(
    db: asyncpg.Connection, store: Store, connection_id: str, cap_nano: int, turn: LimitTurn
) -> None:
    """There is a card that can be charged, and was none: what the plan allows may be owed, if there is a plan."""
    row = await db.fetchrow(store.sql("charges.limits_of"), connection_id)
    if row is not None:
        limit_nano = cap_of(row["charges_overage"], row["overage_cap_nano"], cap_nano) or 0
        await _set_limit(db, store, connection_id, limit_nano, turn, can_charge=True)


async def forbid_overage(db: asyncpg.Connection, store: Store, connection_id: str, turn: LimitTurn) -> None:
    """There is none any more: what is in the pots can be spent, and nothing owed."""
    await _set_limit(db, store, connection_id, 0, turn, can_charge=False)


async def _set_limit(
    db: asyncpg.Connection, store: Store, connection_id: str, limit_nano: int, turn: LimitTurn, *, can_charge: bool
) -> None:
    """Turns of later cycles follow `can_charge` (`Terms.limit_nano`)."""
    await db.execute(store.sql("charges.set_can_charge"), connection_id, can_charge)
    await db.execute(store.sql("charges.set_limit"), turn.turn_id, connection_id, limit_nano, turn.at)
