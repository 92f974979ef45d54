"""Gemini generateContent: an answer, whole or streamed, written for a client."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.wire.translate.failures import written_failure
from gateway.wire.translate.framing import Writing, event
from gateway.wire.translate.gemini.request_writer import written_part
from gateway.wire.translate.model import (
    Answer,
    Ended,
    Event,
    Failed,
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
from gateway.wire.translate.usage import google_usage
from gateway.wire.translate.values import present

_REASONS: dict[Stop, str] = {
    "end": "STOP",
    "stop_sequence": "STOP",
    "length": "MAX_TOKENS",
    "tools": "STOP",
    "filtered": "SAFETY",
    "refusal": "SAFETY",
}


def write_gemini_answer(answer: Answer, writing: Writing) -> dict[str, Any]:
    """The body for a Gemini client."""
    candidates = [
        _candidate([written_part(part) for part in choice.parts if not _hidden(part)], number, choice.stop)
        for number, choice in enumerate(answer.choices)
    ]
    body = {
        "candidates": candidates,
        "usageMetadata": google_usage(answer.usage) if answer.usage else None,
        "modelVersion": answer.model or writing.model,
        "responseId": answer.id,
    }
    return present(body)


def _hidden(part: Part) -> bool:
    """Reasoning without text: encrypted, or only its proof."""
    return isinstance(part, Thinking) and not part.text


def _candidate(parts: list[dict[str, Any]], number: int, stop: Stop | None = None) -> dict[str, Any]:
    reason = {} if stop is None else {"finishReason": _REASONS[stop]}
    return {"content": {"parts": parts, "role": "model"}, **reason, "index": number}


class GeminiWriter:
    """Writes one stream, as events or as the elements of an array. A call of a tool is written when it is complete."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._head: dict[str, Any] = {"modelVersion": writing.model, "responseId": writing.request_id}
        self._calls: dict[tuple[int, int], ToolCall] = {}
        self._arguments: dict[tuple[int, int], list[str]] = {}
        self._stops: dict[int, Stop] = {}
        self._usage: Usage | None = None
        self._written = self._over = False

    def write(self, said: Event) -> bytes:
        if self._over:
            return b""
        if isinstance(said, Started):
            self._head = {"modelVersion": said.model or self._writing.model, "responseId": said.id}
        elif isinstance(said, Used):
            self._usage = said.usage
        elif isinstance(said, Failed):
            self._over = True
            return self._element(written_failure(said, "google", self._writing.request_id), last=True)
        elif isinstance(said, Stopped):
            self._stops[said.choice] = said.stop
        elif isinstance(said, Ended):
            return self._end()
        elif isinstance(said, ToolStarted):
            self._calls[said.choice, said.index] = ToolCall(said.id, said.name, "", said.signature)
            self._arguments[said.choice, said.index] = []
        elif isinstance(said, ToolDelta):
            self._arguments[said.choice, said.index].append(said.arguments)
        else:
            return self._content(said)
        return b""

    def _content(self, said: TextDelta | ThinkingDelta | MediaDelta) -> bytes:
        if isinstance(said, ThinkingDelta):
            part: Part = Thinking(said.text)
        else:
            part = Text(said.text) if isinstance(said, TextDelta) else said.media
        return b"" if _hidden(part) else self._parts([part], said.choice)

    def _parts(self, parts: list[Part], choice: int) -> bytes:
        written = [written_part(part) for part in parts]
        return self._element({"candidates": [_candidate(written, choice)]} | self._head)

    def _end(self) -> bytes:
        """The calls of tools, then why it stopped and what it used."""
        self._over = True
        called = b"".join(self._call(place) for place in self._calls)
        candidates = [_candidate([], number, stop) for number, stop in (self._stops or {0: "end"}).items()]
        usage = {"usageMetadata": google_usage(self._usage)} if self._usage else {}
        return called + self._element({"candidates": candidates} | usage | self._head, last=True)

    def _call(self, place: tuple[int, int]) -> bytes:
        arguments = "".join(self._arguments[place])
        return self._parts([msgspec.structs.replace(self._calls[place], arguments=arguments)], place[0])

    def _element(self, value: dict[str, Any], *, last: bool = False) -> bytes:
        if not self._writing.array:
            return event(value)
        before, self._written = b",\r\n" if self._written else b"[", True
        return before + msgspec.json.encode(value) + (b"]" if last else b"")
