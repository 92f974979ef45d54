"""Chat completions: usage in every dialect, hiding, errors after 200, and what is never parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.wire.contract import ALL, Meter, Reading, RequestFacts
from gateway.wire.formats import FORMATS
from gateway.wire.meters import WITHHELD_BYTES
from gateway.wire.openai_usage import chat_usage

CHAT = FORMATS["openai_chat"]
LIMIT_BYTES = 32 * 1024 * 1024
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "gpt-test"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps(HEAD | members, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str, **members: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], **members)


DONE = b"data: [DONE]\n\n"
USAGE_ONLY = event(choices=[], usage=USAGE)


def meter(hide_usage: bool = False, provider: str = "openai", content_type: str = "text/event-stream") -> Meter:
    facts = RequestFacts(model="gpt-test", stream=True)
    return CHAT.meter(
        facts, provider=provider, content_type=content_type, hide_usage=hide_usage, limit_bytes=LIMIT_BYTES
    )


def read(*chunks: bytes, **options: Any) -> Reading:
    watching = meter(**options)
    for chunk in chunks:
        watching.feed(chunk)
    watching.finish()
    return watching.reading()


def test_feed_without_hiding_returns_the_same_object() -> None:
    watching = meter()
    for chunk in (delta("a"), b"data: {", b'"x":1}\n', b"\n", USAGE_ONLY, DONE, b""):
        assert watching.feed(chunk) is chunk


def test_the_last_usage_counts_and_none_are_added() -> None:
    growing = [delta("x", usage={**USAGE, "completion_tokens": n, "total_tokens": 10 + n}) for n in (1, 2, 3)]
    reading = read(*growing, DONE)
    assert reading.usage == Usage(input_tokens=10, output_tokens=3)
    assert reading.finished


def test_a_running_total_that_stops_early_is_read_and_called_unfinished() -> None:
    reading = read(delta("x", usage=USAGE), delta("y", usage=USAGE | {"completion_tokens": 6}))
    assert reading.usage and reading.usage.output_tokens == 6
    assert not reading.finished


@pytest.mark.parametrize("value", ["n/a", [], 7, {}, {"prompt_tokens": "many"}, {"prompt_tokens": -1}, True])
def test_malformed_usage_is_no_usage(value: Any) -> None:
    reading = read(delta("x", usage=value), DONE)
    assert reading.usage is None
    assert reading.model == "gpt-test"


def test_one_malformed_member_leaves_the_others() -> None:
    odd = {"prompt_tokens": 10.0, "completion_tokens": None, "prompt_tokens_details": "none"}
    assert read(event(choices=[], usage=odd)).usage == Usage(input_tokens=10)


def test_malformed_usage_after_good_usage_changes_nothing() -> None:
    assert read(delta("x", usage=USAGE), delta("y", usage={"prompt_tokens": "?"})).usage == Usage(
        input_tokens=10, output_tokens=5
    )


@pytest.mark.parametrize(
    ("provider", "usage", "expected"),
    [
        (
            "xai",
            {
                "prompt_tokens": 9,
                "completion_tokens": 3,
                "total_tokens": 32,
                "completion_tokens_details": {"reasoning_tokens": 20},
            },
            Usage(input_tokens=9, output_tokens=23, reasoning_tokens=20),
        ),
        (
            "googleOpenaiCompatible",
            {"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 109},
            Usage(input_tokens=35, output_tokens=74, reasoning_tokens=62),
        ),
        (
            "cerebras",
            {"prompt_tokens": 25, "completion_tokens": 2, "total_tokens": 32},
            Usage(input_tokens=25, output_tokens=2),
        ),
        (
            "together",
            {**USAGE, "cached_tokens": 4, "reasoning_tokens": 7},
            Usage(input_tokens=10, cached_input_tokens=4, output_tokens=5, reasoning_tokens=5),
        ),
        (
            "deepseek",
            {**USAGE, "prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 2},
            Usage(input_tokens=10, cached_input_tokens=8, output_tokens=5),
        ),
        (
            "mistral",
            {
                "prompt_tokens": 4,
                "completion_tokens": 2,
                "total_tokens": 381,
                "prompt_tokens_details": {"audio_tokens": 375},
            },
            Usage(input_tokens=379, input_audio_tokens=375, output_tokens=2),
        ),
        (
            "openai",
            {**USAGE, "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5, "audio_tokens": 0}},
            Usage(input_tokens=10, cached_input_tokens=4, cache_write_tokens=5, input_audio_tokens=0, output_tokens=5),
        ),
        (
            "azure",
            {**USAGE, "prompt_tokens_details": {"cached_tokens": 400}},
            Usage(input_tokens=10, cached_input_tokens=10, output_tokens=5),
        ),
    ],
)
def test_dialects_of_usage(provider: str, usage: dict[str, Any], expected: Usage) -> None:
    assert chat_usage(usage, provider) == expected


def test_older_places_of_usage() -> None:
    groq = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], x_groq={"id": "req_1", "usage": USAGE})
    moonshot = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USAGE}])
    for chunk in (groq, moonshot):
        reading = read(chunk, DONE, hide_usage=True)
        assert reading.usage == Usage(input_tokens=10, output_tokens=5)
        assert reading.finished


def test_a_null_usage_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    watching = meter()
    monkeypatch.setattr("gateway.wire.openai_chat.decode", lambda data, of: parsed.append(data))
    for chunk in (delta("a", usage=None), delta('quoting "usage": {} and "error"'), b": comment\n\n", DONE):
        watching.feed(chunk)
    assert parsed == []
    watching.feed(USAGE_ONLY)
    assert len(parsed) == 1


def test_only_the_usage_chunk_is_hidden() -> None:
    after = event(choices=[], moderation={"results": []}, usage=None)
    watching = meter(hide_usage=True)
    first, last = delta("a"), event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=USAGE)
    assert watching.feed(first) is first
    assert watching.feed(last + USAGE_ONLY + after) == last + after
    assert watching.feed(USAGE_ONLY) == b""
    assert watching.feed(DONE) is DONE
    assert watching.finish() == b""
    assert watching.reading().usage == Usage(input_tokens=10, output_tokens=5)


def test_hiding_releases_whole_events_only() -> None:
    watching = meter(hide_usage=True)
    stream = delta("a") + USAGE_ONLY + DONE
    cut_in_usage = len(delta("a")) + 20
    assert watching.feed(stream[:cut_in_usage]) == delta("a")
    assert watching.feed(stream[cut_in_usage : cut_in_usage + 30]) == b""
    assert watching.feed(stream[cut_in_usage + 30 :]) == DONE


def test_hiding_passes_a_large_partial_event_as_it_comes() -> None:
    watching = meter(hide_usage=True)
    large = delta("x" * (2 * WITHHELD_BYTES))
    assert watching.feed(large[: WITHHELD_BYTES + 1]) == large[: WITHHELD_BYTES + 1]
    assert watching.feed(large[WITHHELD_BYTES + 1 : -5]) == large[WITHHELD_BYTES + 1 : -5]
    assert watching.feed(large[-5:] + USAGE_ONLY + DONE[:4]) == large[-5:]
    assert watching.feed(DONE[4:]) == DONE
    assert watching.reading().usage == Usage(input_tokens=10, output_tokens=5)


def test_hiding_at_the_end_without_a_blank_line() -> None:
    for ending, visible in ((USAGE_ONLY[:-1], b""), (delta("x")[:-2], delta("x")[:-2])):
        watching = meter(hide_usage=True)
        assert watching.feed(ending) == b""
        assert watching.finish() == visible


def test_an_error_after_200_is_told_and_never_output() -> None:
    watching = meter(provider="groq")
    watching.feed(delta("so far"))
    watching.feed(b'event: error\ndata: {"error":{"message":"tool call failed","type":"invalid_request_error"}}\n\n')
    watching.finish()
    reading = watching.reading()
    assert (reading.failed, reading.usage, reading.finished) == ("tool call failed", None, False)
    assert watching.text() == "so far"


@pytest.mark.parametrize(
    "body",
    [
        b'event: error\ndata: {"message":"overloaded","type":"server"}\n\n',
        b'data: {"error":"overloaded"}\n\n',
        b'data: {"choices":[],"error":{"code":502,"message":"overloaded"}}\n\n',
    ],
)
def test_shapes_of_errors(body: bytes) -> None:
    assert read(delta("a"), body).failed == "overloaded"


def test_a_json_answer_where_a_stream_was_asked() -> None:
    reading = read(b'{"error":{"message":"bad key"}}', content_type="application/json; charset=utf-8")
    assert reading.failed == "bad key"
    assert reading.usage is None


def test_leading_whitespace_of_a_keep_alive() -> None:
    body = b"\n   \n" + json.dumps({**HEAD, "choices": [], "usage": USAGE}).encode()
    assert read(body[:3], body[3:], content_type="application/json").usage == Usage(input_tokens=10, output_tokens=5)
    failed = read(b"   " + b'{"error":{"code":524,"message":"timeout"}}', content_type="application/json")
    assert (failed.failed, failed.finished) == ("timeout", False)


def test_text_is_gathered_from_content_reasoning_refusals_and_tools() -> None:
    watching = meter()
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "think "},
        {"reasoning": "more "},
        {"content": "hello"},
        {"content": [{"type": "text", "text": " parts"}]},
        {"refusal": " no"},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": '{"a":1}'}}]},
        {"function_call": {"name": "g", "arguments": "{}"}},
    ]
    for one in deltas:
        watching.feed(event(choices=[{"index": 0, "delta": one}]))
    assert watching.text() == 'think more hello parts nof{"a":1}g{}'
    watching.feed(USAGE_ONLY)
    assert watching.text() == ""


def test_kept_text_is_bounded() -> None:
    watching = meter()
    chunk = delta("word ")
    for _ in range(20_000):
        watching.feed(chunk)
    assert watching.seen_bytes == 20_000 * len(chunk)
    assert watching.kept_bytes <= 256 * 1024
    estimate = len(watching.text().split()) * watching.seen_bytes // watching.kept_bytes
    assert abs(estimate - 20_000) < 100


def test_usage_in_an_event_above_the_limit_is_found() -> None:
    facts = RequestFacts(stream=True)
    watching = CHAT.meter(facts, provider="x", content_type="text/event-stream", hide_usage=False, limit_bytes=4_000)
    large = delta('x"usage":{' * 3_000, usage=USAGE)
    for at in range(0, len(large), 1_000):
        watching.feed(large[at : at + 1_000])
    watching.finish()
    reading = watching.reading()
    assert reading.usage == Usage(input_tokens=10, output_tokens=5)
    assert reading.model == "gpt-test"


def test_usage_found_in_an_event_above_the_limit_is_not_replaced_by_an_older_one() -> None:
    facts = RequestFacts(stream=True)
    watching = CHAT.meter(facts, provider="x", content_type="text/event-stream", hide_usage=False, limit_bytes=4_000)
    for one in (
        delta("a", usage=USAGE),
        delta("b", usage=USAGE),
        delta("c" * 9_000, usage=USAGE | {"prompt_tokens": 3}),
    ):
        watching.feed(one[:5_000])
        watching.feed(one[5_000:])
    watching.finish()
    assert watching.reading().usage == Usage(input_tokens=3, output_tokens=5)


def test_a_body_above_the_limit_is_searched_at_its_ends() -> None:
    facts = RequestFacts()
    watching = CHAT.meter(facts, provider="x", content_type="application/json", hide_usage=False, limit_bytes=4_000)
    body = json.dumps({**HEAD, "choices": [{"message": {"content": "y" * 50_000}}], "usage": USAGE}).encode()
    assert watching.feed(body) is body
    watching.finish()
    assert watching.reading().usage == Usage(input_tokens=10, output_tokens=5)
    assert (watching.text(), watching.kept_bytes) == ("", 0)


def test_read_request() -> None:
    body = json.dumps(
        {
            "model": "gpt-5",
            "stream": True,
            "max_completion_tokens": 100,
            "max_tokens": 7,
            "n": 3,
            "stream_options": {"include_usage": True},
            "service_tier": "flex",
            "messages": [{"role": "user", "content": "hi"}],
        }
    ).encode()
    assert CHAT.read_request(b"\xef\xbb\xbf  " + body, "/v1/chat/completions", "") == RequestFacts(
        model="gpt-5",
        stream=True,
        max_output_tokens=100,
        choices=3,
        include_usage=True,
        service_tier="flex",
        hidden_tokens_max=ALL,
    )


def test_values_of_the_wrong_type_are_left_to_the_provider() -> None:
    body = b'{"model":"gpt-4o","stream":"yes","max_tokens":"lots","n":null,"stream_options":[],"service_tier":1}'
    assert CHAT.read_request(body, "/chat/completions", "") == RequestFacts(model="gpt-4o")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (b"{}", "forward_model_invalid", "model"),
        (b'{"model":7}', "forward_model_invalid", "model"),
        (b'{"model":""}', "forward_model_invalid", "model"),
        (b"", "invalid_request", "body"),
        (b"[]", "invalid_request", "body"),
        (b"not json", "invalid_request", "body"),
        (b"[" * 100_000, "invalid_request", "body"),
        (b'{"model":"\xff"}', "invalid_request", "body"),
    ],
)
def test_bad_requests_name_the_field(body: bytes, code: str, param: str) -> None:
    with pytest.raises(ObolError) as caught:
        CHAT.read_request(body, "/v1/chat/completions", "")
    assert (caught.value.code, caught.value.param) == (code, param)
    assert param in caught.value.message


def test_an_azure_deployment_is_the_model_where_the_body_names_none() -> None:
    facts = CHAT.read_request(b"{}", "/openai/deployments/gpt%2D4o/chat/completions", "api-version=1")
    assert facts.model == "gpt-4o"


def test_request_text_has_messages_and_tools_but_no_images() -> None:
    body = json.dumps(
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "Look:"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    ],
                },
            ],
            "tools": [{"type": "function", "function": {"name": "lookup"}}],
        }
    ).encode()
    text = CHAT.request_text(body)
    assert "Be brief." in text and "Look:" in text and '"lookup"' in text
    assert "base64" not in text
    assert CHAT.request_text(b"nonsense") == ""
