"""A shard's wallets, their record in PostgreSQL and the journal in Redis, seen while nothing is being recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import asyncpg

from gateway.billing.recorded import differing
from gateway.ledger.journal import Entry, Journal
from gateway.ledger.recovery import Base
from gateway.ledger.wallets import WalletRef
from gateway.store.postgres import Store


class BehindRecord(Exception):
    """The shard's journal counter is below its cursor: billing/continuity.py has to look at it first."""


class ShardView:
    """Within one transaction that holds the lock of the shard's cursor; `cursor` is the highest number recorded."""

    def __init__(self, store: Store, db: asyncpg.Connection, journal: Journal, shard: int) -> None:
        self._store = store
        self._db = db
        self._journal = journal
        self._shard = shard
        self.cursor = 0

    async def lock(self, *, even_behind: bool = False) -> None:
        """Wait for a batch that is being recorded. Raise BehindRecord, unless that is no matter."""
        rows = await self.fetch("lock_cursors", [self._shard])
        self.cursor = rows[0]["last_id"] if rows else 0
        if not even_behind and await self._journal.last_number(self._shard) < self.cursor:
            raise BehindRecord(f"the journal of shard {self._shard} is behind what is recorded")

    async def bases(self, wallet_ids: Iterable[str]) -> dict[WalletRef, Base]:
        """The wallets as recorded, in the order of their ids; unknown ones are left out."""
        rows = await self.fetch("wallets", list(wallet_ids), self._shard)
        found = await self.fetch("connections", [row["wallet_id"] for row in rows])
        connections = {row["wallet_id"]: row for row in found}
        return {
            WalletRef(row["wallet_id"], self._shard, row["merchant_id"]): _base(row, connections.get(row["wallet_id"]))
            for row in rows
        }

    async def unrecorded(self, wallet_ids: set[str]) -> dict[str, list[Entry]]:
        """The entries in the journal of these wallets that the ledger does not have under their number, in order."""
        found: dict[str, list[Entry]] = defaultdict(list)
        async for page in self._journal.waiting(self._shard):
            of_wallets = [entry for entry in page if entry.wallet_id in wallet_ids]
            numbered = [entry for entry in of_wallets if entry.number <= self.cursor]
            strangers = {entry.number for entry in await differing(self._store, self._db, numbered)}
            for entry in of_wallets:
                if entry.number > self.cursor or entry.number in strangers:
                    found[entry.wallet_id].append(entry)
        return found

    async def repeated(self, entries: Sequence[Entry]) -> set[int]:
        """Numbers of those whose movement the ledger has under another number: it was made in two states of Redis."""
        asked = [(entry.wallet_id, entry.kind, entry.reference) for entry in entries]
        # Asked also where there are none: the answer shows that the lock was still held once the journal had been read.
        rows = await self.fetch("references", *([each[column] for each in asked] for column in range(3)))
        known = {(row["wallet_id"], row["kind"], row["reference"]) for row in rows}
        return {entry.number for entry in entries if (entry.wallet_id, entry.kind, entry.reference) in known}

    async def missing(self) -> tuple[int, int]:
        """First and last number that are neither recorded nor in the journal; last < first where there are none."""
        last = await self._journal.last_number(self._shard)
        first = await self._journal.first_number(self._shard)
        return self.cursor + 1, last if first is None else first - 1

    async def skip_to(self, number: int) -> None:
        """Let the record go on behind `number`, without what is missing."""
        await self._db.execute(self._store.sql("flush.move_cursor"), self._shard, number)

    async def fetch(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._db.fetch(self._store.sql(f"continuity.{name}"), *arguments)
        return rows


def _base(row: asyncpg.Record, connection: asyncpg.Record | None) -> Base:
    status = "ok"
    if connection is not None and (connection["deleted"] or connection["disabled"]):
        status = "deleted" if connection["deleted"] else "disabled"
    return Base(
        status=status,
        cycle_nano=row["cycle_nano"],
        bundle_nano=row["bundle_nano"],
        prepaid_nano=row["prepaid_nano"],
        overage_nano=row["overage_nano"],
        limit_nano=connection["overage_limit_nano"] if connection is not None else 0,
        seq=row["last_seq"],
        units=row["units"],
    )
