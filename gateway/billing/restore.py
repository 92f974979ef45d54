"""Wallets that Redis lost, or has in an older state, restored from what PostgreSQL has recorded.

A batch of a shard's wallets is restored under the lock of the shard's cursor: nothing is recorded meanwhile, and
nothing is journalled for these wallets, because they are out of use. How their latest calls ended is told first - a
settle sent again must find it, and holds that came back with the older state end - then each wallet is put into use in
one step: PostgreSQL's sums, and upon them the journal entries that it does not have yet. So its balance is never above
what PostgreSQL says. Killed anywhere, the next round does the same again; the same where the lock is lost on the way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple, TypeVar

import asyncpg
import hiredis
import msgspec

from gateway.billing.shard_view import ShardView
from gateway.errors import ObolError
from gateway.ledger.connection import Connection
from gateway.ledger.journal import Entry, Journal
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Base, Ending, Recovery, Restored
from gateway.ledger.wallets import Balance, WalletRef
from gateway.store.postgres import Store

LOG = logging.getLogger("obol.restore")
WALLETS_A_BATCH = 200
ENDINGS_A_PAGE = 2_000
T = TypeVar("T")
_SETTLED_KINDS = frozenset({"call", "report", "late"})
_CREDIT_KINDS = frozenset({"credit", "turn"})


class Outcome(msgspec.Struct, frozen=True):
    """What became of one wallet. `before`: as Redis showed it, None where it did not hold it."""

    ref: WalletRef
    before: Balance | None
    base: Base
    restored: Restored


class NotRestored(Exception):
    """A script fails on this wallet, which stays out of use. `__cause__`: the server's reply."""

    def __init__(self, ref: WalletRef, reply: hiredis.ReplyError) -> None:
        super().__init__(f"the wallet {ref.wallet_id} could not be restored: {reply}")
        self.ref = ref
        self.__cause__ = reply


class Batch(NamedTuple):
    """What became of the wallets of one shard that were not in use."""

    outcomes: list[Outcome]
    failed: list[NotRestored]


class Round(NamedTuple):
    """Sums over shards. `looked_at`: wallets, without those that failed. `errors`: of wallets and of whole shards."""

    looked_at: int
    restored: int
    errors: list[Exception]


class Restorer:
    """Restores what is queued, and what a sweep through all wallets of a shard finds. Any number may run."""

    def __init__(
        self, store: Store, connection: Connection, keys: Keys, *, shards: int, call_ttl_s: int, report_ttl_s: int
    ) -> None:
        """`call_ttl_s`, `report_ttl_s`: how long Redis remembers how gateway calls, and all else, ended."""
        self._store = store
        self._keys = keys
        self._shards = range(shards)
        self._call_ttl_s = call_ttl_s
        self._report_ttl_s = report_ttl_s
        self._journal = Journal(connection, keys)
        self.recovery = Recovery(connection, keys)

    async def waiting(self) -> tuple[int, int]:
        """Wallets queued, and shards that are swept."""
        pending = (await self.recovery.pending(self._shards)).values()
        return sum(queued for queued, _ in pending), sum(sweep is not None for _, sweep in pending)

    async def restore_once(self) -> Round:
        """At most a batch of each shard's queue and a page of its sweep. Neither a wallet nor a shard that fails keeps
        the others from it: `errors` has NotRestored for wallets, and BehindRecord, LedgerAway, ObolError and others for
        shards. Raise LedgerAway if Redis does not answer."""
        looked_at, restored, errors = 0, 0, list[Exception]()
        for shard, (queued, sweep) in (await self.recovery.pending(self._shards)).items():
            try:
                done = await self._restore_shard(shard, queued, sweep)
            except Exception as error:
                errors.append(error)
                continue
            looked_at, restored = looked_at + done.looked_at, restored + done.restored
            errors += done.errors
        return Round(looked_at, restored, errors)

    async def _restore_shard(self, shard: int, queued: int, sweep: str | None) -> Round:
        """The queue first; the sweep goes on once the queue holds nothing but wallets that cannot be restored."""
        wallet_ids = await self.recovery.queued(shard, WALLETS_A_BATCH) if queued else []
        batch = await self.restore(shard, wallet_ids) if wallet_ids else Batch([], [])
        if sweep is not None and len(batch.failed) == len(wallet_ids):
            page = await self._swept(shard, sweep)
            swept = await self.restore(shard, page, swept_behind=sweep)
            wallet_ids = wallet_ids + page
            batch = Batch(batch.outcomes + swept.outcomes, batch.failed + swept.failed)
        _tell(shard, batch.outcomes)
        return Round(len(wallet_ids) - len(batch.failed), len(batch.outcomes), list(batch.failed))

    async def _swept(self, shard: int, behind: str) -> list[str]:
        """A page of the shard's wallets; those that are behind are taken out of use."""
        rows = await self._store.rows("continuity.page", shard, behind, WALLETS_A_BATCH)
        if rows:
            await self.recovery.mark(shard, [(row["wallet_id"], row["last_seq"]) for row in rows])
        return [row["wallet_id"] for row in rows]

    @asynccontextmanager
    async def view(self, shard: int, *, even_behind: bool = False) -> AsyncIterator[ShardView]:
        async with self._store.transaction() as db:
            view = ShardView(self._store, db, self._journal, shard)
            await view.lock(even_behind=even_behind)
            yield view

    async def restore(self, shard: int, wallet_ids: Sequence[str], *, swept_behind: str | None = None) -> Batch:
        """Restore those of `wallet_ids` that are not in use. `swept_behind`: they are the page of a sweep behind it."""
        async with self.view(shard) as view:
            bases = await view.bases(wallet_ids)
            states = dict(zip(bases, await self.recovery.states(list(bases)), strict=True))
            await self._unqueue(shard, wallet_ids, states)
            due = {ref: state for ref, state in states.items() if state is None or not state.status}
            batch = await self._restore(shard, view, due, bases) if due else Batch([], [])
            if batch.failed:  # the sweep does not come by again
                await self.recovery.queue(shard, [failure.ref.wallet_id for failure in batch.failed])
            # Under the lock, too: whoever begins a new sweep has it to itself.
            if swept_behind is not None:
                await self._move_sweep(shard, swept_behind, wallet_ids)
        return batch

    async def _restore(
        self, shard: int, view: ShardView, due: Mapping[WalletRef, Balance | None], bases: Mapping[WalletRef, Base]
    ) -> Batch:
        entries = await view.unrecorded({ref.wallet_id for ref in due})
        shared = {
            ref: _shared_seq(state, bases[ref], entries.get(ref.wallet_id, ()), view.cursor)
            for ref, state in due.items()
        }
        failed = await self._tell_endings(shard, view, shared)
        told = [ref for ref in due if ref not in failed]
        repeated = await view.repeated([entry for each in entries.values() for entry in each])
        await self.recovery.drop(shard, repeated)
        keys = await view.fetch("spend_keys", [ref.wallet_id for ref in told])
        await self.recovery.close_keys(shard, [row["spend_key_id"] for row in keys])
        holds = await self.recovery.open_holds(shard)
        restoring = (
            self.recovery.restore(
                ref,
                bases[ref],
                recorded_number=view.cursor,
                numbers=_numbers(entries.get(ref.wallet_id, ()), repeated),
                holds=holds.get(self._keys.wallet(shard, ref.wallet_id), ()),
            )
            for ref in told
        )
        restored, failing = _apart(told, await asyncio.gather(*restoring, return_exceptions=True))
        if any(result.kind == "stale" for result in restored.values()):
            raise ObolError("store_unavailable", "the lock that wallets are restored under was lost", retry_after_s=1)
        outcomes = [Outcome(ref, due[ref], bases[ref], result) for ref, result in restored.items()]
        return Batch(outcomes, [NotRestored(ref, reply) for ref, reply in (failed | failing).items()])

    async def _tell_endings(
        self, shard: int, view: ShardView, shared: Mapping[WalletRef, int]
    ) -> dict[WalletRef, hiredis.ReplyError]:
        """How what Redis lost of the wallets had ended: all that is recorded behind the sequence numbers given.
        Return the wallets that this fails on."""
        failed: dict[WalletRef, hiredis.ReplyError] = {}
        refs = {ref.wallet_id: ref for ref in shared}
        seqs = list(shared.values())
        behind: tuple[str, int] = ("", 0)
        while rows := await view.fetch("endings", list(refs), seqs, *behind, self._report_ttl_s, ENDINGS_A_PAGE):
            endings: dict[str, list[Ending]] = defaultdict(list)
            credits_s: dict[str, int] = {}
            for row in rows:
                left_s = self._left_s(row)
                if row["kind"] not in _CREDIT_KINDS:
                    endings[row["wallet_id"]].append(_ending(row, left_s))
                elif left_s:
                    credits_s[row["reference"]] = left_s
            await self.recovery.tell_credited(shard, credits_s, view.cursor)
            told = (self.recovery.tell_ended(refs[name], each, view.cursor) for name, each in endings.items())
            replies = await asyncio.gather(*told, return_exceptions=True)
            failed |= _apart([refs[name] for name in endings], replies)[1]
            behind = rows[-1]["wallet_id"], rows[-1]["seq"]
        return failed

    def _left_s(self, row: asyncpg.Record) -> int:
        """How long Redis would still remember this."""
        ttl_s = self._call_ttl_s if row["kind"] in ("call", "late") else self._report_ttl_s
        return max(0, int(ttl_s - row["age_s"]))

    async def _unqueue(self, shard: int, wallet_ids: Sequence[str], states: Mapping[WalletRef, Balance | None]) -> None:
        """Those that need nothing, and those that PostgreSQL does not know: nothing can be made of them."""
        needless = [ref.wallet_id for ref, state in states.items() if state is not None and state.status]
        unknown = sorted(set(wallet_ids) - {ref.wallet_id for ref in states})
        if unknown:
            LOG.error("wallets to restore that are not recorded", extra={"shard": shard, "wallets": unknown})
        if needless or unknown:
            await self.recovery.unqueue(shard, needless + unknown)

    async def _move_sweep(self, shard: int, behind: str, wallet_ids: Sequence[str]) -> None:
        _, sweep = (await self.recovery.pending([shard])).get(shard, (0, None))
        if sweep == behind:
            await self.recovery.sweep_behind(shard, wallet_ids[-1] if wallet_ids else None)


def _apart(
    refs: Iterable[WalletRef], replies: Iterable[T | BaseException]
) -> tuple[dict[WalletRef, T], dict[WalletRef, hiredis.ReplyError]]:
    """Answers, and failures of a script. Raise what is no matter of one wallet."""
    answers: dict[WalletRef, T] = {}
    failed: dict[WalletRef, hiredis.ReplyError] = {}
    for ref, reply in zip(refs, replies, strict=True):
        if isinstance(reply, hiredis.ReplyError):
            failed[ref] = reply
        elif isinstance(reply, BaseException):
            raise reply
        else:
            answers[ref] = reply
    return answers, failed


def _shared_seq(state: Balance | None, base: Base, entries: Iterable[Entry], cursor: int) -> int:
    """Up to which sequence number Redis and PostgreSQL have the same entries; -1 where Redis does not hold the wallet.

    Entries whose number or place PostgreSQL has for others are those of another state of Redis: what stands there in
    PostgreSQL, Redis has not.
    """
    if state is None:
        return -1
    others = (entry.seq - 1 for entry in entries if entry.number <= cursor or entry.seq <= base.seq)
    return min((state.seq, *others))


def _numbers(entries: Iterable[Entry], without: set[int]) -> list[int]:
    return [entry.number for entry in entries if entry.number not in without]


def _ending(row: asyncpg.Record, left_s: int) -> Ending:
    how: Literal["settled", "expired"] = "settled" if row["kind"] in _SETTLED_KINDS else "expired"
    fee_nano = row["fee_nano"] or 0
    return Ending(row["reference"], how, row["amount_nano"], fee_nano, row["position"], row["units"], left_s)


def _tell(shard: int, outcomes: Sequence[Outcome]) -> None:
    if not outcomes:
        return
    LOG.warning(
        "wallets were restored",
        extra={
            "shard": shard,
            "wallets": len(outcomes),
            "absent": sum(outcome.before is None for outcome in outcomes),
            "entries_rewritten": sum(outcome.restored.rewritten for outcome in outcomes),
            "first": outcomes[0].ref.wallet_id,
        },
    )
