"""The end of every call: what it used, what that costs, and the settle (or the release) of its hold.

`begin` measures, prices and issues the settle; nobody waits for its acknowledgement, which is counted when it comes.
Where it does not come - Redis away - or the request was cancelled before, `conclude` does it all again as a background
task, for as long as it takes: the scripts are idempotent.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec
from hiredis import ReplyError

from gateway.ledger.connection import LedgerAway
from gateway.ledger.row import encode
from gateway.ledger.wallets import Settled
from gateway.providers import HTTP
from gateway.proxy.call import BILLED, NOTHING, Call, Conclusion
from gateway.proxy.charging import priced_model, pricing_of, within_hold
from gateway.proxy.metering import Metered, Watch
from gateway.proxy.parts import Parts

LOG = logging.getLogger("obol.conclusion")
COUNTED_WITHOUT_ANSWER = ("client_gone", "balance_exhausted")
"""The client left, or its balance ran out, and the provider was at work: its prompt is charged, whatever came."""
RETRY_FIRST_S = 0.02
RETRY_MAX_S = 2.0
BEYOND = "beyond 2^53"
"""What lua/includes/wallet.lua says of an amount that no wallet can hold."""

T = TypeVar("T")


async def begin(parts: Parts, call: Call) -> None:
    """Measure, price, and issue the settle: it leaves for Redis in the next tick. Raise LedgerAway."""
    done = await _concluded(parts, call)
    call.settling = parts.wallets.issue_settle(
        call.principal.wallet,
        call.request_id,
        done.priced.price,
        at_ms=done.at_ms,
        body=done.body,
        spend=call.principal.spend,
    )
    call.settling.add_done_callback(partial(_acknowledged, parts, call))


def _acknowledged(parts: Parts, call: Call, settling: asyncio.Future[Any]) -> None:
    settled = parts.wallets.acknowledged(settling)
    if settled is None:
        parts.background.start(conclude(parts, call), "conclude")
    else:
        _settled(parts, call, settled)


async def end_claim(parts: Parts, call: Call) -> None:
    """Once the settle is through: a billed call keeps its idempotency key, any other gives it back.

    Raise LedgerAway; `conclude` then tries again.
    """
    if call.settling is not None:
        await asyncio.wait([call.settling])
        await asyncio.sleep(0)  # its acknowledgement is counted
    if call.claim is not None and (call.concluded or not call.held):
        await _end_claim(parts, call, call.claim)


async def conclude(parts: Parts, call: Call) -> None:
    """Resolve whatever the call still holds, however long Redis is away or its wallet is being restored. A background
    task."""
    parts.metrics.settles_waiting.inc()
    try:
        if call.held and not call.concluded:
            if call.dispatched_at:
                _settled(parts, call, await _until_done(lambda: _settle(parts, call)))
            else:
                await _until_done(lambda: _release(parts, call))
        if call.claim is not None:
            claim = call.claim
            await _until_done(lambda: _end_claim(parts, call, claim))
    except ReplyError as error:
        parts.metrics.lost_settles.inc()
        row = call.conclusion.body.decode() if call.conclusion else ""
        LOG.error("a charge cannot be made", extra={"request_id": call.request_id, "reason": str(error), "row": row})
    finally:
        parts.live.discard(call)
        parts.metrics.settles_waiting.dec()


async def _release(parts: Parts, call: Call) -> str:
    return await parts.wallets.release(call.principal.wallet, call.request_id, call.principal.spend)


async def _settle(parts: Parts, call: Call) -> Settled:
    done = await _concluded(parts, call)
    settled = await parts.wallets.settle_spent(
        call.principal.wallet,
        call.request_id,
        done.priced.price,
        at_ms=done.at_ms,
        body=done.body,
        spend=call.principal.spend,
    )
    if settled.kind == "unknown":
        raise LedgerAway("the wallet is being restored")
    return settled


def _settled(parts: Parts, call: Call, settled: Settled) -> None:
    """The first to hear of it counts it: a call with a claim may be concluded twice at once."""
    if call.concluded:
        return
    call.concluded = True
    parts.live.discard(call)
    if parts.fail is not None:
        parts.fail.reached("settled")
    _count(parts, call, settled)


async def _concluded(parts: Parts, call: Call) -> Conclusion:
    """What the settle says: worked out once, whoever asks first."""
    if call.conclusion is None:
        call.ended_at = time.perf_counter()
        call.conclusion = await _conclusion(parts, call)
    return call.conclusion


async def _conclusion(parts: Parts, call: Call) -> Conclusion:
    metered = await _measure(parts, call)
    principal = call.principal
    model = priced_model(parts, call, metered.reading)
    priced = pricing_of(parts, call).price(
        call.provider_name,
        model,
        metered.usage,
        metered.reading.service_tier,
        principal.meter,
        charged=principal.charged and call.ending in BILLED,
    )
    row = call.row(metered, priced, model)
    return Conclusion(row, priced, encode(row), time.time_ns() // 1_000_000)


async def _measure(parts: Parts, call: Call) -> Metered:
    """What was used; and, now that the whole answer is known, how it ended."""
    if call.metered is not None:
        inexact = call.metered.estimated or call.ending == "balance_exhausted"
        return _bounded(parts, call, call.metered) if inexact else call.metered
    if call.rolling is not None:
        await call.rolling.close()
    watch = call.watch
    if watch is None:
        if call.ending not in COUNTED_WITHOUT_ANSWER or not call.dispatched_at:
            return NOTHING
        watch = Watch.of_nothing(call.format, call.facts, call.provider_name)
    metered = await watch.measure(call.body, parts.counter, failed=call.ending not in BILLED)
    if call.ending == "completed":
        if metered.reading.failed:
            call.ending = "error_event"
        elif not metered.reading.finished:
            call.ending = "truncated"
    if call.format.name == HTTP and call.ending in BILLED:
        took_us = int((call.ended_at - call.dispatched_at) * 1e6)
        metered = msgspec.structs.replace(metered, usage=msgspec.structs.replace(metered.usage, output_us=took_us))
    if metered.estimated or call.ending == "balance_exhausted":
        return _bounded(parts, call, metered)
    return metered


def _bounded(parts: Parts, call: Call, metered: Metered) -> Metered:
    """An estimate, bounded by the hold. Reasoning that did not show is part of it where the client or its balance ended
    the call."""
    usage, hidden = metered.usage, call.rolling.hidden_tokens if call.rolling is not None else 0
    if hidden and metered.estimated and call.ending in COUNTED_WITHOUT_ANSWER:
        produced = (usage.output_tokens or 0) + hidden
        usage = msgspec.structs.replace(usage, output_tokens=produced, reasoning_tokens=hidden)
    bounded = within_hold(parts, call, usage, metered.reading)
    if bounded == metered.usage:
        return metered
    return Metered(bounded, True, metered.reading)


async def _end_claim(parts: Parts, call: Call, name: str) -> None:
    """A billed call keeps its idempotency key; any other gives it back, so that the caller may try again."""
    done = bool(call.dispatched_at) and call.ending in BILLED
    merchant_id = call.principal.merchant.merchant_id
    await parts.wallets.unclaim(call.claim_shard, merchant_id, name, call.request_id, done=done)
    call.claim = None


def _count(parts: Parts, call: Call, settled: Settled) -> None:
    assert call.conclusion is not None
    row, unpriced = call.conclusion.row, call.conclusion.priced.unpriced
    metrics, provider = parts.metrics, call.provider_name if call.target.provider else "other"
    price = parts.pricing.book.find(provider, row.model) if row.model else None
    model = price.model if price is not None else "other"  # not the caller's wording: a price may cover any number
    metrics.outcome(provider, model, call.http_status or 0, call.ending)
    children = metrics.of_model(provider, model)
    children.provider_time.observe(call.ended_at - call.dispatched_at)
    children.input_tokens.inc(row.usage.input_tokens or 0)
    children.output_tokens.inc(row.usage.output_tokens or 0)
    metrics.cost.inc(row.cost_nano)
    metrics.charge.inc(settled.amount_nano)
    metrics.settle_latency.observe(time.perf_counter() - call.ended_at)
    if row.estimated:
        metrics.estimated.labels(provider).inc()
    if unpriced:
        metrics.unpriced.labels(provider).inc()
    if settled.hold_lost:
        metrics.holds_lost.inc()
    if settled.kind == "duplicate":
        metrics.duplicate_settles.inc()
    elif settled.kind != "settled":
        metrics.lost_settles.inc()
        LOG.error("a settle found its call released", extra={"request_id": call.request_id, "found": settled.kind})


async def _until_done(attempt: Callable[[], Awaitable[T]]) -> T:
    """Call until Redis does it. An error that Redis answers with (a permission, a key of the wrong kind) ends with it:
    only an amount beyond what a wallet can hold never goes through. Raise ReplyError for that."""
    delay_s = RETRY_FIRST_S
    while True:
        try:
            return await attempt()
        except LedgerAway:
            pass
        except ReplyError as error:
            if BEYOND in str(error):
                raise
            LOG.error("Redis refuses a script; it is tried again", extra={"reason": str(error)})
            delay_s = RETRY_MAX_S
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))  # noqa: S311 - jitter, not a secret
        delay_s = min(delay_s * 2, RETRY_MAX_S)
