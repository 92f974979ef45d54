"""Images, audio, rerank and Cohere: multipart requests, and units other than tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.formats import FORMATS
from gateway.wire.requests import form_fields, is_form


def form(*fields: tuple[str, str], file: bytes = b"RIFF\r\n--not the boundary") -> bytes:
    parts = [f'--xyz\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields]
    upload = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + file + b"\r\n"
    return "".join(parts).encode() + upload + b"--xyz--\r\n"


def read(name: str, answer: Any, facts: RequestFacts | None = None) -> Meter:
    watching = FORMATS[name].meter(
        facts or RequestFacts(), provider="any", content_type="application/json", hide_usage=False, limit_bytes=1 << 20
    )
    watching.feed(json.dumps(answer).encode() if not isinstance(answer, bytes) else answer)
    watching.finish()
    return watching


def stream_meter(name: str, content_type: str) -> Meter:
    return FORMATS[name].meter(
        RequestFacts(stream=True), provider="any", content_type=content_type, hide_usage=False, limit_bytes=1 << 20
    )


def test_form_fields() -> None:
    assert is_form(form())
    assert not is_form(b'{"model":"m"}')
    assert form_fields(form(("model", "whisper-1"), ("prompt", "Zürich"))) == {"model": "whisper-1", "prompt": "Zürich"}
    for broken in (b"--", b"--\r\n", b"--xyz\r\n", b"--xyz\r\nno header end", form(("m", "x"))[:40]):
        assert form_fields(broken) in ({}, {"m": "x"})


FORM_TYPE = 'multipart/form-data; charset=utf-8; boundary="xyz"'


def test_a_form_that_two_readers_could_read_differently_is_refused() -> None:
    transcriptions = FORMATS["audio_transcriptions"]
    body = form(("model", "whisper-1"))
    assert transcriptions.read_request(body, "", "", FORM_TYPE).model == "whisper-1"
    for content_type in ("multipart/form-data; boundary=other", "application/json"):
        with pytest.raises(ObolError, match="boundary"):
            transcriptions.read_request(body, "", "", content_type)
    with pytest.raises(ObolError, match="model is given twice"):
        transcriptions.read_request(form(("model", "cheap"), ("model", "dear")), "", "", FORM_TYPE)
    assert form_fields(form(("include[]", "a"), ("include[]", "b"))) == {"include[]": "b"}
    disguised = (
        b'X: filename=\r\nContent-Disposition: form-data; name="model"',  # no file to those who read whole headers
        b'X: name="y"\r\nContent-Disposition: form-data; name=model',
        b'Content-Disposition: form-data; name="y"; name="model"',
        b'Content-Disposition: form-data; name*=model; name="y"',
        b'Content-Disposition: form-data; name="mod\\el"',
        b'Content-Disposition: form-data; name="y"\r\nContent-Disposition: form-data; name="model"',
        b"X: " + b"-" * 4_096 + b'\r\nContent-Disposition: form-data; name="model"',
    )
    for head in disguised:
        part = b"--xyz\r\n" + head + b"\r\n\r\ndear\r\n"
        with pytest.raises(ObolError) as refused:
            transcriptions.read_request(part + body, "", "", FORM_TYPE)
        assert refused.value.code == "invalid_request"
    with pytest.raises(ObolError, match="more than 1,000 parts"):
        transcriptions.read_request(form(*[("include[]", "a")] * 1_001), "", "", FORM_TYPE)


@pytest.mark.parametrize(("written", "images"), [("3", 3), ("0000003", 3), (" 3", 3), ("+3", 3), ("1_0", 10), ("", 1)])
def test_a_number_of_images_is_read_as_a_vendor_might(written: str, images: int) -> None:
    body = form(("model", "gpt-image-1"), ("n", written), ("prompt", "red"))
    assert FORMATS["images"].read_request(body, "/v1/images/edits", "", FORM_TYPE).choices == images


@pytest.mark.parametrize("n", ["1__0", "two", "nan", "0", 0, 2.5, True, [3], -1])
def test_a_number_of_images_that_cannot_be_read_is_refused(n: Any) -> None:
    """Taken for one, it would be held for as one."""
    with pytest.raises(ObolError) as refused:
        FORMATS["images"].read_request(json.dumps({"prompt": "x", "n": n}).encode(), "/v1/images/generations", "")
    assert (refused.value.code, refused.value.param) == ("invalid_request", "n")


def test_names_that_the_vendor_ignores_change_nothing() -> None:
    tricky = b'{"model":"cheap","model_id":"dear","input":"a","text":"a long text"}'
    facts = FORMATS["elevenlabs_tts"].read_request(tricky, "/v1/text-to-speech/voice", "")
    assert (facts.model, facts.usage) == ("dear", Usage(input_characters=11))
    facts = FORMATS["audio_speech"].read_request(tricky, "/v1/audio/speech", "")
    assert (facts.model, facts.usage) == ("cheap", Usage(input_characters=1))
    both = b'{"model":"a","model_name":"b"}'
    assert FORMATS["images"].read_request(both, "/v1/images/generations", "").model == "a"
    assert FORMATS["hyperbolic_images"].read_request(both, "/v1/images/generations", "").model == "b"


def test_transcription_requests() -> None:
    facts = FORMATS["audio_transcriptions"].read_request(
        form(("model", "gpt-4o-transcribe"), ("stream", "true")), "/v1/audio/transcriptions", ""
    )
    assert (facts.model, facts.stream) == ("gpt-4o-transcribe", True)
    assert FORMATS["elevenlabs_stt"].read_request(form(("model_id", "scribe_v1")), "/v1/speech-to-text", "").model == (
        "scribe_v1"
    )
    with pytest.raises(ObolError, match="model"):
        FORMATS["audio_transcriptions"].read_request(form(), "/v1/audio/transcriptions", "")


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        (
            {"text": "hé", "usage": {"type": "duration", "seconds": 6}, "duration": 5.49},
            Usage(input_us=6_000_000, output_characters=2),
        ),
        ({"text": "a", "duration": 5.496}, Usage(input_us=5_496_000, output_characters=1)),
        (
            {"text": "a", "audio_duration_secs": 1.5, "words": [{"end": 1.2}]},
            Usage(input_us=1_500_000, output_characters=1),
        ),
        ({"text": "a", "words": [{"end": 0.1}, {"end": 1.2}]}, Usage(input_us=1_200_000, output_characters=1)),
        (
            {"text": "a", "usage": {"prompt_audio_seconds": 36, "prompt_tokens": 13, "completion_tokens": 151}},
            Usage(input_tokens=13, output_tokens=151, input_us=36_000_000, output_characters=1),
        ),
        ({"text": "a"}, None),
        ({"text": "a", "duration": "long", "usage": []}, None),
    ],
)
def test_lengths_of_audio(answer: dict[str, Any], usage: Usage | None) -> None:
    watching = read("audio_transcriptions", answer)
    assert watching.reading().usage == usage
    assert watching.text() == answer["text"]


def test_a_streamed_transcription() -> None:
    watching = stream_meter("audio_transcriptions", "text/event-stream")
    usage = b'{"type":"tokens","input_tokens":14,"input_token_details":{"audio_tokens":14},"output_tokens":3}'
    watching.feed(b'data: {"type":"transcript.text.delta","delta":"hi"}\r\n\r\n')
    assert watching.text() == "hi"
    watching.feed(
        b'data: {"type":"transcript.text.done","text":"hi","usage":' + usage + b"}\r\n\r\ndata: [DONE]\r\n\r\n"
    )
    watching.finish()
    assert watching.reading().usage == Usage(
        input_tokens=14, input_audio_tokens=14, output_tokens=3, output_characters=2
    )
    assert watching.reading().finished


def test_speech_is_billed_by_the_characters_of_the_request() -> None:
    speech = FORMATS["audio_speech"]
    facts = speech.read_request(b'{"model":"tts-1","input":"na\\u00efve \\ud83d\\ude42"}', "/v1/audio/speech", "")
    assert facts.usage == Usage(input_characters=7)
    watching = read("audio_speech", b"\xff\xfbbinary", facts)
    assert watching.reading().usage == Usage(input_characters=7)
    elevenlabs = FORMATS["elevenlabs_tts"].read_request(b'{"text":"hello"}', "/v1/text-to-speech/voice", "")
    assert (elevenlabs.model, elevenlabs.usage) == ("eleven_multilingual_v2", Usage(input_characters=5))


def test_images() -> None:
    images = FORMATS["images"]
    asked = images.read_request(b'{"prompt":"x","n":3}', "/v1/images/generations", "")
    assert (asked.model, asked.stream, asked.choices) == (None, False, 3)
    edit = images.read_request(form(("model", "gpt-image-1"), ("n", "2"), ("prompt", "red")), "/v1/images/edits", "")
    assert (edit.model, edit.choices) == ("gpt-image-1", 2)
    assert images.request_text(form(("prompt", "red"))) == "red"
    with pytest.raises(ObolError, match="model"):
        images.read_request(b'{"model":5}', "/v1/images/generations", "")
    usage = {
        "input_tokens": 10,
        "output_tokens": 1223,
        "input_tokens_details": {"image_tokens": 0},
        "output_tokens_details": {"image_tokens": 1056},
    }
    assert read("images", {"data": [{"b64_json": "AA"}], "usage": usage}).reading().usage == Usage(
        input_tokens=10, input_image_tokens=0, output_tokens=1223, output_image_tokens=1056, images=1
    )
    assert read("images", {"data": [{}, {}]}).reading().usage == Usage(images=2)
    assert read("images", {"error": {"message": "refused"}}).reading().failed == "refused"


def test_a_streamed_image() -> None:
    watching = stream_meter("images", "text/event-stream")
    watching.feed(b'data: {"type":"image_generation.partial_image","b64_json":"AAAA"}\n\n')
    watching.feed(b'data: {"type":"image_generation.completed","usage":{"input_tokens":1,"output_tokens":2}}\n\n')
    assert watching.reading().usage == Usage(input_tokens=1, output_tokens=2, images=1)


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"meta": {"billed_units": {"search_units": 1}}}, Usage(search_units=1)),
        (
            {"usage": {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}},
            Usage(input_tokens=9, output_tokens=0),
        ),
        ({"usage": {"total_tokens": 17, "cost": 3.4e-07}}, Usage(input_tokens=17)),
        ({"results": []}, None),
    ],
)
def test_rerank(answer: dict[str, Any], usage: Usage | None) -> None:
    assert read("rerank", answer).reading().usage == usage


def test_cohere_bills_billed_units() -> None:
    units = {
        "billed_units": {"input_tokens": 7, "output_tokens": 2},
        "tokens": {"input_tokens": 69, "output_tokens": 3},
    }
    expected = Usage(input_tokens=7, output_tokens=2)
    assert read("cohere_v2_chat", {"id": "c", "usage": units}).reading().usage == expected
    assert read("cohere_v1_chat", {"text": "x", "meta": units}).reading().usage == expected
    stream = (
        b'{"event_type":"stream-start","generation_id":"g"}\n{"event_type":"text-generation","text":"Ar"}\n'
        b'{"event_type":"stream-end","response":{"text":"Ar","generation_id":"g","meta":' + json.dumps(units).encode()
    )
    watching = stream_meter("cohere_v1_chat", "application/stream+json")
    watching.feed(stream)
    assert watching.text() == "Ar"
    watching.feed(b"}}\n")
    reading = watching.reading()
    assert (reading.usage, reading.response_id, reading.finished) == (expected, "g", True)


def test_cohere_requests() -> None:
    cohere = FORMATS["cohere_v1_chat"]
    assert cohere.read_request(b'{"message":"hi","stream":true}', "/v1/chat", "") == RequestFacts(stream=True)
    assert cohere.request_text(b'{"preamble":"a","message":"b"}') == "a\nb"
    assert FORMATS["cohere_embed"].request_text(b'{"model":"e","texts":["a","b"]}') == "a\nb"
    mixed = b'{"inputs":[{"content":[{"type":"text","text":"c"},{"type":"image_url","image_url":{"url":"d"}}]}]}'
    assert FORMATS["cohere_embed"].request_text(mixed) == "c"
