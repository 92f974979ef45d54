"""Whether Redis still has everything that PostgreSQL has recorded; and if not, what must not be used until it has.

A Redis server that a process has not used before is let into use here (`Connection(on_new_server=...)`). For every
shard its journal counter is compared with the cursor of what was recorded, which takes milliseconds. Where it is
behind, or its journal holds other entries under recorded numbers, the server has come back in an older state: the
wallets with entries that it lost are taken out of use (calls for them answer 503 until they are restored:
billing/restore.py), the counter is raised so that no number is given out twice, and then the server is in use. The
other wallets notice nothing.

All of it happens under the locks of the cursors: no batch of an earlier server can be committed in between, and one
process does it for all. PostgreSQL away: nobody can tell, and the server is not used until it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import asyncpg

from gateway.billing.recorded import differing
from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.journal import Entry, Journal
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Recovery
from gateway.settings import Settings
from gateway.store.postgres import Store

LOG = logging.getLogger("obol.continuity")
WALLETS_A_PAGE = 1_000
LOCK_TIMEOUT_MS = 10_000
HEALABLE = frozenset({"cursor_ahead", "rewound"})
"""Why a flusher stops at a shard (worker/flusher.py) although the server was accepted: it lost something since."""


class Loss(NamedTuple):
    """What a shard lacks: entries that are recorded, and wallets that were in use in an older state."""

    shard: int
    entries: int
    wallets: int


def guarded(settings: Settings, store: Store, lost: Callable[[int], None]) -> tuple[Connection, Continuity]:
    """A connection, to be run, and what lets its servers into use."""
    continuity = Continuity(store, Keys(), shards=settings.ledger_shards, lost=lost)
    connection = Connection(
        settings.redis_url,
        scripts.load(),
        timeout_ms=settings.redis_timeout_ms,
        pending_max=settings.redis_pending_commands_max,
        on_new_server=lambda run_id: continuity.accept(connection, run_id),
    )
    return connection, continuity


class Continuity:
    """Compares one installation's Redis with its record. `lost` counts lost journal entries, as a metric does."""

    def __init__(self, store: Store, keys: Keys, *, shards: int, lost: Callable[[int], None]) -> None:
        self._store = store
        self._keys = keys
        self._shards = shards
        self._lost = lost
        self.refused = ""
        """Why the server was not let into use the last time; "" once it is."""

    async def accept(self, connection: Connection, run_id: str) -> None:
        """Let the server behind `connection` into use. Raise ObolError `store_unavailable` and others where it cannot
        be told whether it may be used; it is to be tried again."""
        try:
            server = await self._store.row("continuity.server", *connection.server.identity)
            if server is None or not run_id or not server["in_use"]:
                await self._store.execute("flush.create_cursors", self._shards)
                await self.reconcile(connection)
        except Exception as error:
            self.refused = str(error) or type(error).__name__
            raise
        self.refused = ""

    async def heal(self, connection: Connection, stopped: Mapping[int, str]) -> list[Loss]:
        """What a flusher found wrong with the shards it stopped at: look again, as at a new server."""
        shards = [shard for shard, kind in stopped.items() if kind in HEALABLE]
        if "superseded" in stopped.values():
            server = await self._store.row("continuity.server", *connection.server.identity)
            if server is not None and not server["known"]:  # PostgreSQL is older than the acceptance of this server
                return await self.reconcile(connection)
        return await self.reconcile(connection, shards) if shards else []

    async def reconcile(self, connection: Connection, shards: Collection[int] | None = None) -> list[Loss]:
        """Compare (all of) the shards, take what is behind out of use, and record that this server is in use."""
        async with self._store.transaction() as db:
            await db.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
            rows = await db.fetch(self._store.sql("continuity.lock_cursors"), shards and list(shards))
            check = _Check(self._store, db, Journal(connection, self._keys), Recovery(connection, self._keys))
            found = await check.shards({row["shard"]: row["last_id"] for row in rows})
            await self._record(db, connection.server.identity, found)
        self._tell(connection.server.run_id, found)
        return found

    async def _record(self, db: asyncpg.Connection, identity: tuple[str, str], found: list[Loss]) -> None:
        server = await db.fetchrow(self._store.sql("continuity.server"), *identity)
        if found or not server["in_use"]:
            lost, marked = sum(loss.entries for loss in found), sum(loss.wallets for loss in found)
            await db.execute(self._store.sql("continuity.accept_server"), *identity, lost, marked)

    def _tell(self, run_id: str, found: list[Loss]) -> None:
        for loss in found:
            LOG.error(
                "Redis has less than PostgreSQL has recorded: wallets are restored before they are used again",
                extra={"run_id": run_id, "shard": loss.shard, "entries": loss.entries, "wallets": loss.wallets},
            )
            self._lost(loss.entries)
        if not found:
            LOG.info("Redis has all that is recorded", extra={"run_id": run_id})


class _Check:
    """The comparison, within one transaction that holds the locks of the cursors."""

    def __init__(self, store: Store, db: asyncpg.Connection, journal: Journal, recovery: Recovery) -> None:
        self._store = store
        self._db = db
        self._journal = journal
        self._recovery = recovery

    async def shards(self, cursors: Mapping[int, int]) -> list[Loss]:
        last = await asyncio.gather(*(self._journal.last_number(shard) for shard in cursors))
        first = await asyncio.gather(*(self._journal.first_number(shard) for shard in cursors))
        found = []
        for (shard, cursor), last_number, first_number in zip(cursors.items(), last, first, strict=True):
            if last_number < cursor or (first_number is not None and first_number <= cursor):
                found.append(await self._shard(shard, cursor, last_number))
        return [loss for loss in found if loss is not None]

    async def _shard(self, shard: int, cursor: int, last_number: int) -> Loss | None:
        strangers = await self._strangers(shard, cursor)
        seen = min(last_number, strangers[0].number - 1) if strangers else last_number
        if seen >= cursor:
            return None
        # Where numbers were given out twice, a wallet's sequence number does not show either that it lacks nothing.
        marked = await self._mark_behind(shard, seen, whatever=bool(strangers))
        if strangers:
            wallets = {entry.wallet_id: entry.seq for entry in strangers}
            marked += await self._recovery.mark(shard, list(wallets.items()), whatever=True)
        # The counter last: from then on nothing shows any more that something was lost.
        await self._recovery.sweep_behind(shard, "")
        await self._recovery.advance(shard, max(cursor, await self._journal.top_number(shard)))
        return Loss(shard, cursor - seen, marked)

    async def _strangers(self, shard: int, cursor: int) -> list[Entry]:
        """Entries under recorded numbers that are not what was recorded: the counter had gone back and was used."""
        found: list[Entry] = []
        async for page in self._journal.waiting(shard):
            recorded = [entry for entry in page if entry.number <= cursor]
            found += await differing(self._store, self._db, recorded)
            if len(recorded) < len(page):
                break
        return found

    async def _mark_behind(self, shard: int, seen: int, *, whatever: bool) -> int:
        marked, behind = 0, ""
        while True:
            sql = self._store.sql("continuity.behind")
            rows = await self._db.fetch(sql, shard, seen, behind, WALLETS_A_PAGE)
            if not rows:
                return marked
            wallets = [(row["wallet_id"], row["last_seq"]) for row in rows]
            marked += await self._recovery.mark(shard, wallets, whatever=whatever)
            behind = rows[-1]["wallet_id"]
