"""The end of a gateway process: nothing new is taken on, what is under way ends by itself, every call is settled.

A signal asks for it. From then on each answer that begins says `Connection: close`, and a connection without a request
is closed when it has been idle for `shutdown_idle_grace_s`: to close it at once would fail the call that its client is
sending at that moment. What is still under way after `shutdown_drain_s`, or at a second signal, is cut; its ending is
`cancelled` and what was produced is billed.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress
from typing import cast

from aiohttp import web

from gateway.proxy.listener import Connection, Server
from gateway.proxy.parts import Parts

LOG = logging.getLogger("obol.drain")
POLL_S = 0.05
CUT_TIMEOUT_S = 5.0
"""A cancelled handler ends at the next moment it waits; nothing should need this long."""
SETTLE_TIMEOUT_S = 10.0
"""For the settles after the last call, and as long again for those that failed. The reaper ends what is left."""


class StopSignals:
    """SIGTERM or SIGINT: the first asks for a drain, a second one for an end of the calls under way."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.cut = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.received)

    def received(self) -> None:
        (self.cut if self.drain.is_set() else self.drain).set()


async def drain(parts: Parts, server: Server, cut: asyncio.Event) -> None:
    """See a server whose socket is closed to its end: no connection is left, no call unsettled where Redis answers."""
    parts.draining = True
    parts.metrics.draining.set(1)
    await asyncio.sleep(0)  # who was accepted in the last moment is counted
    under_way = len(server.in_progress)
    counted = server.requests_count - under_way
    LOG.info("draining", extra={"requests": under_way, "connections": len(server.connections)})
    await _until_quiet(parts, server, cut)
    late = await _cut(server)
    finished = server.requests_count - counted - late
    parts.metrics.drain_requests.labels("finished").inc(finished)
    parts.metrics.drain_requests.labels("cut").inc(late)
    unsettled = await _settle(parts)
    await _outlive(parts, cut)
    LOG.info("drained", extra={"finished": finished, "cut": late, "unsettled": unsettled})


async def _until_quiet(parts: Parts, server: Server, cut: asyncio.Event) -> None:
    """Until there is no connection any more, the time is up or `cut` is set."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + parts.settings.shutdown_drain_s
    idle_since: dict[web.RequestHandler, float] = {}
    while server.connections and loop.time() < deadline_s and not cut.is_set():
        idle_since = _close_idle(parts, server, idle_since, loop.time())
        with suppress(TimeoutError):
            await asyncio.wait_for(cut.wait(), POLL_S)


def _close_idle(
    parts: Parts,
    server: Server,
    idle_since: dict[web.RequestHandler, float],
    now_s: float,
) -> dict[web.RequestHandler, float]:
    """Close what has been idle long enough; return since when the others have been idle."""
    still: dict[web.RequestHandler, float] = {}
    for connection in server.connections:
        if cast(Connection, connection).request is not None:
            continue
        since_s = still[connection] = idle_since.get(connection, now_s)
        if now_s - since_s >= parts.settings.shutdown_idle_grace_s:
            connection.force_close()
    return still


async def _cut(server: Server) -> int:
    """Cancel what is under way, those whose client has left among them; return how many there were."""
    late = {request.task for request in server.in_progress}
    for task in late:
        task.cancel()
    if late:
        await asyncio.wait(late, timeout=CUT_TIMEOUT_S)
    for connection in server.connections:
        connection.force_close()
    return len(late)


async def _settle(parts: Parts) -> int:
    """Wait for the acknowledgement of every settle, and for what is tried again; return how many calls have none."""
    waiting = [call.settling for call in parts.live if call.settling is not None]
    if waiting:
        await asyncio.wait(waiting, timeout=SETTLE_TIMEOUT_S)
        await asyncio.sleep(0)  # what failed has begun again in the background
    await parts.background.drain(SETTLE_TIMEOUT_S)
    if parts.live:
        LOG.error("calls are left unsettled: the reaper ends their holds", extra={"calls": len(parts.live)})
    return len(parts.live)


async def _outlive(parts: Parts, cut: asyncio.Event) -> None:
    """Where Redis may lose its last seconds, be there to send their settles again; not if the end is wanted at once."""
    staying, hurried = asyncio.ensure_future(parts.kept.outlive()), asyncio.ensure_future(cut.wait())
    await asyncio.wait({staying, hurried}, return_when=asyncio.FIRST_COMPLETED)
    staying.cancel()
    hurried.cancel()
