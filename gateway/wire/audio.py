"""Speech and transcription: OpenAI's (and its copies at Groq, Mistral, Venice) and ElevenLabs'.

Speech is billed by the characters of the request unless its stream tells tokens; a transcription by tokens or by
the length of the audio, in whichever member the vendor puts it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from gateway.core.usage import Usage
from gateway.wire.base import BaseFormat
from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.fields import count, decode, first, items, mapping, microseconds, text
from gateway.wire.meters import SilentMeter, StreamMeter
from gateway.wire.reader import Reader, carries
from gateway.wire.requests import decode_body, form_fields, is_form, loads, prompt_text, require_model


class Names(NamedTuple):
    """What a vendor calls things. Only its own names are read: what the vendor ignores must not change the price."""

    model: str
    text: str
    default_model: str | None = None


OPENAI = Names("model", "input")
ELEVENLABS = Names("model_id", "text", "eleven_multilingual_v2")
"""Its default is documented for speech."""


class Transcript(msgspec.Struct):
    """A transcription, or one event of a stream of it or of speech."""

    type: Any = None
    text: Any = None
    delta: Any = None
    usage: Any = None
    duration: Any = None
    words: Any = None
    audio_duration_secs: Any = None
    transcription_id: Any = None
    model: Any = None
    error: Any = None


class AudioReader(Reader):
    def interesting(self, block: bytes) -> bool:
        return carries(block, b'"usage"', b'"usage":null') or b'"error"' in block or b"[DONE]" in block[-64:]

    def observe(self, data: bytes) -> bool:
        event = decode(data, Transcript)
        if event is None:
            self.finished = self.finished or data.strip() == b"[DONE]"
            return False
        self.note_failure(event.error)
        if usage := audio_usage(event):
            self.usage = usage
            self.final = self.finished = True
        return False

    def observe_body(self, data: bytes) -> None:
        transcript = decode(data, Transcript)
        if transcript is None:
            return
        self.note(transcript.model, transcript.transcription_id)
        self.note_failure(transcript.error)
        self.usage = audio_usage(transcript)
        self.finished = self.failed is None

    def event_text(self, data: bytes) -> str:
        event = decode(data, Transcript)
        return (text(event.delta) or "") if event else ""

    def body_text(self, data: bytes) -> str:
        """A plain-text, SRT or VTT transcript is its own text."""
        transcript = decode(data, Transcript)
        return data.decode("utf-8", "replace") if transcript is None else text(transcript.text) or ""


def audio_usage(transcript: Transcript) -> Usage | None:
    """Canonical usage of a transcription; None if it tells neither tokens nor length."""
    usage = mapping(transcript.usage)
    inputs = mapping(first(usage.get("input_token_details"), usage.get("input_tokens_details")))
    taken = first(count(usage.get("input_tokens")), count(usage.get("prompt_tokens")))
    given = first(count(usage.get("output_tokens")), count(usage.get("completion_tokens")))
    length = first(
        microseconds(usage.get("seconds")),
        microseconds(usage.get("prompt_audio_seconds")),
        microseconds(transcript.duration),
        microseconds(transcript.audio_duration_secs),
        _last_word_end(transcript.words),
    )
    if taken is None and given is None and length is None:
        return None
    said = text(transcript.text)
    return Usage(
        input_tokens=taken,
        input_audio_tokens=count(inputs.get("audio_tokens")),
        output_tokens=given,
        output_characters=None if said is None else len(said),
        input_us=length,
    )


def _last_word_end(words: Any) -> int | None:
    """ElevenLabs did not tell the length before 2026: the end of the last word is close below it."""
    last = items(words)[-1:]
    return microseconds(mapping(last[0]).get("end")) if last else None


class Speech(BaseFormat):
    """`/audio/speech` and ElevenLabs' `/text-to-speech/{voice}`: text in, audio out."""

    def __init__(self, name: str, names: Names) -> None:
        self.name = name
        self._names = names

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_body(body, dict[str, Any])
        return RequestFacts(
            model=require_model(first(request.get(self._names.model), self._names.default_model), path),
            stream=request.get("stream_format") == "sse",
            usage=Usage(input_characters=len(text(request.get(self._names.text)) or "")),
        )

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        if "event-stream" in content_type.lower():
            return StreamMeter(AudioReader(provider), limit_bytes)
        return SilentMeter(facts.usage)

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        return prompt_text(request.get(self._names.text), request.get("instructions"))


class Transcriptions(BaseFormat):
    """`/audio/transcriptions`, `/audio/translations` and ElevenLabs' `/speech-to-text`: audio in, text out."""

    reader = AudioReader

    def __init__(self, name: str, names: Names) -> None:
        self.name = name
        self._names = names

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        fields: dict[str, Any] = (
            dict(form_fields(body, content_type)) if is_form(body) else decode_body(body, dict[str, Any])
        )
        model = require_model(fields.get(self._names.model), path)
        return RequestFacts(model=model, stream=fields.get("stream") in (True, "true"))

    def request_text(self, body: bytes) -> str:
        return prompt_text((form_fields(body) if is_form(body) else loads(body)).get("prompt"))
