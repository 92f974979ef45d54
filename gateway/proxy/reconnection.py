"""What a gateway does for a Redis that may have come back with less: it sends again what it has settled lately, and
holds again what the calls under way had held, before anyone uses the new connection."""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context

import hiredis

from gateway.ledger.connection import Connection
from gateway.ledger.kept import Counts, Kept
from gateway.ledger.replicas import Replicas
from gateway.ledger.wallets import now_ms
from gateway.metrics import Metrics
from gateway.proxy.call import Call
from gateway.proxy.parts import Parts
from gateway.settings import Settings

LOG = logging.getLogger("obol.reconnection")


def kept_settles(settings: Settings, ledger: Connection, metrics: Metrics) -> Kept:
    """As the settings say."""
    replicas = None
    if settings.redis_wait_replicas:
        replicas = Replicas(
            ledger,
            wanted=settings.redis_wait_replicas,
            timeout_ms=settings.redis_wait_timeout_ms,
            shortfalls=metrics.replica_shortfalls,
        )
    return Kept(
        ledger,
        keep_s=settings.settle_keep_s,
        entries_max=settings.settles_kept_max,
        bytes_max=settings.settles_kept_max_bytes,
        counts=Counts(
            metrics.settles_kept,
            metrics.settles_kept_bytes,
            metrics.settles_kept_dropped,
            metrics.settles_resent.labels,
        ),
        replicas=replicas,
    )


async def hold_again(parts: Parts) -> None:
    """Nothing is done where the holds are still there. Raise LedgerAway."""
    await asyncio.gather(*(_hold_again(parts, call) for call in list(parts.live) if call.conclusion is None))


async def _hold_again(parts: Parts, call: Call) -> None:
    """A call whose settle may have been sent is left alone: it must not find a hold where it had ended long ago.

    Where the wallet cannot cover the hold any more, a stream asks for less, and ends where it gets none; any other call
    goes on, and its settle debits it. So does any call while its wallet is being restored.
    """
    try:
        outcome, held_nano = await _held(parts, call)
    except hiredis.ReplyError as error:
        outcome, held_nano = str(error), None
    if held_nano is not None and call.rolling is not None:
        # In a context of its own: what this starts must not pass for the greeting of the connection.
        asyncio.get_running_loop().call_soon(call.rolling.holds, held_nano, context=Context())
    if outcome != "extended":
        LOG.warning("a call under way cannot be held again", extra={"request_id": call.request_id, "why": outcome})


async def _held(parts: Parts, call: Call) -> tuple[str, int | None]:
    """What came of it, and what is held now; None where that cannot be told. A hold may have come back smaller than its
    last extension: that is asked for again."""
    wallet, expires_ms = call.principal.wallet, now_ms() + parts.settings.hold_ttl_s * 1000
    spend = call.principal.spend
    held = await parts.wallets.hold(
        wallet,
        call.request_id,
        call.held_nano,
        expires_ms=expires_ms,
        descriptor=call.encoded_row(),
        spend=spend,
        again=True,
    )
    if held.kind != "held":
        return held.kind, None if held.kind == "unknown" else 0
    extension = await parts.wallets.extend(wallet, call.request_id, call.held_nano, expires_ms=expires_ms, spend=spend)
    return extension.kind, None if extension.kind == "unknown" else extension.amount_nano
