"""The provider's answer to the client, byte for byte, as it comes; and how it ends where it does not end by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.errors import ObolError
from gateway.proxy import headers
from gateway.proxy.call import Call
from gateway.proxy.downstream import ClientGone, Downstream
from gateway.proxy.metering import Watch
from gateway.proxy.parts import Parts
from gateway.proxy.rolling import Exhausted, RollingHold
from gateway.proxy.upstream import Response
from gateway.wire.error_events import closing
from gateway.wire.framing import framing_of
from gateway.wire.stream_text import StreamText

if TYPE_CHECKING:
    from gateway.proxy.translated import TranslatedAnswer

REST_OF_EVENT_S = 2.0
REST_OF_EVENT_BYTES = 256 * 1024
"""How long, and how much, the event that a client has a part of is waited for before the stream is cut instead."""


async def relay(parts: Parts, call: Call, response: Response, answer: Downstream) -> bytes:
    """Pass the answer on; return its last bytes, which leave once the settle is on its way.

    The watch reads along. A client that leaves does not end it: the provider is read on, within bounds, for its
    own usage. A stream whose hold can be extended no more is ended. `call.ending` tells how it went. Raise ObolError
    where the hold is used up before anything was passed on.
    """
    watch = _begin(parts, call, response, answer)
    taker = answer if call.translation is None else _translated(parts, call, response, answer)
    try:
        if call.rolling is None:
            return await _pass(response, taker, watch)
        return await _pass_covered(call.rolling, response, taker, watch)
    except ClientGone:  # many clients close as soon as they have read the end mark
        call.ending = "completed" if watch.has_end_mark and not answer.missed else "client_gone"
        await _drain(parts, call, response, watch)
    except Exhausted as exhausted:
        call.ending = exhausted.ending
        told = answer.begun and call.translated is None
        rest = await _rest_of_event(exhausted.hold, response, watch) if told else None
        return last_words(call, answer, exhausted.error, rest)
    except ObolError as error:
        call.ending = "upstream_timeout" if error.code == "upstream_timeout" else "truncated"
        parts.metrics.limit_reached(error.limit)
        if call.translated is not None and not answer.begun:
            raise
    return watch.finish()


def _translated(parts: Parts, call: Call, response: Response, answer: Downstream) -> TranslatedAnswer:
    """What takes the answer in the client's place."""
    from gateway.proxy.translated import TranslatedAnswer

    assert call.translation is not None
    call.translated = TranslatedAnswer(parts, call.translation, call, response, answer)
    return call.translated


def last_words(call: Call, answer: Downstream, error: ObolError, rest: bytes | None) -> bytes:
    """`rest`, with which the client has whole events, the error, and the end as the format has it.

    b"": there is no way to tell it, so the answer is to be cut. Raise `error` where nothing was sent yet.
    """
    if call.translated is not None:
        return call.translated.last_words(error)
    if not answer.begun:
        raise error
    rolling, watch = call.rolling, call.watch
    if rest is None or rolling is None or watch is None or not watch.plain or not answer.open_ended:
        return b""
    text, sent = rolling.text, rolling.open_event.tail + rest
    format_, begun = call.format, text.taken or bool(sent)
    told = closing(format_.name, call.dialect, text.framing, error, call.request_id, sent, begun=begun)
    return rest + told if told else b""


def _begin(parts: Parts, call: Call, response: Response, answer: Downstream) -> Watch:
    failed = response.status >= 400
    hidden = call.injects_usage and not failed
    content_type = response.header(b"content-type")
    if failed:
        call.ending, call.rolling = "provider_error", None
    text = None
    if call.rolling is not None:
        framing = framing_of(call.format.name, streamed=call.facts.stream, content_type=content_type)
        text = StreamText(framing, call.format.reader(call.provider_name).event_text)
    call.watch = watch = Watch(
        call.format,
        call.facts,
        provider=call.provider_name,
        content_type=content_type,
        encoding=response.header(b"content-encoding"),
        hide=hidden,
        limit_bytes=parts.settings.max_metered_response_bytes,
        text=text,
    )
    if call.rolling is not None and text is not None:
        call.rolling.attach(watch, text)
    if parts.fail is not None:
        watch.feed = parts.fail.in_the_middle_of(watch.feed)
    if call.translation is None:
        head = headers.to_client(response.headers, call.request_id, hidden=hidden)
        answer.begin(response.status, response.reason, head)
    return watch


async def _pass(response: Response, answer: Downstream | TranslatedAnswer, watch: Watch) -> bytes:
    """Raise ClientGone, or ObolError where the answer is cut short or too slow."""

    def pass_on(piece: bytes) -> bool:
        """False: the client is behind, or gone."""
        visible = watch.feed(piece)
        return not visible or answer.offer(visible)

    while data := await response.read():
        visible = watch.feed(data)
        if response.ended:
            return visible + watch.finish()
        if visible:
            answer.offer(visible)
        data = visible = b""  # a client that stands still is waited for here
        await answer.drain()
        await response.pump(pass_on)
        await answer.drain()
    return watch.finish()


async def _pass_covered(
    rolling: RollingHold, response: Response, answer: Downstream | TranslatedAnswer, watch: Watch
) -> bytes:
    """The same for a stream whose hold has to be kept ahead of it: no piece goes out that it does not cover.

    Raise Exhausted, too.
    """
    text, unsent, waits = rolling.text, b"", False

    def pass_on(piece: bytes) -> bool:
        """False: the client is behind, or gone, or this piece has to wait."""
        nonlocal unsent, waits
        visible = watch.feed(piece)
        if text.left_bytes > 0 or rolling.covers_all_but(len(piece)):
            return not visible or answer.offer(visible)
        unsent, waits = visible, True
        return False

    while data := await response.read():
        visible = watch.feed(data)
        if response.ended:
            if not rolling.covers_end(len(data)):
                await rolling.cover()
            return visible + watch.finish()
        if text.left_bytes <= 0 and not rolling.covers_all_but(len(data)):
            await rolling.cover()
        if visible:
            answer.offer(visible)
        data = visible = b""
        await answer.drain()
        await response.pump(pass_on)
        if waits:
            await rolling.cover()
            if unsent:
                answer.offer(unsent)
            unsent, waits = b"", False
        await answer.drain()
    return watch.finish()


async def _rest_of_event(rolling: RollingHold, response: Response, watch: Watch) -> bytes | None:
    """What the client lacks of the event that it has a part of; None where that does not come in time."""
    text, read_bytes = rolling.text, 0
    if watch.hides:  # only whole events were sent, unless one is too long to be withheld
        return None if text.skipping else b""
    text.take()
    try:
        async with asyncio.timeout(REST_OF_EVENT_S):
            while (rest := text.rest_of(rolling.open_event)) is None and read_bytes < REST_OF_EVENT_BYTES:
                if not (data := await response.read()):
                    return None
                read_bytes += len(data)
                watch.feed(data)
    except (TimeoutError, ObolError):
        return None
    return rest


async def _drain(parts: Parts, call: Call, response: Response, watch: Watch) -> None:
    """The client has left: read on for the provider's own usage, as far as the hold covers it."""
    settings, rolling, seen_bytes = parts.settings, call.rolling, 0
    try:
        async with asyncio.timeout(settings.client_gone_drain_s):
            while seen_bytes < settings.client_gone_drain_bytes and (data := await response.read()):
                seen_bytes += len(data)
                watch.feed(data)
                if rolling is not None and rolling.text.left_bytes <= 0:
                    await rolling.cover()
    except (TimeoutError, ObolError, Exhausted):
        return
