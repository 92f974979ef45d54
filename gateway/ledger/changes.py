"""Tells every worker, through Redis, that something of a merchant changed; and hears it.

A short stream that every worker reads behind what it has read: unlike pub/sub nothing is missed, and not hearing is
noticed. While a worker does not hear, its cache must not be trusted for longer than a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import hiredis

from gateway.ledger.connection import Connection, LedgerAway
from gateway.ledger.keys import Keys

POLL_INTERVAL_S = 0.2
READ_MAX = 1_000
KEPT_ENTRIES = 10_000


class Changes:
    """The stream of changes of one installation, read by one process."""

    def __init__(self, connection: Connection, keys: Keys) -> None:
        self._connection = connection
        self._key = keys.changes
        self._seen = b"0-0"
        self._generation = -1

    async def announce(self, merchant_id: str) -> None:
        """Tell all workers. Redis away: they notice, and stop trusting their caches by themselves."""
        try:
            await self._connection.command("XADD", self._key, "MAXLEN", "~", KEPT_ENTRIES, "*", "m", merchant_id)
        except LedgerAway:
            return

    async def listen(self, forget: Callable[[str], None], hearing: Callable[[bool], None]) -> None:
        """For ever: `forget(merchant_id)` at each change, `hearing(True)` when a new connection hears,
        `hearing(False)` when it does not."""
        heard = False
        while True:
            try:
                heard = await self._read(forget, hearing, heard=heard)
            except (LedgerAway, hiredis.ReplyError):
                if heard:
                    hearing(False)
                heard = False
            await asyncio.sleep(POLL_INTERVAL_S)

    async def _read(self, forget: Callable[[str], None], hearing: Callable[[bool], None], *, heard: bool) -> bool:
        generation = self._connection.generation
        if not heard or generation != self._generation:
            # A new connection may be to a server that lost the stream: begin at its end, with nothing cached.
            last = await self._connection.command("XREVRANGE", self._key, "+", "-", "COUNT", 1)
            self._seen = last[0][0] if last else b"0-0"
            self._generation = generation
            hearing(True)
            return True
        entries = await self._connection.command("XRANGE", self._key, b"(" + self._seen, "+", "COUNT", READ_MAX)
        for entry_id, fields in entries:
            self._seen = entry_id
            forget(fields[1].decode())
        return True
