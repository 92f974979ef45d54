"""The meters: how a response is framed, whatever its format says inside.

`meter_for` chooses by content type. Bytes go through unchanged; only `HidingMeter` withholds anything, and only
a usage-only chunk the client did not ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from gateway.core.sse import ElementSplitter, EventSplitter, LineSplitter, Pending, data_of, events, lines
from gateway.core.usage import ZERO, Usage
from gateway.wire.contract import Meter, Reading, RequestFacts
from gateway.wire.reader import Reader

KEPT_TEXT_BYTES = 256 * 1024
"""How much of a stream is kept to count its text, should no usage come. About 1,200 chunks of one token."""
WITHHELD_BYTES = 64 * 1024
"""A partial event above this is no usage chunk: it is sent on as it comes."""
WHOLE_EVENT_BYTES = 1024 * 1024
WHOLE_BODY_BYTES = 8 * 1024 * 1024
"""What is read whole. Of larger events and bodies only the ends are searched for usage: decoding, say, 20 MB of
base64 would hold up every other stream for tens of milliseconds."""
_IDENTIFYING_EVENTS = 8


class Splitter(Protocol):
    """What cuts a stream into blocks of whole events (`core/sse.py`)."""

    oversized: bool
    pending_bytes: int

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class Framing(NamedTuple):
    """How the events of a stream are told apart and unwrapped."""

    splitter: Callable[[int], Splitter]
    spans: Callable[[bytes], Iterable[tuple[int, int]]]
    unwrap: Callable[[bytes], bytes]


def _whole(block: bytes) -> Iterator[tuple[int, int]]:
    yield 0, len(block)


SSE = Framing(EventSplitter, events, data_of)
NDJSON = Framing(LineSplitter, lines, bytes.strip)


class SilentMeter:
    """Counts bytes and reads nothing. `usage`: what the request itself tells."""

    def __init__(self, usage: Usage | None = None) -> None:
        self.seen_bytes = 0
        self._usage = usage

    def feed(self, data: bytes) -> bytes:
        self.seen_bytes += len(data)
        return data

    def finish(self) -> bytes:
        return b""

    def reading(self) -> Reading:
        return Reading(usage=self._usage)

    def text(self) -> str:
        return ""

    @property
    def kept_bytes(self) -> int:
        return self.seen_bytes


class BodyMeter:
    """Collects a body that is not streamed, to be read when it is over."""

    def __init__(self, reader: Reader, limit_bytes: int) -> None:
        self.seen_bytes = 0
        self._reader = reader
        self._read = False
        self._pending = Pending(min(limit_bytes, WHOLE_BODY_BYTES))

    def feed(self, data: bytes) -> bytes:
        self.seen_bytes += len(data)
        self._pending.append(data)
        return data

    def finish(self) -> bytes:
        return b""

    def reading(self) -> Reading:
        """Decodes the body, once: a large one is better read off the event loop."""
        if not self._read:
            self._read = True
            observe = self._reader.salvage if self._pending.cut else self._reader.observe_body
            observe(self._pending.join())
            self._reader.conclude()
        return self._reader.reading()

    def text(self) -> str:
        return "" if self._pending.cut else self._reader.body_text(self._pending.join())

    @property
    def kept_bytes(self) -> int:
        return 0 if self._pending.cut else self.seen_bytes


class StreamMeter:
    """Watches a stream of events. Events that hold nothing of interest are kept raw for `text`, never parsed."""

    def __init__(self, reader: Reader, limit_bytes: int, framing: Framing = SSE) -> None:
        self.seen_bytes = 0
        self._reader = reader
        self._interesting = reader.interesting
        self._framing = framing
        self._splitter = framing.splitter(min(limit_bytes, WHOLE_EVENT_BYTES))
        self._split = self._splitter.feed
        self._kept: list[bytes] = []
        self._room_bytes = KEPT_TEXT_BYTES
        self._usage_only: list[tuple[int, int]] = []

    def feed(self, data: bytes) -> bytes:
        self.seen_bytes += len(data)
        if block := self._split(data):
            self._watch(block)
        return data

    def _watch(self, block: bytes) -> None:
        if self._interesting(block):
            self._observe(block)
        if self._room_bytes > 0 and not (self._reader.final and self._output_told()):
            self._kept.append(block[: self._room_bytes])
            self._room_bytes -= len(block)

    def _observe(self, block: bytes) -> None:
        oversized = self._splitter.oversized
        for start, end in self._framing.spans(block):
            event = block[start:end]
            if not self._interesting(event):
                continue
            if oversized and start == 0:
                self._reader.salvage(event)
            elif self._reader.observe(self._framing.unwrap(event)):
                self._usage_only.append((start, end))
        if self._reader.final and self._output_told():
            self._kept.clear()

    def _output_told(self) -> bool:
        """A final usage that leaves the output out is completed by counting the text."""
        usage = self._reader.usage
        return usage is not None and usage.output_tokens is not None

    def finish(self) -> bytes:
        if rest := self._splitter.finish():
            self._watch(rest)
        self._reader.conclude()
        return b""

    def reading(self) -> Reading:
        if self._reader.model is None:
            self._identify()
        self._reader.conclude()
        return self._reader.reading()

    def _identify(self) -> None:
        for _, data in zip(range(_IDENTIFYING_EVENTS), self._kept_events(), strict=False):
            self._reader.identify(data)
            if self._reader.model is not None:
                return

    def _kept_events(self, blocks: int | None = None) -> Iterator[bytes]:
        for block in self._kept[:blocks]:
            for start, end in self._framing.spans(block):
                if data := self._framing.unwrap(block[start:end]):
                    yield data

    def text(self) -> str:
        return "".join(self._reader.event_text(data) for data in self._kept_events())

    def sample(self, most_bytes: int) -> tuple[str, int]:
        """The text at the beginning, and the bytes in which it stands: `most_bytes` and a piece at most."""
        blocks = size_bytes = 0
        while blocks < len(self._kept) and size_bytes < most_bytes:
            size_bytes += len(self._kept[blocks])
            blocks += 1
        return "".join(self._reader.event_text(data) for data in self._kept_events(blocks)), size_bytes

    @property
    def kept_bytes(self) -> int:
        return sum(map(len, self._kept))


class ArrayMeter(StreamMeter):
    """Watches a JSON array whose elements arrive over time."""

    def __init__(self, reader: Reader, limit_bytes: int) -> None:
        super().__init__(reader, limit_bytes, Framing(EventSplitter, _whole, bytes))
        self._elements = ElementSplitter(min(limit_bytes, WHOLE_EVENT_BYTES))

    def feed(self, data: bytes) -> bytes:
        self.seen_bytes += len(data)
        for number, element in enumerate(self._elements.feed(data)):
            self._splitter.oversized = self._elements.oversized and number == 0
            self._watch(element)
        return data


class HidingMeter(StreamMeter):
    """Withholds the usage-only chunk; to see it whole, releases only complete events, later by a part of one."""

    def __init__(self, reader: Reader, limit_bytes: int, framing: Framing = SSE) -> None:
        super().__init__(reader, limit_bytes, framing)
        self._withheld: list[bytes] = []
        self._withheld_bytes = 0
        self._passing = False

    def feed(self, data: bytes) -> bytes:
        self.seen_bytes += len(data)
        block = self._split(data)
        if not block:
            return self._withhold(data)
        self._watch(block)
        pending_bytes = self._splitter.pending_bytes
        if not (pending_bytes or self._withheld or self._usage_only):
            self._passing = False
            return data
        fresh = data[: len(data) - pending_bytes]
        visible = self._without_usage(block, self._release(fresh))
        self._passing = False
        if pending_bytes:
            visible += self._withhold(data[len(fresh) :])
        return visible

    def _withhold(self, data: bytes) -> bytes:
        if self._passing:
            return data
        self._withheld.append(data)
        self._withheld_bytes += len(data)
        if self._withheld_bytes <= WITHHELD_BYTES:
            return b""
        self._passing = True
        return self._release()

    def _release(self, last: bytes = b"") -> bytes:
        """Everything withheld, and `last`."""
        released = b"".join([*self._withheld, last]) if self._withheld else last
        self._withheld.clear()
        self._withheld_bytes = 0
        return released

    def _without_usage(self, block: bytes, visible: bytes) -> bytes:
        """`visible`, the end of `block` that was not sent yet, without the usage-only chunks."""
        sent = len(block) - len(visible)
        kept_from = 0
        parts = []
        for start, end in self._usage_only:
            if start >= sent >= 0:
                parts.append(visible[kept_from : start - sent])
                kept_from = end - sent
        self._usage_only.clear()
        return b"".join([*parts, visible[kept_from:]]) if parts else visible

    def finish(self) -> bytes:
        rest = self._splitter.finish()
        if rest:
            self._watch(rest)
        self._reader.conclude()
        return self._without_usage(rest, self._release())


def meter_for(
    reader: Reader, facts: RequestFacts, *, content_type: str, hide_usage: bool = False, limit_bytes: int
) -> Meter:
    """The meter for a response of this content type; where it has none, what the request asked for decides."""
    kind = content_type.lower()
    if "event-stream" in kind or (facts.stream and "json" not in kind):
        return HidingMeter(reader, limit_bytes) if hide_usage else StreamMeter(reader, limit_bytes)
    return BodyMeter(reader, limit_bytes)


FREE = ZERO
"""The usage of a call the provider does not bill."""
