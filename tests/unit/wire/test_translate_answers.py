"""Answers in another dialect: streams event by event, errors, and what providers leave out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from told import payloads, told, translate

from gateway.wire.translate.framing import Untranslatable

CHUNK = {"id": "c1", "object": "chat.completion.chunk", "model": "gpt", "created": 1}


def chat_stream(*deltas: dict[str, Any], finish: str | None = "stop", done: bool = True) -> bytes:
    chunks = [CHUNK | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if finish:
        chunks.append(CHUNK | {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    written = b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    return written + b"data: [DONE]\n\n" if done else written


def call_delta(index: int, name: str = "", arguments: str = "", call_id: str | None = None) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}


PARALLEL = chat_stream(
    {"role": "assistant", "content": "Let me see."},
    call_delta(0, "f", "", "a"),
    call_delta(0, arguments='{"x":'),
    call_delta(0, arguments="1}"),
    call_delta(1, "g", "", "b"),
    call_delta(1, arguments="{}"),
    finish="tool_calls",
)


def test_parallel_calls_with_streaming_arguments_become_blocks():
    body, _ = translate(PARALLEL, "openai", "anthropic", stream=True)
    found = payloads("anthropic", body, stream=True, content_type="text/event-stream")
    assert [(value["type"], value.get("index")) for value in found] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert found[4]["content_block"] == {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    assert found[-2]["delta"]["stop_reason"] == "tool_use"


def test_arguments_that_arrive_in_turns_stay_in_their_own_block():
    """A block that has ended takes no more: clients have parsed it. What follows the first call waits for its end."""
    deltas = [
        call_delta(0, "f", "", "a"),
        call_delta(1, "g", "", "b"),
        call_delta(1, arguments='{"y":'),
        call_delta(0, arguments='{"x":'),
        call_delta(0, arguments="1}"),
        call_delta(1, arguments="2}"),
        call_delta(2, "h", "{}", "c"),
        {"content": "Done."},
    ]
    body, _ = translate(chat_stream(*deltas, finish="tool_calls"), "openai", "anthropic", stream=True)
    found = payloads("anthropic", body, stream=True, content_type="text/event-stream")
    blocks = [value["content_block"] for value in found if value["type"] == "content_block_start"]
    assert [block.get("id") for block in blocks] == ["a", "b", "c", None]
    open_block = None
    for value in found:
        if value["type"] == "content_block_start":
            assert open_block is None
            open_block = value["index"]
        elif value["type"].startswith("content_block_"):
            assert value["index"] == open_block
            open_block = None if value["type"] == "content_block_stop" else open_block
    (said,) = told("anthropic", body, stream=True, content_type="")
    assert said[3] == (("f", {"x": 1}), ("g", {"y": 2}), ("h", {}))


@pytest.mark.parametrize("client", ["anthropic", "google"])
@pytest.mark.parametrize("stream", [False, True])
def test_half_of_a_character_is_no_end(client: str, stream: bool):
    """A server that cuts text between the halves of a surrogate pair writes JSON that is no Unicode."""
    message = {"role": "assistant", "content": "Hi \ud83d"}
    whole = json.dumps(CHUNK | {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    given = chat_stream({"content": "Hi \ud83d"}) if stream else whole
    body, _ = translate(given, "openai", client, stream=stream)
    assert told(client, body, stream=stream, content_type="")[0][::2] == ("Hi \ufffd", "end")


def test_parallel_calls_become_whole_parts_for_gemini():
    body, _ = translate(PARALLEL, "openai", "google", stream=True)
    assert told("google", body, stream=True, content_type="text/event-stream") == [
        ("Let me see.", "", "end", (("f", {"x": 1}), ("g", {})))
    ]


def test_calls_that_share_a_place_but_not_an_id_are_two():
    body, _ = translate(
        chat_stream(call_delta(0, "f", "{}", "a"), call_delta(0, "g", "{}", "b")), "openai", "anthropic", stream=True
    )
    assert told("anthropic", body, stream=True, content_type="")[0][3] == (("f", {}), ("g", {}))


def test_each_event_is_passed_on_when_it_comes():
    """Of three texts, three have gone out before the stream ends."""
    events = chat_stream({"content": "one"}, {"content": "two"}, done=False, finish=None).split(b"\n\n")[:-1]
    for client in ("anthropic", "google"):
        body, _ = translate(b"", "openai", client, stream=True, pieces=[event + b"\n\n" for event in events])
        assert told(client, body, stream=True, content_type="")[0][0] == "onetwo"


@pytest.mark.parametrize("client", ["anthropic", "google"])
def test_a_stream_that_was_cut_has_no_end(client: str):
    body, _ = translate(chat_stream({"content": "one"}, finish=None, done=False), "openai", client, stream=True)
    assert b"message_stop" not in body and b"finishReason" not in body and b"one" in body


@pytest.mark.parametrize("client", ["anthropic", "google"])
def test_a_stream_without_done_has_an_end(client: str):
    """Several vendors send no [DONE]."""
    body, _ = translate(chat_stream({"content": "one"}, done=False), "openai", client, stream=True)
    assert told(client, body, stream=True, content_type="")[0][:3] == ("one", "", "end")


def test_arguments_are_never_the_empty_string():
    """Anthropic streams none for a tool that takes none; clients parse what they get as JSON."""
    events = [
        {"type": "message_start", "message": {"id": "m", "model": "claude", "usage": {"input_tokens": 1}}},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "tool_use", "id": "a", "name": "f", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": ""},
        },
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ]
    stream = b"".join(b"event: %b\ndata: %b\n\n" % (e["type"].encode(), json.dumps(e).encode()) for e in events)
    body, _ = translate(stream, "anthropic", "openai", stream=True)
    chunks = payloads("openai", body, stream=True, content_type="")
    calls = [call for one in chunks[:-1] for call in one["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["function"]["arguments"] for call in calls] == ["", "{}"] and calls[0]["id"] == "a"
    assert chunks[-1]["usage"]["total_tokens"] == 3 and chunks[-1]["choices"] == []
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_reasoning_and_its_proof_reach_an_openai_client():
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "r"},
        {"type": "text", "text": "Yes"},
    ]
    message = {"id": "m", "type": "message", "model": "claude", "content": content, "stop_reason": "end_turn"}
    body, _ = translate(json.dumps(message).encode(), "anthropic", "openai", stream=False)
    said = json.loads(body)["choices"][0]["message"]
    assert (said["content"], said["reasoning_content"]) == ("Yes", "hm")
    assert said["reasoning_details"] == [
        {"type": "reasoning.text", "text": "hm", "signature": "s"},
        {"type": "reasoning.encrypted", "data": "r"},
    ]


def test_calls_from_gemini_get_ids_that_differ_by_answer():
    parts = [{"functionCall": {"name": "f", "args": {}}}, {"functionCall": {"name": "f", "args": {"x": 1}}}]
    answer = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}], "modelVersion": "gemini"}
    body, _ = translate(json.dumps(answer).encode(), "google", "openai", stream=False)
    choice = json.loads(body)["choices"][0]
    assert [call["id"] for call in choice["message"]["tool_calls"]] == ["call_abc_0_0", "call_abc_0_1"]
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("client", ["openai", "anthropic", "google"])
@pytest.mark.parametrize(
    ("provider", "status", "body", "message"),
    [
        ("anthropic", 529, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, "busy"),
        ("openai", 429, {"error": {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}}, "slow"),
        ("google", 400, [{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}], "bad"),
        ("openai", 422, {"detail": [{"msg": "Input should be"}]}, "Input should be"),
        ("openai", 400, {"code": "Client specified", "error": "no such model"}, "no such model"),
        ("openai", 404, {"message": "none", "type": "not_found_error", "param": "model", "code": "x"}, "none"),
        ("openai", 502, "<html>Bad gateway</html>", "<html>Bad gateway</html>"),
        ("openai", 500, "", "the provider answered with status 500"),
    ],
)
def test_errors_are_told_in_the_dialect_of_the_client(client: str, provider: str, status: int, body: Any, message: str):
    if client == provider:
        return
    given = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    answer, content_type = translate(given, provider, client, stream=True, status=status, content_type="text/html")
    error = json.loads(answer)["error"]
    assert content_type == "application/json" and message in error["message"]
    if client == "google":
        assert error["code"] == status and error["status"].isupper()
    else:
        assert error["type"].endswith("_error") or error["type"] == "request_too_large"
    if client == "anthropic":
        assert json.loads(answer)["type"] == "error"


@pytest.mark.parametrize("client", ["openai", "google"])
def test_an_error_within_a_stream_ends_it(client: str):
    event = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    stream = b'event: error\ndata: %b\n\nevent: message_stop\ndata: {"type": "message_stop"}\n\n'
    body, _ = translate(stream % json.dumps(event).encode(), "anthropic", client, stream=True)
    (value,) = payloads(client, body, stream=True, content_type="")
    assert value["error"]["message"] == "busy"
    assert body.endswith(b"data: [DONE]\n\n") is (client == "openai")


def test_an_answer_that_came_whole_is_streamed_where_a_stream_was_asked_for():
    whole = CHUNK | {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
    body, content_type = translate(
        json.dumps(whole).encode(), "openai", "anthropic", stream=True, content_type="application/json"
    )
    assert content_type == "text/event-stream"
    assert told("anthropic", body, stream=True, content_type=content_type) == [("Hello", "", "length", ())]


@pytest.mark.parametrize("provider", ["openai", "anthropic", "google"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_answer_is_not_passed_off_as_one(provider: str, stream: bool):
    client = "google" if provider != "google" else "openai"
    body = b"data: <html>\n\n" if stream else b"<html>"
    with pytest.raises(Untranslatable):
        translate(body, provider, client, stream=stream)


def test_a_picture_that_a_model_drew_reaches_an_openai_client():
    parts = [{"text": "Here"}, {"inlineData": {"mimeType": "image/png", "data": "_-8"}}]
    answer = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}
    for stream in (False, True):
        given = json.dumps(answer).encode()
        body, _ = translate(b"data: " + given + b"\n\n" if stream else given, "google", "openai", stream=stream)
        assert b'"images":[{"type":"image_url","image_url":{"url":"data:image/png;base64,/+8="}}]' in body


@pytest.mark.parametrize(
    ("provider", "value"),
    [
        ("google", {"candidates": [{"finishReason": {}, "index": []}]}),
        ("openai", {"choices": [{"index": {}, "delta": {"tool_calls": [{"index": {}, "id": [], "function": 5}]}}]}),
        ("anthropic", {"type": "content_block_stop", "index": {}}),
        ("anthropic", {"type": "content_block_start", "index": [], "content_block": {"type": "tool_use", "id": {}}}),
    ],
)
def test_members_of_another_type_are_read_over(provider: str, value: dict[str, Any]):
    """Found by the fuzzer."""
    client = "anthropic" if provider == "openai" else "openai"
    body, _ = translate(b"data: %b\n\n" % json.dumps(value).encode(), provider, client, stream=True)
    assert b"error" not in body
