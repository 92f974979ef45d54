"""Does the durable record have a settle that Redis has had time to forget?"""

from __future__ import annotations

import asyncio

from gateway.errors import ObolError
from gateway.ledger.journal import Journal
from gateway.ledger.kept import Settle, Untold
from gateway.store.postgres import Store

LOOKUP_TIMEOUT_S = 2.0


class SettledBefore:
    """Asks PostgreSQL, once it has whatever the shard's journal held when it was asked."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal

    async def __call__(self, settle: Settle) -> bool:
        """Raise Untold while PostgreSQL is away or behind the journal, LedgerAway while Redis is away."""
        number = await self._journal.last_number(settle.shard)
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                found = await self._store.row("settles.recorded", settle.shard, settle.merchant_id, settle.request_id)
        except (ObolError, TimeoutError) as error:
            raise Untold("an old settle cannot be looked up") from error
        assert found is not None
        if not found["recorded"] and found["flushed_number"] < number:
            raise Untold("an old settle may still be in the journal")
        return bool(found["recorded"])
