"""Turns of cycles: owed in PostgreSQL, applied in Redis once each, a wallet's in their order.

A turn is to a cycle what a grant is to a credit. It is written in the transaction that moves the subscription; whoever
wrote it applies it at once, and the worker applies what was left behind (`worker/grants.py`). The next turn of a wallet
is applied only when the one before it was. So is credit granted to the cycle or bundle pot, which has its place among
the turns: a turn lets expire what was granted before it, and nothing that was granted after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import asyncpg
import msgspec
from hiredis import ReplyError

from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.turn import Turn
from gateway.ledger.wallets import WalletRef, Wallets, now_ms
from gateway.store.postgres import Store

LOG = logging.getLogger("obol.turns")
Row = Mapping[str, Any]
"""Of the queries subscriptions.owed_to and pending_turns: a turn, or a grant, which names its `pot`."""
TurnKind = Literal["start", "renewal", "upgrade", "downgrade", "end", "reset"]
_APPLIED = ("turned", "credited", "duplicate")


class NewTurn(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `turns`. `due_at` is in the merchant's time; `limit_nano` the overage allowed from here on.

    Without a subscription it is the reset of a customer's meters at the end of month `number`.
    """

    merchant_id: str
    wallet_id: str
    subscription_id: str | None
    number: int
    due_at: datetime
    kind: TurnKind
    turn: Turn
    limit_nano: int

    @property
    def turn_id(self) -> str:
        return f"{self.subscription_id or self.wallet_id}:{self.number}"


async def insert(db: asyncpg.Connection, store: Store, turns: Sequence[NewTurn]) -> None:
    """Within the transaction that moves their subscriptions, in order."""
    if not turns:
        return
    rows = (
        (
            *(each.turn_id, each.merchant_id, each.wallet_id, each.subscription_id, each.number, each.due_at),
            *(each.kind, each.turn.keep_cycle, each.turn.keep_bundle, each.turn.credit_nano, each.limit_nano),
            each.turn.reset_meters,
        )
        for each in turns
    )
    await db.execute(store.sql("subscriptions.insert_turns"), *map(list, zip(*rows, strict=True)))


class Turns:
    """Applies turns. Any number may try at once: the script applies each id once."""

    def __init__(self, store: Store, wallets: Wallets) -> None:
        self._store = store
        self._wallets = wallets

    async def apply_to(self, wallet_ids: Iterable[str]) -> int:
        """Apply what waits for these wallets; return how many turns were not applied before. All is committed:
        where Redis or PostgreSQL is away, the worker does it later."""
        try:
            rows = await self._store.rows("subscriptions.owed_to", list(wallet_ids))
            # Redis may have forgotten that it applied an old one: the worker knows how to tell.
            fresh_s = self._wallets.credits_remembered_s / 2
            old = {row["wallet_id"] for row in rows if row["age_s"] >= fresh_s}
            return await self.apply_in_order(row for row in rows if row["wallet_id"] not in old)
        except (LedgerAway, ObolError):
            return 0

    async def apply_in_order(self, rows: Iterable[Row]) -> int:
        """Apply `rows`, each wallet's from the oldest on; return how many turns were not applied before. What cannot be
        applied keeps only its own wallet's others from it. May raise LedgerAway."""
        of_wallets: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            of_wallets[row["wallet_id"]].append(row)
        return sum(await asyncio.gather(*map(self._apply_to_one, of_wallets.values())))

    async def _apply_to_one(self, rows: Sequence[Row]) -> int:
        applied = 0
        for row in rows:
            outcome = await self.apply(row)
            applied += outcome == "turned"
            if outcome not in _APPLIED:
                break
        return applied

    async def apply(self, row: Row) -> str:
        """Return "turned", "credited", "duplicate", or why not. May raise LedgerAway."""
        try:
            outcome = await self._send(row)
        except ReplyError as error:
            outcome = str(error)
        if outcome not in _APPLIED:
            LOG.error("what is owed cannot be applied", extra={"owed": row["owed_id"], "reason": outcome})
        return outcome

    async def _send(self, row: Row) -> str:
        ref = WalletRef(row["wallet_id"], row["shard"], row["merchant_id"])
        owed_id, credit_nano, at_ms = row["owed_id"], row["credit_nano"], now_ms()
        if row["pot"] is not None:
            return await self._wallets.credit(ref, owed_id, row["pot"], credit_nano, at_ms=at_ms)
        turn = Turn(row["keep_cycle"], row["keep_bundle"], credit_nano, row["reset_meters"])
        return await self._wallets.turn(ref, owed_id, turn, limit_nano=row["limit_nano"], at_ms=at_ms)
