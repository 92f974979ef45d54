"""Carries the shards' journals to PostgreSQL, each entry exactly once in effect.

One transaction a batch: lock the shard's cursor, read the entries behind it, record them, move the cursor, commit; then
trim the journal. Killed before the commit, nothing happened; killed after it, the next round finds entries at or
below the cursor, sees that the ledger holds them, and trims. Entries there that the ledger does not hold, or a counter
below the cursor, mean that Redis has less than PostgreSQL has seen: that shard stops, untrimmed, with an alarm, until
the wallets concerned are restored (billing/continuity.py, which also keeps such a server from being used at all where
the loss can be noticed before anyone uses it). A shard stops, too, where another server has been accepted since.

A batch of 2,000 occupies the event loop for tens of milliseconds at a time (parsing and encoding), which is why this
runs in the worker and never in a gateway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import asyncpg

from gateway.failpoints import FailPoints
from gateway.ledger.journal import Entry, Journal
from gateway.ledger.wallets import now_ms
from gateway.store.postgres import Store
from gateway.worker import metrics
from gateway.worker.record import Recorder, alarm

_LOG = logging.getLogger("obol.flusher")
_CONCURRENT_SHARDS_MAX = 3


class Flusher:
    """Any number of flushers may work on the same shards: who finds a cursor locked leaves that shard alone."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        shards: int,
        batch_entries: int,
        run_id: Callable[[], str] | None = None,
        fail: FailPoints | None = None,
    ) -> None:
        """`run_id` gives that of the Redis server in use, to be compared with the one that was accepted last."""
        self._fail = fail
        self._run_id = run_id
        self._store = store
        self._journal = journal
        self._shards = shards
        self._batch_entries = batch_entries
        self._carried: dict[int, int] = {}
        self.stopped: dict[int, str] = {}
        """Shards that are not flushed, by what is wrong with them."""
        self._slots = asyncio.Semaphore(_CONCURRENT_SHARDS_MAX)

    async def flush_once(self) -> int:
        """Carry at most one batch of every shard that has entries; return their number.

        A shard that fails does not keep the others from being flushed: raises ExceptionGroup afterwards.
        Raise LedgerAway if Redis does not answer.
        """
        if not self._carried:
            await self._store.execute("flush.create_cursors", self._shards)
        shards = range(self._shards)
        numbers = await asyncio.gather(*(self._journal.last_number(shard) for shard in shards))
        # A stopped shard may have nothing to carry once it is healed; only a look clears the alarm.
        due = [shard for shard in shards if shard in self.stopped or self._carried.get(shard) != numbers[shard]]
        results = await asyncio.gather(*(self._flush_in_turn(shard) for shard in due), return_exceptions=True)
        errors = [result for result in results if isinstance(result, Exception)]
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(due)} shards could not be flushed", errors)
        return sum(result for result in results if isinstance(result, int))

    async def flush_shard(self, shard: int) -> int:
        """Carry one batch of `shard`; return its number of entries: 0 too where it is stopped or another's turn."""
        async with self._store.transaction() as connection:
            cursor = await connection.fetchval(self._store.sql("flush.lock_cursor"), shard)
            if cursor is None:
                return 0
            recorder = Recorder(self._store, connection, shard)
            superseded = await self._superseded(connection, shard, cursor)
            entries = [] if superseded else await self._due(recorder, shard, cursor)
            if entries:
                cursor = entries[-1].number
                self._reached("journalled")
                await recorder.record(entries)
                self._reached("recorded")
                await connection.execute(self._store.sql("flush.move_cursor"), shard, cursor)
        if entries:
            self._reached("flushed_not_acknowledged")
            await self._journal.trim(shard, cursor)
            self._reached("trimmed")
            metrics.FLUSH_ENTRIES.inc(len(entries))
            metrics.FLUSH_BATCH.observe(len(entries))
        if shard not in self.stopped:
            self._carried[shard] = cursor
        return len(entries)

    async def lag_s(self) -> float:
        """Age of the oldest entry that still waits in any journal, in seconds."""
        at_ms = now_ms()
        waiting = (self._journal.length_and_age_ms(shard, at_ms) for shard in range(self._shards))
        return max(age_ms for _, age_ms in await asyncio.gather(*waiting)) / 1000

    def _reached(self, point: str) -> None:
        if self._fail is not None:
            self._fail.reached(point)

    async def _flush_in_turn(self, shard: int) -> int:
        async with self._slots:
            return await self.flush_shard(shard)

    async def _superseded(self, connection: asyncpg.Connection, shard: int, cursor: int) -> bool:
        """Whether another server is in use: nobody may carry the journal of one that was replaced."""
        if self._run_id is None or await connection.fetchval(self._store.sql("flush.server")) == self._run_id():
            return False
        self._stop(shard, "superseded", cursor, None)
        return True

    async def _due(self, recorder: Recorder, shard: int, cursor: int) -> list[Entry]:
        """The entries behind `cursor`; none where the journal contradicts it."""
        # The counter first: entries that arrive in between are then behind it and no gap.
        last = await self._journal.last_number(shard)
        if last < cursor:
            return self._stop(shard, "cursor_ahead", cursor, last)
        entries = await self._journal.read(shard, 0, self._batch_entries)
        flushed = [entry for entry in entries if entry.number <= cursor]
        if flushed:
            if await recorder.differing(flushed):
                return self._stop(shard, "rewound", cursor, last)
            await self._journal.trim(shard, cursor)
            entries = await self._journal.read(shard, cursor, self._batch_entries)
        if not entries and last > cursor:
            return self._stop(shard, "entries_missing", cursor, last)
        self.stopped.pop(shard, None)
        self._check_dense(shard, cursor, entries)
        return entries

    def _stop(self, shard: int, kind: str, cursor: int, last: int | None) -> list[Entry]:
        if self.stopped.get(shard) != kind:
            self.stopped[shard] = kind
            alarm(kind, f"{_STOPPED[kind]}; the shard is not flushed", shard=shard, cursor=cursor, last_number=last)
        return []

    @staticmethod
    def _check_dense(shard: int, cursor: int, entries: list[Entry]) -> None:
        expected = cursor + 1
        for entry in entries:
            if entry.number != expected:
                alarm("gap", "entries are missing in the journal", shard=shard, after=expected - 1, found=entry.number)
            expected = entry.number + 1


_STOPPED = {
    "superseded": "another Redis server has been accepted since, or none was",
    "cursor_ahead": "Redis has journalled less than PostgreSQL has recorded",
    "rewound": "the journal holds entries at or below the cursor that the ledger does not",
    "entries_missing": "the journal's counter is ahead of its entries",
}
