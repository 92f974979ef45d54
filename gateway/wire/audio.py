"""Transcription: OpenAI's (and its copies at Groq, Mistral, Venice) and ElevenLabs'.

It is billed by tokens or by the length of the audio, in whichever member the vendor puts it. Where neither is told,
the length of the recording sent is read from its headers, and flagged estimated.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from gateway.core.usage import Usage
from gateway.wire.audio_length import HEAD_BYTES, LEAST_BYTES_PER_S, audio_us, told_us
from gateway.wire.base import BaseFormat
from gateway.wire.contract import ALL, Meter, RequestFacts
from gateway.wire.fields import Json, count, decode, first, items, mapping, microseconds, text
from gateway.wire.meters import meter_for
from gateway.wire.reader import Reader, carries
from gateway.wire.requests import (
    decode_body,
    form_fields,
    form_files,
    is_form,
    loads,
    prompt_text,
    require_model,
    uncollectable,
)


class Names(NamedTuple):
    """What a vendor calls things. Only its own names are read: what the vendor ignores must not change the price."""

    model: str
    text: str
    default_model: str | None = None


OPENAI = Names("model", "input")
ELEVENLABS = Names("model_id", "text", "eleven_multilingual_v2")
"""Its default is documented for speech."""


BYTES_PER_TEXT_TOKEN = 4
"""Where text is so small a part of the price that its tokens are taken from its size."""


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
    """`counted`: the length of the recording that was sent, for an answer that does not tell it."""

    def __init__(self, provider: str, counted: Usage | None = None) -> None:
        super().__init__(provider)
        self._counted = counted

    def interesting(self, block: bytes) -> bool:
        return carries(block, b'"usage"', b'"usage":null') or b'"error"' in block or b"[DONE]" in block

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
        transcript = decode(data, Transcript) or Transcript(words=_captions(data))
        self.note(transcript.model, transcript.transcription_id)
        self.note_failure(transcript.error)
        self.usage = audio_usage(transcript)
        self.finished = self.failed is None
        if self.finished and data:
            self._complete(transcript)

    def _complete(self, transcript: Transcript) -> None:
        """What the answer leaves out, from the request; from its last word where there is no recording to look at."""
        if _told_us(transcript) is not None or (self.usage is not None and self.usage.input_tokens is not None):
            return
        if self._counted is not None:
            heard, said = self._counted, text(transcript.text) or ""
            written = None if heard.input_tokens is None else -(-len(said.encode()) // BYTES_PER_TEXT_TOKEN)
            self.usage = replace(heard, output_tokens=written, output_characters=len(said) or None)
        self.estimated = self.usage is not None

    def conclude(self) -> None:
        """A stream that ended without usage."""
        if self.usage is None and self.finished and self.failed is None and self._counted is not None:
            self.usage, self.estimated = self._counted, True

    def event_text(self, data: bytes) -> str:
        event = decode(data, Transcript)
        return (text(event.delta) or "") if event else ""

    def body_text(self, data: bytes) -> str:
        """A plain-text, SRT or VTT transcript is its own text."""
        transcript = decode(data, Transcript)
        return data.decode("utf-8", "replace") if transcript is None else text(transcript.text) or ""


def bills_tokens(model: str) -> bool:
    """These models of OpenAI's bill sound in tokens. Of speech they tell them only in a stream of events."""
    return model.startswith("gpt-4o")


def audio_usage(transcript: Transcript) -> Usage | None:
    """Canonical usage of a transcription; None if it tells neither tokens nor length."""
    usage = mapping(transcript.usage)
    inputs = mapping(first(usage.get("input_token_details"), usage.get("input_tokens_details")))
    taken = first(count(usage.get("input_tokens")), count(usage.get("prompt_tokens")))
    given = first(count(usage.get("output_tokens")), count(usage.get("completion_tokens")))
    length = first(_told_us(transcript), _last_word_end(transcript.words))
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


def _told_us(transcript: Transcript) -> int | None:
    usage = mapping(transcript.usage)
    return first(
        microseconds(usage.get("seconds")),
        microseconds(usage.get("prompt_audio_seconds")),
        microseconds(transcript.duration),
        microseconds(transcript.audio_duration_secs),
    )


def _captions(data: bytes) -> list[Json]:
    """The end of the last caption of SRT or VTT text, as a word's end."""
    found = list(_CAPTION_END.finditer(data[-_CAPTION_SEARCH_BYTES:]))[-1:]
    return [{"end": _seconds(match)} for match in found]


_CAPTION_END = re.compile(rb"--> *(?:([0-9]{1,3}):)?([0-9]{2}):([0-9]{2})[.,]([0-9]{3})")
_CAPTION_SEARCH_BYTES = 16 * 1024


def _seconds(end: re.Match[bytes]) -> float:
    hours, minutes, seconds, thousandths = (int(part or 0) for part in end.groups())
    return hours * 3_600 + minutes * 60 + seconds + thousandths / 1_000


def _last_word_end(words: Any) -> int | None:
    """ElevenLabs did not tell the length before 2026: the end of the last word is close below it, and an estimate."""
    last = items(words)[-1:]
    return microseconds(mapping(last[0]).get("end")) if last else None


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
        if fields.get("webhook") in (True, "true"):
            raise uncollectable("webhook")
        spans = form_files(body) if is_form(body) else []
        told_us = sum(_recording_us(body, start, end) for start, end in spans)
        return RequestFacts(
            model=model,
            stream=fields.get("stream") in (True, "true"),
            counted=_counted(model, told_us) if spans else None,
            at_most=_at_most(fields, sum(_recording_us_max(body, start, end) for start, end in spans)),
        )

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        reader = AudioReader(provider, facts.counted)
        return meter_for(reader, facts, content_type=content_type, limit_bytes=limit_bytes)

    def request_text(self, body: bytes) -> str:
        return prompt_text((form_fields(body) if is_form(body) else loads(body)).get("prompt"))


def _recording_us(body: bytes, start: int, end: int) -> int:
    return audio_us(body[start : min(end, start + HEAD_BYTES)], end - start, body[max(start, end - HEAD_BYTES) : end])


def _recording_us_max(body: bytes, start: int, end: int) -> int:
    """Headers can lie, but not below what the bytes would last at the highest rate that speech is sent at."""
    head, tail = body[start : min(end, start + HEAD_BYTES)], body[max(start, end - HEAD_BYTES) : end]
    told = told_us(head, end - start, tail)
    if told is None:
        return (end - start) * 1_000_000 // LEAST_BYTES_PER_S
    return max(told, (end - start) * 1_000_000 // _MOST_BYTES_PER_S)


_MOST_BYTES_PER_S = 192_000
"""16 bits in stereo at 48 kHz."""
_ELSEWHERE_US = 4 * 3_600_000_000
"""Of a recording at a URL, or of one uploaded before: four hours."""
_HEARD_TOKENS_PER_S_MAX, _WRITTEN_TOKENS_PER_S_MAX = 32, 16


def _counted(model: str, length_us: int) -> Usage:
    """Of a recording whose answer does not tell: its length, and where sound is billed in tokens, those."""
    if not bills_tokens(model):
        return Usage(input_us=length_us)
    tokens = length_us // _HEARD_TOKEN_US
    return Usage(input_us=length_us, input_tokens=tokens, input_audio_tokens=tokens)


_HEARD_TOKEN_US = 100_000
"""OpenAI: a token for each 100 ms of sound that is heard."""


def _at_most(fields: Json, recorded_us: int) -> Usage:
    length_us = recorded_us or _ELSEWHERE_US
    seconds = -(-length_us // 1_000_000)
    said = sum(len(value) for value in fields.values() if isinstance(value, str))
    return Usage(
        input_us=length_us,
        input_tokens=said + _HEARD_TOKENS_PER_S_MAX * seconds,
        input_audio_tokens=ALL,
        output_tokens=_WRITTEN_TOKENS_PER_S_MAX * (16 + seconds),
    )
