"""Framing of streamed bodies: where an SSE event, a line or an element of a JSON array ends.

The splitters work on blocks: a block is a run of complete events exactly as they arrived. A block without any
byte string of interest is never cut further, so a common chunk costs one `endswith`. Bytes are scanned once,
however small the pieces. Where events end does not depend on how the stream was cut into chunks.

Source of the rules: the WHATWG "server-sent events" section (line ends LF, CRLF and CR; BOM; comments).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

EDGE_BYTES = 64 * 1024
"""How much of either end of an event above the limit is kept: usage objects stand near the end, or the beginning."""

# What a line end and the blank line after it have in the middle. A CR may be followed by the LF that belongs to it.
_BLANK_PAIRS = (b"\n\n", b"\r\r", b"\n\r")
_BOM = b"\xef\xbb\xbf"
_CARRIED_BYTES = 3  # a blank line is at most CR LF CR LF


class Pending:
    """Bytes of an event that is not complete yet. Above `limit_bytes` only their two ends are kept."""

    __slots__ = ("_edge_bytes", "_head", "_kept_bytes", "_limit_bytes", "_parts", "cut", "size_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._edge_bytes = min(EDGE_BYTES, limit_bytes // 2)
        self.clear()

    def clear(self) -> None:
        self._parts: list[bytes] = []
        self._head = b""
        self._kept_bytes = 0
        self.size_bytes = 0
        self.cut = False

    def append(self, data: bytes) -> None:
        self._parts.append(data)
        self.size_bytes += len(data)
        self._kept_bytes += len(data)
        if self._kept_bytes > self._limit_bytes:
            self._cut()

    def _cut(self) -> None:
        joined = b"".join(self._parts)
        tail = joined[len(joined) - self._edge_bytes :]
        self._head = self._head or joined[: self._edge_bytes]
        self._parts = [tail]
        self._kept_bytes = len(tail)
        self.cut = True

    def join(self, last: bytes = b"") -> bytes:
        """What is kept, and `last`. If it was cut, its middle is missing."""
        return b"".join([self._head, *self._parts, last])


class EventSplitter:
    """Cuts an SSE stream into blocks of complete events.

    `oversized`: the first event of the block just returned was above `limit_bytes` and lacks its middle.
    """

    __slots__ = ("_carried", "_pending", "oversized", "pending_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._pending = Pending(limit_bytes)
        self._carried = b""
        self.pending_bytes = 0
        self.oversized = False

    def feed(self, data: bytes) -> bytes:
        """The complete events up to here, b"" if none ended. A whole chunk of events is returned as it is."""
        if not self.pending_bytes and data.endswith(b"\n\n"):
            self.oversized = False
            return data
        return self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        self.oversized = False
        window = self._carried + data
        end = _last_boundary(window)
        if not end:
            self._hold(data)
            return b""
        end -= len(self._carried)
        block = self._pending.join(data[:end])
        self.oversized = self._pending.cut
        self._pending.clear()
        self._carried = b""
        self._hold(data[end:])
        return block

    def _hold(self, data: bytes) -> None:
        if data:
            self._pending.append(data)
            self._carried = (self._carried + data[-_CARRIED_BYTES:])[-_CARRIED_BYTES:]
        self.pending_bytes = self._pending.size_bytes

    def finish(self) -> bytes:
        """What is left when the stream is over: an event without its blank line, or b""."""
        rest = self._pending.join()
        self.oversized = self._pending.cut
        self._pending.clear()
        self._carried = b""
        self.pending_bytes = 0
        return rest


def _last_boundary(data: bytes) -> int:
    """The offset just after the last blank line in `data`, 0 if there is none.

    A CR that ends `data` may be half of a CRLF: it ends nothing until the next byte is seen.
    """
    end = data.rfind(b"\n\n") + 2
    if end == 1:
        end = 0
    if b"\r" not in data:
        return end
    return max(end, *(_last_pair(data, pair) for pair in _BLANK_PAIRS[1:]))


def _last_pair(data: bytes, pair: bytes) -> int:
    at = data.rfind(pair)
    if at >= 0 and at + 2 == len(data):
        at = data.rfind(pair, 0, at + 1)
    if at < 0:
        return 0
    end = at + 2
    return end + 1 if data[end : end + 1] == b"\n" else end


def events(block: bytes) -> Iterator[tuple[int, int]]:
    """The start and end of each event in `block`, its blank line included."""
    pairs = _BLANK_PAIRS if b"\r" in block else _BLANK_PAIRS[:1]
    found = {pair: block.find(pair) for pair in pairs}
    start = 0
    while found := {pair: at for pair, at in found.items() if at >= 0}:
        end = min(found.values()) + 2
        if block[end - 1 : end + 1] == b"\r\n":
            end += 1
        yield start, end
        start = end
        found = {pair: at if at >= end else block.find(pair, end) for pair, at in found.items()}
    if start < len(block):
        yield start, len(block)


def data_of(event: bytes) -> bytes:
    """The `data` of one event: its data lines joined with LF, b"" if it has none."""
    if event.startswith(_BOM):
        event = event[3:]
    lines = [line for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(line[6:] if line.startswith(b"data: ") else line[5:] for line in lines)


class LineSplitter:
    """Cuts a stream of lines (NDJSON) into blocks of complete lines. Same interface as EventSplitter."""

    __slots__ = ("_pending", "oversized", "pending_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self._pending = Pending(limit_bytes)
        self.pending_bytes = 0
        self.oversized = False

    def feed(self, data: bytes) -> bytes:
        self.oversized = False
        end = data.rfind(b"\n") + 1
        if not end:
            self._hold(data)
            return b""
        block = self._pending.join(data[:end])
        self.oversized = self._pending.cut
        self._pending.clear()
        self._hold(data[end:])
        return block

    def _hold(self, data: bytes) -> None:
        if data:
            self._pending.append(data)
        self.pending_bytes = self._pending.size_bytes

    def finish(self) -> bytes:
        rest = self._pending.join()
        self.oversized = self._pending.cut
        self._pending.clear()
        self.pending_bytes = 0
        return rest


def lines(block: bytes) -> Iterator[tuple[int, int]]:
    """The start and end of each line in `block`, its LF included."""
    start = 0
    while start < len(block):
        end = block.find(b"\n", start) + 1 or len(block)
        yield start, end
        start = end


# Runs up to the next bracket outside strings, or up to the quote of a string that does not end in this piece.
_TO_BRACKET = re.compile(rb'(?:[^"{}\[\]]++|"(?:[^"\\]++|\\.)*+")*+([{}\[\]"])', re.DOTALL)
_IN_STRING = re.compile(rb"(?:[^\"\\]++|\\.)*+", re.DOTALL)


class ElementSplitter:
    """Cuts a JSON array whose elements arrive over time into its elements; a lone object is one element.

    Strings and escapes are respected. `feed` returns the elements that ended, without the commas between them.
    """

    __slots__ = ("_base", "_depth", "_escaped", "_in_string", "_pending", "oversized")

    def __init__(self, limit_bytes: int) -> None:
        self._pending = Pending(limit_bytes)
        self._depth = 0
        self._base = 0
        self._in_string = False
        self._escaped = False
        self.oversized = False

    def feed(self, data: bytes) -> list[bytes]:
        """The elements completed by `data`."""
        self.oversized = False
        elements: list[bytes] = []
        start = position = 0
        while (bracket := self._next_bracket(data, position)) >= 0:
            position = bracket + 1
            if data[bracket] in b"{[":
                start = self._open(data, bracket, start)
            elif self._close():
                elements.append(self._element(data[start:position]))
                start = position
        if self._inside():
            self._pending.append(data[start:])
        return elements

    def _next_bracket(self, data: bytes, position: int) -> int:
        """The offset of the next bracket outside strings, -1 if none is left in `data`."""
        if self._in_string:
            position = self._leave_string(data, position)
            if self._in_string:
                return -1
        match = _TO_BRACKET.match(data, position)
        if match is None:
            return -1
        if data[match.end() - 1 : match.end()] != b'"':
            return match.end() - 1
        self._in_string = True
        self._leave_string(data, match.end())
        return -1

    def _leave_string(self, data: bytes, position: int) -> int:
        if self._escaped and position < len(data):
            self._escaped = False
            position += 1
        match = _IN_STRING.match(data, position)
        position = match.end() if match else position
        if position == len(data):
            return position
        if data[position : position + 1] == b"\\":
            self._escaped = True
            return len(data)
        self._in_string = False
        return position + 1

    def _inside(self) -> bool:
        return self._depth > self._base

    def _open(self, data: bytes, bracket: int, start: int) -> int:
        if self._depth == 0:
            self._base = 1 if data[bracket : bracket + 1] == b"[" else 0
        self._depth += 1
        return bracket if self._depth == self._base + 1 else start

    def _close(self) -> bool:
        """Whether an element of the stream ended."""
        if self._depth == 0:
            return False
        self._depth -= 1
        return self._depth == self._base

    def _element(self, last: bytes) -> bytes:
        element = self._pending.join(last)
        self.oversized = self.oversized or self._pending.cut
        self._pending.clear()
        return element
