"""One call's journey through the gateway, in the order it happens.

The money-path rule: from the moment a hold is asked for, the `finally` below sees to it that it is resolved,
by a background task that neither a cancelled request nor an absent Redis can lose.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from aiohttp import web

from gateway.billing.principals import unknown_customer
from gateway.core.money import format_nano
from gateway.errors import ObolError
from gateway.ledger.connection import Issued, LedgerAway
from gateway.ledger.row import encode
from gateway.ledger.wallets import HoldResult, now_ms
from gateway.proxy.admission import admit
from gateway.proxy.call import Call, Ending
from gateway.proxy.conclusion import begin, conclude, end_claim
from gateway.proxy.downstream import ClientGone, Downstream
from gateway.proxy.exchange import exchange, prepare
from gateway.proxy.hops import reserve
from gateway.proxy.limits import beyond, beyond_key
from gateway.proxy.parts import Parts
from gateway.proxy.refusal import reason, refusal
from gateway.wire.dropin import Route

LOG = logging.getLogger("obol.forward")
CUT_SHORT = ("truncated", "upstream_timeout", "client_stalled")
TOLD_IN_THE_STREAM = ("balance_exhausted", "hold_lost")
"""Endings whose reason stands in the stream; where there was no way to put it there, the stream is cut."""


async def forward(parts: Parts, request: web.BaseRequest, route: Route | None = None) -> web.StreamResponse:
    """Serve one call. Every error before the first byte is told in the caller's dialect.

    `route`: of a call whose path names no target; the provider is then the one that has its model.
    """
    call, answer = Call(request.method, parts.request_ids, request.transport), Downstream(parts, request)
    try:
        await admit(parts, request, call, route)
        asked = ask_hold(parts, call)  # Redis trip 1
        outgoing = prepare(parts, request, call)  # while it is under way
        await hold(parts, call, asked, answer)
        last = await exchange(parts, request, call, outgoing, answer)
        if parts.fail is not None:
            parts.fail.reached("last_byte")
        await finish(parts, call, answer, last)  # Redis trip 2
    except ClientGone:
        _ended(call, "client_gone")
    except asyncio.CancelledError:
        _ended(call, "cancelled")
        if answer.ends_by_close:  # an orderly close, as the others get, would pass for its end
            answer.cut()
        raise
    except (ObolError, LedgerAway) as error:
        await tell(parts, call, answer, error)
    except Exception:
        LOG.exception("a call failed inside the gateway", extra={"request_id": call.request_id})
        await tell(parts, call, answer, ObolError("internal", "the gateway failed on this call"))
    finally:
        if call.counted:
            parts.limits.leave(call.principal.merchant.merchant_id)
        if call.claim is not None or (call.held and call.settling is None):
            parts.background.start(conclude(parts, call), "conclude")
    return answer


def _ended(call: Call, ending: Ending) -> None:
    """The call ends in this way, unless it had ended before."""
    if call.conclusion is None:
        call.ending = ending


def ask_hold(parts: Parts, call: Call) -> Issued:
    """Ask Redis to reserve what the call can cost at most; of a stream, the prompt and a first step.

    Raise LedgerAway.
    """
    if parts.journals.full:
        raise parts.journals.refusal()
    if call.principal.reserves:
        reserve(parts, call)
    issued = issue_hold(parts, call)
    call.held = True  # from here on it may exist, whatever the answer
    return issued


def issue_hold(parts: Parts, call: Call) -> Issued:
    """A hold of `call.held_nano`, on its way to Redis. Raise LedgerAway."""
    principal = call.principal
    return parts.wallets.issue_hold(
        principal.wallet,
        call.request_id,
        call.held_nano,
        expires_ms=now_ms() + parts.settings.hold_ttl_s * 1000,
        descriptor=encode(call.descriptor()),
        limits=parts.limits.of_hold(charged=principal.charged),
        spend=principal.spend,
    )


async def hold(parts: Parts, call: Call, asked: Issued, answer: Downstream) -> None:
    """Wait for the hold. There is no upstream call without it."""
    result = await parts.wallets.held(asked)
    if result.kind == "key_unopened":
        assert call.principal.spend is not None
        call.held = False
        await parts.spend_counters.open(call.principal.wallet, call.principal.spend)
        result = await parts.wallets.held(ask_hold(parts, call))
    granted(parts, call, result)
    parts.live.add(call)
    if parts.fail is not None:
        parts.fail.reached("held")
    if answer.gone:  # nobody waits for it any more: nothing is sent
        raise ClientGone


def granted(parts: Parts, call: Call, result: HoldResult) -> None:
    """Raise ObolError where the hold was not granted: then there is none."""
    if result.kind == "held":
        return
    call.held = False
    if result.kind == "unknown":
        parts.wallets.queue_restore(call.principal.wallet.shard, call.principal.wallet.wallet_id)
    if result.status == "deleted":  # between the deletion and this process hearing of it
        raise unknown_customer(legacy=call.principal.legacy)
    raise _refusal(result, call.held_nano)


async def finish(parts: Parts, call: Call, answer: Downstream, last: bytes) -> None:
    """Settle, and send the end. The settle leaves for Redis before the last bytes leave for the client: whoever has
    seen the end of the answer finds the call in the balance. Redis away: the client gets its end all the same."""
    if call.ending == "completed" and answer.gone and last:
        call.ending = "client_gone"
    with suppress(LedgerAway):
        await begin(parts, call)
        if call.claim is not None:  # the idempotency key must answer "made" to whoever has seen the end
            await end_claim(parts, call)
    if parts.ledger.unsent:
        await asyncio.sleep(0)  # the tick in which the settle is written to Redis
    if parts.fail is not None:
        parts.fail.soon("settling")
    if call.ending in CUT_SHORT or (call.ending in TOLD_IN_THE_STREAM and not last):
        if last:
            answer.offer(last)
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
    parts.metrics.limit_reached(error.limit)
    if answer.begun:
        answer.cut()
        return
    head, body = refusal(error, call.dialect, call.request_id)
    answer.begin(error.status, reason(error.status), head)
    with suppress(ClientGone):
        answer.end(body)


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
    if result.kind in ("busy", "throttled", "key_throttled"):
        return beyond(result)
    if result.kind in ("key_spent", "key_requests"):
        return beyond_key(result, ceiling_nano)
    if result.kind == "disabled":
        return ObolError("connection_disabled", f"this connection is {result.status}", param="connection_id")
    if result.kind in ("unknown", "key_unopened"):
        return ObolError("wallet_unavailable", "this wallet is being restored; try again", retry_after_s=2)
    return ObolError("internal", "this request id has ended before it began")
