"""The call goes to the provider, and its answer comes back (`relay.py`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Literal

from aiohttp import web

from gateway.billing.principals import Merchant
from gateway.errors import ObolError
from gateway.providers import Provider
from gateway.proxy import body as bodies
from gateway.proxy import headers
from gateway.proxy.call import Call, Ending
from gateway.proxy.downstream import ClientGone, Downstream
from gateway.proxy.hops import go_to
from gateway.proxy.http_client import Timeouts
from gateway.proxy.parts import Parts
from gateway.proxy.relay import last_words, relay
from gateway.proxy.resolver import NotSent, Policy
from gateway.proxy.upstream import Origin, Request, Response
from gateway.wire.plain import UNREAD
from gateway.wire.target import Target

Outcome = Literal["answered", "rate_limited", "server_error", "network_error", "silent"]
LEFT_FOR: tuple[Outcome, ...] = ("rate_limited", "server_error", "network_error")


async def exchange(parts: Parts, request: web.BaseRequest, call: Call, outgoing: Request, answer: Downstream) -> bytes:
    """Send the call and pass the answer on; return its last bytes. `call.stop` ends it from outside.

    Raise ObolError when no answer comes.
    """
    try:
        async with asyncio.timeout(None) as call.limit:
            if call.fallbacks:
                response = await first_answer(parts, request, call, outgoing, answer)
            else:
                response = await dispatch(parts, call, outgoing, parts.timeouts)
            try:
                last = await relay(parts, call, response, answer)
                return last if call.translated is None else await call.translated.last(last)
            finally:
                response.close()
    except TimeoutError:
        if call.stopped is None:
            raise
        if not call.dispatched_at:
            raise ClientGone from None
        return _stopped(call, call.stopped, answer)
    finally:
        call.limit = None


def _stopped(call: Call, ending: Ending, answer: Downstream) -> bytes:
    """The last bytes of a call that was ended from outside."""
    call.ending, rolling = ending, call.rolling
    if rolling is None or rolling.exhausted is None:
        return b""
    rolling.open_event = rolling.text.open_event(0)
    return last_words(call, answer, rolling.exhausted.error, rolling.open_event.rest)


async def first_answer(
    parts: Parts, request: web.BaseRequest, call: Call, outgoing: Request, answer: Downstream
) -> Response:
    """Send the call to its first choice and, while that fails, to the next one; the last one's answer is the answer.

    A provider is left for an error status that says it did not do the work (429, 5xx), and where the network fails
    before its answer begins. Not where it keeps silent: it may be at work, and would be paid for nothing. All of it
    together takes no longer than one call may. Raise ObolError when no answer comes, ClientGone.
    """
    until_s, further, number = time.perf_counter() + parts.settings.request_timeout_s, iter(call.fallbacks), 0
    while True:
        outcome, answered = await _attempt(parts, call, outgoing, until_s - time.perf_counter())
        parts.metrics.hops.labels(str(number), outcome).inc()
        following = next(further, None) if outcome in LEFT_FOR and time.perf_counter() < until_s else None
        if following is None:
            if isinstance(answered, ObolError):
                raise answered
            return answered
        if isinstance(answered, Response):
            answered.close()
        if answer.gone:  # nobody waits for it any more: nothing more is sent
            call.dispatched_at = 0.0
            raise ClientGone
        await go_to(parts, call, following)
        outgoing, number = prepare(parts, request, call), number + 1


async def _attempt(parts: Parts, call: Call, outgoing: Request, left_s: float) -> tuple[Outcome, Response | ObolError]:
    """Send the call to one provider of a chain. Raise NotSent where our own limits forbid it."""
    usual = parts.timeouts
    timeouts = Timeouts(min(usual.first_byte_s, left_s), usual.idle_s, min(usual.total_s, left_s))
    try:
        response = await dispatch(parts, call, outgoing, timeouts)
    except NotSent:
        raise
    except ObolError as error:
        silent = outgoing.sent and error.code == "upstream_timeout"
        return "silent" if silent else "network_error", error
    if response.status == 429:
        return "rate_limited", response
    return "server_error" if response.status >= 500 else "answered", response


async def dispatch(parts: Parts, call: Call, outgoing: Request, timeouts: Timeouts) -> Response:
    """Send the call. Raise ObolError when no answer comes."""
    origin = origin_of(parts, call.target)
    first, call.dispatched_at = not call.dispatched_at, time.perf_counter()
    if first:
        parts.metrics.gateway_latency.observe(call.dispatched_at - call.started_at)
    try:
        response = await parts.upstream.send(origin, outgoing, timeouts)
    except NotSent:
        call.dispatched_at = 0.0
        raise
    except asyncio.CancelledError:
        if not outgoing.sent:  # it was being connected: there is nothing to charge
            call.dispatched_at = 0.0
        raise
    except ObolError as error:
        call.ending = "upstream_timeout" if error.code == "upstream_timeout" else "upstream_failed"
        raise
    if parts.fail is not None:
        parts.fail.reached("first_byte")
    call.first_byte_at = time.perf_counter()
    call.http_status = response.status
    waited_s = call.first_byte_at - call.dispatched_at
    parts.metrics.of_model(call.provider_name if call.target.provider else "other", "other").first_byte.observe(
        waited_s
    )
    return response


def prepare(parts: Parts, request: web.BaseRequest, call: Call) -> Request:
    """What goes upstream. Raise ObolError `upstream_key_missing`."""
    provider = call.target.provider
    managed = None if call.own_key else key_for(parts, call.principal.merchant, call.target)
    key = call.own_key or managed
    # No compression where a chunk is hidden, which must be readable, or where an error event may have to be added.
    compressed = not call.injects_usage and call.rolling is None and call.translation is None
    sent = request.raw_headers if call.translation is None else call.translation.to_provider(request.raw_headers)
    raw = headers.to_provider(sent, provider, key, compressed=compressed)
    body: bytes | AsyncIterator[bytes] = b""
    length = None
    if call.format.name not in UNREAD:
        body = call.format.upstream_body(call.body, call.facts, inject_usage=call.injects_usage)
    elif request.body_exists:
        body, length = bodies.pieces_of(request, parts.settings.max_request_body_bytes), request.content_length
    return Request(
        method=call.method,
        path=call.target.path,
        headers=raw,
        body=body,
        content_length=length,
        withheld=call.credential,
        secret=managed.encode() if managed else b"",
    )


def key_for(parts: Parts, merchant: Merchant, target: Target[Provider]) -> str | None:
    """The key for the provider that the merchant has stored, else the installation's own; none is needed where a
    stand-in answers for it.

    Raise ObolError `upstream_key_missing`.
    """
    provider = target.provider
    if provider is None:
        return None
    if merchant.stored_keys is not None and provider.name in merchant.stored_keys:
        return merchant.stored_keys.of(provider.name)
    key = parts.managed_keys.get(provider.name)
    if key is None and target.origin not in parts.origins:
        raise ObolError(
            "upstream_key_missing",
            f"this gateway has no key for {provider.name}: set OBOL_PROVIDER_KEY_{provider.name.upper()}",
        )
    return key


def origin_of(parts: Parts, where: Target[Provider]) -> Origin:
    """Where a target is reached: at a stand-in, where the settings name one."""
    stand_in = parts.origins.get(where.origin)
    if stand_in is not None:
        return stand_in
    policy: Policy = "provider" if where.provider else "own"
    return Origin(where.scheme, where.host, where.port, where.origin.partition("://")[2], policy)
