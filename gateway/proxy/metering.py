"""Watches one response go by and says, at its end, what was used - reported by the provider, or counted here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from gateway.core.usage import ZERO, Usage
from gateway.counting import Counter
from gateway.proxy.decoding import decoder_for
from gateway.wire.contract import Format, Reading, RequestFacts

TOKEN_FORMATS = frozenset(
    {"openai_chat", "openai_completions", "openai_responses", "anthropic_messages", "gemini_generate", "gemini_stream"}
)
PARSE_INLINE_BYTES = 128 * 1024
"""Bodies up to this are parsed on the loop (under a millisecond), larger ones in a thread."""


class Metered(msgspec.Struct, frozen=True):
    """What one call used. `estimated`: counted here because the provider did not say."""

    usage: Usage
    estimated: bool
    reading: Reading


class Watch:
    """Between the provider's bytes and the client's. `feed` every piece, `finish` at the end, then `measure`."""

    def __init__(
        self,
        format_: Format,
        facts: RequestFacts,
        *,
        provider: str,
        content_type: str,
        encoding: str,
        hide: bool,
        limit_bytes: int,
    ) -> None:
        self._format = format_
        self._facts = facts
        self._finished = False
        self._plain = encoding in ("", "identity")
        self._decoder = None if self._plain else decoder_for(encoding, limit_bytes)
        self._meter = format_.meter(
            facts,
            provider=provider,
            content_type=content_type,
            hide_usage=hide and self._plain,
            limit_bytes=limit_bytes,
        )

        self.feed: Callable[[bytes], bytes] = self._meter.feed if self._plain else self._feed_decoded
        """Takes the bytes as they come, gives those to send on now: the same, unless some are withheld until an
        event is complete."""

    def _feed_decoded(self, data: bytes) -> bytes:
        if self._decoder is not None and (decoded := self._decoder.feed(data)):
            self._meter.feed(decoded)
        return data

    def finish(self) -> bytes:
        """What was still withheld. `measure` calls it where the answer was cut short."""
        self._finished = True
        rest = self._meter.finish()
        return rest if self._plain else b""

    async def measure(self, body: bytes, counter: Counter, *, failed: bool) -> Metered:
        """The provider's own usage, else a local count of prompt and output. A failed call is never counted."""
        if not self._finished:
            self.finish()
        if self._meter.seen_bytes > PARSE_INLINE_BYTES:
            reading = await asyncio.to_thread(self._meter.reading)
        else:
            reading = self._meter.reading()
        if failed:
            return Metered(ZERO, False, reading)
        usage = reading.usage if reading.usage is not None else self._facts.usage
        if usage is not None and not (self._counts_tokens(usage) and _partial(usage)):
            return Metered(usage, False, reading)
        if reading.failed or self._facts.free or self._facts.model is None:
            return Metered(usage or ZERO, False, reading)
        return Metered(await self._count(body, counter, usage or ZERO), True, reading)

    def _counts_tokens(self, usage: Usage) -> bool:
        """The format reports both sides in tokens: one that is missing was left out, not zero."""
        both = self._format.name in TOKEN_FORMATS
        return both and (usage.input_tokens is not None or usage.output_tokens is not None)

    async def _count(self, body: bytes, counter: Counter, known: Usage) -> Usage:
        """What `known` lacks, counted: an explicit zero stays zero, a missing field falls back."""
        input_tokens, output_tokens = known.input_tokens, known.output_tokens
        if input_tokens is None:
            prompt = await asyncio.to_thread(self._format.request_text, body)
            input_tokens = await counter.count(prompt, self._facts.model)
        if output_tokens is None:
            output_tokens = await self._count_output(counter)
        return msgspec.structs.replace(known, input_tokens=input_tokens, output_tokens=output_tokens)

    async def _count_output(self, counter: Counter) -> int:
        tokens = await counter.count(await asyncio.to_thread(self._meter.text), self._facts.model)
        kept, seen = self._meter.kept_bytes, self._meter.seen_bytes
        return -(-tokens * seen // kept) if 0 < kept < seen else tokens


def _partial(usage: Usage) -> bool:
    return usage.input_tokens is None or usage.output_tokens is None
