"""Applies what is owed to wallets: grants and turns in PostgreSQL that no ledger entry has confirmed yet.

Redis remembers each id for `record_ttl_s`, so applying again is idempotent for that long. What is older is applied only
where the journal shows that it never was: everything that had been journalled at our previous round is flushed by
now, and the flusher has still not marked it.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import asyncpg
from hiredis import ReplyError

from gateway.billing.turns import Turns
from gateway.ledger.journal import Journal
from gateway.ledger.wallets import WalletRef, Wallets, now_ms
from gateway.store.postgres import Store
from gateway.worker import metrics

_LOG = logging.getLogger("obol.grants")
GRANTS_A_ROUND_MAX = 200
TURNS_A_ROUND_MAX = 200
_START = (datetime(1970, 1, 1, tzinfo=UTC), "")


class Flushed:
    """Tells whether everything journalled before the previous round is recorded by now. `row`: age_s, shard,
    flushed_number."""

    def __init__(self, journal: Journal, *, shards: int, record_ttl_s: int) -> None:
        self._journal = journal
        self._shards = shards
        self._safe_age_s = record_ttl_s / 2
        self._numbers: list[int] = []
        self._earlier: list[int] = []

    async def begin_round(self) -> None:
        """May raise LedgerAway."""
        self._earlier = self._numbers
        self._numbers = await asyncio.gather(*(self._journal.last_number(shard) for shard in range(self._shards)))

    def may_be_forgotten(self, row: asyncpg.Record) -> bool:
        """Whether Redis may have applied it and not know its id any more."""
        return bool(row["age_s"] >= self._safe_age_s)

    def is_safe(self, row: asyncpg.Record, name: str) -> bool:
        """Whether this may be applied: Redis knows its id, or never did."""
        if not self.may_be_forgotten(row):
            return True
        if self._earlier and row["flushed_number"] >= self._earlier[row["shard"]]:
            return True
        _LOG.warning("what has long been owed waits until the journal is flushed", extra={"owed": name})
        return False


class Grants:
    """Walks through the pending grants page by page, so that some which cannot be applied do not hide the others."""

    def __init__(
        self, store: Store, wallets: Wallets, journal: Journal, *, shards: int, record_ttl_s: int, min_age_s: int = 5
    ) -> None:
        self._store = store
        self._wallets = wallets
        self._flushed = Flushed(journal, shards=shards, record_ttl_s=record_ttl_s)
        self._min_age_s = min_age_s
        self._behind = _START

    async def apply_once(self) -> int:
        """Apply a page of pending grants; return how many were not applied before. May raise LedgerAway."""
        await self._flushed.begin_round()
        rows = await self._store.rows("worker.pending_grants", *self._behind, self._min_age_s, GRANTS_A_ROUND_MAX)
        full = len(rows) == GRANTS_A_ROUND_MAX
        self._behind = (rows[-1]["created_at"], rows[-1]["grant_id"]) if full else _START
        applied = sum([await self._apply(row) for row in rows if self._flushed.is_safe(row, row["grant_id"])])
        if applied:
            metrics.GRANTS_APPLIED.inc(applied)
        return applied

    async def _apply(self, row: asyncpg.Record) -> bool:
        ref = WalletRef(row["wallet_id"], row["shard"], row["merchant_id"])
        try:
            outcome = await self._wallets.credit(
                ref, row["grant_id"], row["pot"], row["amount_nano"], at_ms=now_ms(), body=b"{}"
            )
        except ReplyError as error:
            outcome = str(error)
        if outcome not in ("credited", "duplicate"):
            metrics.TICK_ERRORS.labels("grants").inc()
            _LOG.error("a grant cannot be applied", extra={"grant_id": row["grant_id"], "reason": outcome})
        return outcome == "credited"


class PendingTurns:
    """The same of turns that whoever wrote them did not apply: wallet by wallet, each wallet's in their order.

    Before an old one is applied, it is looked for in the ledger: who recorded it may not have confirmed it.
    """

    def __init__(
        self, store: Store, turns: Turns, journal: Journal, *, shards: int, record_ttl_s: int, min_age_s: int = 5
    ) -> None:
        self._store = store
        self._turns = turns
        self._flushed = Flushed(journal, shards=shards, record_ttl_s=record_ttl_s)
        self._min_age_s = min_age_s
        self._behind = 0

    async def apply_once(self) -> int:
        """Apply what waits for a page of wallets; return how many were not applied before. May raise LedgerAway."""
        await self._flushed.begin_round()
        rows = await self._store.rows("subscriptions.pending_turns", self._behind, self._min_age_s, TURNS_A_ROUND_MAX)
        self._behind = rows[-1]["turn_seq"] if len(rows) == TURNS_A_ROUND_MAX else 0
        recorded = await self._confirmed([row["owed_id"] for row in rows if self._flushed.may_be_forgotten(row)])
        rows = [row for row in rows if row["owed_id"] not in recorded]
        safe = [row for row in rows if self._flushed.is_safe(row, row["owed_id"])]
        applied = await self._turns.apply_in_order(safe)
        applied += await self._turns.apply_to([row["wallet_id"] for row in safe])
        if applied:
            metrics.TURNS_APPLIED_LATE.inc(applied)
        return applied

    async def _confirmed(self, turn_ids: list[str]) -> set[str]:
        """Those that the ledger holds, marked as applied."""
        if not turn_ids:
            return set()
        return {row["turn_id"] for row in await self._store.rows("subscriptions.confirm_recorded", turn_ids)}
