"""The text of a stream as it arrives: how many tokens it holds at most, by its bytes alone, and the text to be counted.

No token is shorter than a byte of text, so the bytes bound the tokens. The bound becomes close by taking off the parts
that repeat in every event (`repeated_parts`). A part holds an unescaped quote, so it cannot stand inside a text:
wherever it is found, so many bytes are no text, whatever else the stream holds.

Nothing is parsed for the bound, and pieces are looked at only where their bytes alone could reach `left_bytes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from gateway.wire.framing import Framing

EVENT_MAX_BYTES = 64 * 1024
"""A longer event is media, an echo of the request or a whole result: it counts as so many tokens and is not kept."""
WINDOW_BYTES = 192 * 1024
"""How much may be kept between two counts of the text."""
_LESSONS_MAX = 8
_COMPARED_EVENTS = 4
_PARTS_MAX = 2
_PART_MIN_BYTES = 4
_TAIL_BYTES = 4 * 1024
_EDGE_BYTES = 3  # of a blank line that is cut: CR LF CR LF
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[^"]++', re.DOTALL)


def repeated_parts(one: bytes, other: bytes, text: str) -> tuple[bytes, ...]:
    """What two events of a kind have in common around the strings and numbers in which they differ, in order.

    `text`: that of the first one, which is in no part even where both have the same.
    """
    first, second = _STRING.findall(one), _STRING.findall(other)
    if len(first) != len(second) or b"".join(first) != one or b"".join(second) != other:
        return ()
    parts, part = [], b""
    for mine, theirs in zip(first, second, strict=True):
        if mine == theirs and not _within(mine, text):
            part += mine
            continue
        quote = b'"' if mine[:1] == b'"' else b""
        parts.append(part + quote)
        part = quote
    usable = [part for part in (*parts, part) if len(part) >= _PART_MIN_BYTES and (b'"' in part[1:] or b"\n" in part)]
    longest = sorted(usable, key=len, reverse=True)[:_PARTS_MAX]
    return tuple(part for part in usable if part in longest)


def _within(string: bytes, text: str) -> bool:
    """Whether a string of an event is, or may be, a piece of its text."""
    if not string.startswith(b'"'):
        return False
    try:
        value = msgspec.json.decode(string, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return True
    return value != "" and value in text


class OpenEvent(NamedTuple):
    """The event of which a client has `sent_bytes`, what it lacks of it (None while that has not arrived), and the last
    bytes that it has."""

    sent_bytes: int
    rest: bytes | None
    tail: bytes


class StreamText:
    """Of one response. Append to `pieces` and take their bytes off `left_bytes`; below 0 it is time for `tokens_max`.

    The pieces since the text was last taken are kept; they begin with an event. `event_text` reads one event.
    """

    __slots__ = (
        "_checked_bytes",
        "_edge",
        "_event_text",
        "_in_hand_tokens",
        "_lessons",
        "_measured",
        "_opaque_tokens",
        "_parts",
        "_size_bytes",
        "_skipping",
        "_window_tokens",
        "framing",
        "in_hand",
        "left_bytes",
        "pieces",
        "taken",
    )

    def __init__(self, framing: Framing, event_text: Callable[[bytes], str]) -> None:
        self.framing = framing
        self.pieces: list[bytes] = []
        self.left_bytes = 0
        self.in_hand = b""
        """Events that are being counted: `counted` lets them go."""
        self.taken = False
        """Events were taken, so the window is not the beginning of the stream."""
        self._event_text = event_text
        self._parts: tuple[bytes, ...] = ()
        self._lessons = 0
        self._measured = 0
        self._size_bytes = self._checked_bytes = 0
        self._window_tokens = self._in_hand_tokens = self._opaque_tokens = 0
        self._skipping = False
        self._edge = b""

    @property
    def size_bytes(self) -> int:
        """What is kept, as of the last `tokens_max`."""
        return self._size_bytes

    @property
    def skipping(self) -> bool:
        """The stream is within an event that is too long to be kept."""
        return self._skipping

    def tokens_max(self) -> int:
        """No more tokens than this stand in what was not counted yet."""
        if self._measured < len(self.pieces):
            self._measure()
        return self._window_tokens + self._in_hand_tokens + self._opaque_tokens

    def take(self, *, rest: bool = False) -> bytes:
        """The complete events of the window, with `rest` all of it, to be counted; until `counted`, by their bytes."""
        self.tokens_max()
        data = b"".join(self.pieces)
        end = len(data) if rest else self.framing.last_end(data)
        kept = data[end:]
        kept_tokens = self._text_bytes(kept)
        self._in_hand_tokens += self._window_tokens - kept_tokens
        self._window_tokens, self._size_bytes, self._checked_bytes = kept_tokens, len(kept), 0
        self.pieces = [kept] if kept else []
        self._measured = len(self.pieces)
        self.in_hand += data[:end]
        self.taken = self.taken or end > 0
        return self.in_hand

    def counted(self) -> None:
        """What was taken has been counted: whoever counted it keeps the number."""
        self.in_hand, self._in_hand_tokens = b"", 0

    def text_of(self, data: bytes) -> str:
        """The output text of complete events. Takes about a microsecond an event; safe in a thread."""
        spans = self.framing.spans(data)
        payloads = (self.framing.payload(data[start:end]) for start, end in spans)
        return "".join(self._event_text(payload) for payload in payloads if payload)

    def open_event(self, unsent_bytes: int) -> OpenEvent:
        """Where a client stands that has all but the last `unsent_bytes`."""
        data = b"".join(self.pieces)
        sent = max(len(data) - unsent_bytes, 0)
        had = self.framing.last_end(data[:sent])
        rest = b"" if had == sent else self._rest(data, sent)
        return OpenEvent(sent - had, rest, data[:sent][-_TAIL_BYTES:])

    def rest_of(self, event: OpenEvent) -> bytes | None:
        """What the client lacks of that event. Call it after `take`, when the window begins with the event."""
        return event.rest if event.rest is not None else self._rest(b"".join(self.pieces), event.sent_bytes)

    def _rest(self, data: bytes, sent: int) -> bytes | None:
        end = None if self._skipping else self.framing.end_from(data, sent)
        return None if end is None else data[sent:end]

    def _measure(self) -> None:
        if self._skipping:
            self._skip()
        if not self._parts and self._lessons < _LESSONS_MAX:
            self._learn()
        fresh = b"".join(self.pieces[self._measured :])
        self._window_tokens += self._text_bytes(fresh)
        self._size_bytes += len(fresh)
        self._measured = len(self.pieces)
        if self._size_bytes - self._checked_bytes > EVENT_MAX_BYTES:
            self._drop_long_event()
            self._checked_bytes = self._size_bytes

    def _text_bytes(self, data: bytes) -> int:
        """Bytes that may be text. Each event counts one more, for a token that shows no text."""
        repeated = sum(data.count(part) * len(part) for part in self._parts)
        return len(data) - repeated + (data.count(self._parts[0]) if self._parts else 0)

    def _learn(self) -> None:
        """Compare the latest events of the window. (The first ones of a stream are of other kinds: a role, a start.)"""
        data = b"".join(self.pieces)
        latest = list(self.framing.spans(data))[-_COMPARED_EVENTS:]
        if len(latest) < 2:
            return
        self._lessons += 1
        for (start, middle), (_, end) in zip(latest[-2::-1], latest[:0:-1], strict=True):
            one = data[start:middle]
            if parts := repeated_parts(one, data[middle:end], self.text_of(one)):
                self._parts = parts
                self._measured = self._window_tokens = self._size_bytes = 0
                return

    def _drop_long_event(self) -> None:
        """Where the event that has not ended is too long, keep only what stands before it."""
        data = b"".join(self.pieces)
        end = self.framing.last_end(data)
        if len(data) - end <= EVENT_MAX_BYTES:
            return
        self._skipping, self._edge = True, data[-_EDGE_BYTES:]
        self._opaque_tokens += EVENT_MAX_BYTES
        self.pieces = [data[:end]] if end else []
        self._measured, self._size_bytes = len(self.pieces), end
        self._window_tokens = self._text_bytes(data[:end])
        self.taken = True

    def _skip(self) -> None:
        """Let go what still belongs to the long event."""
        data = self._edge + b"".join(self.pieces[self._measured :])
        del self.pieces[self._measured :]
        if end := self.framing.first_end(data):
            self._skipping = False
            self.pieces.append(data[end:])
        self._edge = data[-_EDGE_BYTES:]
