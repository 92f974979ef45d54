"""Anthropic messages: a provider's answer, whole or streamed, read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.wire.anthropic_messages import messages_usage
from gateway.wire.fields import Json, items, mapping, text
from gateway.wire.translate.failures import failed
from gateway.wire.translate.framing import decoded
from gateway.wire.translate.model import (
    Answer,
    Choice,
    Ended,
    Event,
    Failed,
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
from gateway.wire.translate.values import json_text

_STOPS: dict[str, Stop] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "stop_sequence": "stop_sequence",
    "tool_use": "tools",
    "refusal": "refusal",
}


def _part(block: Json) -> Part | None:
    """One block of an answer; None for those of Anthropic's own tools."""
    kind = block.get("type")
    if kind == "text":
        return Text(text(block.get("text")) or "")
    if kind == "thinking":
        return Thinking(text(block.get("thinking")) or "", text(block.get("signature")) or "")
    if kind == "redacted_thinking":
        return Thinking(redacted=text(block.get("data")) or "")
    if kind == "tool_use":
        arguments = json_text(mapping(block.get("input")))
        return ToolCall(text(block.get("id")) or "", text(block.get("name")) or "", arguments)
    return None


class AnthropicReader:
    def __init__(self, provider: str, seed: str) -> None:
        self._seed = seed
        self._merged: dict[str, Any] = {}
        self._calls: dict[str, int] = {}
        self._filled: set[int] = set()

    def whole(self, body: bytes) -> Answer | Failed:
        value = decoded(body)
        if value.get("type") == "error" or "content" not in value:
            return failed(value)
        found = (_part(mapping(block)) for block in items(value["content"]))
        choice = Choice(tuple(part for part in found if part is not None), *_stopped(value))
        told = (text(value.get("id")) or self._seed, text(value.get("model")) or "")
        return Answer(*told, (choice,), messages_usage(value.get("usage")))

    def events(self, data: bytes) -> Iterator[Event]:
        value = decoded(data)
        kind = value.get("type")
        if kind == "message_start":
            message = mapping(value.get("message"))
            self._merge(message.get("usage"))
            yield Started(text(message.get("id")) or self._seed, text(message.get("model")) or "")
        elif kind == "content_block_start":
            yield from self._begun(str(value.get("index")), mapping(value.get("content_block")))
        elif kind == "content_block_delta":
            yield from self._delta(str(value.get("index")), mapping(value.get("delta")))
        elif kind == "content_block_stop":
            call = self._calls.get(str(value.get("index")))
            if call is not None and call not in self._filled:
                yield ToolDelta(call, "{}")
        elif kind == "message_delta":
            yield from self._message_delta(value)
        elif kind == "message_stop":
            yield Ended()
        elif kind == "error" or value.get("error"):
            yield failed(value)

    def _merge(self, usage: Any) -> None:
        self._merged |= {name: value for name, value in mapping(usage).items() if value is not None}

    def _message_delta(self, value: Json) -> Iterator[Event]:
        self._merge(value.get("usage"))
        delta, usage = mapping(value.get("delta")), messages_usage(self._merged)
        if delta.get("stop_reason"):
            yield Stopped(*_stopped(delta))
        if usage is not None:
            yield Used(usage)

    def _begun(self, place: str, block: Json) -> Iterator[Event]:
        part = _part(block)
        if isinstance(part, ToolCall):
            index = self._calls[place] = len(self._calls)
            yield ToolStarted(index, part.id, part.name)
            if part.arguments != "{}":
                self._filled.add(index)
                yield ToolDelta(index, part.arguments)
        elif isinstance(part, Text) and part.text:
            yield TextDelta(part.text)
        elif isinstance(part, Thinking) and (part.text or part.redacted):
            yield ThinkingDelta(part.text, redacted=part.redacted)

    def _delta(self, place: str, delta: Json) -> Iterator[Event]:
        """Citations, and the input of Anthropic's own tools, have no place elsewhere."""
        kind = delta.get("type")
        if kind == "text_delta":
            yield TextDelta(text(delta.get("text")) or "")
        elif kind == "thinking_delta":
            yield ThinkingDelta(text(delta.get("thinking")) or "")
        elif kind == "signature_delta":
            yield ThinkingDelta(signature=text(delta.get("signature")) or "")
        elif kind == "input_json_delta" and place in self._calls and (arguments := text(delta.get("partial_json"))):
            self._filled.add(self._calls[place])
            yield ToolDelta(self._calls[place], arguments)

    def finish(self) -> Iterator[Event]:
        """A stream without message_stop was cut short."""
        return iter(())


def _stopped(value: Json) -> tuple[Stop, str | None]:
    return _STOPS.get(str(value.get("stop_reason")), "end"), text(value.get("stop_sequence"))
