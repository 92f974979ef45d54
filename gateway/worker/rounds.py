"""What the worker's loops do, each a round at a time."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from gateway import failpoints
from gateway.billing.continuity import Continuity
from gateway.billing.restore import Restorer
from gateway.billing.turns import Turns
from gateway.ledger.changes import Changes
from gateway.ledger.connection import Connection
from gateway.ledger.journal import Journal
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Recovery
from gateway.ledger.wallets import Wallets
from gateway.settings import Settings
from gateway.store import partitions
from gateway.store.postgres import Store
from gateway.worker import metrics
from gateway.worker.cycles import Cycles
from gateway.worker.flusher import Flusher
from gateway.worker.grants import GRANTS_A_ROUND_MAX, TURNS_A_ROUND_MAX, Grants, PendingTurns
from gateway.worker.healer import Healer
from gateway.worker.reaper import Reaper
from gateway.worker.resets import Resets

_LOG = logging.getLogger("obol.worker")


class Rounds:
    """Each round tells whether there is more to do at once. What goes wrong is raised: LedgerAway, ObolError."""

    def __init__(self, settings: Settings, store: Store, connection: Connection, continuity: Continuity) -> None:
        keys, shards = Keys(), settings.ledger_shards
        call_ttl_s, report_ttl_s = settings.settled_record_ttl_s, settings.report_record_ttl_s
        journal = Journal(connection, keys)
        self._store = store
        self._batch_entries = settings.flush_batch_entries
        self.wallets = Wallets(connection, keys, record_ttl_s=call_ttl_s, report_ttl_s=report_ttl_s)
        self.flusher = Flusher(
            store,
            journal,
            shards=shards,
            batch_entries=settings.flush_batch_entries,
            run_id=lambda: connection.server.run_id,
            fail=failpoints.of_settings(settings.fail_point_file, settings.data_dir),
        )
        restorer = Restorer(store, connection, keys, shards=shards, call_ttl_s=call_ttl_s, report_ttl_s=report_ttl_s)
        self._healer = Healer(connection, continuity, restorer, self.flusher)
        self._reaper = Reaper(connection, keys, self.wallets, shards=shards)
        self._grants = Grants(store, self.wallets, journal, shards=shards, record_ttl_s=report_ttl_s)
        turns = Turns(store, self.wallets)
        self._pending_turns = PendingTurns(store, turns, journal, shards=shards, record_ttl_s=report_ttl_s)
        announce = Changes(connection, keys).announce
        self._cycles = Cycles(store, turns, announce, overage_cap_nano=settings.overage_cap_nano)
        self._resets = Resets(store, turns, Recovery(connection, keys))

    async def flush(self) -> bool:
        return await self.flusher.flush_once() >= self._batch_entries

    async def heal(self) -> bool:
        return await self._healer.heal_once()

    async def reap(self) -> bool:
        await self._reaper.reap_once()
        return False

    async def apply_grants(self) -> bool:
        return await self._grants.apply_once() >= GRANTS_A_ROUND_MAX

    async def turn_cycles(self) -> bool:
        turned = await self._cycles.turn_once()
        return await self._resets.reset_once() or turned

    async def apply_turns(self) -> bool:
        return await self._pending_turns.apply_once() >= TURNS_A_ROUND_MAX

    async def make_partitions(self) -> bool:
        """Of the months to come, also by the clocks of merchants that are ahead."""
        ahead = [row["month"] for row in await self._store.rows("clock.times")]
        for at in (datetime.now(UTC), *ahead):
            for name in await partitions.ensure(self._store, at):
                _LOG.info("a partition was made", extra={"partition": name})
        return False

    async def measure_lag(self) -> bool:
        metrics.FLUSH_LAG.set(await self.flusher.lag_s())
        metrics.CYCLES_OVERDUE.set(await self._cycles.overdue_s())
        return False
