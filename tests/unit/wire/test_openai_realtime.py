"""OpenAI's realtime protocol: usage by class, what a conversation can cost at most, what is no event."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.wire.openai_realtime import (
    WINDOW_TOKENS,
    Amount,
    Conversation,
    Produced,
    client_event,
    error_event,
    response_failure,
    response_usage,
    server_event,
    session_settings,
    transcription_usage,
)

DIRECTORY = Path(__file__).resolve().parents[4] / "shared" / "recordings" / "realtime"
PCM = {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}}}}


def done(usage: Any, **response: Any) -> bytes:
    return json.dumps({"type": "response.done", "response": {"id": "r", "usage": usage, **response}}).encode()


def test_usage_is_told_in_classes_that_are_parts_of_their_sides():
    usage = {
        "input_tokens": 139,
        "output_tokens": 61,
        "input_token_details": {
            "text_tokens": 43,
            "audio_tokens": 96,
            "image_tokens": 0,
            "cached_tokens": 64,
            "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 64, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": 18, "audio_tokens": 43},
    }
    assert response_usage(server_event(done(usage))) == Usage(
        input_tokens=139,
        cached_input_tokens=64,
        input_audio_tokens=96,
        cached_audio_tokens=64,
        input_image_tokens=0,
        cached_image_tokens=0,
        output_tokens=61,
        output_audio_tokens=43,
    )


@pytest.mark.parametrize("usage", [None, {}, "much", {"total_tokens": 5}, {"input_tokens": -1}])
def test_a_usage_that_says_nothing_is_none(usage: Any):
    assert response_usage(server_event(done(usage))) is None


def test_zero_is_zero_and_missing_is_missing():
    assert response_usage(server_event(done({"input_tokens": 0}))) == Usage(input_tokens=0)


def test_half_of_a_surrogate_pair_costs_like_all_else():
    event = server_event(done({"input_tokens": 3, "output_tokens": 4}, output=["\ud83d"]))
    assert response_usage(event) == Usage(input_tokens=3, output_tokens=4)
    assert event.of_response == "r"


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"\xff\xfe", b"{", b'{"type":' + b"[" * 100_000])
def test_what_is_no_event_has_no_type(data: bytes):
    assert client_event(data).type is None
    assert server_event(data).type is None


def test_a_response_failed_only_if_it_says_so():
    failed = {"status": "failed", "status_details": {"error": {"message": "It broke."}}}
    assert response_failure(server_event(done(None, **failed))) == "It broke."
    assert response_failure(server_event(done(None, status="cancelled"))) is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"type": "duration", "seconds": 3}, Usage(input_us=3_000_000, output_characters=2)),
        (
            {"type": "tokens", "input_tokens": 31, "input_token_details": {"audio_tokens": 31}, "output_tokens": 5},
            Usage(input_tokens=31, input_audio_tokens=31, output_tokens=5, output_characters=2),
        ),
        (None, None),
    ],
)
def test_a_transcription_tells_its_length_or_its_tokens(usage: Any, expected: Usage | None):
    event = {"type": "conversation.item.input_audio_transcription.completed", "transcript": "Hi", "usage": usage}
    assert transcription_usage(server_event(json.dumps(event).encode())) == expected


@pytest.mark.parametrize(
    ("session", "model", "bytes_per_s", "most"),
    [
        (PCM | {"max_output_tokens": 100}, None, 48_000, 100),
        ({"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, None, 8_000, None),
        ({"audio": {"input": {"transcription": {"model": "whisper-1"}}}}, "whisper-1", None, None),
        ({"input_audio_format": "pcm16", "input_audio_transcription": {"model": "w"}}, "w", 48_000, None),
        ({"max_response_output_tokens": "inf"}, None, None, None),
        ("nonsense", None, None, None),
    ],
)
def test_a_session_describes_itself_in_both_versions(
    session: Any, model: str | None, bytes_per_s: int | None, most: int | None
):
    settings = session_settings(session)
    assert (settings.transcription_model, settings.input_bytes_per_s, settings.max_output_tokens) == (
        model,
        bytes_per_s,
        most,
    )


def test_sound_counts_by_its_length_and_text_by_its_bytes():
    conversation = Conversation()
    conversation.describe(session_settings(PCM))
    append = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(96_000)).decode()})
    conversation.sent(client_event(append.encode()), len(append))
    assert (conversation.at_most(), conversation.heard_us) == (Amount(audio=20), 2_000_000)
    item = {"type": "message", "content": [{"type": "input_text", "text": "Zoë"}]}
    written = json.dumps({"type": "conversation.item.create", "item": item}).encode()
    conversation.sent(client_event(written), len(written))
    assert conversation.at_most() == Amount(text=len(written), audio=20)
    assert conversation.prompt_text() == "Zoë"
    cancel = b'{"type": "response.cancel"}'
    conversation.sent(client_event(cancel), len(cancel))
    assert conversation.at_most() == Amount(text=len(written), audio=20)


def test_sound_and_images_in_an_item_are_no_text():
    conversation = Conversation()
    content = [
        {"type": "input_audio", "audio": base64.b64encode(bytes(8_000)).decode()},
        {"type": "input_image", "image_url": "data:image/png;base64," + "A" * 100_000},
    ]
    item = json.dumps({"type": "conversation.item.create", "item": {"content": content}}).encode()
    conversation.sent(client_event(item), len(item))
    most = conversation.at_most()
    assert most.text < 200
    assert 10 <= most.audio <= 12
    assert 765 <= most.image <= 2_000


def test_what_a_response_alone_is_given_counts():
    conversation = Conversation()
    content = [
        {"type": "input_text", "text": "Zoë"},
        {"type": "input_audio", "audio": base64.b64encode(bytes(80_000)).decode()},
    ]
    response = {"conversation": "none", "instructions": "Be brief", "input": [{"type": "message", "content": content}]}
    asked = json.dumps({"type": "response.create", "response": response}).encode()
    conversation.sent(client_event(asked), len(asked))
    assert conversation.prompt_text() == "Be brief\nZoë"
    assert 100 <= conversation.at_most().audio <= 102
    assert conversation.at_most().text < 400


@pytest.mark.parametrize("filler", [b"[],", b"{},", b"1,"])
def test_an_event_of_very_many_values_is_not_read_but_held_for(filler: bytes):
    """Reading 16 MB of them would stop the event loop for seconds."""
    values = filler * 50_000 + b"1"
    data = b'{"type": "conversation.item.create", "event_id": "e", "item": {"content": [%b]}}' % values
    event = client_event(data)
    assert (event.type, event.event_id, event.item, event.unread) == ("conversation.item.create", "e", None, True)
    conversation = Conversation()
    conversation.sent(event, len(data))
    assert conversation.at_most() == Amount(text=len(data), audio=-(-len(data) // 800))
    words = json.dumps({"type": "conversation.item.create", "item": {"output": "a, b" * 10_000}}).encode()
    assert not client_event(words).unread


def test_bytes_that_are_no_event_may_be_sound():
    conversation = Conversation()
    conversation.sent(client_event(bytes(8_000)), 8_000)
    assert conversation.at_most() == Amount(audio=10)


def test_what_a_response_told_takes_the_place_of_what_was_bounded():
    conversation = Conversation()
    conversation.began(session_settings({"instructions": "x" * 500}))
    began_at = conversation.added
    late = b'{"type": "conversation.item.create", "item": {}}'
    conversation.sent(client_event(late), len(late))
    usage = Usage(input_tokens=120, input_audio_tokens=20, output_tokens=60, output_audio_tokens=40)
    conversation.answered(usage, began_at)
    assert conversation.at_most() == Amount(text=100 + 20 + len(late), audio=20 + 40)


def test_no_prompt_is_larger_than_the_window_and_a_stored_one_may_be_as_large():
    conversation = Conversation()
    conversation.began(session_settings({"prompt": {"id": "pmpt_1"}}))
    assert conversation.at_most().usage().input_tokens == WINDOW_TOKENS
    most = Amount(text=WINDOW_TOKENS, audio=WINDOW_TOKENS, image=5).usage()
    assert (most.input_tokens, most.input_audio_tokens, most.input_image_tokens) == (WINDOW_TOKENS, WINDOW_TOKENS, 0)


def test_what_was_produced_is_bounded_and_counted():
    produced = Produced()
    sound = base64.b64encode(bytes(48_000)).decode()
    for event in (
        {"type": "response.output_audio.delta", "delta": sound},
        {"type": "response.audio.delta", "delta": sound},
        {"type": "response.output_audio_transcript.delta", "delta": "Hi "},
        {"type": "response.function_call_arguments.delta", "delta": "{}"},
    ):
        produced.take(server_event(json.dumps(event).encode()))
    assert (produced.uncounted(), produced.uncounted()) == ("Hi {}", "")
    assert produced.audio_tokens(48_000) == 2 * 20
    assert produced.at_most(48_000) == Amount(text=5, audio=2 * 40)


def test_an_error_is_told_as_the_protocol_tells_errors():
    error = ObolError("insufficient_balance", "no money", details={"available": "0"})
    told = json.loads(error_event(error, "event_1"))
    assert told["type"] == "error"
    assert told["error"] == {
        "type": "insufficient_quota",
        "code": "insufficient_balance",
        "message": "no money",
        "param": None,
        "available": "0",
        "event_id": "event_1",
    }


@pytest.mark.skipif(not DIRECTORY.is_dir(), reason=f"the recordings are not at {DIRECTORY}")
@pytest.mark.parametrize(
    "path", sorted([*DIRECTORY.glob("openai__*"), *DIRECTORY.glob("azure__*")]), ids=lambda path: path.stem
)
def test_no_recorded_prompt_was_larger_than_what_is_held_for(path: Path):
    """By text: the recordings' sound is cut short."""
    conversation, marks, checked, described = Conversation(), {}, 0, False
    for frame in json.loads(path.read_text(encoding="utf-8"))["frames"]:
        if frame.get("data") is None:
            continue
        data = json.dumps(frame["data"]).encode()
        if frame["direction"] == "sent":
            conversation.sent(client_event(data), len(data))
            continue
        event = server_event(data)
        if event.session is not None:
            settings = session_settings(event.session)
            (conversation.describe if described else conversation.began)(settings)
            described = True
        elif event.type == "input_audio_buffer.committed":
            conversation.committed()
        elif event.type == "response.created":
            marks[event.of_response] = (conversation.at_most(), conversation.added)
        elif event.type == "response.done" and (usage := response_usage(event)) is not None:
            most, began_at = marks[event.of_response]
            text_tokens = (usage.input_tokens or 0) - (usage.input_audio_tokens or 0)
            assert text_tokens <= most.text
            conversation.answered(usage, began_at)
            checked += 1
    assert checked > 0
