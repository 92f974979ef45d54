"""`WAIT`: how many replicas have what was sent. It travels behind the settles on their connection, so it costs no trip.

A WAIT holds up the commands behind it on the connection until it is answered, so one is under way at a time and covers
whatever was issued before it. WAITAOF is not used: it was seen to answer before the disk had anything.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from typing import Any, Protocol

from gateway.ledger.connection import Connection, LedgerAway

CONFIRMATION_S = 0.1


class Tally(Protocol):
    """What counts, such as a metric."""

    def inc(self, amount: int = 1) -> None: ...


class Replicas:
    """Confirms what was sent on one connection once `wanted` replicas have it; `shortfalls` counts when too few had."""

    def __init__(self, connection: Connection, *, wanted: int, timeout_ms: int, shortfalls: Tally) -> None:
        self._connection = connection
        self._wanted = wanted
        self._timeout_ms = timeout_ms
        self._shortfalls = shortfalls
        self._asking: asyncio.Future[bool] | None = None
        self._next: asyncio.Future[bool] | None = None
        self._confirmations: deque[tuple[float, float]] = deque()
        self._confirmed_s = 0.0
        self.confirmed_s = 0.0
        """Whatever was answered before this moment (monotonic clock) is on the replicas."""

    def behind(self, reply: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """The outcome of a command that was just issued, not before its replicas are known."""
        outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        confirmed = self.confirm()
        confirmed.add_done_callback(lambda _: reply.add_done_callback(partial(_copy, outcome)))
        return outcome

    def confirm(self) -> asyncio.Future[bool]:
        """True once everything issued so far is on enough replicas; False where that came short."""
        if self._asking is None:
            return self._ask(asyncio.get_running_loop().create_future())
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    def confirm_again(self, answered_s: float) -> None:
        """Ask once more for what was answered until then, unless that is known or being asked for."""
        if answered_s > self.confirmed_s and self._asking is None:
            self.confirm()

    def confirmed_before(self, moment_s: float) -> float:
        """What `confirmed_s` was at `moment_s`, give or take CONFIRMATION_S. Moments must not go backwards."""
        while self._confirmations and self._confirmations[0][0] <= moment_s:
            self._confirmed_s = self._confirmations.popleft()[1]
        return self._confirmed_s

    def _ask(self, answer: asyncio.Future[bool]) -> asyncio.Future[bool]:
        asked_at_s = time.monotonic()
        try:
            if self._connection.server.replicas < self._wanted:  # waiting would only hold up the connection
                raise LedgerAway("there are too few replicas")
            reply = self._connection.call(b"WAIT", self._wanted, self._timeout_ms)
        except LedgerAway:
            self._shortfalls.inc()
            answer.set_result(False)
            return answer
        self._asking = answer
        reply.add_done_callback(partial(self._answered, answer, asked_at_s))
        return answer

    def _answered(self, answer: asyncio.Future[bool], asked_at_s: float, reply: asyncio.Future[Any]) -> None:
        found = None if reply.cancelled() or reply.exception() is not None else reply.result()
        enough = isinstance(found, int) and found >= self._wanted
        if enough:
            self._confirm(asked_at_s)
        else:
            self._shortfalls.inc()
        self._asking = None
        if not answer.done():
            answer.set_result(enough)
        if self._next is not None:
            following, self._next = self._next, None
            self._ask(following)

    def _confirm(self, asked_at_s: float) -> None:
        now_s = time.monotonic()
        self.confirmed_s = asked_at_s
        if not self._confirmations or now_s - self._confirmations[-1][0] >= CONFIRMATION_S:
            self._confirmations.append((now_s, asked_at_s))


def _copy(outcome: asyncio.Future[Any], reply: asyncio.Future[Any]) -> None:
    if outcome.done():
        return
    if reply.cancelled():
        outcome.cancel()
    elif (error := reply.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(reply.result())
