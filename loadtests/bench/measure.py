"""The measurements. Each one takes running servers and returns numbers; failed requests raise."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests import procfs
from loadtests.connection import Connection
from loadtests.load import Load
from loadtests.peers.servers import Server
from loadtests.plan import Plan
from loadtests.scenario import Template, build
from loadtests.tally import Tally, Window

CHAT_CONNECTIONS = 32
STREAMS = 100
STREAM_CHUNKS = 200
CHUNK_INTERVAL_MS = 5
BURST_CHUNKS = 48
"""With the role, the finish reason, the usage and the end marker: a stream of 52 events."""
OPEN_STREAMS = 1_000
OPEN_STREAM_CHUNKS = 12
OPEN_STREAM_INTERVAL_MS = 500
START_ONLY_S = 0.2
"""Shorter than a stream: every user of the closed loop then sends exactly one."""
GRACE_S = 30.0
FLUSH_WAIT_S = 0.5
"""After a round, for journals to be flushed: their CPU belongs to it."""
WARM_UP_S = 0.5


class MeasurementError(Exception):
    """Requests failed, so that the figure would mean nothing."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU of one round in microseconds an event (a request, or a chunk)."""

    server_us: float
    everything_us: float
    """With the server's companions: ledger, background worker, database."""
    events: int
    seconds: float


def _plan(server: Server, scenario: str, users: int, duration_s: float, **others: int) -> Plan:
    return Plan(
        target=server.url,
        scenario="stream" if scenario == "stream" else "chat",
        path=server.path,
        key=server.key,
        users=users,
        duration_s=duration_s,
        grace_s=GRACE_S,
        **others,  # type: ignore[arg-type]
    )


async def _load(server: Server, plan: Plan) -> Tally:
    """Run `plan`, which must not fail."""
    total = Window()
    await Load(plan, total.merge).run()
    return _checked(server, total.all_kinds())


def _checked(server: Server, tally: Tally) -> Tally:
    if tally.failed or not tally.succeeded:
        reasons = ", ".join(f"{reason} x {count}" for reason, count in tally.failed.items()) or "no answers"
        raise MeasurementError(f"{server.name}: {reasons}")
    return tally


async def warm_up(server: Server) -> None:
    await _load(server, _plan(server, "chat", CHAT_CONNECTIONS, WARM_UP_S))


def _cpu_us(server: Server) -> tuple[int, int]:
    """So far: (of the server's process, of its companions with all their children)."""
    family = [pid for companion in server.companions for pid in procfs.descendants(companion)]
    return procfs.usage((server.pid,)).cpu_us, procfs.usage(family).cpu_us


async def _cost(server: Server, plan: Plan, *, by_chunk: bool) -> Cost:
    own, companions = _cpu_us(server)
    started = time.monotonic()
    tally = await _load(server, plan)
    seconds = time.monotonic() - started
    if server.companions:
        await asyncio.sleep(FLUSH_WAIT_S)
    own_after, companions_after = _cpu_us(server)
    events = tally.chunks if by_chunk else tally.succeeded
    own_us = own_after - own
    return Cost(own_us / events, (own_us + companions_after - companions) / events, events, seconds)


async def chat_cost(server: Server, duration_s: float) -> Cost:
    """CPU a request of a chat completion that is not streamed, at 32 connections."""
    return await _cost(server, _plan(server, "chat", CHAT_CONNECTIONS, duration_s), by_chunk=False)


async def chunk_cost(server: Server) -> Cost:
    """CPU a chunk of 100 streams of 200 chunks, one every 5 ms; requests and holds are in it."""
    pace = {"chunks": STREAM_CHUNKS, "chunk_interval_ms": CHUNK_INTERVAL_MS}
    return await _cost(server, _plan(server, "stream", STREAMS, START_ONLY_S, **pace), by_chunk=True)


async def burst_cost(server: Server, duration_s: float) -> Cost:
    """CPU a stream whose 52 events the provider sends at once, at 32 connections."""
    burst = {"chunks": BURST_CHUNKS, "chunk_interval_ms": 0}
    return await _cost(server, _plan(server, "stream", CHAT_CONNECTIONS, duration_s, **burst), by_chunk=False)


async def stream_memory_bytes(server: Server) -> float:
    """Memory of the server's process an open stream: its PSS with 1,000 of them less its PSS before, over 1,000."""
    before = procfs.usage((server.pid,)).memory_bytes
    peaks: list[int] = []
    total = Window()

    def emit(window: Window) -> None:
        if window.in_flight == OPEN_STREAMS:
            peaks.append(procfs.usage((server.pid,)).memory_bytes)
        total.merge(window)

    pace = {"chunks": OPEN_STREAM_CHUNKS, "chunk_interval_ms": OPEN_STREAM_INTERVAL_MS}
    await Load(_plan(server, "stream", OPEN_STREAMS, START_ONLY_S, **pace), emit).run()
    _checked(server, total.all_kinds())
    if not peaks:
        raise MeasurementError(f"{server.name}: {OPEN_STREAMS} streams were never open at once")
    return (max(peaks) - before) / OPEN_STREAMS


class Alternation:
    """One request at a time, to each server in turn: what disturbs the machine disturbs all of them alike."""

    response_bytes_max = 1024 * 1024

    def __init__(self, servers: Sequence[Server], rounds: int) -> None:
        self._servers = servers
        self._left = rounds * len(servers)
        self._turn = 0
        self._templates = [self._template(server) for server in servers]
        self._connections: list[Connection] = []
        self._tallies = {server.name: Tally() for server in servers}
        self._done = asyncio.Event()

    def _template(self, server: Server) -> Template:
        template = build(_plan(server, "chat", 1, 1.0)).template(0)
        return Template(server.name, template.before)

    async def run(self, timeout_s: float) -> dict[str, Tally]:
        """The tallies by server name. Raise MeasurementError when requests fail or time runs out."""
        loop = asyncio.get_running_loop()
        for server in self._servers:
            host, _, port = server.url.removeprefix("http://").rpartition(":")
            _, connection = await loop.create_connection(lambda: Connection(self), host, int(port))
            self._connections.append(connection)
        self._next()
        try:
            await asyncio.wait_for(self._done.wait(), timeout_s)
        except TimeoutError:
            raise MeasurementError(f"alternating requests were not done after {timeout_s:g} s") from None
        finally:
            self._left = 0
            for connection in self._connections:
                connection.close()
        for server in self._servers:
            _checked(server, self._tallies[server.name])
        return self._tallies

    def _next(self) -> None:
        if self._left <= 0:
            self._done.set()
            return
        self._left -= 1
        index, self._turn = self._turn, (self._turn + 1) % len(self._servers)
        now_ns = time.perf_counter_ns()
        self._connections[index].send(self._templates[index], 0, now_ns, now_ns)

    def tally(self, kind: str) -> Tally:
        return self._tallies[kind]

    def connection_free(self, _: Connection) -> None:
        self._next()

    def connection_lost(self, _: Connection) -> None:
        self._left = 0
        self._done.set()


async def added_p50_us(direct: Server, servers: Sequence[Server], rounds: int) -> dict[str, float]:
    """By server: the median of proxied requests less the median of direct ones, at one connection, in microseconds."""
    tallies = await Alternation([direct, *servers], rounds).run(timeout_s=60.0)
    base = tallies[direct.name].service.percentile(50)
    return {server.name: (tallies[server.name].service.percentile(50) - base) / 1000 for server in servers}
