"""Turns the cycles of subscriptions when they have ended: exactly once each, by the merchant's clock, late or early.

A batch is one transaction: lock what is due (and skip what another worker has locked), move each subscription through
all the cycles that have ended, write their turns; then apply the turns in Redis. Killed in between, the turns are
pending and `worker/grants.py` applies them. Missed cycles are turned one after the other, each with its own due time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import asyncpg

from gateway.billing import subscriptions
from gateway.billing.standing import Standing, read_standing, through
from gateway.billing.turns import NewTurn, Turns
from gateway.store.postgres import Store
from gateway.worker import metrics

SUBSCRIPTIONS_A_BATCH = 200
TURNS_AT_ONCE_MAX = 12
"""Of one subscription in one batch; more missed cycles are turned in the next."""


class Cycles:
    """Any number may run. `announce` tells every process that something of a merchant changed (`Changes.announce`)."""

    def __init__(
        self,
        store: Store,
        turns: Turns,
        announce: Callable[[str], Awaitable[None]],
        *,
        overage_cap_nano: int,
    ) -> None:
        self._store = store
        self._turns = turns
        self._announce = announce
        self._cap_nano = overage_cap_nano

    async def turn_once(self) -> bool:
        """Turn at most a batch that is due in real time, and one that is due by clocks that are ahead. Return whether
        there may be more: further ones, or further cycles of these."""
        moved = await self._turn_batch("due")
        return await self._turn_batch("due_by_clock") + moved > 0

    async def overdue_s(self) -> float:
        """How long, in real time, the cycle that ended first has waited for its turn."""
        row = await self._store.row("subscriptions.overdue")
        return 0.0 if row is None else float(row["overdue_s"])

    async def _turn_batch(self, name: str) -> int:
        """Return how many subscriptions were moved."""
        async with self._store.transaction() as db:
            due = await db.fetch(self._store.sql(f"subscriptions.{name}"), SUBSCRIPTIONS_A_BATCH)
            if not due:
                return 0
            rows = await db.fetch(self._store.sql("subscriptions.locked"), [each["subscription_id"] for each in due])
            moved = [self._moved(row) for row in rows]
            await subscriptions.save(db, self._store, moved)
        made = [turn for _, turns in moved for turn in turns]
        for kind, number in Counter(turn.kind for turn in made).items():
            metrics.TURNS.labels(kind).inc(number)
        for merchant_id in {turn.merchant_id for turn in made if turn.kind in ("downgrade", "end")}:
            await self._announce(merchant_id)
        await self._turns.apply_to([after.wallet_id for after, _ in moved])
        return len(rows)

    def _moved(self, row: asyncpg.Record) -> tuple[Standing, list[NewTurn]]:
        return through(read_standing(row), row["merchant_now"], self._cap_nano, turns_max=TURNS_AT_ONCE_MAX)
