"""A translated stream does not depend on how the provider's was cut, and no bytes make a translator fail otherwise."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import ObolError
from gateway.wire.translate.framing import Untranslatable, Writing
from gateway.wire.translate.translation import read_request, translator, write_request
from gateway.wire.translate.values import To

LIMIT_BYTES = 1024 * 1024
DIALECTS = ("openai", "anthropic", "google")

texts = st.text(max_size=12)
pairs = st.sampled_from([(one, other) for one in DIALECTS for other in DIALECTS if one != other])
cuts = st.lists(st.integers(0, 3_000), max_size=30)
WORDS = """
    choices delta message content tool_calls function arguments name index id usage error finish_reason type text
    content_block candidates parts functionCall args thought usageMetadata model role messages contents tools
    generationConfig system tool_choice response_format source data url image_url
"""
MEMBERS = st.sampled_from(WORDS.split())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | MEMBERS, inner, max_size=4),
    max_leaves=12,
)


def translated(provider: str, client: str, pieces: list[bytes], *, stream: bool = True, array: bool = False) -> bytes:
    writing = Writing(request_id="req_1", model="m", include_usage=True, array=array)
    one = translator(
        client,
        provider,
        writing,
        provider_name="p",
        status=200,
        content_type="text/event-stream" if stream else "application/json",
        streams=stream,
        limit_bytes=LIMIT_BYTES,
    )
    return b"".join([one.feed(piece) for piece in pieces]) + one.finish()


def pieces_of(data: bytes, at: list[int]) -> list[bytes]:
    marks = [0, *sorted(min(mark, len(data)) for mark in at), len(data)]
    return [data[start:end] for start, end in pairwise(marks)]


@st.composite
def streams(draw: st.DrawFn, provider: str) -> bytes:
    """Text, reasoning and a call, as the provider streams them, with its line ends."""
    said = draw(st.lists(st.tuples(st.booleans(), texts.filter(bool)), max_size=5))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    values = {"openai": _openai, "anthropic": _anthropic, "google": _google}[provider](said, draw(st.booleans()))
    return "".join(f"data: {json.dumps(value)}{end}{end}" for value in values).encode()


def _openai(said: list[tuple[bool, str]], calls: bool) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"reasoning_content" if thought else "content": text} for thought, text in said]
    if calls:
        deltas.append({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x":'}}]})
        deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]})
    chunks: list[dict[str, Any]] = [{"id": "i", "model": "m", "choices": [{"index": 0, "delta": d}]} for d in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}]})
    return [*chunks, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}]


def _anthropic(said: list[tuple[bool, str]], calls: bool) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "i", "model": "m"}}]
    for index, (thought, text) in enumerate(said):
        kind = "thinking" if thought else "text"
        values.append({"type": "content_block_start", "index": index, "content_block": {"type": kind, kind: ""}})
        values.append({"type": "content_block_delta", "index": index, "delta": {"type": f"{kind}_delta", kind: text}})
        values.append({"type": "content_block_stop", "index": index})
    if calls:
        block = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
        delta = {"type": "input_json_delta", "partial_json": '{"x":1}'}
        values.append({"type": "content_block_start", "index": 9, "content_block": block})
        values.append({"type": "content_block_delta", "index": 9, "delta": delta})
        values.append({"type": "content_block_stop", "index": 9})
    usage = {"input_tokens": 3, "output_tokens": 2}
    values.append({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": usage})
    return [*values, {"type": "message_stop"}]


def _google(said: list[tuple[bool, str]], calls: bool) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"text": text, "thought": thought} for thought, text in said]
    if calls:
        parts.append({"functionCall": {"name": "f", "args": {"x": 1}}})
    chunks: list[dict[str, Any]] = [{"candidates": [{"content": {"parts": [part]}}]} for part in parts]
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}
    return [*chunks, {"candidates": [{"finishReason": "STOP"}], "usageMetadata": usage}]


@given(pair=pairs, at=cuts, array=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_cuts_make_no_difference(pair: tuple[str, str], at: list[int], array: bool, data: st.DataObject):
    provider, client = pair
    stream = data.draw(streams(provider))
    whole = translated(provider, client, [stream], array=array)
    assert translated(provider, client, pieces_of(stream, at), array=array) == whole
    if array and client == "google":
        assert json.loads(whole)[-1]["usageMetadata"]["totalTokenCount"] == 5
    assert whole


@given(pair=pairs, body=st.binary(max_size=200), stream=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_bytes_make_it_fail_otherwise(pair: tuple[str, str], body: bytes, stream: bool):
    try:
        translated(*pair, [b"data: " + body + b"\n\n" if stream else body], stream=stream)
    except Untranslatable:
        pass


@given(pair=pairs, value=st.dictionaries(MEMBERS, json_values, max_size=6), stream=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_answer_makes_it_fail_otherwise(pair: tuple[str, str], value: dict[str, Any], stream: bool):
    """JSON of any shape under the members that are read."""
    body = json.dumps(value).encode()
    try:
        translated(*pair, [b"data: " + body + b"\n\n" if stream else body], stream=stream)
    except Untranslatable:
        pass


@given(pair=pairs, value=st.dictionaries(MEMBERS, json_values, max_size=6))
@settings(max_examples=60, deadline=None)
def test_no_request_makes_it_fail_otherwise(pair: tuple[str, str], value: dict[str, Any]):
    client, provider = pair
    try:
        ask = read_request(json.dumps({"model": "m", "max_tokens": 5} | value).encode(), client, model="m")
        json.loads(write_request(ask, provider, To()))
    except ObolError as error:
        assert error.param and error.status == 400
