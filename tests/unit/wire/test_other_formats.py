"""Responses, Anthropic, Gemini, completions, embeddings: requests, streams cut short, and text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.usage import ZERO, ExtraUsage, Usage
from gateway.errors import ObolError
from gateway.wire.contract import ALL, Meter, RequestFacts
from gateway.wire.formats import FORMATS

LIMIT_BYTES = 1024 * 1024


def meter(name: str, facts: RequestFacts | None = None, content_type: str = "text/event-stream") -> Meter:
    return FORMATS[name].meter(
        facts or RequestFacts(stream=True),
        provider="any",
        content_type=content_type,
        hide_usage=False,
        limit_bytes=LIMIT_BYTES,
    )


def feed(watching: Meter, *events: Any) -> Meter:
    for one in events:
        name = f"event: {one['type']}\n".encode() if "type" in one else b""
        watching.feed(name + b"data: " + json.dumps(one).encode() + b"\n\n")
    watching.finish()
    return watching


def body(**members: Any) -> bytes:
    return json.dumps(members).encode()


RESPONSE = {"id": "resp_1", "model": "gpt-5", "status": "completed", "error": None}


def test_responses_usage_stands_in_the_terminal_event() -> None:
    usage = {"input_tokens": 9, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 2}}
    watching = feed(
        meter("openai_responses"),
        {"type": "response.created", "response": RESPONSE | {"status": "in_progress", "usage": None}},
        {"type": "response.output_text.delta", "delta": "hi"},
        {"type": "response.incomplete", "response": RESPONSE | {"status": "incomplete", "usage": usage}},
    )
    reading = watching.reading()
    assert reading.usage == Usage(input_tokens=9, cached_input_tokens=2, output_tokens=4)
    assert (reading.response_id, reading.model, reading.finished) == ("resp_1", "gpt-5", True)


def test_a_responses_stream_cut_short_has_text_model_and_id() -> None:
    watching = feed(
        meter("openai_responses"),
        {"type": "response.created", "response": RESPONSE | {"usage": None}},
        {"type": "response.reasoning_summary_text.delta", "delta": "hm "},
        {"type": "response.output_text.delta", "delta": 'say "error" '},
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
    )
    reading = watching.reading()
    assert (reading.usage, reading.finished, reading.failed) == (None, False, None)
    assert (reading.model, reading.response_id) == ("gpt-5", "resp_1")
    assert watching.text() == 'hm say "error" {}'


def test_responses_that_fail() -> None:
    failed = RESPONSE | {"status": "failed", "usage": None, "error": {"code": "x", "message": "no quota"}}
    assert (
        feed(meter("openai_responses"), {"type": "response.failed", "response": failed}).reading().failed == "no quota"
    )
    error = {"type": "error", "code": "server_error", "message": "boom", "param": None}
    assert feed(meter("openai_responses"), error).reading().failed == "boom"


def test_a_background_response_is_not_finished() -> None:
    watching = meter("openai_responses", RequestFacts(), "application/json")
    watching.feed(json.dumps(RESPONSE | {"status": "queued", "usage": None}).encode())
    watching.finish()
    assert (watching.reading().usage, watching.reading().finished) == (None, False)


@pytest.mark.parametrize(
    ("usage", "output", "searches"),
    [
        ({"server_side_tool_usage_details": {"web_search_calls": 2, "x_search_calls": 1}}, [], 3),
        ({"num_server_side_tools_used": 0}, [], 0),
        ({}, [{"type": "web_search_call"}, {"type": "message"}], 1),
        ({}, [], None),
    ],
)
def test_web_searches_of_responses(usage: dict[str, Any], output: list[Any], searches: int | None) -> None:
    watching = meter("openai_responses", RequestFacts(), "application/json")
    counts = {"input_tokens": 1, "output_tokens": 1}
    watching.feed(json.dumps(RESPONSE | {"usage": counts | usage, "output": output}).encode())
    watching.finish()
    assert watching.reading().usage == Usage(input_tokens=1, output_tokens=1, web_searches=searches)


START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "model": "claude-sonnet-5",
        "usage": {
            "input_tokens": 6,
            "cache_read_input_tokens": 159_217,
            "cache_creation_input_tokens": 2_745,
            "cache_creation": {"ephemeral_5m_input_tokens": 745, "ephemeral_1h_input_tokens": 2_000},
            "output_tokens": 3,
            "service_tier": "standard",
        },
    },
}
INPUT = {
    "input_tokens": 6 + 159_217 + 2_745,
    "cached_input_tokens": 159_217,
    "cache_write_tokens": 2_745,
    "cache_write_1h_tokens": 2_000,
}


def test_anthropic_merges_start_and_delta_and_a_null_overrides_nothing() -> None:
    delta = {
        "type": "message_delta",
        "delta": {},
        "usage": {"input_tokens": 10, "output_tokens": 50, "cache_read_input_tokens": None},
    }
    reading = feed(meter("anthropic_messages"), START, delta, {"type": "message_stop"}).reading()
    assert reading.usage == Usage(**(INPUT | {"input_tokens": INPUT["input_tokens"] + 4}), output_tokens=50)
    assert (reading.finished, reading.service_tier, reading.response_id) == (True, "standard", "msg_1")


def test_anthropic_cut_short_reports_the_input_and_no_output() -> None:
    """The output count of message_start is a placeholder: the text is to be counted instead."""
    watching = feed(
        meter("anthropic_messages"),
        START,
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm "}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hello"}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
    )
    reading = watching.reading()
    assert reading.usage == Usage(**INPUT)
    assert (reading.failed, reading.finished) == ("Overloaded", False)
    assert watching.text() == "hm hello{}"


def test_anthropic_iterations_are_extra() -> None:
    iterations = [
        {"type": "message", "input_tokens": 1, "output_tokens": 1},
        {"type": "compaction", "input_tokens": 60_385, "output_tokens": 522, "cache_read_input_tokens": 5},
        {"type": "advisor_message", "model": "claude-opus-4-8", "input_tokens": 7, "output_tokens": 2},
    ]
    watching = meter("anthropic_messages", RequestFacts(), "application/json")
    watching.feed(body(id="m", usage={"input_tokens": 1, "output_tokens": 1, "iterations": iterations}))
    usage = watching.reading().usage
    assert usage is not None
    assert usage.extra == (
        ExtraUsage(kind="compaction", input_tokens=60_390, cached_input_tokens=5, output_tokens=522),
        ExtraUsage(kind="advisor_message", model="claude-opus-4-8", input_tokens=7, output_tokens=2),
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("anthropic_count_tokens", "/v1/messages/count_tokens"),
        ("gemini_count_tokens", "/v1beta/models/m:countTokens"),
        ("moderations", "/v1/moderations"),
    ],
)
def test_counting_and_moderation_are_free(name: str, path: str) -> None:
    facts = FORMATS[name].read_request(body(model="m"), path, "")
    assert facts.free
    watching = meter(name, facts, "application/json")
    watching.feed(b'{"input_tokens":14}')
    assert watching.reading().usage == ZERO


def gemini_chunk(text: str = "", finish: str | None = None, **usage: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}]}}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-3-flash", "responseId": "r"}


CHUNKS = [
    gemini_chunk("a", promptTokenCount=100, candidatesTokenCount=9),
    gemini_chunk("b", finish="STOP", promptTokenCount=87, thoughtsTokenCount=78, totalTokenCount=165),
]


@pytest.mark.parametrize("sse", [True, False])
def test_gemini_takes_the_last_usage_whole(sse: bool) -> None:
    watching = meter("gemini_stream", content_type="text/event-stream" if sse else "application/json")
    if sse:
        feed(watching, *CHUNKS)
    else:
        watching.feed(json.dumps(CHUNKS, indent=1).encode())
        watching.finish()
    reading = watching.reading()
    assert reading.usage == Usage(input_tokens=87, output_tokens=78, reasoning_tokens=78)
    assert (reading.model, reading.response_id, reading.finished) == ("gemini-3-flash", "r", True)
    assert watching.text() == "ab"


def test_gemini_cut_before_any_candidate_was_counted_reports_no_output() -> None:
    watching = feed(meter("gemini_stream"), gemini_chunk("abc", promptTokenCount=5, totalTokenCount=5))
    assert watching.reading().usage == Usage(input_tokens=5)
    assert not watching.reading().finished
    assert watching.text() == "abc"


@pytest.mark.parametrize(("model", "searches"), [("gemini-2.5-flash", 1), ("gemini-3-pro", 2)])
def test_gemini_grounding_is_billed_by_the_answer_and_since_3_by_the_query(model: str, searches: int) -> None:
    chunk = gemini_chunk("x", finish="STOP", promptTokenCount=1, candidatesTokenCount=1) | {"modelVersion": model}
    chunk["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b"]}
    streamed = feed(meter("gemini_stream"), chunk).reading().usage
    whole = meter("gemini_generate", RequestFacts(), "application/json")
    whole.feed(json.dumps(chunk).encode())
    assert streamed == whole.reading().usage
    assert streamed is not None and streamed.web_searches == searches


def test_a_gemini_array_can_be_an_error() -> None:
    watching = meter("gemini_stream", content_type="application/json; charset=UTF-8")
    watching.feed(b'[{"error":{"code":404,"message":"no such model","status":"NOT_FOUND"}}\n]')
    watching.finish()
    assert watching.reading().failed == "no such model"


def test_gemini_usage_of_an_image_above_the_limit_is_found() -> None:
    chunk = gemini_chunk("x", finish="STOP", promptTokenCount=3, candidatesTokenCount=1_290)
    chunk["candidates"][0]["content"]["parts"] = [{"inlineData": {"data": "A" * 3_000_000}}]
    whole = json.dumps(chunk).encode()
    sse, array = meter("gemini_stream"), meter("gemini_stream", content_type="application/json")
    for watching, stream in ((sse, b"data: " + whole + b"\r\n\r\n"), (array, b"[" + whole + b"]")):
        for at in range(0, len(stream), 65_536):
            watching.feed(stream[at : at + 65_536])
        watching.finish()
        reading = watching.reading()
        assert reading.usage == Usage(input_tokens=3, output_tokens=1_290)
        assert reading.model == "gemini-3-flash"


def test_gemini_requests() -> None:
    gemini = FORMATS["gemini_stream"]
    config = {"maxOutputTokens": 64, "candidateCount": 2}
    path = "/v1beta1/projects/p/locations/l/publishers/google/models/gemini-2.5-pro:streamGenerateContent"
    assert gemini.read_request(body(generationConfig=config), path, "alt=sse") == RequestFacts(
        model="gemini-2.5-pro", stream=True, max_output_tokens=64, choices=2, hidden_tokens_max=ALL
    )
    tuned = FORMATS["gemini_generate"].read_request(b"{}", "/v1beta/tunedModels/my%20model:generateContent", "")
    assert (tuned.model, tuned.stream) == ("my model", False)
    with pytest.raises(ObolError) as caught:
        gemini.read_request(b"{}", "/v1beta/models", "")
    assert (caught.value.code, caught.value.param) == ("forward_model_invalid", "model")
    prompt = body(
        systemInstruction={"parts": [{"text": "Be brief."}]},
        contents=[{"role": "user", "parts": [{"text": "Hi"}, {"inlineData": {"data": "AAAA"}}]}],
        tools=[{"functionDeclarations": [{"name": "lookup"}]}],
    )
    text = gemini.request_text(prompt)
    assert text.startswith("Be brief.\nHi\n")
    assert "lookup" in text and "AAAA" not in text
    assert FORMATS["gemini_embed"].request_text(body(requests=[{"content": {"parts": [{"text": "a"}]}}])) == "a"


def test_an_output_limit_of_zero_hides_no_output() -> None:
    path = "/v1beta/models/m:generateContent"
    facts = FORMATS["gemini_generate"].read_request(body(generationConfig={"maxOutputTokens": 0}), path, "")
    watching = meter("gemini_generate", facts, "application/json")
    watching.feed(body(usageMetadata={"promptTokenCount": 7, "candidatesTokenCount": 9}))
    assert watching.reading().usage == Usage(input_tokens=7, output_tokens=9)


def test_of_two_limits_the_larger_one_is_held_for() -> None:
    path = "/v1beta/models/m:generateContent"
    both = body(generationConfig={"maxOutputTokens": 5}, generation_config={"max_output_tokens": 900})
    assert FORMATS["gemini_generate"].read_request(both, path, "").max_output_tokens == 900


def test_gemini_embeddings_have_input_only() -> None:
    facts = FORMATS["gemini_embed"].read_request(b"{}", "/v1beta/models/e:batchEmbedContents", "")
    watching = meter("gemini_embed", facts, "application/json")
    watching.feed(body(embeddings=[{"values": [0.1]}], usageMetadata={"promptTokenCount": 7}))
    assert watching.reading().usage == Usage(input_tokens=7)


@pytest.mark.parametrize(
    ("members", "choices"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [1, 2, 3], "best_of": 3}, 3),
        ({"prompt": [[1], [2]]}, 2),
        ({"n": "two", "best_of": None}, 1),
    ],
)
def test_completions_count_their_candidates(members: dict[str, Any], choices: int) -> None:
    facts = FORMATS["openai_completions"].read_request(body(model="m", **members), "/v1/completions", "")
    assert (facts.choices, facts.max_output_tokens) == (choices, None)


def test_completions_text() -> None:
    watching = feed(meter("openai_completions"), {"choices": [{"text": "one "}]}, {"choices": [{"text": "two"}]})
    assert watching.text() == "one two"


def test_embeddings() -> None:
    embeddings = FORMATS["openai_embeddings"]
    facts = embeddings.read_request(body(model="e", input=["a", "b"]), "/v1/embeddings", "")
    assert (facts.model, facts.max_output_tokens) == ("e", 0)
    assert embeddings.request_text(body(model="e", input=["a", "b"])) == "a\nb"
    for usage, tokens in (({"prompt_tokens": 4, "total_tokens": 9}, 4), ({"total_tokens": 9}, 9)):
        watching = meter("openai_embeddings", facts, "application/json")
        watching.feed(body(data=[{"embedding": "AAAA"}], model="e", usage=usage))
        assert watching.reading().usage == Usage(input_tokens=tokens)


def test_anything_else_passes_unread() -> None:
    plain = FORMATS["plain"]
    assert plain.read_request(b"\x00 not json", "/v1/files", "") == RequestFacts()
    watching = meter("plain", RequestFacts(), "application/pdf")
    data = b"%PDF"
    assert watching.feed(data) is data
    assert watching.finish() == b""
    assert (watching.reading().usage, watching.reading().finished, watching.text()) == (None, True, "")
    assert watching.kept_bytes == watching.seen_bytes == 4
