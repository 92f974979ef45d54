"""An error within a stream, as each format's own clients read it."""

from __future__ import annotations

import json

import pytest

from gateway.errors import ObolError
from gateway.wire.error_events import closing
from gateway.wire.framing import ARRAY, LINES, SSE, WHOLE

ERROR = ObolError("insufficient_balance", "the balance is used up", details={"available": "0.0000000000"})


def told(format_name: str, dialect: str, framing=SSE, sent: bytes = b"", begun: bool = True) -> bytes:
    return closing(format_name, dialect, framing, ERROR, "req_1", sent, begun=begun)


@pytest.mark.parametrize("name", ["openai_chat", "openai_completions"])
def test_openai(name):
    event, done, rest = told(name, "openai").split(b"\n\n")
    error = json.loads(event.removeprefix(b"data: "))["error"]
    assert (error["code"], error["available"], error["request_id"]) == ("insufficient_balance", "0.0000000000", "req_1")
    assert (done, rest) == (b"data: [DONE]", b"")


def test_responses_goes_on_counting_its_events():
    sent = b'data: {"type":"x","sequence_number":7}\n\ndata: {"type":"y","sequence_number": 8}\n\n'
    name, data = told("openai_responses", "openai", sent=sent).strip().split(b"\n")
    event = json.loads(data.removeprefix(b"data: "))
    assert name == b"event: error"
    assert (event["type"], event["code"], event["sequence_number"]) == ("error", "insufficient_balance", 9)
    assert event["error"]["message"] == event["message"] == "the balance is used up"
    assert b'"sequence_number":0' in told("openai_responses", "openai")


def test_anthropic():
    name, data = told("anthropic_messages", "anthropic").strip().split(b"\n")
    event = json.loads(data.removeprefix(b"data: "))
    assert (name, event["type"], event["error"]["type"]) == (b"event: error", "error", "billing_error")


def test_gemini():
    event = json.loads(told("gemini_stream", "google").strip().removeprefix(b"data: "))
    assert (event["error"]["code"], event["error"]["status"]) == (402, "RESOURCE_EXHAUSTED")
    assert event["error"]["details"][0]["reason"] == "insufficient_balance"


@pytest.mark.parametrize(
    ("sent", "begun", "elements"),
    [(b"", False, 1), (b"[", True, 1), (b'[{"a":1}', True, 2), (b'[{"a":1}\n,\r\n', True, 2), (b'[{"a":1}\n', True, 2)],
)
def test_an_array_stays_one(sent, begun, elements):
    found = json.loads(sent + told("gemini_stream", "google", ARRAY, sent, begun))
    assert len(found) == elements and found[-1]["error"]["code"] == 402


def test_an_array_whose_last_element_is_not_in_sight():
    found = json.loads(b'[{"a":1}' + told("gemini_stream", "google", ARRAY, b"", True))
    assert len(found) == 2


def test_cohere_ends_with_its_final_event():
    v1 = json.loads(told("cohere_v1_chat", "openai", LINES))
    assert (v1["event_type"], v1["finish_reason"], v1["is_finished"]) == ("stream-end", "ERROR", True)
    name, data = told("cohere_v2_chat", "openai").strip().split(b"\n")
    v2 = json.loads(data.removeprefix(b"data: "))
    assert (name, v2["type"], v2["delta"]["finish_reason"]) == (b"event: message-end", "message-end", "ERROR")
    assert v1["obol"]["code"] == v2["obol"]["code"] == "insufficient_balance"


def test_where_nothing_can_be_added():
    assert told("openai_chat", "openai", WHOLE) == b""
    assert told("gemini_stream", "google", ARRAY, b'[{"a":1}]', True) == b""
