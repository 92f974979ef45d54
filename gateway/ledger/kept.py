"""Settles outlive a Redis that forgets: a gateway keeps them a while past their acknowledgement and sends them again.

A Redis that does not write to disk before it answers may come back without its last second; a failover may lose what no
replica had. So whatever was acknowledged is kept until the server has been seen alive `keep_s` later - an hour that
Redis is away does not count - and is sent again on every new connection, before anyone else uses it. The settle script
answers `duplicate` where nothing was lost. Where the hold was lost with the settle, the amount is
debited without one, exactly once (`Wallets.settle_spent`).

Where nothing acknowledged can be lost (`Server.may_lose`), nothing is kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import hiredis

from gateway.ledger.connection import Argument, Connection, LedgerAway
from gateway.ledger.replicas import Replicas, Tally

LOG = logging.getLogger("obol.kept")
ROUND_S = 0.5
LAST_LOOK_S = 1.0
"""How much longer than `keep_s` a process that ends waits to see its server alive."""
IN_FLIGHT_MAX = 500
DONE = (b"settled", b"duplicate")
OVERHEAD_BYTES = 1_200
"""Of a kept settle beside its row: its keys, numbers and tuples, measured generously."""


class Settle(NamedTuple):
    """A settle as it is sent (lua/settle.lua), and whose it is."""

    shard: int
    merchant_id: str
    keys: Sequence[str]
    arguments: Sequence[Argument]

    @property
    def request_id(self) -> str:
        return str(self.arguments[1])

    def age_ms(self, now_ms: int) -> int:
        return now_ms - int(self.arguments[2])

    def may_be_forgotten(self, now_ms: int) -> bool:
        """Whether so much time has passed that Redis' record of this settle may have expired."""
        return 10 * self.age_ms(now_ms) > 9 * int(self.arguments[8]) * 1000

    def without_hold(self) -> Settle:
        """The same for a call whose hold Redis has lost."""
        return self._replace(arguments=(*self.arguments[:9], "resent", *self.arguments[10:]))

    @property
    def size_bytes(self) -> int:
        return OVERHEAD_BYTES + len(self.arguments[4]) + len(self.arguments[7])  # type: ignore[arg-type]


class Untold(LedgerAway):
    """It cannot be told yet whether this settle was done: ask again."""


class _Kept(NamedTuple):
    settle: Settle
    at_s: float
    """When it was acknowledged, on the monotonic clock."""


class Level(Protocol):
    """What goes up and down, such as a gauge."""

    def set(self, value: float) -> None: ...


class Counts(NamedTuple):
    """What is told: how many settles are kept and their bytes; how many were dropped because too many were kept; how
    many were sent again, by what came of it."""

    entries: Level
    bytes: Level
    dropped: Tally
    resent: Callable[[str], Tally]


class _Queue:
    """Settles in order, oldest first, and how much memory they take."""

    def __init__(self) -> None:
        self._kept: deque[_Kept] = deque()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def append(self, kept: _Kept) -> None:
        self._kept.append(kept)
        self.bytes += kept.settle.size_bytes

    def popleft(self) -> _Kept:
        kept = self._kept.popleft()
        self.bytes -= kept.settle.size_bytes
        return kept

    def first(self, count: int) -> list[Settle]:
        return [kept.settle for kept in islice(self._kept, count)]

    @property
    def oldest_s(self) -> float:
        return self._kept[0].at_s

    @property
    def newest_s(self) -> float:
        return self._kept[-1].at_s if self._kept else 0.0


class Kept:
    """The settles that one process keeps, and those that it has to send again."""

    def __init__(
        self,
        connection: Connection,
        *,
        keep_s: int,
        entries_max: int,
        bytes_max: int,
        counts: Counts,
        replicas: Replicas | None = None,
    ) -> None:
        self._connection = connection
        self._keep_s = keep_s
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._counts = counts
        self._replicas = replicas
        self._acknowledged = _Queue()
        self._unsent = _Queue()
        self._sending = asyncio.Lock()

    @property
    def entries(self) -> int:
        return len(self._acknowledged) + len(self._unsent)

    @property
    def bytes(self) -> int:
        return self._acknowledged.bytes + self._unsent.bytes

    @property
    def _wanted(self) -> bool:
        return self._keep_s > 0 and (self._connection.server.may_lose or self._replicas is not None)

    def watch(self, settle: Settle, reply: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """A settle was issued: keep it once it is acknowledged. Return what its acknowledgement is."""
        if self._wanted:
            reply.add_done_callback(partial(self._replied, settle))
        return reply if self._replicas is None else self._replicas.behind(reply)

    def _replied(self, settle: Settle, reply: asyncio.Future[Any]) -> None:
        if reply.cancelled() or reply.exception() is not None:
            return
        answer = reply.result()
        if isinstance(answer, list) and answer[0] in DONE:
            self._add(settle)

    async def acknowledged(self, settle: Settle) -> None:
        """A settle was answered: keep it, and wait for the replicas that are to have it."""
        if self._wanted:
            self._add(settle)
        if self._replicas is not None:
            await self._replicas.confirm()

    def _add(self, settle: Settle) -> None:
        self._acknowledged.append(_Kept(settle, time.monotonic()))
        self._forget()
        self._bound(self._acknowledged)

    def _forget(self) -> None:
        """Drop what was acknowledged `keep_s` before the server was last known to be alive, by as many replicas as are
        wanted. A server that is away or hangs may have died before it had anything on disk."""
        if not self._connection.connected:
            return
        until_s = self._connection.alive_s - self._keep_s
        if self._replicas is not None:
            until_s = self._replicas.confirmed_before(until_s)
        while self._acknowledged and self._acknowledged.oldest_s <= until_s:
            self._acknowledged.popleft()

    def _bound(self, queue: _Queue) -> None:
        while len(queue) > self._entries_max or queue.bytes > self._bytes_max:
            queue.popleft()
            self._counts.dropped.inc()

    async def resend(self, send: Callable[[Settle], Awaitable[str]]) -> None:
        """On a new connection: send all again, oldest first. Raise LedgerAway.

        `send` gives the first word of the answer, and keeps what was acknowledged. What cannot be settled yet, because
        its wallet is being restored, is tried again by `run`.
        """
        async with self._sending:  # a batch under way is taken off the front of the queue
            while self._acknowledged:
                self._unsent.append(self._acknowledged.popleft())
            self._bound(self._unsent)
        await self._send_unsent(send)

    async def run(self, send: Callable[[Settle], Awaitable[str]]) -> None:
        """For ever: forget what is old, send again what has to wait, ask for what no replica has confirmed."""
        while True:
            await asyncio.sleep(ROUND_S)
            self._forget()
            self._counts.entries.set(self.entries)
            self._counts.bytes.set(self.bytes)
            if self._replicas is not None:
                self._replicas.confirm_again(self._acknowledged.newest_s)
            if self._unsent and self._connection.connected:
                try:
                    await self._send_unsent(send)
                except LedgerAway:
                    continue  # the next connection, or the next round

    async def outlive(self) -> None:
        """Before this process ends: until nothing of what it settled can be lost any more, `keep_s` and LAST_LOOK_S at
        most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._keep_s + LAST_LOOK_S):
                while self.entries and self._wanted:
                    await self._look()
                return
        LOG.warning("settles are left that Redis may lose", extra={"settles": self.entries})

    async def _look(self) -> None:
        """See whether the server is alive, and forget what is safe."""
        with suppress(LedgerAway):
            await self._connection.call(b"PING")
        self._forget()
        if self.entries:
            await asyncio.sleep(0.05)

    async def _send_unsent(self, send: Callable[[Settle], Awaitable[str]]) -> None:
        left = len(self._unsent)
        while left > 0:
            async with self._sending:
                batch = self._unsent.first(min(left, IN_FLIGHT_MAX))
                outcomes = await asyncio.gather(*map(send, batch), return_exceptions=True)
                self._take(batch, outcomes)
            left -= max(1, len(batch))

    def _take(self, batch: Sequence[Settle], outcomes: Sequence[str | BaseException]) -> None:
        """Leave in the queue what has to be sent once more. Raise the first error that says Redis is away."""
        away: BaseException | None = None
        for settle, outcome in zip(batch, outcomes, strict=True):
            kept = self._unsent.popleft()
            if isinstance(outcome, str) and outcome != "unknown":
                self._counts.resent(outcome).inc()
            elif isinstance(outcome, hiredis.ReplyError):
                self._counts.resent("failed").inc()
                LOG.error("a kept settle fails", extra={"request_id": settle.request_id, "why": str(outcome)})
            else:
                self._unsent.append(kept)
                if isinstance(outcome, BaseException) and not isinstance(outcome, Untold):
                    away = away or outcome
        if away is not None:
            raise away
