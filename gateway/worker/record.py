"""What one batch of journal entries writes to PostgreSQL, inside the flusher's transaction.

Money first: the ledger and the wallets are written for every entry. Then the request rows, for what was really
inserted. A row that PostgreSQL refuses (a number beyond bigint, a NUL in a name) is found by halving the batch, each
half in a savepoint, and kept in `flush_rejects`: one bad row costs a few round trips and never blocks a journal.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from gateway.billing import outbox
from gateway.billing.recorded import differing, ledger_values, storable
from gateway.ledger import turn as turns
from gateway.ledger.journal import Entry
from gateway.store.postgres import Store
from gateway.worker import metrics
from gateway.worker.charged import (
    CHARGING_KINDS,
    Charged,
    HourKey,
    Key,
    Sums,
    add_sums,
    charged,
    columns,
    fold,
    hour_key,
)

_LOG = logging.getLogger("obol.flusher")

# What a value can do wrong, as opposed to the server: its class 22 and 23, and the driver's own checks.
_BAD_VALUES = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, OverflowError, UnicodeError)

Rejection = tuple[Entry, str]


def alarm(kind: str, text: str, **fields: Any) -> None:
    """Count and log something that must never happen. `kind` is the metric's label."""
    metrics.FLUSH_ALARMS.labels(kind).inc()
    _LOG.error(text, extra={"alarm": kind, **fields})


def _moves(entry: Entry) -> bool:
    return bool(entry.cycle_delta or entry.bundle_delta or entry.prepaid_delta or entry.overage_delta)


class Recorder:
    """Writes batches of one shard. Not for use by two transactions at once."""

    def __init__(self, store: Store, connection: asyncpg.Connection, shard: int) -> None:
        self._store = store
        self._connection = connection
        self._shard = shard
        self._rejections: list[Rejection] = []

    async def record(self, entries: Sequence[Entry]) -> int:
        """Write `entries`, in order; return how many the ledger did not hold before."""
        fresh = await self._ledger(entries)
        await self._wallets(fresh)
        await self._meters(fresh)
        await self._spending(fresh)
        await self._applied("credits", [entry for entry in fresh if entry.kind == "credit"])
        await self._applied("turns", [entry for entry in fresh if entry.kind == "turn"])
        await self._charge([entry for entry in fresh if entry.kind in CHARGING_KINDS])
        await self._keep_rejections()
        # Last: whoever else tells of these customers waits for the end of this transaction.
        await outbox.tell_balances(self._connection, sorted({entry.wallet_id for entry in fresh if _moves(entry)}))
        return len(fresh)

    async def differing(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of `entries` that the ledger does not hold, or holds with another content."""
        return await differing(self._store, self._connection, entries)

    async def _ledger(self, entries: Sequence[Entry]) -> list[Entry]:
        values = zip(*((*ledger_values(entry), entry.position, entry.units) for entry in entries), strict=True)
        rows = await self._fetch("ledger", *values)
        inserted = {(row["wallet_id"], row["seq"]) for row in rows}
        fresh: list[Entry] = []
        known: list[Entry] = []
        for entry in entries:
            key = (entry.wallet_id, entry.seq)
            (fresh if key in inserted else known).append(entry)
            inserted.discard(key)
        for entry in await self.differing(known):
            alarm(
                "conflict",
                "the ledger holds another entry under this number of the wallet; it is kept",
                shard=self._shard,
                number=entry.number,
                wallet_id=entry.wallet_id,
                seq=entry.seq,
            )
            self._reject(entry, "the ledger holds another entry under this wallet and seq")
        return fresh

    async def _wallets(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        first_seq: dict[str, int] = {}
        totals: dict[str, tuple[int, ...]] = {}
        for entry in entries:
            first_seq.setdefault(entry.wallet_id, entry.seq)
            seq, number, *sums = totals.get(entry.wallet_id, (0, 0, 0, 0, 0, 0))
            deltas = (entry.cycle_delta, entry.bundle_delta, entry.prepaid_delta, entry.overage_delta)
            latest = (max(seq, entry.seq), max(number, entry.number))
            totals[entry.wallet_id] = (*latest, *map(sum, zip(sums, deltas, strict=True)))
        values = zip(*((wallet_id, *total) for wallet_id, total in totals.items()), strict=True)
        before = {row["wallet_id"]: row["seq_before"] for row in await self._fetch("wallets", *values)}
        for wallet_id, seq in first_seq.items():
            self._check_wallet(wallet_id, seq, before.get(wallet_id))

    def _check_wallet(self, wallet_id: str, seq: int, seq_before: int | None) -> None:
        place = {"shard": self._shard, "wallet_id": wallet_id, "seq": seq}
        if seq_before is None:
            alarm("wallet_unknown", "an entry of a wallet that has no row; the ledger has it", **place)
        elif seq != seq_before + 1:
            alarm("wallet_gap", "the entries of a wallet do not follow each other", seq_before=seq_before, **place)

    async def _meters(self, entries: Sequence[Entry]) -> None:
        units: dict[tuple[str, str], int] = {}
        reset: set[str] = set()
        for entry in entries:
            if entry.kind == "turn" and turns.decode(entry.body).reset_meters:
                reset.add(entry.wallet_id)
                units = {key: used for key, used in units.items() if key[0] != entry.wallet_id}
            elif entry.meter_id and entry.units:
                key = (entry.wallet_id, entry.meter_id)
                units[key] = units.get(key, 0) + entry.units
        if reset:
            await self._connection.execute(self._store.sql("flush.reset_meters"), sorted(reset))
        if units:
            values = zip(*((*key, advance) for key, advance in units.items()), strict=True)
            await self._connection.execute(self._store.sql("flush.meters"), *values)

    async def _spending(self, entries: Sequence[Entry]) -> None:
        days: dict[tuple[str, int], tuple[int, int, int]] = {}
        for entry in entries:
            if entry.spend_key_id:
                key = (entry.spend_key_id, entry.spent_day)
                nano, requests, at_ms = days.get(key, (0, 0, 0))
                nano, requests = nano + entry.spent_nano, requests + entry.spent_requests
                days[key] = (nano, requests, max(at_ms, entry.at_ms))
        if days:
            values = zip(*((*key, *sums) for key, sums in days.items()), strict=True)
            await self._connection.execute(self._store.sql("flush.spend_days"), *values)

    async def _applied(self, name: str, entries: Sequence[Entry]) -> None:
        """Confirm what was owed: grants (`credits`) or `turns`."""
        if entries:
            values = zip(*((entry.reference, entry.at_ms * 1000) for entry in entries), strict=True)
            await self._connection.execute(self._store.sql(f"flush.{name}"), *values)

    async def _charge(self, entries: Sequence[Entry]) -> None:
        readable = []
        for entry in entries:
            try:
                readable.append(charged(entry))
            except ValueError as error:
                self._reject(entry, f"the body is no request row: {error}")
        folded, repeated = fold(readable)
        for each in repeated:
            self._reject_repeated(each)
        await self._isolate(list(folded.values()))

    async def _isolate(self, rows: list[Charged]) -> None:
        """Insert `rows`, all but those that PostgreSQL refuses."""
        if not rows:
            return
        rejections_before = len(self._rejections)
        try:
            async with self._connection.transaction():
                await self._requests(rows)
        except _BAD_VALUES as error:
            del self._rejections[rejections_before:]
            if len(rows) == 1:
                self._reject(rows[0].entry, f"PostgreSQL refuses the row: {error}")
                return
            middle = len(rows) // 2
            await self._isolate(rows[:middle])
            await self._isolate(rows[middle:])

    async def _requests(self, rows: list[Charged]) -> None:
        values = zip(*((*each.key, each.created_us, each.row.fingerprint) for each in rows), strict=True)
        new = {(row["merchant_id"], row["request_id"]) for row in await self._fetch("index", *values)}
        late = [each for each in rows if each.key not in new and each.entry.kind == "late"]
        hours: dict[HourKey, Sums] = {}
        earlier = await self._take([each.key for each in late], hours)
        written = [each for each in rows if each.key in new]
        for each in rows:
            if each.key in earlier:
                written.append(each.after(*earlier[each.key]))
            elif each.key not in new:
                self._reject_repeated(each)
        if written:
            await self._connection.execute(self._store.sql("flush.requests"), *zip(*map(columns, written), strict=True))
        for each in written:
            add_sums(hours, each.hour_key, each.sums)
        await self._add_hours(hours)

    async def _take(self, keys: list[Key], hours: dict[HourKey, Sums]) -> dict[Key, tuple[int, int]]:
        """Remove the rows of `keys` and their part of `hours`. Return charge and creation time of each."""
        if not keys:
            return {}
        taken = {}
        for row in await self._fetch("take_requests", *zip(*keys, strict=True)):
            key = hour_key(row["merchant_id"], row["created_us"], row["connection_id"], row["meter_id"])
            figures = (1, row["tokens"], row["cost_nano"], row["fee_nano"], row["charge_nano"])
            add_sums(hours, key, [-figure for figure in figures])
            taken[row["merchant_id"], row["request_id"]] = (row["charge_nano"], row["created_us"])
        return taken

    async def _add_hours(self, hours: dict[HourKey, Sums]) -> None:
        rows = [(*key, *sums) for key, sums in sorted(hours.items())]
        if rows:
            await self._connection.execute(self._store.sql("flush.hourly"), *zip(*rows, strict=True))

    def _reject_repeated(self, each: Charged) -> None:
        """A second debit under one request id: the scripts' promise is broken, so the money is recorded and told."""
        alarm(
            "duplicate_request",
            "a request was debited twice",
            shard=self._shard,
            number=each.entry.number,
            request_id=each.row.request_id,
            charge_nano=each.charge_nano,
        )
        self._reject(each.entry, "this request has a row already")

    def _reject(self, entry: Entry, reason: str) -> None:
        self._rejections.append((entry, reason))

    async def _keep_rejections(self) -> None:
        if not self._rejections:
            return
        rows = [(self._shard, e.number, msgspec.json.encode(e), storable(reason)) for e, reason in self._rejections]
        await self._connection.execute(self._store.sql("flush.rejects"), *zip(*rows, strict=True))
        metrics.FLUSH_REJECTS.inc(len(rows))
        for entry, reason in self._rejections:
            place = {"shard": self._shard, "number": entry.number, "wallet_id": entry.wallet_id}
            _LOG.error("an entry was set aside in flush_rejects", extra={**place, "reason": reason})

    async def _fetch(self, name: str, *columns: Sequence[Any]) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._connection.fetch(self._store.sql(f"flush.{name}"), *columns)
        return rows
