"""One call's journey through the gateway, in the order it happens.

The money-path rule: from the moment a hold is asked for, the `finally` below sees to it that it is resolved,
by a background task that neither a cancelled request nor an absent Redis can lose.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import orjson
from aiohttp import web

from gateway import errors
from gateway.core.money import format_nano
from gateway.errors import ObolError
from gateway.ledger.connection import Issued, LedgerAway
from gateway.ledger.row import encode
from gateway.ledger.wallets import HoldResult, now_ms
from gateway.proxy.admission import admit
from gateway.proxy.call import Call
from gateway.proxy.conclusion import begin, conclude, end_claim
from gateway.proxy.downstream import ClientGone, Downstream
from gateway.proxy.exchange import dispatch, prepare, relay
from gateway.proxy.parts import Parts

LOG = logging.getLogger("obol.forward")


async def forward(parts: Parts, request: web.BaseRequest) -> web.StreamResponse:
    """Serve one call. Every error before the first byte is told in the caller's dialect."""
    call, answer = Call(request.method, parts.request_ids), Downstream(request)
    try:
        await admit(parts, request, call)
        asked = ask_hold(parts, call)  # Redis trip 1
        outgoing = prepare(parts, request, call)  # while it is under way
        await hold(parts, call, asked)
        response = await dispatch(parts, call, outgoing)
        try:
            last = await relay(parts, call, response, answer)
        finally:
            response.close()
        await finish(parts, call, answer, last)  # Redis trip 2
    except ClientGone:
        call.ending = "client_gone"
    except asyncio.CancelledError:
        call.ending = "cancelled"
        raise
    except (ObolError, LedgerAway) as error:
        await tell(parts, call, answer, error)
    except Exception:
        LOG.exception("a call failed inside the gateway", extra={"request_id": call.request_id})
        await tell(parts, call, answer, ObolError("internal", "the gateway failed on this call"))
    finally:
        if call.claim is not None or (call.held and call.settling is None):
            parts.background.start(conclude(parts, call), "conclude")
    return answer


def ask_hold(parts: Parts, call: Call) -> Issued:
    """Ask Redis to reserve what the call can cost at most. Raise LedgerAway."""
    principal = call.principal
    if principal.charged:
        call.held_nano = parts.pricing.ceiling(call.provider_name, call.facts, len(call.body), principal.meter)
    issued = parts.wallets.issue_hold(
        principal.wallet,
        call.request_id,
        call.held_nano,
        expires_ms=now_ms() + parts.settings.hold_ttl_s * 1000,
        descriptor=encode(call.descriptor()),
    )
    call.held = True  # from here on it may exist, whatever the answer
    return issued


async def hold(parts: Parts, call: Call, asked: Issued) -> None:
    """Wait for the hold. There is no upstream call without it."""
    result = await parts.wallets.held(asked)
    if result.kind != "held":
        call.held = False
        raise _refusal(result, call.held_nano)
    parts.live.add(call)


async def finish(parts: Parts, call: Call, answer: Downstream, last: bytes) -> None:
    """Settle, and send the end. The settle leaves for Redis before the last bytes leave for the client: whoever has
    seen the end of the answer finds the call in the balance. Redis away: the client gets its end all the same."""
    with suppress(LedgerAway):
        await begin(parts, call)
        if call.claim is not None:  # the idempotency key must answer "made" to whoever has seen the end
            await end_claim(parts, call)
    if parts.ledger.unsent:
        await asyncio.sleep(0)  # the tick in which the settle is written to Redis
    if call.ending in ("truncated", "upstream_timeout"):
        if last:
            await answer.write(last)
        answer.cut()
    elif call.ending != "client_gone":
        answer.end(last)


async def tell(parts: Parts, call: Call, answer: Downstream, error: Exception) -> None:
    """Answer with an error, in the dialect of the wire format that was asked for."""
    if isinstance(error, LedgerAway):
        error = ObolError("ledger_unavailable", "the ledger is not reachable; nothing was sent", retry_after_s=1)
    assert isinstance(error, ObolError)
    if not call.dispatched_at:
        parts.metrics.refusals.labels(error.code).inc()
    if answer.begun:
        answer.cut()
        return
    body = orjson.dumps(errors.body(error, call.format.dialect, call.request_id))
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-lava-request-id", call.request_id.encode()),
    ]
    if error.retry_after_s is not None:
        head.append((b"retry-after", str(error.retry_after_s).encode()))
    answer.begin(error.status, "", head)
    try:
        answer.end(body)
    except ClientGone:
        call.ending = "client_gone"


def _refusal(result: HoldResult, ceiling_nano: int) -> ObolError:
    """Why the wallet could not be held, as the caller is told."""
    if result.kind == "insufficient":
        details = {"required": format_nano(ceiling_nano), "available": format_nano(result.available_nano)}
        return ObolError("insufficient_balance", "the balance does not cover this call", details=details)
    if result.kind == "reserved":
        return ObolError(
            "balance_reserved",
            "the balance is reserved by calls in flight; try again when they have ended",
            retry_after_s=1,
            details={"required": format_nano(ceiling_nano), "available": format_nano(result.available_nano)},
        )
    if result.kind == "disabled":
        return ObolError("connection_disabled", f"this connection is {result.status}", param="connection_id")
    if result.kind == "unknown":
        return ObolError("wallet_unavailable", "this wallet is being restored; try again", retry_after_s=2)
    return ObolError("internal", "this request id has ended before it began")
