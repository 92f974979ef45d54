"""Where events end in a piece of a stream that begins with one: the splitters of `core/sse.py`, on whole pieces.

`framing_of` tells how a response is framed by what the meters tell it by: format and content type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from gateway.core.sse import ElementSplitter, EventSplitter, data_of, events


class Framing(NamedTuple):
    """`spans` are the complete events in data that begins with one; `payload` is what an event says.

    `last_end` is the offset just after the last complete event in such data, `first_end` that after the first one in
    data that begins within an event, both 0 if there is none. Both look for bytes only. `first_end` is approximate for
    elements of an array: it looks for what Google writes between two.
    """

    name: str
    spans: Callable[[bytes], Iterator[tuple[int, int]]]
    payload: Callable[[bytes], bytes]
    last_end: Callable[[bytes], int]
    first_end: Callable[[bytes], int]

    def end_from(self, data: bytes, offset: int) -> int | None:
        """The first end of an event at or behind `offset`; 0 where that is the beginning. None: it is not here."""
        if offset == 0:
            return 0
        return next((end for _, end in self.spans(data) if end >= offset), None)


def _sse_last_end(data: bytes) -> int:
    return len(EventSplitter(len(data) + 1).feed(data))


def _sse_first_end(data: bytes) -> int:
    return next((end for _, end in _sse_spans(data)), 0)


def _sse_spans(data: bytes) -> Iterator[tuple[int, int]]:
    yield from events(data[: _sse_last_end(data)])


def _line_last_end(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _line_first_end(data: bytes) -> int:
    return data.find(b"\n") + 1


def _line_spans(data: bytes) -> Iterator[tuple[int, int]]:
    start = 0
    while end := data.find(b"\n", start) + 1:
        yield start, end
        start = end


def _element_spans(data: bytes) -> Iterator[tuple[int, int]]:
    """What stands between two elements belongs to the second one, so that the spans are without gaps."""
    end = 0
    for element in ElementSplitter(len(data) + 1).feed(data):
        start = end
        end = data.index(element, start) + len(element)
        yield start, end


def _element_last_end(data: bytes) -> int:
    return max((end for _, end in _element_spans(data)), default=0)


def _element_first_end(data: bytes) -> int:
    return data.find(b"\n,") + 1


def _element(data: bytes) -> bytes:
    return data.lstrip(b" \t\r\n,[")


def _no_end(_: bytes) -> int:
    return 0


def _no_spans(_: bytes) -> Iterator[tuple[int, int]]:
    return iter(())


SSE = Framing("sse", _sse_spans, data_of, _sse_last_end, _sse_first_end)
LINES = Framing("lines", _line_spans, bytes.strip, _line_last_end, _line_first_end)
ARRAY = Framing("array", _element_spans, _element, _element_last_end, _element_first_end)
WHOLE = Framing("whole", _no_spans, bytes, _no_end, _no_end)
"""A body that is no stream: nothing in it can be read before it is over."""


def framing_of(format_name: str, *, streamed: bool, content_type: str) -> Framing:
    """How the response is framed. `streamed`: a stream was asked for."""
    kind = content_type.lower()
    if "event-stream" in kind:
        return SSE
    if not streamed:
        return WHOLE
    if format_name == "gemini_stream":
        return ARRAY
    if "stream+json" in kind:
        return LINES
    return WHOLE if "json" in kind else SSE
