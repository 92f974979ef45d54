"""Metering does not depend on how a stream is cut, spelled or commented, and never fails on any bytes."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.sse import ElementSplitter, EventSplitter, data_of, events
from gateway.errors import ObolError
from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.formats import FORMATS

LIMIT_BYTES = 1024 * 1024
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
CONTENT_TYPES = ("text/event-stream", "application/json", "application/stream+json", "", "audio/mpeg")

texts = st.text(max_size=20)
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
cuts = st.lists(st.integers(0, 4_000), max_size=40)


def meter(name: str, content_type: str, hide_usage: bool = False) -> Meter:
    return FORMATS[name].meter(
        RequestFacts(stream=True),
        provider="openai",
        content_type=content_type,
        hide_usage=hide_usage,
        limit_bytes=LIMIT_BYTES,
    )


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    marks = [0, *sorted(min(mark, len(data)) for mark in at), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


@st.composite
def chat_chunks(draw: st.DrawFn) -> list[dict[str, Any]]:
    """The chunks of a chat stream: deltas with any text, perhaps running totals, perhaps a final usage chunk."""
    chunks = []
    for text in draw(st.lists(texts, max_size=6)):
        chunk: dict[str, Any] = {"model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}
        if draw(st.booleans()):
            chunk["usage"] = draw(st.sampled_from([None, USAGE]))
        chunks.append(chunk)
    if draw(st.booleans()):
        chunks.append({"model": "m", "choices": [], "usage": USAGE})
    return chunks


def spell(draw: st.DrawFn, chunk: dict[str, Any]) -> bytes:
    """One event, with line ends, comments and other fields as the standard allows."""
    end = draw(line_ends)
    space = draw(st.sampled_from([b" ", b""]))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    data = json.dumps(chunk, separators=separators, ensure_ascii=draw(st.booleans())).encode()
    before = draw(st.sampled_from([b"", b": comment", b"event: message", b"id: 1", b"retry: 5"]))
    return b"".join(line + end for line in ([before] if before else [])) + b"data:" + space + data + end + end


@st.composite
def chat_streams(draw: st.DrawFn) -> tuple[bytes, list[dict[str, Any]]]:
    chunks = draw(chat_chunks())
    done = b"data: [DONE]\n\n" if draw(st.booleans()) else b""
    bom = b"\xef\xbb\xbf" if draw(st.booleans()) else b""
    return bom + b"".join(spell(draw, chunk) for chunk in chunks) + done, chunks


@given(chat_streams(), cuts)
def test_cuts_and_spelling_change_neither_bytes_nor_reading(
    stream: tuple[bytes, list[dict[str, Any]]], at: list[int]
) -> None:
    data, chunks = stream
    whole, cut = (meter("openai_chat", "text/event-stream") for _ in range(2))
    assert whole.feed(data) is data
    assert b"".join(map(cut.feed, pieces(data, at))) == data
    assert (whole.finish(), cut.finish()) == (b"", b"")
    assert cut.reading() == whole.reading()
    assert cut.text() == whole.text()
    reported = any(chunk.get("usage") for chunk in chunks)
    usage = whole.reading().usage
    assert (usage is not None) is reported
    if usage is not None:
        assert (usage.input_tokens, usage.output_tokens) == (7, 3)
    else:
        assert whole.text() == "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)


@given(chat_streams(), cuts)
def test_hiding_takes_out_the_usage_only_chunks_whatever_the_cuts(
    stream: tuple[bytes, list[dict[str, Any]]], at: list[int]
) -> None:
    data, chunks = stream
    hiding = meter("openai_chat", "text/event-stream", hide_usage=True)
    visible = b"".join(map(hiding.feed, pieces(data, at))) + hiding.finish()
    shown = [data_of(visible[start:end]) for start, end in events(visible)]
    seen = [json.loads(one) for one in shown if one and one != b"[DONE]"]
    assert seen == [chunk for chunk in chunks if chunk["choices"]]
    asked = meter("openai_chat", "text/event-stream")
    asked.feed(data)
    asked.finish()
    assert hiding.reading() == asked.reading()


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([b"\n", b"\r", b"\n\n", b"data:", b":"]))), cuts)
def test_the_same_events_are_found_whatever_the_cuts(parts: list[bytes], at: list[int]) -> None:
    stream = b"".join(parts)

    def found(chunks: list[bytes]) -> list[bytes]:
        splitter = EventSplitter(LIMIT_BYTES)
        blocks = [*map(splitter.feed, chunks), splitter.finish()]
        assert b"".join(blocks) == stream
        return [data for block in blocks for start, end in events(block) if (data := data_of(block[start:end]))]

    assert found(pieces(stream, at)) == found([stream])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(texts, JSON_VALUES, max_size=4), max_size=5), cuts, st.booleans())
def test_array_elements_are_found_whatever_the_cuts(elements: list[Any], at: list[int], pretty: bool) -> None:
    data = json.dumps(elements, indent=2 if pretty else None, ensure_ascii=pretty).encode()
    splitter = ElementSplitter(LIMIT_BYTES)
    found = [one for piece in pieces(data, at) for one in splitter.feed(piece)]
    assert [json.loads(one) for one in found] == elements


MARKS = [
    b'{"usage":',
    b'"usage":{"prompt_tokens":1}',
    b"data: ",
    b"\n\n",
    b"\r\n\r\n",
    b'"error":',
    b'{"type":"message_delta","usage":',
    b'"response.completed"',
    b'"usageMetadata":{',
    b'"stream-end"',
    b"[",
    b"}",
    b'"',
    b"\\",
    b"\xff",
    b"1e999",
    b"NaN",
]


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.sampled_from(CONTENT_TYPES),
    st.booleans(),
    st.lists(st.one_of(st.sampled_from(MARKS), st.binary(max_size=30)), max_size=30),
)
def test_no_bytes_make_a_meter_fail_or_change_them(
    name: str, content_type: str, hide: bool, parts: list[bytes]
) -> None:
    watching = meter(name, content_type, hide_usage=hide)
    sent = b"".join(map(watching.feed, parts)) + watching.finish()
    reading = watching.reading()
    assert isinstance(watching.text(), str)
    assert reading.usage is None or reading.usage.total_tokens >= 0
    if not hide:
        assert sent == b"".join(parts)
    assert watching.seen_bytes == sum(map(len, parts))


# Objects made of the names that the readers look for, with values of any kind in the places of others.
NAMES = sorted(
    {"id", "model", "choices", "delta", "message", "content", "usage", "x_groq", "error", "type", "response", "status"}
    | {"output", "prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "cached_tokens"}
    | {"input_tokens", "output_tokens", "output_tokens_details", "iterations", "cache_creation", "server_tool_use"}
    | {"usageMetadata", "candidates", "parts", "promptTokenCount", "promptTokensDetails", "groundingMetadata"}
    | {"meta", "billed_units", "data", "words", "end", "duration", "tool_calls", "function", "arguments", "text"}
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "message_delta", "x"])
ANSWERS = st.dictionaries(
    st.sampled_from(NAMES),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=6,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(FORMATS)), ANSWERS, st.booleans())
def test_any_json_answer_is_read_without_failing(name: str, answer: dict[str, Any], stream: bool) -> None:
    body = json.dumps(answer).encode()
    data = b"data: " + body + b"\n\n" if stream else body
    watching = meter(name, "text/event-stream" if stream else "application/json")
    assert watching.feed(data) is data
    watching.finish()
    watching.reading()
    assert isinstance(watching.text(), str)


@settings(max_examples=200)
@given(st.sampled_from(sorted(FORMATS)), st.binary(max_size=60) | ANSWERS.map(lambda one: json.dumps(one).encode()))
def test_any_request_is_read_or_refused_by_name(name: str, body: bytes) -> None:
    assert isinstance(FORMATS[name].request_text(body), str)
    try:
        facts = FORMATS[name].read_request(body, "/v1/models/m:generateContent", "")
    except ObolError as error:
        assert error.code in ("invalid_request", "forward_model_invalid")
        assert error.param in ("body", "model")
    else:
        assert facts.choices >= 1
