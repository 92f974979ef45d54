"""What brings wallets and the counters of spend keys back that Redis lost or has in an older state: one typed method a
script, and two short lists.

A shard's set `restoring` names wallets to restore first; its key `sweep` says that every wallet has to be looked at.
Amounts are nano-dollars.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import msgspec

from gateway.ledger.answers import text
from gateway.ledger.connection import Argument, Connection
from gateway.ledger.keys import Keys
from gateway.ledger.spending import COUNTER_FIELDS, Counters, Spent, counters
from gateway.ledger.wallets import Balance, WalletRef

HOLDS_A_PAGE = 1_000


class Ending(msgspec.Struct, frozen=True):
    """How a request ended: what Redis is told again.

    `fee_nano`: the graduated part of an expiry's amount. `position` and `units`: of the meter's counter, before the
    request and by which it advanced. `ttl_s`: 0 where nobody asks any more.
    """

    request_id: str
    how: Literal["settled", "expired"]
    amount_nano: int
    fee_nano: int
    position: int
    units: int
    ttl_s: int


class Base(msgspec.Struct, frozen=True):
    """A wallet as PostgreSQL has it. `units`: used in the cycle, by meter id."""

    status: str
    cycle_nano: int
    bundle_nano: int
    prepaid_nano: int
    overage_nano: int
    limit_nano: int
    seq: int
    units: Mapping[str, int]


class Restored(msgspec.Struct, frozen=True):
    """`rewritten`: journal entries that had to be written again behind what PostgreSQL has. "stale": the base is older
    than what PostgreSQL has by now, and nothing changed."""

    kind: Literal["restored", "present", "stale"]
    seq: int = 0
    held_nano: int = 0
    rewritten: int = 0


class Recovery:
    """All may raise LedgerAway; all are safe to call again. A marked wallet is unknown to every other script."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys

    async def mark(self, shard: int, wallets: Sequence[tuple[str, int]], *, whatever: bool = False) -> int:
        """Take wallets (id, sequence number in PostgreSQL) out of use where they are behind, or `whatever` they show.
        Return how many were in use."""
        names = [self._keys.wallet(shard, wallet_id) for wallet_id, _ in wallets]
        arguments: list[Argument] = ["1" if whatever else "", *(each for wallet in wallets for each in wallet)]
        reply = await self._connection.script("mark", [self._keys.restoring(shard), *names], arguments)
        return int(reply[1])

    async def advance(self, shard: int, number: int) -> None:
        """See to it that the next journal entry gets a number above `number`."""
        await self._connection.script("advance", [self._keys.journal_counter(shard)], [number])

    async def tell_ended(self, ref: WalletRef, endings: Sequence[Ending], recorded_number: int) -> int:
        """Of a wallet out of use: write the records of `endings`, which PostgreSQL has up to this journal number, and
        end their holds. Return how many holds there were."""
        names = self._keys.of_wallet(ref.shard, ref.wallet_id, ref.merchant_id)
        keys = [names.wallet, names.holds]
        for each in endings:
            keys += names.hold_prefix + each.request_id, names.record_prefix + each.request_id
        told = ((each.how, each.amount_nano, each.fee_nano, each.position, each.units, each.ttl_s) for each in endings)
        arguments: list[Argument] = [recorded_number, *(figure for ending in told for figure in ending)]
        reply = await self._connection.script("ended", keys, arguments)
        return int(reply[1]) if reply[0] == b"told" else 0

    async def tell_credited(self, shard: int, credits_s: Mapping[str, int], recorded_number: int) -> None:
        """Remember that these credit ids were applied, each for so many seconds."""
        names = {self._keys.credit(shard, credit_id): ttl_s for credit_id, ttl_s in credits_s.items()}
        written = (self._connection.command("SET", key, recorded_number, "EX", names[key], "NX") for key in names)
        await asyncio.gather(*written)

    async def close_keys(self, shard: int, spend_key_ids: Iterable[str]) -> None:
        """Of wallets out of use: the counters of these spend keys are to be opened from the record."""
        if keys := [self._keys.spend(shard, each) for each in spend_key_ids]:
            await self._connection.command("DEL", *keys)

    async def open_key(
        self,
        ref: WalletRef,
        spend_key_id: str,
        cycles: str,
        spent: Sequence[Spent],
        *,
        number: int,
        used_ms: int,
        holds: Sequence[str] = (),
    ) -> str:
        """Make the counters of a spend key: `spent` in day, week, month (`cycles`) and ever, as of journal `number`.
        Return "opened", "present" or "unknown" (lua/open_key.lua). `holds`: keys of its open holds, or of more."""
        keys = [self._keys.spend(ref.shard, spend_key_id), self._keys.wallet(ref.shard, ref.wallet_id), *holds]
        figures = (figure for each in spent for figure in each)
        arguments: list[Argument] = [spend_key_id, number, cycles, *figures, used_ms, secrets.token_hex(4)]
        reply = await self._connection.script("open_key", keys, arguments)
        return text(reply[0])

    async def spend_counters(self, shard: int, spend_key_id: str, cycles: str) -> Counters | None:
        """What a spend key has spent, live; None where its counters are not open."""
        key = self._keys.spend(shard, spend_key_id)
        return counters(await self._connection.command("HMGET", key, *COUNTER_FIELDS), cycles)

    async def restore(
        self, ref: WalletRef, base: Base, *, recorded_number: int, numbers: Iterable[int], holds: Sequence[str]
    ) -> Restored:
        """Put a wallet into use again: `base`, and upon it the journal entries `numbers`. `recorded_number`: the
        highest of the shard that PostgreSQL has. `holds`: keys of the wallet's open holds."""
        names = self._keys.of_wallet(ref.shard, ref.wallet_id, ref.merchant_id)
        of_shard = [self._keys.restoring(ref.shard), names.journal, names.journal_counter]
        pots = (base.cycle_nano, base.bundle_nano, base.prepaid_nano, base.overage_nano)
        arguments: list[Argument] = [ref.wallet_id, base.status, base.limit_nano, *pots, base.seq, recorded_number]
        arguments += [len(base.units), *(each for meter in base.units.items() for each in meter), *numbers]
        reply = await self._connection.script("restore", [names.wallet, names.tiers, *of_shard, *holds], arguments)
        if reply[0] in (b"present", b"stale"):
            return Restored("present" if reply[0] == b"present" else "stale")
        return Restored("restored", int(reply[1]), int(reply[2]), int(reply[3]))

    async def states(self, refs: Sequence[WalletRef]) -> list[Balance | None]:
        """What Redis shows of the wallets, also of those out of use (status ""); None for one that it does not hold."""
        fields = ("status", "cycle", "bundle", "prepaid", "overage", "limit", "held", "seq")
        wallets = (self._keys.wallet(ref.shard, ref.wallet_id) for ref in refs)
        replies = await asyncio.gather(*(self._connection.command("HMGET", key, *fields) for key in wallets))
        return [_state(reply) for reply in replies]

    async def units(self, ref: WalletRef) -> dict[str, int]:
        """Units used in the cycle, by meter id."""
        reply = await self._connection.command("HGETALL", self._keys.tiers(ref.shard, ref.wallet_id))
        return {meter.decode(): int(units) for meter, units in zip(reply[::2], reply[1::2], strict=True)}

    async def open_holds(self, shard: int, by: Literal["w", "k"] = "w") -> dict[str, list[str]]:
        """Keys of the open holds, by the key of their wallet ("w") or the id of their spend key ("k")."""
        found: dict[str, set[str]] = defaultdict(set)
        cursor = b"0"
        while True:
            reply = await self._connection.command("ZSCAN", self._keys.holds(shard), cursor, "COUNT", HOLDS_A_PAGE)
            members = reply[1][::2]
            owners = await asyncio.gather(*(self._connection.command("HGET", member, by) for member in members))
            for member, owner in zip(members, owners, strict=True):
                if owner is not None:  # a scan may show a member twice, and one whose hold has just ended
                    found[owner.decode()].add(member.decode())
            cursor = reply[0]
            if cursor == b"0":
                return {owner: sorted(holds) for owner, holds in found.items()}

    async def drop(self, shard: int, numbers: Iterable[int]) -> None:
        """Remove journal entries that PostgreSQL has under other numbers."""
        if ids := [f"{number}-0" for number in numbers]:
            await self._connection.command("XDEL", self._keys.journal(shard), *ids)

    async def queued(self, shard: int, count: int) -> list[str]:
        """At most `count` of the wallets that are to be restored first."""
        reply = await self._connection.command("SRANDMEMBER", self._keys.restoring(shard), count)
        return [wallet_id.decode("utf-8", "replace") for wallet_id in reply]

    async def queue(self, shard: int, wallet_ids: Sequence[str]) -> None:
        """See to it that these wallets are restored before others."""
        await self._connection.command("SADD", self._keys.restoring(shard), *wallet_ids)

    async def unqueue(self, shard: int, wallet_ids: Sequence[str]) -> None:
        await self._connection.command("SREM", self._keys.restoring(shard), *wallet_ids)

    async def pending(self, shards: Iterable[int]) -> dict[int, tuple[int, str | None]]:
        """By shard: how many wallets are to be restored first, and behind which id a sweep goes on (None: no sweep).
        Shards without either are left out."""
        asked = list(shards)
        futures = [
            (
                self._connection.command("SCARD", self._keys.restoring(shard)),
                self._connection.command("GET", self._keys.sweep(shard)),
            )
            for shard in asked
        ]
        replies = await asyncio.gather(*chain(*futures))
        found = {
            shard: (int(replies[2 * at]), None if (sweep := replies[2 * at + 1]) is None else sweep.decode())
            for at, shard in enumerate(asked)
        }
        return {shard: state for shard, state in found.items() if state[0] or state[1] is not None}

    async def sweep_behind(self, shard: int, wallet_id: str | None) -> None:
        """Look at every wallet of the shard behind `wallet_id` ("": at all; None: it is done)."""
        key = self._keys.sweep(shard)
        if wallet_id is None:
            await self._connection.command("DEL", key)
        else:
            await self._connection.command("SET", key, wallet_id)


def _state(reply: Any) -> Balance | None:
    """A wallet always has a sequence number; only one in use has a status."""
    if reply[-1] is None:
        return None
    return Balance((reply[0] or b"").decode(), *(int(figure or 0) for figure in reply[1:]))
