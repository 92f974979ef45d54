"""The load of one client process: a closed loop of users, or an open loop at a fixed rate.

Open loop: the intended send times are fixed before the run. A request that is due while every connection is busy waits,
and its latency counts from when it was due: a target that stalls cannot make the client ask less (no coordinated
omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from loadtests.connection import Connection
from loadtests.plan import Plan
from loadtests.scenario import Scenario, build
from loadtests.tally import Tally, Window
from loadtests.ticker import Ticker

NS_PER_S = 1_000_000_000
WAKE_UPS_PER_S_MAX = 4_000
"""Above this rate, requests are intended in groups: 8,000/s is two requests every 250 us."""
HOUSEKEEPING_NS = 50_000_000
CONNECTS_AT_ONCE = 64


class Load:
    """One run of `plan`. `emit` gets a Window about each second and one at the end."""

    def __init__(self, plan: Plan, emit: Callable[[Window], None]) -> None:
        self.response_bytes_max = plan.response_bytes_max
        self._plan = plan
        self._scenario: Scenario = build(plan)
        self._emit = emit
        self._window = Window()
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._reconnects: set[asyncio.Task[None]] = set()
        self._connecting = asyncio.Semaphore(CONNECTS_AT_ONCE)
        self._group = max(1, round(plan.rate_per_s / WAKE_UPS_PER_S_MAX))
        self._sent = 0
        self._started_ns = self._end_ns = self._emitted_ns = self._cpu_ns = 0
        self._over = False
        self._finished = asyncio.Event()
        self._timeout_ns = round(plan.timeout_s * NS_PER_S)

    async def run(self) -> None:
        """Connect every user, run for the planned time, then let exchanges under way end within the grace."""
        await asyncio.gather(*(self._connect() for _ in range(self._plan.users)))
        self._cpu_ns = time.process_time_ns()
        interval_ns = self._group_interval_ns if self._plan.rate_per_s else HOUSEKEEPING_NS
        tickers = [Ticker(interval_ns, self._send_due)]
        self._started_ns = self._emitted_ns = tickers[0].started_ns
        self._end_ns = self._started_ns + round(self._plan.duration_s * NS_PER_S)
        tickers.append(Ticker(HOUSEKEEPING_NS, self._housekeeping))
        connected, self._idle = self._idle, []
        for connection in connected:
            self._next(connection)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._finished.wait(), self._plan.duration_s + self._plan.grace_s)
        finally:
            for ticker in tickers:
                ticker.close()
            self._close()

    # the schedule

    @property
    def _group_interval_ns(self) -> int:
        return round(self._group * NS_PER_S / self._plan.rate_per_s)

    def _intended_ns(self, number: int) -> int:
        return self._started_ns + (number // self._group) * self._group_interval_ns

    def _due(self, now_ns: int) -> int:
        """How many requests are due by `now_ns`, none of them intended after the end."""
        if not self._plan.rate_per_s:
            return 0
        until_ns = min(now_ns, self._end_ns - 1)
        return ((until_ns - self._started_ns) // self._group_interval_ns + 1) * self._group

    def _send_due(self) -> None:
        """A wake-up of the open loop: send what is due on the connections that stand idle."""
        now_ns = time.perf_counter_ns()
        due = self._due(now_ns)
        while self._sent < due and self._idle:
            connection = self._idle.pop()
            if connection.lost:
                continue
            intended_ns = self._intended_ns(self._sent)
            self._window.send_lag.record(now_ns - intended_ns)
            self._send(connection, intended_ns, now_ns)

    def _next(self, connection: Connection) -> None:
        """`connection` is free: what does it do now?"""
        now_ns = time.perf_counter_ns()
        if self._plan.rate_per_s:
            if self._sent < self._due(now_ns):
                self._send(connection, self._intended_ns(self._sent), now_ns)
            else:
                self._idle.append(connection)
        elif now_ns < self._end_ns:
            self._send(connection, now_ns, now_ns)

    def _send(self, connection: Connection, intended_ns: int, now_ns: int) -> None:
        number = self._sent
        self._sent += 1
        connection.send(self._scenario.template(number), number, intended_ns, now_ns)

    # what connections report (connection.Owner)

    def tally(self, kind: str) -> Tally:
        return self._window.tally(kind)

    def connection_free(self, connection: Connection) -> None:
        if not self._over:
            self._next(connection)

    def connection_lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._reconnect()

    # connections

    async def _connect(self) -> None:
        """Open one connection; a refused one is counted as `connect` and tried again while the run lasts."""
        parts = urlsplit(self._plan.target)
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if secure else 80)
        try:
            async with self._connecting, asyncio.timeout(self._plan.timeout_s):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    lambda: Connection(self), parts.hostname or "", port, ssl=secure
                )
        except (OSError, TimeoutError):
            self._window.tally("connect").fail("connect")
            return
        self._connections.add(connection)
        if self._started_ns and not self._over:
            self._next(connection)
        else:
            self._idle.append(connection)

    def _reconnect(self) -> None:
        if not self._over:
            task = asyncio.get_running_loop().create_task(self._connect())
            self._reconnects.add(task)
            task.add_done_callback(self._reconnects.discard)

    # once in a while

    def _housekeeping(self) -> None:
        now_ns = time.perf_counter_ns()
        for connection in list(self._connections):
            if connection.busy and now_ns - connection.sent_ns > self._timeout_ns:
                connection.give_up("timeout", now_ns)
        self._replace_missing(now_ns)
        second = (now_ns - self._started_ns) // NS_PER_S
        if second > self._window.second:
            self._emit_window(now_ns, second)
        if now_ns >= self._end_ns and not self._in_flight() and self._sent >= self._due(now_ns):
            self._finished.set()

    def _replace_missing(self, now_ns: int) -> None:
        """Users whose connection was refused try again, a few at a time."""
        missing = self._plan.users - len(self._connections) - len(self._reconnects)
        if now_ns < self._end_ns:
            for _ in range(min(missing, CONNECTS_AT_ONCE - len(self._reconnects))):
                self._reconnect()

    def _in_flight(self) -> int:
        return sum(connection.busy for connection in self._connections)

    def _emit_window(self, now_ns: int, next_second: int) -> None:
        window, self._window = self._window, Window(second=next_second)
        window.in_flight = self._in_flight()
        window.waiting = max(0, self._due(now_ns) - self._sent)
        cpu_ns = time.process_time_ns()
        window.client_cpu_ns, self._cpu_ns = cpu_ns - self._cpu_ns, cpu_ns
        window.length_ns, self._emitted_ns = now_ns - self._emitted_ns, now_ns
        self._emit(window)

    def _close(self) -> None:
        """End the run: what is still under way or was never sent is counted with the time it has waited."""
        self._over = True
        now_ns = time.perf_counter_ns()
        for task in list(self._reconnects):
            task.cancel()
        for number in range(self._sent, self._due(now_ns)):
            tally = self.tally(self._scenario.template(number).kind)
            tally.fail("never sent")
            tally.latency.record(now_ns - self._intended_ns(number))
        for connection in list(self._connections):
            connection.give_up("unfinished at the end", now_ns)
        self._sent = max(self._sent, self._due(now_ns))
        self._emit_window(now_ns, self._window.second + 1)
