"""Framing: where events, lines and elements end, in every spelling and however the bytes are cut."""

from __future__ import annotations

import time

import pytest

from gateway.core.sse import ElementSplitter, EventSplitter, LineSplitter, data_of, events, lines

LIMIT_BYTES = 1024 * 1024


def cut(stream: bytes, size: int, limit_bytes: int = LIMIT_BYTES) -> list[bytes]:
    """The events of a stream fed in pieces of `size` bytes, the rest at its end included."""
    splitter = EventSplitter(limit_bytes)
    blocks = [splitter.feed(stream[at : at + size]) for at in range(0, len(stream), size)]
    blocks.append(splitter.finish())
    return [block[start:end] for block in blocks for start, end in events(block)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_end_at_a_blank_line_of_any_spelling(end: bytes, size: int) -> None:
    stream = b"data: one" + end * 2 + b"event: two" + end + b"data: 2" + end * 2
    assert [data_of(event) for event in cut(stream, size)] == [b"one", b"2"]
    assert b"".join(cut(stream, size)) == stream


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_mixed_line_ends_are_cut_alike_in_any_pieces(size: int) -> None:
    stream = b"data: a\r\n\ndata: b\n\r\ndata: c\r\rdata: d\n\r\n\ndata: e\r\n\r\n"
    assert [data_of(event) for event in cut(stream, size) if data_of(event)] == [b"a", b"b", b"c", b"d", b"e"]
    assert b"".join(cut(stream, size)) == stream


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data\n\n", b""),
        (b": comment\n\n", b""),
        (b": comment\ndata: x\nid: 7\nretry: 10\n\n", b"x"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"\xef\xbb\xbfdata: x\n\n", b"x"),
        (b"database: x\n\n", b""),
        (b"event: e\r\ndata: x\r\n\r\n", b"x"),
    ],
)
def test_data_of_an_event(event: bytes, data: bytes) -> None:
    assert data_of(event) == data


def test_a_chunk_of_whole_events_is_returned_as_it_is() -> None:
    chunk = b"data: a\n\ndata: b\n\n"
    assert EventSplitter(LIMIT_BYTES).feed(chunk) is chunk


def test_a_cr_at_the_end_waits_for_the_lf_it_may_belong_to() -> None:
    splitter = EventSplitter(LIMIT_BYTES)
    assert splitter.feed(b"data: a\r\n\r") == b""
    assert splitter.feed(b"\ndata: b") == b"data: a\r\n\r\n"
    assert splitter.pending_bytes == len(b"data: b")


def test_an_event_without_a_blank_line_is_left_at_the_end() -> None:
    splitter = EventSplitter(LIMIT_BYTES)
    assert splitter.feed(b"data: a\n\ndata: b\n") == b"data: a\n\n"
    assert splitter.finish() == b"data: b\n"
    assert splitter.finish() == b""


def test_an_event_above_the_limit_keeps_its_two_ends() -> None:
    splitter = EventSplitter(1_000)
    stream = b"data: {first" + b"x" * 5_000 + b"last}\n\n"
    blocks = [splitter.feed(stream[at : at + 100]) for at in range(0, len(stream), 100)]
    assert splitter.oversized
    assert blocks[-1].startswith(b"data: {first")
    assert blocks[-1].endswith(b"last}\n\n")
    assert len(blocks[-1]) <= 2_000
    assert splitter.feed(b"data: next\n\n") == b"data: next\n\n"
    assert not splitter.oversized


def test_twenty_megabytes_on_one_line_take_linear_time() -> None:
    line = b"data: " + b"x" * 20_000_000 + b"\n\n"

    def seconds(size: int) -> float:
        splitter = EventSplitter(32_000_000)
        started = time.perf_counter()
        blocks = [splitter.feed(line[at : at + size]) for at in range(0, len(line), size)]
        assert blocks[-1] == line
        return time.perf_counter() - started

    assert seconds(16_384) < 2.0, "20 MB in 1,221 pieces: quadratic work would take minutes"


def test_lines() -> None:
    splitter = LineSplitter(LIMIT_BYTES)
    assert splitter.feed(b'{"a":1}\n{"b"') == b'{"a":1}\n'
    assert splitter.pending_bytes == 4
    block = splitter.feed(b":2}\r\n\n")
    assert [block[start:end] for start, end in lines(block)] == [b'{"b":2}\r\n', b"\n"]
    assert splitter.feed(b"{}") == b""
    assert splitter.finish() == b"{}"


ARRAY = b'[{"a": "br\\"ack]et}, \\\\", "b": [1, {"c": []}]}\n,\r\n{"d": "\xc3\xa9"},{}\n]\n'
ELEMENTS = [b'{"a": "br\\"ack]et}, \\\\", "b": [1, {"c": []}]}', b'{"d": "\xc3\xa9"}', b"{}"]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 1000])
def test_elements_of_an_array_that_arrives_over_time(size: int) -> None:
    splitter = ElementSplitter(LIMIT_BYTES)
    found = [one for at in range(0, len(ARRAY), size) for one in splitter.feed(ARRAY[at : at + size])]
    assert found == ELEMENTS


def test_a_lone_object_is_one_element() -> None:
    splitter = ElementSplitter(LIMIT_BYTES)
    assert splitter.feed(b' {"error": {"code": 1') == []
    assert splitter.feed(b"}}\n") == [b'{"error": {"code": 1}}']


def test_an_element_above_the_limit_keeps_its_two_ends() -> None:
    splitter = ElementSplitter(1_000)
    found: list[bytes] = []
    stream = b'[{"i":"' + b"x" * 5_000 + b'","u":1},{"v":2}]'
    for at in range(0, len(stream), 64):
        found += splitter.feed(stream[at : at + 64])
    assert found[0].startswith(b'{"i":"')
    assert found[0].endswith(b'"u":1}')
    assert len(found[0]) <= 2_000
    assert found[1] == b'{"v":2}'


@pytest.mark.parametrize("nonsense", [b"]]]}}}", b'"', b"\\\\\\", b'{"a', b"[[[[", b"\xff\x00{", b'{"a":"\\'])
def test_nonsense_is_no_element_and_no_error(nonsense: bytes) -> None:
    splitter = ElementSplitter(LIMIT_BYTES)
    assert splitter.feed(nonsense) == []
