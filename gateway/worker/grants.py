"""Applies credit that is owed: grants in PostgreSQL that no ledger entry has confirmed yet.

Redis remembers each credit id for `record_ttl_s`, so applying again is idempotent for that long. An older grant is
applied only where the journal shows that it never was: everything that had been journalled at our previous round
is flushed by now, and the flusher has still not marked it.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

import asyncpg
from hiredis import ReplyError

from gateway.ledger.journal import Journal
from gateway.ledger.wallets import WalletRef, Wallets, now_ms
from gateway.store.postgres import Store
from gateway.worker import metrics

_LOG = logging.getLogger("obol.grants")
GRANTS_A_ROUND_MAX = 200
_START = (datetime(1970, 1, 1, tzinfo=UTC), "")


class Grants:
    """Walks through the pending grants page by page, so that some which cannot be applied do not hide the others."""

    def __init__(
        self, store: Store, wallets: Wallets, journal: Journal, *, shards: int, record_ttl_s: int, min_age_s: int = 5
    ) -> None:
        self._store = store
        self._wallets = wallets
        self._journal = journal
        self._shards = shards
        self._safe_age_s = record_ttl_s / 2
        self._min_age_s = min_age_s
        self._behind = _START
        self._numbers: list[int] = []

    async def apply_once(self) -> int:
        """Apply a page of pending grants; return how many were not applied before. May raise LedgerAway."""
        earlier = self._numbers
        self._numbers = await asyncio.gather(*(self._journal.last_number(shard) for shard in range(self._shards)))
        rows = await self._store.rows("worker.pending_grants", *self._behind, self._min_age_s, GRANTS_A_ROUND_MAX)
        full = len(rows) == GRANTS_A_ROUND_MAX
        self._behind = (rows[-1]["created_at"], rows[-1]["grant_id"]) if full else _START
        applied = sum([await self._apply(row) for row in rows if self._is_safe(row, earlier)])
        if applied:
            metrics.GRANTS_APPLIED.inc(applied)
        return applied

    def _is_safe(self, row: asyncpg.Record, earlier: list[int]) -> bool:
        if row["age_s"] < self._safe_age_s:
            return True
        if earlier and row["flushed_number"] >= earlier[row["shard"]]:
            return True
        _LOG.warning("an old grant waits until the journal is flushed", extra={"grant_id": row["grant_id"]})
        return False

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
