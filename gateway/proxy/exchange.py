"""The call goes to the provider and its answer to the client, byte for byte, as it comes."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from gateway.errors import ObolError
from gateway.proxy import body as bodies
from gateway.proxy import headers
from gateway.proxy.call import PLAIN, Call
from gateway.proxy.downstream import ClientGone, Downstream
from gateway.proxy.metering import Watch
from gateway.proxy.parts import Parts
from gateway.proxy.upstream import Origin, Request, Response


async def dispatch(parts: Parts, call: Call, outgoing: Request) -> Response:
    """Send the call. Raise ObolError when no answer comes."""
    origin = parts.origins.get(call.target.origin) or _origin(call)
    call.dispatched_at = time.perf_counter()
    parts.metrics.gateway_latency.observe(call.dispatched_at - call.started_at)
    try:
        response = await parts.upstream.send(origin, outgoing, parts.timeouts)
    except ObolError as error:
        call.ending = "upstream_timeout" if error.code == "upstream_timeout" else "upstream_failed"
        raise
    call.first_byte_at = time.perf_counter()
    call.http_status = response.status
    waited_s = call.first_byte_at - call.dispatched_at
    parts.metrics.of_model(call.provider_name if call.target.provider else "other", "other").first_byte.observe(
        waited_s
    )
    return response


async def relay(parts: Parts, call: Call, response: Response, answer: Downstream) -> bytes:
    """Pass the answer on; return its last bytes, which leave once the settle is on its way.

    The watch reads along. A client that leaves does not end it: the provider is read on, within bounds, for its
    own usage. `call.ending` tells how it went.
    """
    failed = response.status >= 400
    hidden = call.injects_usage and not failed
    call.watch = watch = Watch(
        call.format,
        call.facts,
        provider=call.provider_name,
        content_type=response.header(b"content-type"),
        encoding=response.header(b"content-encoding"),
        hide=hidden,
        limit_bytes=parts.settings.max_metered_response_bytes,
    )
    if failed:
        call.ending = "provider_error"
    answer.begin(response.status, response.reason, headers.to_client(response.headers, call.request_id, hidden=hidden))

    def pass_on(piece: bytes) -> bool:
        """False: the client is behind, or gone."""
        visible = watch.feed(piece)
        return not visible or answer.offer(visible)

    try:
        while data := await response.read():
            visible = watch.feed(data)
            if response.ended:
                return visible + watch.finish()
            if visible:
                await answer.write(visible)
            await response.pump(pass_on)
            await answer.drain()
    except ClientGone:
        call.ending = "client_gone"
        await _drain(parts, response, watch)
    except ObolError as error:
        call.ending = "upstream_timeout" if error.code == "upstream_timeout" else "truncated"
    return watch.finish()


async def _drain(parts: Parts, response: Response, watch: Watch) -> None:
    """The client has left: read on for the provider's own usage."""
    settings, seen_bytes = parts.settings, 0
    try:
        async with asyncio.timeout(settings.client_gone_drain_s):
            while seen_bytes < settings.client_gone_drain_bytes and (data := await response.read()):
                seen_bytes += len(data)
                watch.feed(data)
    except (TimeoutError, ObolError):
        return


def prepare(parts: Parts, request: web.BaseRequest, call: Call) -> Request:
    """What goes upstream. Raise ObolError `upstream_key_missing`."""
    provider = call.target.provider
    key = call.principal.provider_key or _managed_key(parts, call)
    # What must be withheld must be readable: no compression where a chunk is hidden.
    raw = headers.to_provider(request.raw_headers, provider, key, compressed=not call.injects_usage)
    if call.format.name != PLAIN:
        body = call.format.upstream_body(call.body, call.facts, inject_usage=call.injects_usage)
        return Request(method=call.method, path=call.target.path, headers=raw, body=body)
    if not request.body_exists:
        return Request(method=call.method, path=call.target.path, headers=raw)
    return Request(
        method=call.method,
        path=call.target.path,
        headers=raw,
        body=bodies.pieces_of(request, parts.settings.max_request_body_bytes),
        content_length=request.content_length,
    )


def _managed_key(parts: Parts, call: Call) -> str | None:
    """The installation's own key for the provider; none is needed where a stand-in answers for it."""
    provider = call.target.provider
    if provider is None:
        return None
    key = parts.managed_keys.get(provider.name)
    if key is None and call.target.origin not in parts.origins:
        raise ObolError(
            "upstream_key_missing",
            f"this gateway has no key for {provider.name}: set OBOL_PROVIDER_KEY_{provider.name.upper()}",
        )
    return key


def _origin(call: Call) -> Origin:
    where = call.target
    return Origin(where.scheme, where.host, where.port, where.origin.partition("://")[2])
