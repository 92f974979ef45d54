"""Gemini generateContent: a provider's answer, whole or streamed, read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.wire.fields import Json, items, mapping, text
from gateway.wire.gemini import gemini_usage
from gateway.wire.translate.failures import failed
from gateway.wire.translate.framing import decoded
from gateway.wire.translate.model import (
    Answer,
    Choice,
    Ended,
    Event,
    Failed,
    Media,
    MediaDelta,
    Part,
    Started,
    Stop,
    Stopped,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolDelta,
    ToolStarted,
    Used,
)
from gateway.wire.translate.values import json_text, standard_base64

_STOPS: dict[Any, Stop] = {
    "MAX_TOKENS": "length",
    2: "length",
    **dict.fromkeys(("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", 3, 4), "filtered"),
    **dict.fromkeys(("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"), "filtered"),
}


class GeminiReader:
    """`seed` makes the ids of calls: Gemini gives them none, or did not until its version 3."""

    def __init__(self, provider: str, seed: str) -> None:
        self._seed = seed
        self._called: dict[int, int] = {}
        self._started = self._stopped = False
        self._usage: Any = None

    def whole(self, body: bytes) -> Answer | Failed:
        value = decoded(body)
        if value.get("error"):
            return failed(value)
        choices = [self._choice(mapping(candidate)) for candidate in items(value.get("candidates"))]
        if not choices and mapping(value.get("promptFeedback")).get("blockReason"):
            choices = [Choice((), "filtered")]
        told = (text(value.get("responseId")) or self._seed, text(value.get("modelVersion")) or "")
        return Answer(*told, tuple(choices), gemini_usage(value.get("usageMetadata"), True, None))

    def _choice(self, candidate: Json) -> Choice:
        number = _number(candidate)
        parts = [self._part(mapping(part), number) for part in _content(candidate)]
        return Choice(tuple(part for part in parts if part is not None), self._stop(candidate))

    def _part(self, part: Json, choice: int) -> Part | None:
        """None for what Google's own tools did."""
        call, inline, said = part.get("functionCall"), mapping(part.get("inlineData")), part.get("text")
        if isinstance(call, dict):
            index = self._called.get(choice, 0)
            self._called[choice] = index + 1
            call_id = text(call.get("id")) or f"call_{self._seed}_{choice}_{index}"
            arguments, signature = json_text(mapping(call.get("args"))), text(part.get("thoughtSignature")) or ""
            return ToolCall(call_id, text(call.get("name")) or "", arguments, signature)
        if inline:
            return Media(text(inline.get("mimeType")) or "", data=standard_base64(text(inline.get("data")) or ""))
        if isinstance(said, str):
            return Thinking(said) if part.get("thought") is True else Text(said)
        return None

    def _stop(self, candidate: Json) -> Stop:
        reason = candidate.get("finishReason")
        stop = _STOPS.get(reason, "end") if isinstance(reason, str | int) else "end"
        return "tools" if stop == "end" and _number(candidate) in self._called else stop

    def events(self, data: bytes) -> Iterator[Event]:
        value = decoded(data)
        if value.get("error"):
            yield failed(value)
            return
        if not self._started:
            self._started = True
            yield Started(text(value.get("responseId")) or self._seed, text(value.get("modelVersion")) or "")
        self._usage = value.get("usageMetadata") or self._usage
        for candidate in map(mapping, items(value.get("candidates"))):
            yield from self._candidate_events(candidate)
        if mapping(value.get("promptFeedback")).get("blockReason"):
            self._stopped = True
            yield Stopped("filtered")

    def _candidate_events(self, candidate: Json) -> Iterator[Event]:
        number = _number(candidate)
        for one in _content(candidate):
            part = self._part(mapping(one), number)
            if isinstance(part, Text) and part.text:
                yield TextDelta(part.text, number)
            elif isinstance(part, Thinking):
                yield ThinkingDelta(part.text, choice=number)
            elif isinstance(part, Media):
                yield MediaDelta(part, number)
            elif isinstance(part, ToolCall):
                index = self._called[number] - 1
                yield ToolStarted(index, part.id, part.name, part.signature, number)
                yield ToolDelta(index, part.arguments, number)
        if candidate.get("finishReason"):
            self._stopped = True
            yield Stopped(self._stop(candidate), None, number)

    def finish(self) -> Iterator[Event]:
        """There is no end mark: it is over where it told why it stopped. The last usage counts, whole."""
        usage = gemini_usage(self._usage, self._stopped, None)
        if usage is not None:
            yield Used(usage)
        if self._stopped:
            yield Ended()


def _number(candidate: Json) -> int:
    number = candidate.get("index")
    return number if isinstance(number, int) else 0


def _content(candidate: Json) -> list[Any]:
    return items(mapping(candidate.get("content")).get("parts"))
