"""Journal entries compared with the ledger in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg

from gateway.ledger.journal import Entry
from gateway.store.postgres import Store


def storable(value: str) -> str:
    """PostgreSQL stores no NUL in a text."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")


def ledger_values(entry: Entry) -> tuple[str, int, int, str, str, int, int, int, int]:
    """What of an entry stands in `ledger_entries`, in the order of the statements flush.ledger and flush.recorded."""
    return (
        entry.wallet_id,
        entry.seq,
        entry.at_ms * 1000,
        entry.kind,
        storable(entry.reference),
        entry.cycle_delta,
        entry.bundle_delta,
        entry.prepaid_delta,
        entry.overage_delta,
    )


async def differing(store: Store, connection: asyncpg.Connection, entries: Sequence[Entry]) -> list[Entry]:
    """Those of `entries` that the ledger does not hold, or holds with another content."""
    if not entries:
        return []
    keys = zip(*((entry.wallet_id, entry.seq) for entry in entries), strict=True)
    rows = await connection.fetch(store.sql("flush.recorded"), *keys)
    known = {(row["wallet_id"], row["seq"]): tuple(row) for row in rows}
    return [entry for entry in entries if known.get((entry.wallet_id, entry.seq)) != ledger_values(entry)]
