"""OpenAI chat completions: an answer, whole or streamed, written for a client."""

from __future__ import annotations

from typing import Any

from gateway.core.usage import Usage
from gateway.wire.translate.failures import written_failure
from gateway.wire.translate.framing import Writing, event
from gateway.wire.translate.model import (
    Answer,
    Choice,
    Delta,
    Ended,
    Event,
    Failed,
    Media,
    MediaDelta,
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
from gateway.wire.translate.openai.request_writer import data_url, written_call, written_reasoning
from gateway.wire.translate.usage import openai_usage
from gateway.wire.translate.values import present

DONE = b"data: [DONE]\n\n"
_REASONS: dict[Stop, str] = {
    "end": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "tools": "tool_calls",
    "filtered": "content_filter",
    "refusal": "content_filter",
}


def write_openai_answer(answer: Answer, writing: Writing) -> dict[str, Any]:
    """The body for an OpenAI client."""
    body = {
        "id": answer.id,
        "object": "chat.completion",
        "created": writing.created_s,
        "model": answer.model or writing.model,
        "choices": [_written_choice(number, choice) for number, choice in enumerate(answer.choices)],
        "usage": openai_usage(answer.usage) if answer.usage else None,
    }
    return present(body)


def _written_choice(number: int, choice: Choice) -> dict[str, Any]:
    said = [part.text for part in choice.parts if isinstance(part, Text)]
    calls = [written_call(part) for part in choice.parts if isinstance(part, ToolCall)]
    images = [_image(part) for part in choice.parts if isinstance(part, Media)]
    message = {"role": "assistant", "content": "".join(said) if said else None}
    message |= written_reasoning(part for part in choice.parts if isinstance(part, Thinking))
    message |= present({"images": images or None, "tool_calls": calls or None})
    return {"index": number, "message": message, "logprobs": None, "finish_reason": _REASONS[choice.stop]}


def _image(media: Media) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": media.url or data_url(media)}}


class OpenAIWriter:
    """Writes one stream. `stop` is all that is not told at once: vendors' usage comes behind it or with it."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._head: dict[str, Any] = {"id": writing.request_id, "object": "chat.completion.chunk"}
        self._spoken: set[int] = set()
        self._usage: Usage | None = None
        self._over = False

    def write(self, said: Event) -> bytes:
        if self._over:
            return b""
        if isinstance(said, Started):
            self._head |= {
                "id": said.id,
                "created": self._writing.created_s,
                "model": said.model or self._writing.model,
            }
            return b""
        if isinstance(said, Used):
            self._usage = said.usage
            return b""
        if isinstance(said, Failed):
            self._over = True
            return event(written_failure(said, "openai", self._writing.request_id)) + DONE
        return self._end() if isinstance(said, Ended) else self._delta(said)

    def _end(self) -> bytes:
        self._over = True
        if not self._writing.include_usage:
            return DONE
        usage = openai_usage(self._usage) if self._usage else None
        return event(self._head | {"choices": [], "usage": usage}) + DONE

    def _delta(self, said: Delta) -> bytes:
        first = b""
        if said.choice not in self._spoken:
            self._spoken.add(said.choice)
            first = self._chunk({"role": "assistant", "content": ""}, said.choice)
        if isinstance(said, Stopped):
            return first + self._chunk({}, said.choice, _REASONS[said.stop])
        return first + self._chunk(_written_delta(said), said.choice)

    def _chunk(self, delta: dict[str, Any], choice: int, reason: str | None = None) -> bytes:
        told = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        usage = {"usage": None} if self._writing.include_usage else {}
        return event(self._head | {"choices": [told]} | usage)


def _written_delta(said: Delta) -> dict[str, Any]:
    if isinstance(said, TextDelta):
        return {"content": said.text}
    if isinstance(said, ThinkingDelta):
        return written_reasoning([Thinking(said.text, said.signature, said.redacted)])
    if isinstance(said, MediaDelta):
        return {"images": [_image(said.media)]}
    if isinstance(said, ToolStarted):
        started = written_call(ToolCall(said.id, said.name, "", said.signature))
        return {"tool_calls": [{"index": said.index} | started]}
    assert isinstance(said, ToolDelta)
    return {"tool_calls": [{"index": said.index, "function": {"arguments": said.arguments}}]}
