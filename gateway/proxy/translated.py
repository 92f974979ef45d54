"""Calls whose provider does not speak the client's dialect: the request before it is sent, the answer as it comes back.

Metering, holds and charges are the provider's: they see its format and its bytes, and the translation comes after them.
Nothing else imports this module when the gateway starts (`routing.hop_at`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from functools import partial

import msgspec

from gateway.billing.catalogue import Asked
from gateway.errors import ObolError
from gateway.providers import Provider
from gateway.proxy import headers
from gateway.proxy.call import Call, Ending
from gateway.proxy.decoding import decoder_for
from gateway.proxy.downstream import Downstream
from gateway.proxy.hops import Hop
from gateway.proxy.http_client import HeaderPairs
from gateway.proxy.parts import Parts
from gateway.proxy.routing import EDIT_INLINE_BYTES, Original, check_name, hop_of, resolved
from gateway.proxy.upstream import Response
from gateway.wire.contract import Format
from gateway.wire.dropin import Route
from gateway.wire.error_events import closing
from gateway.wire.framing import ARRAY, SSE
from gateway.wire.target import Target
from gateway.wire.translate.framing import Untranslatable, Writing
from gateway.wire.translate.model import Ask, Dialect
from gateway.wire.translate.translation import (
    DIALECTS,
    StreamTranslator,
    Translator,
    path_of,
    read_request,
    translator,
    write_request,
)
from gateway.wire.translate.values import To

SLICE_BYTES = 16 * 1024
"""Translated at a time: some 130 events, 2 ms."""
LOG = logging.getLogger("obol.translated")
_VENDOR_HEADERS = {"openai": b"openai-", "anthropic": b"anthropic-", "google": b"x-goog-"}
_REQUEST_IDS = {"openai": b"x-request-id", "anthropic": b"request-id"}
_ROUTES = (
    Route("gemini_generate", "google", "/models/{model}:generateContent"),
    Route("openai_chat", "openai", "/chat/completions"),
    Route("anthropic_messages", "anthropic", "/messages"),
)
"""Where a provider is asked: the first of these that it has."""
_TOLD: tuple[Ending, ...] = ("client_gone", "balance_exhausted", "hold_lost")
_CUT: tuple[Ending, ...] = ("truncated", "upstream_timeout", "upstream_failed", "client_stalled")
_OF_THE_BODY = (b"content-type", b"content-length", b"content-encoding")


class Translation(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Of one hop."""

    client: Dialect
    client_format: str
    provider: Dialect
    writing: Writing
    streams: bool

    def to_provider(self, raw: Iterable[tuple[bytes, bytes]]) -> HeaderPairs:
        """The client's headers without those that only its own vendor knows."""
        kept = [pair for pair in raw if not pair[0].lower().startswith(_VENDOR_HEADERS[self.client])]
        kept = [pair for pair in kept if pair[0].lower() not in (b"content-type", b"accept")]
        return [*kept, (b"content-type", b"application/json"), (b"accept", b"*/*")]


async def hop_to(parts: Parts, call: Call, original: Original, asked: Asked, own_key: str | None) -> Hop:
    """The call at a provider that has no endpoint of the client's format. Raise ObolError."""
    for route in _ROUTES:
        url = parts.catalogue.url(asked.provider, route, asked.model)
        if url is not None and original.format_name in DIALECTS:
            line = "/v1/forward/https/" + url.removeprefix("https://")
            where, format_ = resolved(parts, "POST", line)
            return await hop_at(parts, call, original, where, format_, own_key, asked.model)
    raise ObolError(
        "forward_translation_not_supported",
        f"{asked.provider.name} has {asked.model!r}, but does not speak the format of this route "
        f"({original.format_name}), and no translation is known",
        param="model",
    )


async def hop_at(
    parts: Parts,
    call: Call,
    original: Original,
    where: Target[Provider],
    format_: Format,
    own_key: str | None,
    model: str | None,
) -> Hop:
    """The call at a target that speaks another dialect. `model` None: the one that the body names; Google's targets
    name their own.

    Raise ObolError.
    """
    client, provider = DIALECTS.get(original.format_name), DIALECTS.get(format_.name)
    if client is None or provider is None or client == provider:
        raise ObolError(
            "forward_translation_not_supported",
            f"{where.origin}{where.bare_path} ({format_.name}) cannot be asked in the format of this call "
            f"({original.format_name})",
            param="url",
        )
    row = where.provider
    name = row.name if row else where.host
    to = To(
        provider=name,
        asks_usage=bool(row and row.inject_usage),
        max_tokens=parts.settings.default_max_output_tokens,
    )
    if provider == "google":
        model = format_.read_request(b"{}", where.bare_path, "").model

    def translate() -> tuple[Ask, bytes]:
        streams = original.format_name == "gemini_stream"
        ask = read_request(original.body, client, model=model, stream=streams)
        return ask, write_request(ask, provider, to)

    large = len(original.body) > EDIT_INLINE_BYTES
    ask, body = await asyncio.to_thread(translate) if large else translate()
    path = path_of(ask, provider, where.path)
    if path != where.path:
        where, format_ = resolved(parts, "POST", f"/v1/forward/https/{where.origin.partition('://')[2]}{path}")
    read = partial(format_.read_request, body, where.bare_path, where.query)
    facts = await asyncio.to_thread(read) if large else read()
    check_name(facts.model)
    hop = hop_of(parts, call, where, format_, facts, body, own_key)
    return msgspec.structs.replace(hop, translation=_translation(call, original, client, provider, ask))


def _translation(call: Call, original: Original, client: Dialect, provider: Dialect, ask: Ask) -> Translation:
    writing = Writing(
        request_id=call.request_id,
        model=ask.model,
        created_s=int(time.time()),
        include_usage=ask.include_usage,
        array=original.format_name == "gemini_stream" and "alt=sse" not in original.query.split("&"),
    )
    return Translation(
        client=client, client_format=original.format_name, provider=provider, writing=writing, streams=ask.stream
    )


class TranslatedAnswer:
    """Between the relay and the client: takes the provider's bytes as `Downstream` does. `last` ends it.

    What cannot be translated is an error to the client. The provider has been at work all the same: it is read on.
    """

    def __init__(
        self, parts: Parts, translation: Translation, call: Call, response: Response, answer: Downstream
    ) -> None:
        limit = parts.settings.max_metered_response_bytes
        self._metrics = parts.metrics.translations
        self._translation = translation
        self._call = call
        self._response = response
        self._answer = answer
        self._failed = ""
        self._waiting = b""
        self._decoder = decoder_for(response.header(b"content-encoding"), limit)
        self._translator: Translator = translator(
            translation.client,
            translation.provider,
            translation.writing,
            provider_name=call.provider_name,
            status=response.status,
            content_type=response.header(b"content-type"),
            streams=translation.streams,
            limit_bytes=limit,
        )
        if isinstance(self._translator, StreamTranslator):
            self._begin(None)

    def _begin(self, length: int | None) -> None:
        head = [pair for pair in self._response.headers if pair[0].lower() not in _OF_THE_BODY]
        wanted, ids = _REQUEST_IDS.get(self._translation.client), tuple(_REQUEST_IDS.values())
        if wanted is not None:
            head = [(wanted, value) if name.lower() in ids else (name, value) for name, value in head]
        head.append((b"content-type", self._translator.content_type.encode()))
        if length is not None:
            head.append((b"content-length", str(length).encode()))
        status = self._response.status
        self._answer.begin(status, self._response.reason, headers.to_client(head, self._call.request_id, hidden=False))

    @property
    def begun(self) -> bool:
        return self._answer.begun

    def offer(self, data: bytes) -> bool:
        """False: the client is behind or gone."""
        if self._decoder is not None:
            data = self._decoder.feed(data)
        if self._waiting or len(data) > SLICE_BYTES or self._ends_large_event(data):  # `drain` goes on
            self._waiting += data
            return False
        said = self._said(data)
        return not said or self._answer.offer(said)

    def _said(self, data: bytes) -> bytes:
        """In the client's dialect. Nothing any more, once something could not be read."""
        if self._failed:
            return b""
        try:
            return self._translator.feed(data)
        except Untranslatable as error:
            self._failed = str(error)
            return b""

    async def _slices(self) -> AsyncIterator[bytes]:
        """What waits, said, a slice at a time."""
        while self._waiting:
            piece, self._waiting = self._waiting[:SLICE_BYTES], self._waiting[SLICE_BYTES:]
            large = self._ends_large_event(piece)
            yield await asyncio.to_thread(self._said, piece) if large else self._said(piece)
            await asyncio.sleep(0)

    async def drain(self) -> None:
        """Translate what waits, a slice at a time; wait while the client is behind. Raise ClientGone."""
        async for said in self._slices():
            if said:
                self._answer.offer(said)
            await self._answer.drain()
        await self._answer.drain()

    async def last(self, data: bytes) -> bytes:
        """The last bytes for the client, given the provider's, or an error as the relay told it.

        Raise ObolError where nothing can be told.
        """
        ending = self._call.ending
        if ending in _TOLD or self._answer.gone:
            return data
        self._waiting += data if self._decoder is None else self._decoder.feed(data)
        said = b"".join([said async for said in self._slices()])
        if ending in _CUT:  # the stream is going to be
            return said
        if not self._failed:
            try:
                said += await asyncio.to_thread(self._end) if self._is_large else self._end()
            except Untranslatable as error:
                self._failed = str(error)
        self._count("unreadable" if self._failed else "translated")
        if self._failed:
            return said + self._untold()
        if not isinstance(self._translator, StreamTranslator):
            self._begin(len(said))
        return said

    def _ends_large_event(self, data: bytes) -> bool:
        """It may, at least: a picture, of which no line ends within."""
        translator = self._translator
        streams = isinstance(translator, StreamTranslator) and translator.waiting_bytes > EDIT_INLINE_BYTES
        return streams and (b"\n" in data or b"\r" in data)

    @property
    def _is_large(self) -> bool:
        waiting = self._decoder is not None and self._decoder.waiting
        return waiting or self._translator.waiting_bytes > EDIT_INLINE_BYTES

    def _end(self) -> bytes:
        said = b""
        if self._decoder is not None:
            said = b"".join([self._translator.feed(piece) for piece in self._decoder.rest()])
            if self._decoder.failed:
                raise Untranslatable("the provider's answer is compressed in a way that cannot be read")
        return said + self._translator.finish()

    def _count(self, outcome: str) -> None:
        self._metrics.labels(self._translation.client, self._translation.provider, outcome).inc()

    def _untold(self) -> bytes:
        LOG.warning("an answer was not translated", extra={"request_id": self._call.request_id, "why": self._failed})
        error = ObolError("upstream_failed", self._failed)
        if not self.begun:
            raise error
        return self.last_words(error)

    def last_words(self, error: ObolError) -> bytes:
        """An error as the end of a stream, in the client's dialect. Raise it where nothing was sent yet."""
        if not self.begun:
            raise error
        translation = self._translation
        framing = ARRAY if translation.writing.array else SSE
        tail = self._translator.tail
        return closing(
            translation.client_format, translation.client, framing, error, self._call.request_id, tail, begun=bool(tail)
        )
