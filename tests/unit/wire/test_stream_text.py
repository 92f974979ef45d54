"""The bound on a stream's tokens is never below its text and soon close to it; its text is counted whole, once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.formats import FORMATS
from gateway.wire.framing import ARRAY, LINES, SSE, WHOLE, Framing, framing_of
from gateway.wire.stream_text import EVENT_MAX_BYTES, StreamText, repeated_parts

CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": None}


def chat(text: str, number: int) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
    return b"data: %b\n\n" % json.dumps({**CHUNK, "choices": [choice], "obfuscation": "x" * (number % 7)}).encode()


def anthropic(text: str, number: int) -> bytes:
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
    return b"event: content_block_delta\ndata: %b\n\n" % json.dumps(event, ensure_ascii=False).encode()


def responses(text: str, number: int) -> bytes:
    event = {"type": "response.output_text.delta", "sequence_number": number, "item_id": "msg_1", "delta": text}
    return b"event: response.output_text.delta\ndata: %b\n\n" % json.dumps(event).encode()


def gemini(text: str, number: int) -> bytes:
    chunk = {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}]}
    usage = {"promptTokenCount": 5, "totalTokenCount": 5 + number}
    element = json.dumps({**chunk, "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"}, indent=2)
    return (b"[" if number == 0 else b"\n,\r\n") + element.encode()


def cohere(text: str, number: int) -> bytes:
    return json.dumps({"is_finished": False, "event_type": "text-generation", "text": text}).encode() + b"\n"


WIRES: dict[str, tuple[Framing, Callable[[str, int], bytes]]] = {
    "openai_chat": (SSE, chat),
    "anthropic_messages": (SSE, anthropic),
    "openai_responses": (SSE, responses),
    "gemini_stream": (ARRAY, gemini),
    "cohere_v1_chat": (LINES, cohere),
}


def text_of(name: str) -> StreamText:
    return StreamText(WIRES[name][0], FORMATS[name].reader("").event_text)


def feed(text: StreamText, data: bytes) -> None:
    text.pieces.append(data)
    text.left_bytes -= len(data)


NASTY = st.text(max_size=12) | st.sampled_from(
    ['"}}\n\n', '","delta":{"content":"', "\\", "\n\n", '"},"x":', " the", ""]
)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(WIRES)),
    texts=st.lists(NASTY, min_size=1, max_size=40),
    looks=st.sets(st.integers(0, 40)),
    cuts=st.integers(1, 400),
)
def test_the_bound_is_never_below_the_bytes_of_the_text(name, texts, looks, cuts):
    """Whatever the text, however the stream is cut, whenever it is looked at or counted."""
    render, text = WIRES[name][1], text_of(name)
    stream = b"".join(render(piece, number) for number, piece in enumerate(texts))
    found, fed = "", 0
    for number, start in enumerate(range(0, len(stream), cuts)):
        feed(text, stream[start : start + cuts])
        fed = start + cuts
        if number in looks:
            text.tokens_max()
        if number % 5 == 4:
            found += text.text_of(text.take())
            text.counted()
        behind = b"".join(text.pieces)
        known = text.text_of(behind)
        assert text.tokens_max() >= len(known.encode("utf-8", "surrogatepass"))
    assert fed >= len(stream)
    found += text.text_of(text.take(rest=True))
    assert found == "".join(texts)


@pytest.mark.parametrize("name", sorted(WIRES))
def test_the_bound_is_soon_close_to_the_text(name):
    """English in pieces of a token: at most some bytes an event beside the text, once two events have been compared."""
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "then", "it", "sleeps"]
    render, text = WIRES[name][1], text_of(name)
    chosen = random.Random(1).choices(words, k=400)
    for number, word in enumerate(chosen):
        feed(text, render(f" {word}", number))
        if number % 16 == 15:
            text.tokens_max()
    length = sum(len(word) + 1 for word in chosen)
    assert length <= text.tokens_max() <= length + 400 * (20 if name != "gemini_stream" else 60) + 1_000


def test_parts_hold_what_repeats_around_the_differing_strings():
    one, other = b'{"a":"x","n":1,"text":"ONE","z":[]}', b'{"a":"x","n":2,"text":"TWO","z":[]}'
    assert repeated_parts(one, other, "ONE") == (b'{"a":"x","n"', b'","z":[]}')
    # The same text in both is in no part, nor is one that could stand within a text, where every quote is escaped.
    assert repeated_parts(one, one, "ONE") == (b'{"a":"x","n":1,"text":"', b'","z":[]}')
    assert repeated_parts(b'{"t":"ab"}    ', b'{"t":"cd"}    ', "ab") == (b'{"t":"',)
    assert repeated_parts(one, b"{}", "ONE") == ()
    assert repeated_parts(b'{"a":"unclosed}', b'{"b":"unclosed}', "") == ()


def test_a_long_event_counts_for_no_more_than_its_bound_and_is_not_kept():
    text = text_of("openai_chat")
    for number in range(20):
        feed(text, chat(" word", number))
    before = text.tokens_max()
    feed(text, b'data: {"choices":[{"delta":{"audio":"')
    for _ in range(400):
        feed(text, b"QUJD" * 4_096)
        text.tokens_max()
    assert text.skipping and sum(map(len, text.pieces)) < 2 * EVENT_MAX_BYTES
    feed(text, b'"}}]}\n')
    text.tokens_max()
    feed(text, b"\n" + chat(" after", 1))
    text.tokens_max()
    assert not text.skipping
    assert text.tokens_max() <= before + EVENT_MAX_BYTES + 600
    assert text.text_of(text.take(rest=True)) == " word" * 20 + " after"


@pytest.mark.parametrize("name", sorted(WIRES))
def test_where_a_client_stands_within_an_event(name):
    framing, render = WIRES[name]
    events = [render(word, number) for number, word in enumerate((" one", " two", " three"))]
    stream = b"".join(events)
    for cut in range(1, len(stream)):
        text = text_of(name)
        feed(text, stream[:cut])
        feed(text, stream[cut:])
        event = text.open_event(len(stream) - cut)
        whole = stream[:cut] + (event.rest or b"")
        assert event.rest is not None and event.tail == stream[:cut]
        assert framing.last_end(whole) == len(whole) or framing is ARRAY
        assert "".join((" one", " two", " three")).startswith(text.text_of(whole))
        assert len(event.rest) < max(map(len, events))


def test_an_event_that_has_not_arrived_is_waited_for():
    text = text_of("openai_chat")
    stream = chat(" one", 1) + chat(" two", 2)
    feed(text, stream[:-40])
    feed(text, stream[-40:-20])
    event = text.open_event(20)
    assert event.rest is None
    text.take()
    assert text.rest_of(event) is None
    feed(text, stream[-20:] + chat(" three", 3))
    assert stream.endswith(rest := text.rest_of(event) or b"?") and len(rest) == 40


def test_how_answers_are_framed():
    assert framing_of("openai_chat", streamed=True, content_type="text/event-stream; charset=utf-8") is SSE
    assert framing_of("gemini_stream", streamed=True, content_type="application/json") is ARRAY
    assert framing_of("gemini_stream", streamed=True, content_type="text/event-stream") is SSE
    assert framing_of("cohere_v1_chat", streamed=True, content_type="application/stream+json") is LINES
    assert framing_of("openai_chat", streamed=True, content_type="application/json") is WHOLE
    assert framing_of("openai_chat", streamed=True, content_type="") is SSE
    assert framing_of("openai_chat", streamed=False, content_type="application/json") is WHOLE
