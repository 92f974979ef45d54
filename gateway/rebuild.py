"""`obol rebuild`: compares wallets in Redis with what PostgreSQL recorded, and restores those that Redis lost.

What Redis does not hold, holds in an older state, or has out of use is restored, as the background worker does by
itself. Where Redis has *more* than the record, or something else, PostgreSQL has lost something, as it has when it was
restored from a backup: such a wallet is left as it is, because to rebuild it would change a balance and forget what was
spent or credited since. `--accept-postgres` does that, and tells every change. Nobody can invent rows that are gone.

It may run beside traffic: wallets are compared under the lock of their shard's cursor, up to the sequence number that
Redis showed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TextIO

import asyncpg

from gateway.billing.continuity import Continuity
from gateway.billing.restore import NotRestored, Outcome, Restorer
from gateway.billing.shard_view import BehindRecord, ShardView
from gateway.core.money import format_nano
from gateway.errors import ObolError
from gateway.ledger import scripts
from gateway.ledger.connection import Connection, LedgerAway
from gateway.ledger.journal import Entry
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Base, Recovery
from gateway.ledger.wallets import Balance, WalletRef
from gateway.settings import Settings
from gateway.store.postgres import Store

WALLETS_A_PAGE = 200
_ENGINE_WAIT_S = 15.0
_POTS = ("cycle_nano", "bundle_nano", "prepaid_nano", "overage_nano")


class Wanted(NamedTuple):
    """What the command line asks for. Neither wallet nor shard: everything."""

    wallet_id: str | None = None
    shard: int | None = None
    dry_run: bool = False
    accept_postgres: bool = False


class Finding(NamedTuple):
    """What is wrong with a wallet. `lost`: Redis has lost something, so it is restored; else the record has."""

    ref: WalletRef
    lost: bool
    text: str


def main(settings: Settings, wanted: Wanted) -> int:
    """Return 0 where everything agrees or was restored, 1 where something was left, 2 where it could not run."""
    if not settings.redis_url or not settings.postgres_url:
        return _refuse("it needs OBOL_REDIS_URL and OBOL_POSTGRES_URL, or the --data-dir of a running obol up")
    try:
        return asyncio.run(rebuild(settings, wanted, sys.stdout))
    except (LedgerAway, ObolError, BehindRecord, asyncpg.PostgresError) as error:
        return _refuse(str(error))


def _refuse(reason: str) -> int:
    sys.stderr.write(f"nothing could be rebuilt: {reason}\n")
    return 2


async def rebuild(settings: Settings, wanted: Wanted, out: TextIO) -> int:
    """Compare and restore; write a line for each wallet that differs, and sums."""
    async with _engines(settings, guarded=not wanted.dry_run) as (store, connection, continuity):
        restorer = Restorer(
            store,
            connection,
            Keys(),
            shards=settings.ledger_shards,
            call_ttl_s=settings.settled_record_ttl_s,
            report_ttl_s=settings.report_record_ttl_s,
        )
        rebuilding = Rebuild(store, restorer, wanted, out)
        shards = await _shards(store, wanted, settings.ledger_shards)
        if not wanted.dry_run:
            await continuity.reconcile(connection, shards)
        for shard in shards:
            await rebuilding.shard(shard)
        return rebuilding.finish()


@asynccontextmanager
async def _engines(settings: Settings, *, guarded: bool) -> AsyncIterator[tuple[Store, Connection, Continuity]]:
    """`guarded`: a Redis that is behind is taken out of use first. Otherwise nothing is changed."""
    store = await Store.connect(settings.postgres_url, pool_max=2)
    continuity = Continuity(store, Keys(), shards=settings.ledger_shards, lost=lambda _entries: None)
    connection = Connection(
        settings.redis_url,
        scripts.load(),
        timeout_ms=settings.redis_timeout_ms,
        on_new_server=(lambda run_id: continuity.accept(connection, run_id)) if guarded else None,
    )
    keeper = asyncio.create_task(connection.run(), name="redis connection")
    try:
        await connection.wait_ready(_ENGINE_WAIT_S)
        yield store, connection, continuity
    finally:
        await connection.close()
        keeper.cancel()
        await asyncio.wait([keeper])
        await store.close()


async def _shards(store: Store, wanted: Wanted, shards: int) -> list[int]:
    """Those to look at. Raise ObolError where the wallet or the shard does not exist."""
    if wanted.wallet_id is not None:
        row = await store.row("continuity.shard_of", wanted.wallet_id)
        if row is None:
            raise ObolError("not_found", f"the wallet {wanted.wallet_id} is not recorded", param="wallet")
        return [row["shard"]]
    if wanted.shard is None:
        return list(range(shards))
    if wanted.shard >= shards:
        raise ObolError("not_found", f"there are the shards 0 to {shards - 1}", param="shard")
    return [wanted.shard]


class Rebuild:
    """One run of the command."""

    def __init__(self, store: Store, restorer: Restorer, wanted: Wanted, out: TextIO) -> None:
        self._store = store
        self._restorer = restorer
        self._wanted = wanted
        self._out = out
        self._compared = self._restored = self._left = 0

    async def shard(self, shard: int) -> None:
        behind = ""
        while wallet_ids := await self._page(shard, behind):
            async with self._restorer.view(shard, even_behind=self._wanted.dry_run) as view:
                findings = await compared(view, self._restorer.recovery, wallet_ids)
            self._compared += len(wallet_ids)
            await self._treat(shard, findings)
            behind = wallet_ids[-1]
            if self._wanted.wallet_id is not None:
                return
        await self._check_record(shard)

    async def _page(self, shard: int, behind: str) -> list[str]:
        if self._wanted.wallet_id is not None:
            return [self._wanted.wallet_id]
        rows = await self._store.rows("continuity.page", shard, behind, WALLETS_A_PAGE)
        return [row["wallet_id"] for row in rows]

    async def _treat(self, shard: int, findings: Sequence[Finding]) -> None:
        due = [finding for finding in findings if finding.lost or self._wanted.accept_postgres]
        outcomes: dict[str, Outcome | NotRestored] = {}
        if due and not self._wanted.dry_run:
            for finding in due:
                await self._restorer.recovery.mark(shard, [(finding.ref.wallet_id, 0)], whatever=True)
            restored = await self._restorer.restore(shard, [finding.ref.wallet_id for finding in due])
            outcomes.update((outcome.ref.wallet_id, outcome) for outcome in restored.outcomes)
            outcomes.update((failure.ref.wallet_id, failure) for failure in restored.failed)
        for finding in findings:
            self._tell(finding, outcomes.get(finding.ref.wallet_id), due=finding in due)

    def _tell(self, finding: Finding, outcome: Outcome | NotRestored | None, *, due: bool) -> None:
        if isinstance(outcome, NotRestored):
            self._left += 1
            what = str(outcome)
        elif outcome is not None:
            self._restored += 1
            before = "nothing" if outcome.before is None else format_nano(outcome.before.total_nano)
            recorded, held = format_nano(total_nano(outcome.base)), format_nano(outcome.restored.held_nano)
            what = f"restored: balance {before} before, {recorded} recorded, {held} held"
        elif due and not self._wanted.dry_run:
            what = "was restored by the background worker meanwhile"
        else:
            self._left += 1
            what = "would be restored" if due else "left as it is: see --accept-postgres"
        self._out.write(f"{finding.ref.wallet_id}  {finding.text}; {what}\n")

    async def _check_record(self, shard: int) -> None:
        """Journal entries that were never recorded and are not in the journal any more."""
        async with self._restorer.view(shard, even_behind=self._wanted.dry_run) as view:
            first, last = await view.missing()
            if first > last:
                return
            gap = f"shard {shard}: the journal's entries {first} to {last} were never recorded, or their record is gone"
            if self._wanted.accept_postgres and not self._wanted.dry_run:
                await view.skip_to(last)
                self._out.write(f"{gap}; the record goes on behind them\n")
                return
        self._left += 1
        self._out.write(f"{gap}; left as it is: see --accept-postgres\n")

    def finish(self) -> int:
        sums = f"{self._compared:,} wallets compared, {self._restored:,} restored, {self._left:,} differences left"
        self._out.write(sums + "\n")
        return 1 if self._left else 0


async def compared(view: ShardView, recovery: Recovery, wallet_ids: Sequence[str]) -> list[Finding]:
    """Those of the wallets that are not in Redis what the record and the journal say."""
    bases = await view.bases(wallet_ids)
    states = await recovery.states(list(bases))
    entries = await view.unrecorded({ref.wallet_id for ref in bases})
    findings = []
    for (ref, base), state in zip(bases.items(), states, strict=True):
        found = difference(base, state, entries.get(ref.wallet_id, []))
        if found is not None:
            findings.append(Finding(ref, *found))
    return findings


def difference(base: Base, state: Balance | None, waiting: Sequence[Entry]) -> tuple[bool, str] | None:
    """Whether Redis has lost something (else the record has), and what differs; None where nothing does."""
    if state is None:
        return True, "is not in Redis"
    if not state.status:
        return True, "is out of use"
    if state.seq < base.seq:
        return True, f"is behind: Redis has entry {state.seq}, {base.seq} are recorded"
    by_seq = {entry.seq: entry for entry in waiting}
    expected = [getattr(base, pot) for pot in _POTS]
    for seq in range(base.seq + 1, state.seq + 1):
        entry = by_seq.get(seq)
        if entry is None:
            return False, f"is ahead: Redis has entry {state.seq}, {base.seq} are recorded and entry {seq} is nowhere"
        deltas = (entry.cycle_delta, entry.bundle_delta, entry.prepaid_delta, entry.overage_delta)
        expected = [pot + delta for pot, delta in zip(expected, deltas, strict=True)]
    found = [getattr(state, pot) for pot in _POTS]
    if found != expected:
        shown = (" ".join(map(format_nano, pots)) for pots in (found, expected))
        return False, "differs (cycle, bundle, prepaid, overage): {} in Redis, {} recorded".format(*shown)
    return None


def total_nano(base: Base) -> int:
    return base.cycle_nano + base.bundle_nano + base.prepaid_nano - base.overage_nano
