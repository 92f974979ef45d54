"""Restores what Redis lost: where the flusher finds that a shard has gone back, and wallets that are out of use."""

from __future__ import annotations

import time

from gateway.billing.continuity import Continuity
from gateway.billing.restore import NotRestored, Restorer
from gateway.billing.shard_view import BehindRecord
from gateway.ledger.connection import Connection
from gateway.worker import metrics
from gateway.worker.flusher import Flusher
from gateway.worker.record import alarm

HEAL_PAUSE_S = 5.0
"""What a look at a stopped shard did not heal is looked at again after this."""


class Healer:
    """One round of it. Any number may run."""

    def __init__(self, connection: Connection, continuity: Continuity, restorer: Restorer, flusher: Flusher) -> None:
        self._connection = connection
        self._continuity = continuity
        self._restorer = restorer
        self._flusher = flusher
        self._healed_at_s = -HEAL_PAUSE_S

    async def heal_once(self) -> bool:
        """Return whether there is more to do at once.

        What fails keeps nothing else from being restored: raises ExceptionGroup afterwards. A wallet that fails has its
        alarm, and is raised only once there is nothing but such wallets: until then the next round need not wait.
        May raise LedgerAway, ObolError.
        """
        if self._flusher.stopped and time.monotonic() - self._healed_at_s >= HEAL_PAUSE_S:
            self._healed_at_s = time.monotonic()
            await self._continuity.heal(self._connection, self._flusher.stopped)
        looked_at, restored, errors = await self._restorer.restore_once()
        metrics.WALLETS_RESTORED.inc(restored)
        for failure in errors:
            if isinstance(failure, NotRestored):
                alarm("not_restored", str(failure), shard=failure.ref.shard, wallet=failure.ref.wallet_id)
        behind = any(isinstance(error, BehindRecord) for error in errors)
        if behind:  # noticed before the flusher did
            await self._continuity.reconcile(self._connection)
        _raise([error for error in errors if not isinstance(error, BehindRecord)], progress=behind or looked_at > 0)
        return behind or looked_at > 0


def _raise(errors: list[Exception], *, progress: bool) -> None:
    of_shards = [error for error in errors if not isinstance(error, NotRestored)]
    if of_shards or (errors and not progress):
        raise ExceptionGroup(f"{len(errors)} wallets or shards could not be restored", errors)
