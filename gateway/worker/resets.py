"""Resets the tier counters of customers without a subscription, monthly since their creation (`turns` of kind reset).

Who has a subscription has its meters reset by the turns of that, and is only looked at again a month later. So is who
has used no meter: a reset is written where Redis or the record has counters at that moment. Redis alone may have lost
them, and the record lacks what is not flushed yet.
"""

from __future__ import annotations

import asyncio
from datetime import datetime

import asyncpg

from gateway.billing import turns
from gateway.billing.turns import NewTurn, Turns
from gateway.core.cycle import boundary, cycle_at
from gateway.ledger.recovery import Recovery
from gateway.ledger.turn import Turn
from gateway.ledger.wallets import WalletRef
from gateway.store.postgres import Store
from gateway.worker import metrics

CONNECTIONS_A_BATCH = 200


class Resets:
    """Any number may run: a connection that another one looks at is left to it."""

    def __init__(self, store: Store, turns: Turns, recovery: Recovery) -> None:
        self._store = store
        self._turns = turns
        self._recovery = recovery

    async def reset_once(self) -> bool:
        """Look at a batch that is due in real time, and at one that is due by clocks that are ahead. Return whether
        there may be more. May raise LedgerAway."""
        seen = await self._reset_batch("resets_due")
        return await self._reset_batch("resets_due_by_clock") + seen > 0

    async def _reset_batch(self, name: str) -> int:
        """Return how many connections were looked at."""
        async with self._store.transaction() as db:
            rows = await db.fetch(self._store.sql(f"subscriptions.{name}"), CONNECTIONS_A_BATCH)
            if not rows:
                return 0
            alone = [row for row in rows if not row["subscribed"]]
            units = await asyncio.gather(*(self._recovery.units(_ref(row)) for row in alone))
            made = [_reset(row) for row, live in zip(alone, units, strict=True) if live or row["used"]]
            await turns.insert(db, self._store, made)
            nexts = [(row["connection_id"], _boundary(row, 1)) for row in rows]
            await db.execute(self._store.sql("subscriptions.move_resets"), *map(list, zip(*nexts, strict=True)))
        metrics.TURNS.labels("reset").inc(len(made))
        await self._turns.apply_to([turn.wallet_id for turn in made])
        return len(rows)


def _reset(row: asyncpg.Record) -> NewTurn:
    return NewTurn(
        merchant_id=row["merchant_id"],
        wallet_id=row["wallet_id"],
        subscription_id=None,
        number=cycle_at(row["created_at"], "month", row["merchant_now"]),
        due_at=_boundary(row, 0),
        kind="reset",
        turn=Turn(keep_cycle=True, keep_bundle=True, credit_nano=0, reset_meters=True),
        limit_nano=row["overage_limit_nano"],
    )


def _boundary(row: asyncpg.Record, months: int) -> datetime:
    """The latest boundary of the customer's months, or one `months` later."""
    number = cycle_at(row["created_at"], "month", row["merchant_now"])
    return boundary(row["created_at"], "month", number + months)


def _ref(row: asyncpg.Record) -> WalletRef:
    return WalletRef(row["wallet_id"], row["shard"], row["merchant_id"])
