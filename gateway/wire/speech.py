"""Speech: OpenAI's `/audio/speech` (and its copies at Groq, Mistral, Venice) and ElevenLabs'.

Billed by the characters of the request unless its stream tells tokens. Where sound is billed in tokens and none are
told, its length is read from its headers, and flagged estimated.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from gateway.core.usage import Usage
from gateway.wire.audio import BYTES_PER_TEXT_TOKEN, AudioReader, Names, bills_tokens
from gateway.wire.audio_length import audio_us
from gateway.wire.base import BaseFormat
from gateway.wire.contract import Meter, Reading, RequestFacts
from gateway.wire.fields import first, text
from gateway.wire.meters import SilentMeter, StreamMeter
from gateway.wire.requests import decode_body, loads, prompt_text, require_model


class Speech(BaseFormat):
    """`/audio/speech` and ElevenLabs' `/text-to-speech/{voice}`: text in, audio out."""

    def __init__(self, name: str, names: Names) -> None:
        self.name = name
        self._names = names

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_body(body, dict[str, Any])
        model = require_model(first(request.get(self._names.model), self._names.default_model), path)
        said = text(request.get(self._names.text)) or ""
        spoken = _SPEECH_TOKENS_MIN + _SPEECH_TOKENS_OF_A_CHARACTER_MAX * len(said)
        return RequestFacts(
            model=model,
            stream=request.get("stream_format") == "sse",
            usage=Usage(input_characters=len(said)),
            at_most=Usage(input_tokens=len(body), input_characters=len(said), output_tokens=spoken)
            if bills_tokens(model)
            else None,
        )

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        if "event-stream" in content_type.lower():
            return StreamMeter(AudioReader(provider), limit_bytes)
        if bills_tokens(facts.model or "") and facts.usage is not None:
            return SpeechMeter(facts.usage, content_type)
        return SilentMeter(facts.usage)

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        return prompt_text(request.get(self._names.text), request.get("instructions"))


_SPEECH_TOKENS_OF_A_CHARACTER_MAX = 8
"""Twenty tokens a second, five characters in two seconds: nobody speaks slower."""
_SPEECH_TOKENS_MIN = 256
_SPEECH_TOKEN_US = 50_000
_PCM_BYTES_PER_S = 48_000
"""16 bits at 24 kHz, OpenAI's `pcm`."""
_SPEECH_HEAD_BYTES = 64 * 1024


class SpeechMeter(SilentMeter):
    """Sound whose tokens nobody tells: a token for each 50 ms that it plays, as OpenAI documents, flagged estimated."""

    def __init__(self, usage: Usage, content_type: str) -> None:
        super().__init__(usage)
        self._asked = usage
        self._pcm = "pcm" in content_type.lower()
        self._head = b""

    def feed(self, data: bytes) -> bytes:
        if len(self._head) < _SPEECH_HEAD_BYTES:
            self._head += data[: _SPEECH_HEAD_BYTES - len(self._head)]
        return super().feed(data)

    def reading(self) -> Reading:
        if self._pcm:
            length_us = self.seen_bytes * 1_000_000 // _PCM_BYTES_PER_S
        else:
            length_us = audio_us(self._head, self.seen_bytes)
        tokens = -(-length_us // _SPEECH_TOKEN_US)
        usage = replace(
            self._asked,
            input_tokens=-(-(self._asked.input_characters or 0) // BYTES_PER_TEXT_TOKEN),
            output_tokens=tokens,
            output_audio_tokens=tokens,
        )
        return Reading(usage=usage, estimated=True)
