"""Token classes: each provider's way of telling them, apart and adding up; zero is zero and missing is missing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.usage import ZERO, ExtraUsage, Usage
from gateway.errors import ObolError
from gateway.wire.anthropic_messages import messages_usage
from gateway.wire.cohere import billed_usage
from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.fields import partition
from gateway.wire.formats import FORMATS
from gateway.wire.gemini import gemini_usage
from gateway.wire.openai_responses import Response, responses_usage
from gateway.wire.openai_usage import chat_usage

COUNTS = st.none() | st.integers(0, 10**6)
PARTS = {
    "input_tokens": ("cached_input_tokens", "input_audio_tokens", "input_image_tokens", "input_video_tokens"),
    "cached_input_tokens": ("cached_audio_tokens", "cached_image_tokens"),
    "cache_write_tokens": ("cache_write_1h_tokens",),
    "output_tokens": ("reasoning_tokens", "output_audio_tokens", "output_image_tokens"),
}
NAMES = sorted({name for whole, parts in PARTS.items() for name in (whole, *parts)})


def adds_up(usage: Usage) -> None:
    for whole, parts in PARTS.items():
        limit = getattr(usage, whole)
        for part in parts:
            assert limit is None or (getattr(usage, part) or 0) <= limit, (whole, part, usage)
    if usage.input_tokens is not None:
        assert (usage.cached_input_tokens or 0) + (usage.cache_write_tokens or 0) <= usage.input_tokens, usage


@settings(max_examples=40, deadline=None)
@given(counts=st.fixed_dictionaries(dict.fromkeys(NAMES, COUNTS)))
def test_parts_never_exceed_their_wholes(counts: dict[str, int | None]) -> None:
    found = partition(Usage(**counts))
    adds_up(found)
    for name, count in counts.items():
        assert (getattr(found, name) is None) == (count is None), "zero and missing are told apart"


ANY = st.recursive(st.none() | st.integers(-5, 2_000) | st.floats() | st.text(max_size=3) | st.booleans(), st.lists)
DETAILS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("cached_tokens", "cache_write_tokens", "audio_tokens", "image_tokens", "reasoning_tokens"), ANY
    ),
)


@settings(max_examples=40, deadline=None)
@given(
    usage=st.fixed_dictionaries(
        {},
        optional={
            "prompt_tokens": ANY,
            "completion_tokens": ANY,
            "total_tokens": ANY,
            "input_tokens": ANY,
            "output_tokens": ANY,
            "prompt_tokens_details": DETAILS,
            "input_tokens_details": DETAILS,
            "completion_tokens_details": DETAILS,
            "cache_read_input_tokens": ANY,
            "cache_creation_input_tokens": ANY,
            "cache_creation": st.fixed_dictionaries({}, optional={"ephemeral_1h_input_tokens": ANY}),
            "citation_tokens": ANY,
            "num_sources_used": ANY,
            "promptTokenCount": ANY,
            "candidatesTokenCount": ANY,
            "thoughtsTokenCount": ANY,
            "billed_units": st.fixed_dictionaries({}, optional={"input_tokens": ANY, "image_tokens": ANY}),
        },
    )
)
def test_whatever_a_provider_says_adds_up(usage: dict[str, Any]) -> None:
    for found in (
        chat_usage(usage, "any"),
        chat_usage(usage, "google"),
        messages_usage(usage),
        responses_usage(usage, None),
        gemini_usage(usage, True, None),
        billed_usage(usage),
    ):
        if found is not None:
            adds_up(found)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(input_tokens=0, output_tokens=0)),
        ({"prompt_tokens": 7}, Usage(input_tokens=7)),
        ({"completion_tokens": 7, "prompt_tokens": None}, Usage(output_tokens=7)),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "num_sources_used": 0},
            Usage(input_tokens=5, output_tokens=2, web_searches=0),
        ),
        (  # xAI: reasoning beside the completion
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "total_tokens": 17,
                "completion_tokens_details": {"reasoning_tokens": 10},
                "num_sources_used": 3,
            },
            Usage(input_tokens=5, output_tokens=12, reasoning_tokens=10, web_searches=3),
        ),
        (  # Perplexity: reasoning and citations beside the completion
            {
                "prompt_tokens": 33,
                "completion_tokens": 7_163,
                "total_tokens": 7_196,
                "citation_tokens": 19_028,
                "num_search_queries": 30,
                "reasoning_tokens": 73_997,
            },
            Usage(input_tokens=33, output_tokens=100_188, reasoning_tokens=73_997, web_searches=30),
        ),
        (  # Mistral: sound beside the prompt, and its length
            {
                "prompt_tokens": 16,
                "completion_tokens": 2,
                "total_tokens": 393,
                "prompt_tokens_details": {"audio_tokens": 375},
                "prompt_audio_seconds": 30,
            },
            Usage(input_tokens=391, input_audio_tokens=375, output_tokens=2, input_us=30_000_000),
        ),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 1,
                "total_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 4, "cached_tokens_details": {"audio_tokens": 3}},
            },
            Usage(input_tokens=9, cached_input_tokens=4, cached_audio_tokens=3, output_tokens=1),
        ),
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "web_search_usage": {"tool_usage": 5, "page_usage": 25}},
            Usage(input_tokens=9, output_tokens=1, web_searches=5),
        ),
    ],
)
def test_chat_usage_of_the_vendors(usage: dict[str, Any], expected: Usage) -> None:
    assert chat_usage(usage, "any") == expected


def test_gemini_keeps_modalities_apart() -> None:
    usage = {
        "promptTokenCount": 3_000,
        "toolUsePromptTokenCount": 100,
        "cachedContentTokenCount": 1_500,
        "candidatesTokenCount": 0,
        "totalTokenCount": 3_100,
        "promptTokensDetails": [
            {"modality": "TEXT", "tokenCount": 10},
            {"modality": "VIDEO", "tokenCount": 2_000},
            {"modality": "IMAGE", "tokenCount": 258},
            {"modality": "DOCUMENT", "tokenCount": 516},
            {"modality": "AUDIO"},
        ],
        "toolUsePromptTokensDetails": [{"modality": "IMAGE", "tokenCount": 100}],
        "cacheTokensDetails": [{"modality": "DOCUMENT", "tokenCount": 516}],
    }
    assert gemini_usage(usage, True, None) == Usage(
        input_tokens=3_100,
        cached_input_tokens=1_500,
        cached_image_tokens=516,
        input_image_tokens=874,
        input_video_tokens=2_000,
        output_tokens=0,
    )


def test_gemini_embeddings_keep_modalities_apart() -> None:
    answer = {
        "embedding": {"values": [0.5]},
        "usageMetadata": {"promptTokenCount": 70, "promptTokenDetails": [{"modality": "VIDEO", "tokenCount": 66}]},
    }
    usage = body_meter("gemini_embed", answer).reading().usage
    assert usage == Usage(input_tokens=70, input_video_tokens=66)


def body_meter(
    name: str, answer: Any, facts: RequestFacts | None = None, content_type: str = "application/json"
) -> Meter:
    meter = FORMATS[name].meter(
        facts or RequestFacts(), provider="any", content_type=content_type, hide_usage=False, limit_bytes=1 << 20
    )
    meter.feed(answer if isinstance(answer, bytes) else json.dumps(answer).encode())
    meter.finish()
    return meter


def test_anthropic_fast_mode_is_a_tier_of_its_own() -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "service_tier": "standard", "speed": "fast"}
    assert (
        body_meter("anthropic_messages", {"model": "claude-opus-4-6", "usage": usage}).reading().service_tier == "fast"
    )


def test_cohere_images_are_beside_the_text_of_an_embedding_and_within_that_of_a_chat() -> None:
    assert billed_usage({"billed_units": {"input_tokens": 3, "image_tokens": 1_000}}) == Usage(
        input_tokens=1_003, input_image_tokens=1_000
    )
    chat = {"billed_units": {"input_tokens": 267, "output_tokens": 66}, "tokens": {"image_tokens": 259}}
    assert billed_usage(chat) == Usage(input_tokens=267, input_image_tokens=259, output_tokens=66)


def test_tools_of_a_response_are_counted() -> None:
    calls = [{"type": "web_search_call"}, {"type": "file_search_call"}, {"type": "message"}]
    usage = {"input_tokens": 1, "output_tokens": 2}
    listed = responses_usage(usage, Response(output=calls))
    assert listed is not None and (listed.web_searches, listed.file_searches) == (1, 1)
    told = responses_usage(usage, Response(output=calls, tool_usage={"web_search": {"num_requests": 0}}))
    assert told is not None and told.web_searches == 0, "what the provider counts wins"
    drawn = responses_usage(
        usage,
        Response(
            tools=[{"type": "image_generation", "model": "gpt-image-1.5"}],
            tool_usage={
                "image_gen": {
                    "input_tokens": 10,
                    "output_tokens": 1_056,
                    "output_tokens_details": {"image_tokens": 1_050},
                }
            },
        ),
    )
    assert drawn is not None and drawn.extra == (
        ExtraUsage(
            kind="image_generation",
            model="gpt-image-1.5",
            input_tokens=10,
            output_tokens=1_056,
            output_image_tokens=1_050,
        ),
    )


@pytest.mark.parametrize(
    ("name", "body", "member"),
    [
        ("openai_responses", {"model": "gpt-5", "input": "x", "background": True}, "background"),
        ("openai_chat", {"model": "grok-4", "messages": [], "deferred": True}, "deferred"),
        ("elevenlabs_stt", {"model_id": "scribe_v1", "webhook": True}, "webhook"),
    ],
)
def test_what_is_delivered_elsewhere_is_refused(name: str, body: dict[str, Any], member: str) -> None:
    with pytest.raises(ObolError, match="outside of this call") as caught:
        FORMATS[name].read_request(json.dumps(body).encode(), "", "")
    assert (caught.value.code, caught.value.param) == ("invalid_request", member)


def upload(model: str, file: bytes) -> RequestFacts:
    form = f'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n{model}\r\n'.encode()
    form += b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n' + file + b"\r\n--b--\r\n"
    return FORMATS["audio_transcriptions"].read_request(form, "", "")


TEN_SECONDS = b"fLaC\0\0\0\x22" + bytes(10) + (16_000 << 44 | 160_000).to_bytes(8, "big") + bytes(16)


@pytest.mark.parametrize(
    ("model", "answer", "content_type", "usage", "estimated"),
    [
        (
            "whisper-1",
            {"text": "a", "duration": 9.5},
            "application/json",
            Usage(input_us=9_500_000, output_characters=1),
            0,
        ),
        ("whisper-1", {"text": "hi"}, "application/json", Usage(input_us=10_000_000, output_characters=2), True),
        ("whisper-large-v3", b"hi", "text/plain", Usage(input_us=10_000_000), True),
        (
            "gpt-4o-transcribe",
            {"text": "hello"},
            "application/json",
            Usage(input_us=10_000_000, input_tokens=100, input_audio_tokens=100, output_tokens=2, output_characters=5),
            True,
        ),
    ],
)
def test_a_transcription_that_tells_no_length_is_as_long_as_what_was_sent(
    model: str, answer: Any, content_type: str, usage: Usage, estimated: bool
) -> None:
    reading = body_meter("audio_transcriptions", answer, upload(model, TEN_SECONDS), content_type).reading()
    assert (reading.usage, reading.estimated, reading.finished) == (usage, estimated, True)


def test_captions_tell_when_they_end() -> None:
    vtt = b"WEBVTT\n\n00:00.000 --> 00:02.500\nhi\n\n00:03.000 --> 01:00:04.250\nthere\n"
    reading = body_meter("audio_transcriptions", vtt, content_type="text/vtt").reading()
    assert (reading.usage, reading.estimated) == (Usage(input_us=3_604_250_000), True)


def test_a_refused_transcription_uses_nothing() -> None:
    reading = body_meter(
        "audio_transcriptions", {"error": {"message": "no"}}, upload("whisper-1", TEN_SECONDS)
    ).reading()
    assert (reading.usage, reading.failed) == (None, "no")


@pytest.mark.parametrize(
    ("content_type", "sound", "tokens"),
    [("audio/pcm", bytes(96_000), 40), ("audio/mpeg", b"\xff\xfb\x90\x00" + bytes(31_996), 40)],
)
def test_speech_billed_in_tokens_is_counted_by_its_length(content_type: str, sound: bytes, tokens: int) -> None:
    speech = FORMATS["audio_speech"]
    facts = speech.read_request(b'{"model":"gpt-4o-mini-tts","input":"hello there"}', "", "")
    assert facts.at_most is not None and (facts.at_most.output_tokens or 0) >= tokens
    reading = body_meter("audio_speech", sound, facts, content_type).reading()
    assert reading.usage == Usage(input_characters=11, input_tokens=3, output_tokens=tokens, output_audio_tokens=tokens)
    assert reading.estimated
    exact = speech.read_request(b'{"model":"tts-1","input":"hello there"}', "", "")
    assert body_meter("audio_speech", sound, exact, content_type).reading().usage == Usage(input_characters=11)


def test_images_too_large_to_be_counted_are_those_asked_for() -> None:
    facts = FORMATS["images"].read_request(b'{"model":"dall-e-3","prompt":"x","n":2}', "", "")
    reading = body_meter("images", b'{"data":[{"b64_json":"' + b"A" * (2 << 20) + b'"}]}', facts).reading()
    assert (reading.usage, reading.estimated) == (Usage(images=2), True)
    tail = b'"}],"usage":{"input_tokens":1,"output_tokens":2}}'
    reading = body_meter("images", b'{"data":[{"b64_json":"' + b"A" * (2 << 20) + tail, facts).reading()
    assert (reading.usage, reading.estimated) == (Usage(input_tokens=1, output_tokens=2, images=2), False)


def test_any_api_has_its_bytes() -> None:
    http = FORMATS["http"]
    facts = http.read_request(b"12345", "/v1/search", "")
    assert (facts.model, facts.stream) == ("/v1/search", False)
    meter = body_meter("http", b"answer", facts)
    assert meter.reading().usage == Usage(input_bytes=5, output_bytes=6)
    assert body_meter("plain", b"answer").reading().usage is None


def test_token_counting_and_moderation_are_free() -> None:
    for name in ("anthropic_count_tokens", "gemini_count_tokens", "moderations"):
        facts = FORMATS[name].read_request(b'{"model":"m"}', "/v1beta/models/m:countTokens", "")
        assert facts.free and body_meter(name, {"input_tokens": 14}, facts).reading().usage == ZERO


def test_fill_in_the_middle_is_a_chat_with_another_prompt() -> None:
    fim = FORMATS["mistral_fim"]
    body = b'{"model":"codestral-latest","prompt":"def f(","suffix":"return 1"}'
    assert fim.request_text(body) == "def f(\nreturn 1"
    assert fim.read_request(body, "/v1/fim/completions", "").model == "codestral-latest"
    usage = {"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11}
    answer = {"choices": [{"message": {"content": "x"}}], "usage": usage}
    assert body_meter("mistral_fim", answer).reading().usage == Usage(input_tokens=8, output_tokens=3)
