"""The shard's journal: what the scripts appended, read in order, trimmed once it is durable elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import hiredis
import msgspec

from gateway.ledger.connection import Connection
from gateway.ledger.keys import Keys

PAGE_ENTRIES = 1_000


class Entry(msgspec.Struct, frozen=True):
    """One movement of one wallet. `number` is dense within the shard, `seq` within the wallet.

    `units` are those by which the tier counter of `meter_id` advanced; "" where none did. `spent_nano` and
    `spent_requests` are what it counted for the spend key `spend_key_id` ("": none), on `spent_day` (since 1970).
    """

    number: int
    wallet_id: str
    seq: int
    kind: str
    reference: str
    at_ms: int
    cycle_delta: int
    bundle_delta: int
    prepaid_delta: int
    overage_delta: int
    position: int
    body: bytes
    meter_id: str = ""
    units: int = 0
    spend_key_id: str = ""
    spent_nano: int = 0
    spent_requests: int = 0
    spent_day: int = 0

    @property
    def debit_nano(self) -> int:
        """What it took from the customer; below zero for a credit."""
        return self.overage_delta - self.cycle_delta - self.bundle_delta - self.prepaid_delta


class Journal:
    """Reads every shard's stream."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._keys = keys

    async def read(self, shard: int, after: int, count: int) -> list[Entry]:
        """At most `count` entries behind number `after`, in order."""
        reply = await self._connection.command("XRANGE", self._keys.journal(shard), f"({after}-0", "+", "COUNT", count)
        return [_entry(entry_id, fields) for entry_id, fields in reply]

    async def waiting(self, shard: int) -> AsyncIterator[list[Entry]]:
        """Everything in the stream, in order and in pages."""
        after = 0
        while page := await self.read(shard, after, PAGE_ENTRIES):
            yield page
            after = page[-1].number

    async def first_number(self, shard: int) -> int | None:
        """Of the oldest entry in the stream; None where it is empty."""
        found = await self._connection.command("XRANGE", self._keys.journal(shard), "-", "+", "COUNT", 1)
        return _number(found[0][0]) if found else None

    async def top_number(self, shard: int) -> int:
        """Of the latest entry in the stream; 0 where it is empty."""
        found = await self._connection.command("XREVRANGE", self._keys.journal(shard), "+", "-", "COUNT", 1)
        return _number(found[0][0]) if found else 0

    async def lengths(self, shards: Iterable[int]) -> int:
        """Entries waiting in all of `shards`."""
        asked = [self._connection.command("XLEN", self._keys.journal(shard)) for shard in shards]
        return sum(map(int, await asyncio.gather(*asked)))

    async def last_number(self, shard: int) -> int:
        return int(await self._connection.command("GET", self._keys.journal_counter(shard)) or 0)

    async def trim(self, shard: int, through: int) -> None:
        """Forget everything up to and including number `through`."""
        await self._connection.command("XTRIM", self._keys.journal(shard), "MINID", f"{through + 1}-0")

    async def length_and_age_ms(self, shard: int, now_ms: int) -> tuple[int, int]:
        """Entries waiting, and how long the oldest has waited."""
        key = self._keys.journal(shard)
        length_reply = self._connection.call("XLEN", key)
        first = await self._connection.command("XRANGE", key, "-", "+", "COUNT", 1)
        length = await length_reply
        if isinstance(length, hiredis.ReplyError):
            raise length
        return int(length), max(0, now_ms - _entry(*first[0]).at_ms) if first else 0


def _number(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])


def _entry(entry_id: bytes, fields: list[Any]) -> Entry:
    f = dict(zip(fields[::2], fields[1::2], strict=True))
    return Entry(
        number=_number(entry_id),
        wallet_id=f[b"w"].decode(),
        seq=int(f[b"s"]),
        kind=f[b"k"].decode(),
        reference=f[b"r"].decode(),
        at_ms=int(f[b"t"]),
        cycle_delta=int(f[b"c"]),
        bundle_delta=int(f[b"b"]),
        prepaid_delta=int(f[b"p"]),
        overage_delta=int(f[b"o"]),
        position=int(f[b"u"]),
        body=f[b"d"],
        meter_id=f.get(b"m", b"").decode(),
        units=int(f.get(b"q", 0)),
        spend_key_id=f.get(b"y", b"").decode(),
        spent_nano=int(f.get(b"z", 0)),
        spent_requests=int(f.get(b"x", 0)),
        spent_day=int(f.get(b"v", 0)),
    )
