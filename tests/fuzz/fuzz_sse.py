"""The stream splitters under fuzz. Oracles: a parser written after the standard, and every cut gives the same."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

from fuzzing import Mutator, pieces

from gateway.core.sse import ElementSplitter, EventSplitter, LineSplitter, Pending, data_of, events, lines
from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.formats import FORMATS

LIMIT_BYTES = 1024 * 1024
SMALL_LIMIT_BYTES = 64
BOM = b"\xef\xbb\xbf"
LINE_END = re.compile(rb"\r\n|\n|\r")
LINE = re.compile(rb"[^\n]*\n|[^\n]+")

USAGE = b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}'
DELTA = b'{"model":"m","choices":[{"delta":{"content":"hi"}}],"usage":null}'
DONE = b"data: [DONE]\n\n"
CHAT = b"data: " + DELTA + b"\n\ndata: " + USAGE + b"\n\n" + DONE
SEEDS = [
    CHAT,
    CHAT.replace(b"\n", b"\r\n"),
    CHAT.replace(b"\n", b"\r"),
    BOM + CHAT.replace(b"data: ", b"data:"),
    b": comment\n\nevent: message\nid: 1\ndata: " + DELTA + b"\n\nretry: 5\n\n" + DONE,
    b"data: a\ndata: b\n\ndata:\n\ndata\n\n:\n\ndata: c",
    b"data: a\n\ndata: b\n\n",
    b"data: a\r\n\r\ndata: b\r\n\r\n",
    b'event: error\ndata: {"error":{"message":"overloaded"}}\n\n',
    b"data: " + USAGE + b"\n\ndata: " + USAGE.replace(b":[]", b": [ ]") + b"\n\n",
]
WORDS = [
    *(
        b"\n",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\r\r",
        b"\n\r",
        b"\r\n\r\n",
        b"\r\n\n",
        b"\n\r\n",
        BOM,
        b"\x00",
        b"\x85",
    ),
    *(
        b"data:",
        b"data: ",
        b"data",
        b"event: x\n",
        b": ",
        b":",
        b"id: 1\n",
        b"retry: 1\n",
        b"\xe2\x80\xa8",
        b"\x0b",
        b"\x0c",
    ),
    *(DONE, b"[DONE]", b"x" * 40, b" " * 100),
    *(
        b"data: " + USAGE + b"\n\n",
        b"data: " + DELTA + b"\r\n\r\n",
        USAGE,
        DELTA,
        b'"usage"',
        b'"usage":null',
        b'"error"',
    ),
]
ELEMENTS = [
    b'[{"a":1},\r\n{"b":"}]{[\\"\\\\"},[],[1,[2]]]',
    b'{"error":{"message":"x"}}',
    b'[{"a":"\\u007d"}\n,\n{"c":[{}]}]',
]
BRACKETS = [b"[", b"]", b"{", b"}", b'"', b"\\", b'\\"', b"\\\\", b",", b"\n", b'"a":', b"x" * 40, b"\xff"]
make_stream = Mutator(SEEDS, WORDS, max_bytes=600)
make_elements = Mutator(ELEMENTS, BRACKETS, max_bytes=1_000)


def check_events(data: bytes, random: Random) -> str:
    """Events and lines: those of the standard whatever the cuts, nothing lost, bounded where a limit is set."""
    cut = pieces(data, random)
    found = _found(cut, data)
    assert found == _standard_events(data) or BOM in data[1:]
    also = random.random()
    if also < 0.2:
        _check_lines(data, cut)
    elif also < 0.5:
        return "oversized" if _check_bounded(data, cut) else "bounded"
    return f"{min(len(found), 3)} events"


def _found(cut: list[bytes], data: bytes) -> list[bytes]:
    """The data of each event that has any."""
    splitter = EventSplitter(LIMIT_BYTES)
    blocks = [*map(splitter.feed, cut), splitter.finish()]
    assert b"".join(blocks) == data
    return [text for block in blocks for start, end in events(block) if (text := data_of(block[start:end]))]


def _standard_events(data: bytes) -> list[bytes]:
    """The data of each event, line by line as the standard describes it.

    Ours is more lenient by intent: the last event may lack its blank line, a line `data` without a colon adds no empty
    line, and a byte order mark may begin a later event, too (not compared: blank lines before it may hide it).
    """
    found: list[bytes] = []
    event: list[bytes] = []
    for line in [*LINE_END.split(data.removeprefix(BOM)), b""]:
        if line.startswith(b"data:"):
            event.append(line[5:].removeprefix(b" "))
        elif not line:
            found.append(b"\n".join(event))
            event = []
    return [text for text in found if text]


def _check_lines(data: bytes, cut: list[bytes]) -> None:
    splitter = LineSplitter(LIMIT_BYTES)
    blocks = [*map(splitter.feed, cut), splitter.finish()]
    assert b"".join(blocks) == data
    assert [block[start:end] for block in blocks for start, end in lines(block)] == LINE.findall(data)


def _check_bounded(data: bytes, cut: list[bytes]) -> bool:
    """With a small limit: what is kept is bounded, and of a larger event both ends are true."""
    splitter = EventSplitter(SMALL_LIMIT_BYTES)
    edge_bytes = SMALL_LIMIT_BYTES // 2
    start = at = 0
    oversized = False
    for piece in [*cut, None]:
        block = splitter.finish() if piece is None else splitter.feed(piece)
        at += len(piece or b"")
        assert _kept_bytes(splitter._pending) <= SMALL_LIMIT_BYTES + edge_bytes
        if not block:
            continue
        whole = data[start : at - splitter.pending_bytes]
        start += len(whole)
        oversized = oversized or splitter.oversized
        if splitter.oversized:
            assert block[:edge_bytes] == whole[:edge_bytes] and whole.endswith(block[edge_bytes:])
        else:
            assert block == whole
    assert start == len(data)
    return oversized


def _kept_bytes(pending: Pending) -> int:
    return len(pending._head) + pending._kept_bytes


def check_elements(data: bytes, random: Random) -> str:
    """Elements of a JSON array: those that a byte-by-byte reader finds, whatever the cuts."""
    splitter, small = ElementSplitter(LIMIT_BYTES), ElementSplitter(SMALL_LIMIT_BYTES)
    found: list[bytes] = []
    for piece in pieces(data, random):
        found += splitter.feed(piece)
        for element in small.feed(piece):
            assert len(element) <= 2 * SMALL_LIMIT_BYTES + len(piece)
        assert _kept_bytes(small._pending) <= 2 * SMALL_LIMIT_BYTES
    assert found == _elements(data)
    return f"{min(len(found), 3)} elements"


def _elements(data: bytes) -> list[bytes]:
    found: list[bytes] = []
    depth = base = start = 0
    string = escaped = False
    for at, byte in enumerate(data):
        if string:
            string, escaped = escaped or byte != 0x22, not escaped and byte == 0x5C
        elif byte == 0x22:
            string = True
        elif byte in b"{[":
            base = base if depth else int(byte == 0x5B)
            start = at if depth == base else start
            depth += 1
        elif byte in b"}]" and depth:
            depth -= 1
            if depth == base:
                found.append(data[start : at + 1])
    return found


def check_hiding(data: bytes, random: Random) -> str:
    """A client that did not ask for usage: its bytes are the provider's without whole usage-only events, and without
    all of those that nobody could take for anything else. The meter reads the same."""
    hiding, asked = _meter(hide_usage=True), _meter(hide_usage=False)
    visible = b"".join(map(hiding.feed, pieces(data, random))) + hiding.finish()
    assert asked.feed(data) + asked.finish() == data
    if BOM in data[1:]:
        return "a later mark"
    _check_same_reading(hiding, asked)
    hidden = _removed(_events(data), _events(visible))
    assert all(_may_be_hidden(event) for event in hidden)
    return f"{min(len(hidden), 3)} hidden"


def _check_same_reading(one: Meter, other: Meter) -> None:
    """Once there is usage nobody asks for the text any more, and how much of it is kept may depend on the cuts."""
    left, right = one.reading(), other.reading()
    if left.usage is None:
        assert left == right
        assert one.text() == other.text()
    else:
        assert (left.usage, left.failed, left.finished) == (right.usage, right.failed, right.finished)


def _meter(*, hide_usage: bool) -> Meter:
    return FORMATS["openai_chat"].meter(
        RequestFacts(model="m", stream=True),
        provider="openai",
        content_type="text/event-stream",
        hide_usage=hide_usage,
        limit_bytes=LIMIT_BYTES,
    )


def _events(data: bytes) -> list[bytes]:
    """Without blank lines: to which of two events one belongs that stands between them depends on the cuts."""
    return [event for start, end in events(data) if (event := data[start:end].strip(b"\r\n"))]


def _removed(sent: list[bytes], visible: list[bytes]) -> list[bytes]:
    """Which events are missing from `visible`; AssertionError if it is not the others in their order."""
    removed, at = [], 0
    for event in sent:
        if at < len(visible) and visible[at] == event and not _must_be_hidden(event):
            at += 1
        else:
            removed.append(event)
    assert at == len(visible), "the client's bytes are not the provider's"
    return removed


def _json(event: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data_of(event).decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _may_be_hidden(event: bytes) -> bool:
    chunk = _json(event)
    return chunk.get("choices") == [] and bool(chunk.get("usage"))


def _must_be_hidden(event: bytes) -> bool:
    return data_of(event) == USAGE


TARGETS = [
    ("events", make_stream, check_events),
    ("elements", make_elements, check_elements),
    ("hiding", make_stream, check_hiding),
]
