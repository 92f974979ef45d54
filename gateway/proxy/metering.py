"""Watches one response go by and says, at its end, what was used - reported by the provider, or counted here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from gateway.core.usage import ZERO, Usage
from gateway.counting import Counter
from gateway.proxy.decoding import decoder_for
from gateway.wire.contract import Format, Reading, RequestFacts
from gateway.wire.fields import first
from gateway.wire.framing import WHOLE
from gateway.wire.meters import StreamMeter
from gateway.wire.plain import UNREAD
from gateway.wire.stream_text import StreamText

TOKEN_FORMATS = frozenset(
    {"openai_chat", "openai_completions", "openai_responses", "anthropic_messages", "gemini_generate", "gemini_stream"}
    | {"cohere_v1_chat", "cohere_v2_chat", "mistral_fim"}
)
LOST_BYTES_PER_TOKEN = 4
"""Of a compressed answer that could not be decoded."""
PARSE_INLINE_BYTES = 128 * 1024
"""Bodies up to this are parsed on the loop (under a millisecond), larger ones in a thread."""
LOOK_INLINE_BYTES = 32 * 1024
"""Events up to this are decoded on the loop (some 150 events, 0.2 ms)."""


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
        text: StreamText | None = None,
    ) -> None:
        """`text`: of a stream whose hold follows it. Its text is then counted as it comes, all of it, once."""
        self._format = format_
        self._facts = facts
        self._finished = False
        self._media = ZERO
        self.plain = encoding in ("", "identity") or format_.name in UNREAD
        """The bytes that the client gets are what the meter reads."""
        self.hides = hide and self.plain
        self.counted_tokens = 0
        """Of the text that was counted so far."""
        self._text = text
        self._decoder = None if self.plain else decoder_for(encoding, limit_bytes)
        self._meter = format_.meter(
            facts,
            provider=provider,
            content_type=content_type,
            hide_usage=self.hides,
            limit_bytes=limit_bytes,
        )

        self.feed: Callable[[bytes], bytes] = self._feed_decoded
        if self.plain:
            self.feed = self._meter.feed if text is None else self._feed_text
        """Takes the bytes as they come, gives those to send on now: the same, unless some are withheld until an
        event is complete."""

    @classmethod
    def of_nothing(cls, format_: Format, facts: RequestFacts, provider: str) -> Watch:
        """Of a call that was given up before an answer came."""
        return cls(format_, facts, provider=provider, content_type="", encoding="", hide=False, limit_bytes=1)

    def _feed_text(self, data: bytes) -> bytes:
        text = self._text
        assert text is not None
        text.pieces.append(data)
        text.left_bytes -= len(data)
        return self._meter.feed(data)

    def _feed_decoded(self, data: bytes) -> bytes:
        if self._decoder is not None and (decoded := self._decoder.feed(data)):
            self._take(decoded)
        return data

    def let_text_go(self) -> None:
        """The text need not be counted as it comes any more: what the meter keeps of it does."""
        if self._text is not None:
            self._text.pieces.clear()
            self._text = None
            if self.plain:
                self.feed = self._meter.feed

    def _take(self, decoded: bytes) -> None:
        if self._text is None:
            self._meter.feed(decoded)
        else:
            self._feed_text(decoded)

    def _catch_up(self) -> None:
        """What was put off, because decoding it at once would have held up others. For a thread."""
        assert self._decoder is not None
        for piece in self._decoder.rest():
            self._take(piece)

    @property
    def seen_bytes(self) -> int:
        """Bytes of the answer so far, decoded."""
        return self._meter.seen_bytes

    @property
    def has_end_mark(self) -> bool:
        """A stream has told its own end, whatever still comes of its body."""
        return isinstance(self._meter, StreamMeter) and self._meter.reading().finished

    def reading_so_far(self) -> Reading:
        """What a stream has told until now. A body that is not streamed can only be read once it is over."""
        return self._meter.reading() if isinstance(self._meter, StreamMeter) else Reading()

    async def sample(self, counter: Counter, most_bytes: int) -> tuple[int, int]:
        """Tokens of the first text, and the bytes of the stream in which it stood: `most_bytes` and a piece at most."""
        if isinstance(self._meter, StreamMeter):
            text, size_bytes = self._meter.sample(most_bytes)
            return await counter.count(text, self._facts.model), size_bytes
        kept_bytes = self._meter.kept_bytes
        large = kept_bytes > PARSE_INLINE_BYTES
        text = await asyncio.to_thread(self._meter.text) if large else self._meter.text()
        return await counter.count(text, self._facts.model), kept_bytes

    async def count_text(self, counter: Counter, *, rest: bool = False) -> None:
        """Count what has come since the last time, whole events or with `rest` all of it. Not twice at a time."""
        text = self._text
        if text is None:
            return
        data = text.take(rest=rest)
        produced = await asyncio.to_thread(text.text_of, data) if len(data) > LOOK_INLINE_BYTES else text.text_of(data)
        self.counted_tokens += await counter.count(produced, self._facts.model)
        text.counted()

    def finish(self) -> bytes:
        """What was still withheld. `measure` calls it where the answer was cut short."""
        if self._decoder is not None and self._decoder.waiting:
            return b""
        self._finished = True
        rest = self._meter.finish()
        return rest if self.plain else b""

    async def measure(self, body: bytes, counter: Counter, *, failed: bool) -> Metered:
        """The provider's own usage, else a local count of prompt and output. A failed call is never counted."""
        if self._decoder is not None and self._decoder.waiting:
            await asyncio.to_thread(self._catch_up)
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
            return Metered(usage, reading.estimated, reading)
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
            input_tokens = await self.count_prompt(body, counter)
        if output_tokens is None:
            output_tokens = await self._count_output(counter)
        return msgspec.structs.replace(
            known,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            input_image_tokens=first(known.input_image_tokens, self._media.input_image_tokens),
            input_audio_tokens=first(known.input_audio_tokens, self._media.input_audio_tokens),
        )

    async def count_prompt(self, body: bytes, counter: Counter) -> int:
        """Tokens of the prompt, counted here: its text by the tokenizer, its images by the vendor's rules."""
        large = len(body) > PARSE_INLINE_BYTES
        prompt = await asyncio.to_thread(self._read_prompt, body) if large else self._read_prompt(body)
        return await counter.count(prompt, self._facts.model) + (self._media.input_tokens or 0)

    def _read_prompt(self, body: bytes) -> str:
        self._media = self._format.request_media(body, self._facts.model or "")
        return self._format.request_text(body)

    async def _count_output(self, counter: Counter) -> int:
        if self._text is not None and self._text.taken and self._text.framing is not WHOLE:
            await self.count_text(counter, rest=True)
            return self.counted_tokens
        tokens = await counter.count(await asyncio.to_thread(self._meter.text), self._facts.model)
        if self._decoder is not None:
            tokens += -(-self._decoder.lost_bytes // LOST_BYTES_PER_TOKEN)
        kept, seen = self._meter.kept_bytes, self._meter.seen_bytes
        return -(-tokens * seen // kept) if 0 < kept < seen else tokens


def _partial(usage: Usage) -> bool:
    return usage.input_tokens is None or usage.output_tokens is None
