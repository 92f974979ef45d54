"""`RequestFacts.at_most`: no recorded call used more than it says, and what it says of each kind of request."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from recorded import exchanges

from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.wire.contract import ALL
from gateway.wire.formats import FORMATS
from gateway.wire.media import CONTEXT_TOKENS

PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(3_000_000)).decode()
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"


def at_most(name: str, **members: Any) -> Usage | None:
    path = members.pop("path", "/v1beta/models/gemini-2.5-flash:generateContent")
    return FORMATS[name].read_request(json.dumps({"model": "gpt-4o", **members}).encode(), path, "").at_most


def chat(*parts: dict[str, Any], **members: Any) -> Usage | None:
    return at_most("openai_chat", messages=[{"role": "user", "content": list(parts)}], **members)


def test_no_recorded_call_used_more() -> None:
    """Of every exchange whose request was kept: prompt tokens, searches, images, seconds."""
    checked = described = 0
    for one in exchanges():
        if not one.request or one.status >= 400 or not one.expected["input_tokens"]:
            continue
        most = one.facts().at_most
        limit = len(one.request) if most is None or most.input_tokens is None else most.input_tokens
        assert one.expected["input_tokens"] <= limit, one.id
        searches = one.extra.get("web_search_requests")
        assert not searches or (most is not None and searches <= (most.web_searches or 0)), one.id
        checked += 1
        described += most is not None
    assert checked > 550 and described > 60


def test_a_text_alone_is_bounded_by_its_bytes() -> None:
    assert chat({"type": "text", "text": "hi"}) is None
    assert at_most("openai_responses", input="hi") is None
    assert at_most("anthropic_messages", messages=[]) is None
    assert at_most("gemini_generate", contents=[]) is None
    assert at_most("cohere_v2_chat", messages=[]) is None
    assert at_most("cohere_embed", texts=["a"]) is None


def test_an_image_at_a_url_is_the_largest_there_is() -> None:
    plain = len(json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": []}]}))
    most = chat({"type": "image_url", "image_url": {"url": "https://x.test/a.png"}})
    assert most is not None and most.input_image_tokens == 1_445
    assert most.input_tokens is not None and 1_445 + plain < most.input_tokens < 1_445 + plain + 100


def test_an_image_that_a_tool_brings_is_seen() -> None:
    shot = {"type": "input_image", "image_url": "https://x.test/a.png"}
    for item in (
        {"type": "function_call_output", "call_id": "c", "output": [shot]},
        {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "https://x.test"}},
    ):
        most = at_most("openai_responses", input=[item])
        assert most is not None and most.input_image_tokens == 1_445
    result = {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "https://x.test"}}]}
    most = at_most("anthropic_messages", model="claude-opus-5", messages=[{"role": "user", "content": [result]}])
    assert most is not None and most.input_image_tokens == 4_784


ODD: list[Any] = [
    5,
    {"a": 1},
    [[]],
    [5],
    [{"type": {}}],
    [{"content": 5}],
    [{"content": [5]}],
    [{"content": [{"type": []}]}],
]


@pytest.mark.parametrize("odd", ODD, ids=json.dumps)
def test_requests_of_any_shape_are_read(odd: Any) -> None:
    """What is not understood is taken to hold anything; the provider tells what is wrong with it."""
    members = (
        "messages",
        "input",
        "tools",
        "system",
        "contents",
        "requests",
        "documents",
        "images",
        "generationConfig",
    )
    for name in FORMATS:
        body = json.dumps(
            {"model": "m", **dict.fromkeys(members, odd), "generationConfig": {"responseModalities": odd}}
        )
        with contextlib.suppress(ObolError):
            FORMATS[name].read_request(body.encode(), GEMINI, "")
        FORMATS[name].request_media(body.encode(), "m")
        FORMATS[name].request_text(body.encode())


def test_deep_requests_are_read() -> None:
    for depth in (50, 400, 900, 100_000):
        body = b'{"model":"m","messages":[{"content":' + b'[{"type":"tool_result","content":' * depth + b"0"
        for name in ("openai_chat", "anthropic_messages", "gemini_generate"):
            with contextlib.suppress(ObolError):
                FORMATS[name].read_request(body + b"}]" * depth + b"}]}", GEMINI, "")


def test_base64_is_no_text() -> None:
    """Three megabytes of picture, four million characters, are some thousand tokens; four characters are as many."""
    for data in (PICTURE, "AAAA"):
        most = chat({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
        assert most is not None and most.input_tokens is not None and 1_445 < most.input_tokens < 2_000


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("openai_chat", {"messages": [{"content": [{"type": "file", "file": {"file_id": "file-1"}}]}]}),
        ("openai_chat", {"messages": [], "web_search_options": {}}),
        ("openai_responses", {"input": "go on", "previous_response_id": "resp_1"}),
        ("openai_responses", {"input": "go on", "conversation": {"id": "conv_1"}}),
        ("openai_responses", {"input": [{"type": "item_reference", "id": "msg_1"}]}),
        ("openai_responses", {"input": "find", "tools": [{"type": "file_search", "vector_store_ids": []}]}),
        ("openai_responses", {"input": [{"content": [{"type": "input_file", "file_url": "https://x.test"}]}]}),
        (
            "anthropic_messages",
            {"messages": [{"content": [{"type": "document", "source": {"type": "url", "url": "https://x.test"}}]}]},
        ),
        ("anthropic_messages", {"messages": [], "tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("anthropic_messages", {"messages": [], "mcp_servers": [{"url": "https://x.test"}]}),
        ("gemini_generate", {"contents": [], "cachedContent": "cachedContents/1"}),
        ("gemini_generate", {"contents": [{"parts": [{"fileData": {"fileUri": "https://x.test/v.mp4"}}]}]}),
        ("gemini_generate", {"contents": [], "tools": [{"url_context": {}}]}),
        ("cohere_v1_chat", {"message": "go on", "conversation_id": "c"}),
    ],
)
def test_what_is_elsewhere_is_bounded_by_the_window_alone(name: str, members: dict[str, Any]) -> None:
    most = at_most(name, **members)
    assert most is not None and most.input_tokens is not None and most.input_tokens > CONTEXT_TOKENS


def test_escaped_names_are_seen() -> None:
    body = b'{"model":"gpt-4o","messages":[{"content":[{"im\\u0061ge_url":{"url":"https://x.test"}}]}]}'
    most = FORMATS["openai_chat"].read_request(body, "", "").at_most
    assert most is not None and most.input_image_tokens == 1_445


def test_tools_have_a_prompt_of_their_own_at_anthropic() -> None:
    own = {"name": "f", "input_schema": {"type": "object"}}
    computer = {"type": "computer_20250124", "name": "computer"}
    for tools, hidden in (([own], 1_024), ([own, computer], 2_048)):
        members = {"messages": [], "tools": tools}
        most = at_most("anthropic_messages", **members)
        assert most == Usage(input_tokens=len(json.dumps({"model": "gpt-4o", **members})) + hidden)


def test_dearer_classes_are_held_for() -> None:
    cached = {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}
    most = at_most("anthropic_messages", messages=[], **cached)
    assert most is not None and (most.cache_write_tokens, most.cache_write_1h_tokens) == (ALL, ALL)
    most = at_most(
        "anthropic_messages",
        messages=[{"content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]}],
    )
    assert most is not None and (most.cache_write_tokens, most.cache_write_1h_tokens) == (ALL, None)
    most = chat({"type": "text", "text": "say hi"}, modalities=["text", "audio"], audio={"voice": "alloy"})
    assert most is not None and most.output_audio_tokens == ALL
    draws = at_most("gemini_generate", contents=[], path="/v1beta/models/gemini-2.5-flash-image:generateContent")
    assert draws is not None and draws.output_image_tokens == ALL
    speaks = at_most("gemini_generate", contents=[], generationConfig={"responseModalities": ["AUDIO"]})
    assert speaks is not None and speaks.output_audio_tokens == ALL


def test_searches_and_images_drawn_are_held_for() -> None:
    most = at_most("openai_responses", input="x", tools=[{"type": "web_search"}, {"type": "image_generation"}])
    assert most is not None and most.web_searches == 20
    assert [(one.model, one.output_tokens) for one in most.extra] == [("gpt-image-1", 40_000)]
    grounded = at_most("gemini_generate", contents=[], tools=[{"googleSearch": {}}])
    assert grounded is not None and grounded.web_searches == 20


def test_images_made_are_held_for() -> None:
    most = at_most("images", prompt="a cat", n=2)
    assert most is not None
    assert (most.images, most.output_tokens, most.output_image_tokens) == (2, 20_000, ALL)
    shown = at_most(
        "images", prompt="greener", images=[{"type": "image_url", "url": f"data:image/png;base64,{PICTURE}"}]
    )
    form = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\ngreener\r\n'
    form += b'--b\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + bytes(3_000_000)
    form += b"\r\n--b--\r\n"
    edited = FORMATS["images"].read_request(form, "", "").at_most
    assert edited is not None and edited.input_tokens is not None and edited.input_image_tokens == 8_000
    assert 8_000 < edited.input_tokens < 8_500
    assert shown is not None and shown.images == 1


def transcription(file: bytes, **fields: str) -> Usage:
    parts = [f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{text}\r\n' for name, text in fields.items()]
    upload = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n' + file + b"\r\n--b--\r\n"
    most = FORMATS["audio_transcriptions"].read_request("".join(parts).encode() + upload, "", "").at_most
    assert most is not None
    return most


def test_recordings_are_held_for_by_their_length() -> None:
    """By a header that tells, but not below what the bytes can last; without one by the least bit rate."""
    m4a = b"\0\0\0\x1cftypM4A " + bytes(16) + b"\0\0\0\x6cmvhd" + bytes(12) + (1_000).to_bytes(4, "big")
    assert transcription(m4a + (60_000).to_bytes(4, "big"), model="whisper-1").input_us == 60_000_000
    lying = transcription(m4a + (1).to_bytes(4, "big") + bytes(1_920_000), model="whisper-1")
    assert lying.input_us is not None and 10_000_000 <= lying.input_us < 10_100_000
    assert transcription(b"webm" + bytes(3_750 - 4), model="whisper-1").input_us == 10_000_000
    elsewhere = at_most("elevenlabs_stt", model_id="scribe_v1", cloud_storage_url="https://x.test")
    assert elsewhere is not None and elsewhere.input_us == 4 * 3_600_000_000


def test_reranking_is_held_for_by_the_piece() -> None:
    most = at_most("rerank", query="q" * 10, documents=["d"] * 250)
    assert most is not None and most.search_units == 3
    assert most.input_tokens is not None and most.input_tokens > 250 * 10


@pytest.mark.parametrize(
    ("format_name", "path", "members"),
    [
        ("openai_chat", "", {"model": "m", "messages": [], "max_tokens": "5000", "n": "8"}),
        ("openai_completions", "", {"model": "m", "prompt": "x", "max_tokens": "5_000", "best_of": " 8.0"}),
        (
            "gemini_generate",
            "/v1beta/models/m:generateContent",
            {"contents": [], "generationConfig": {"maxOutputTokens": "5e3", "candidateCount": "8"}},
        ),
    ],
)
def test_what_is_asked_for_as_text_is_held_for_as_well(format_name: str, path: str, members: dict[str, Any]) -> None:
    """Vendors take it for the number that it is: held for as one answer of the usual length, it could overspend."""
    facts = FORMATS[format_name].read_request(json.dumps(members).encode(), path, "")
    assert (facts.max_output_tokens, facts.choices) == (5_000, 8)
