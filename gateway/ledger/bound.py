"""Keeps the journals within bounds: what PostgreSQL does not have yet lies in Redis' memory, and that is finite.

Each gateway measures the journals a few times a second; a call only looks at a flag. Past the bound new calls and
reports are refused rather than spent without a record; what is under way settles all the same, so the journals may
exceed the bound by the calls in flight and by what began within one interval.
"""

from __future__ import annotations

import asyncio
import logging

import hiredis

from gateway.errors import ObolError
from gateway.ledger.connection import LedgerAway
from gateway.ledger.journal import Journal

LOG = logging.getLogger("obol.journal")
MEASURE_INTERVAL_S = 0.25
RETRY_AFTER_S = 5
_STATES = ("ok", "half full", "full")


class JournalBound:
    """`entries_max`: of all shards together."""

    def __init__(self, journal: Journal, *, shards: int, entries_max: int) -> None:
        self._journal = journal
        self._shards = range(shards)
        self.entries_max = entries_max
        self.entries = 0
        self.full = False
        """New calls and reports are refused."""

    @property
    def state(self) -> str:
        """ "ok", "half full" or "full"."""
        return _STATES[min(2, 2 * self.entries // self.entries_max)]

    def refusal(self) -> ObolError:
        text = "charges are not being recorded at the moment; nothing was sent, try again"
        return ObolError("journal_full", text, retry_after_s=RETRY_AFTER_S)

    async def run(self) -> None:
        """For ever. Redis away: what was measured last stays true, and calls are refused anyway."""
        while True:
            try:
                await self.measure()
            except (LedgerAway, hiredis.ReplyError) as error:
                LOG.debug("the journals cannot be measured", extra={"why": str(error)})
            await asyncio.sleep(MEASURE_INTERVAL_S)

    async def measure(self) -> None:
        """Raise LedgerAway."""
        before = self.state
        self.entries = await self._journal.lengths(self._shards)
        self.full = self.entries >= self.entries_max
        if self.state != before:
            level = logging.INFO if self.state == "ok" else logging.ERROR if self.full else logging.WARNING
            fields = {"entries": self.entries, "entries_max": self.entries_max}
            LOG.log(level, f"the journals are {self.state}", extra=fields)
