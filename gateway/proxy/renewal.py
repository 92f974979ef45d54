"""One loop looks after all calls under way: it renews their holds, writes their progress on them, and notices what no
call notices by itself: a client that left while the provider is silent, one that reads nothing until the time is over,
reasoning that does not show.

Nothing is waited for here: what is written leaves with the other commands of the moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

from gateway.ledger.connection import LedgerAway
from gateway.ledger.wallets import now_ms
from gateway.proxy.call import Call
from gateway.proxy.parts import Parts
from gateway.proxy.progress import learn, so_far
from gateway.proxy.rolling import ROLLING_FORMATS, extend

LOG = logging.getLogger("obol.renewal")
RENEWALS_PER_TTL = 4
LOOKS_PER_INTERVAL = 8
LOOK_MAX_S = 0.25
SLICE_S = 0.002
"""How long the calls are looked after before the others have their turn."""
STALL_GRACE_S = 1.0
"""A call that outlives its time so long is waiting for its client: the provider's side has ended by then."""


class Cadence:
    """How often what is done, in seconds."""

    def __init__(self, parts: Parts) -> None:
        self.progress_s = parts.settings.progress_interval_ms / 1000
        self.look_s = min(self.progress_s / LOOKS_PER_INTERVAL, LOOK_MAX_S)
        self.renewal_s = parts.settings.hold_ttl_s / RENEWALS_PER_TTL


async def keep_holds(parts: Parts) -> None:
    """For ever."""
    cadence, loop = Cadence(parts), asyncio.get_running_loop()
    before_s = loop.time()
    while True:
        await asyncio.sleep(cadence.look_s)
        now_s = loop.time()
        await _look(parts, cadence, now_s, round((now_s - before_s) * 1000))
        before_s = now_s


async def _look(parts: Parts, cadence: Cadence, now_s: float, elapsed_ms: int) -> None:
    loop = asyncio.get_running_loop()
    until_s = now_s + SLICE_S
    for call in list(parts.live):
        try:
            _attend(parts, call, cadence, now_s, elapsed_ms)
        except LedgerAway:
            pass  # the next look comes well before the hold expires
        except Exception:
            LOG.exception("a call could not be looked after", extra={"request_id": call.request_id})
        if loop.time() > until_s:
            await asyncio.sleep(0)
            until_s = loop.time() + SLICE_S


def _attend(parts: Parts, call: Call, cadence: Cadence, now_s: float, elapsed_ms: int) -> None:
    if call.limit is not None:
        _check_client(parts, call)
        if call.rolling is not None and call.facts.hidden_tokens_max:
            call.rolling.pass_time(elapsed_ms)
    if not call.renewed_at_s:  # it has just begun, and its hold with it
        call.renewed_at_s = call.progress_at_s = now_s
    elif now_s - call.progress_at_s > cadence.progress_s - cadence.look_s and _shows_progress(call):
        _write_progress(parts, call, now_s)
    elif now_s - call.renewed_at_s > cadence.renewal_s:
        _renew(parts, call, now_s)


def _check_client(parts: Parts, call: Call) -> None:
    settings = parts.settings
    if call.transport is None or call.transport.is_closing():
        call.stop("client_gone", settings.client_gone_drain_s)
    elif time.perf_counter() - call.dispatched_at > settings.request_timeout_s + STALL_GRACE_S:
        call.stop("client_stalled")


def _shows_progress(call: Call) -> bool:
    """A stream whose answer has begun, and whose settle has not."""
    streams = call.facts.stream and call.format.name in ROLLING_FORMATS
    return streams and call.watch is not None and call.settling is None and (call.http_status or 0) < 400


def _write_progress(parts: Parts, call: Call, now_s: float) -> None:
    if not call.learning and (call.progress is None or not call.progress.learned):
        call.learning = True
        parts.background.start(learn(parts, call), "learn a stream's progress")
    if call.progress is not None:
        call.progress_at_s = now_s
        _renew(parts, call, now_s, progress=True)


def _renew(parts: Parts, call: Call, now_s: float, *, progress: bool = False) -> None:
    issued = parts.wallets.issue_extend(
        call.principal.wallet,
        call.request_id,
        call.held_nano,
        expires_ms=now_ms() + parts.settings.hold_ttl_s * 1000,
        progress=so_far(parts, call) if progress else None,
        spend=call.principal.spend,
    )
    call.renewed_at_s = now_s
    issued.future.add_done_callback(partial(_renewed, parts, call))


def _renewed(parts: Parts, call: Call, reply: asyncio.Future[Any]) -> None:
    extension = parts.wallets.extended(reply)
    if extension is None or call.settling is not None or call.conclusion is not None:
        return
    if extension.kind == "gone":
        parts.background.start(_hold_again(parts, call), "hold again")
    elif extension.kind != "unknown" and call.rolling is not None:
        call.rolling.holds(extension.amount_nano)


async def _hold_again(parts: Parts, call: Call) -> None:
    """Redis has lost the hold of a live call, or the reaper has ended it."""
    try:
        extension = await extend(parts, call, call.held_nano)
    except LedgerAway:
        return
    if call.rolling is not None:
        call.rolling.holds(extension.amount_nano)
    if extension.kind != "extended":
        LOG.warning("a live call has no hold", extra={"request_id": call.request_id})
