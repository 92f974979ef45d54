"""Anthropic messages: an answer, whole or streamed, written for a client."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import ZERO, Usage
from gateway.wire.translate.anthropic.request_writer import written_block
from gateway.wire.translate.failures import written_failure
from gateway.wire.translate.framing import Untranslatable, Writing, event
from gateway.wire.translate.model import (
    Answer,
    Choice,
    Ended,
    Event,
    Failed,
    MediaDelta,
    Started,
    Stop,
    Stopped,
    Text,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolDelta,
    ToolStarted,
    Used,
)
from gateway.wire.translate.usage import anthropic_usage

_REASONS: dict[Stop, str] = {
    "end": "end_turn",
    "stop_sequence": "stop_sequence",
    "length": "max_tokens",
    "tools": "tool_use",
    "filtered": "refusal",
    "refusal": "refusal",
}


def write_anthropic_answer(answer: Answer, writing: Writing) -> dict[str, Any]:
    """The body for an Anthropic client. It has one choice: more are refused beforehand."""
    choice = answer.choices[0] if answer.choices else Choice((), "end")
    message = _message(answer.id, answer.model or writing.model, answer.usage)
    blocks = [written_block(part) for part in choice.parts if not (isinstance(part, Text) and not part.text)]
    return message | {
        "content": blocks,
        "stop_reason": _REASONS[choice.stop],
        "stop_sequence": choice.sequence,
    }


def _message(message_id: str, model: str, usage: Usage | None) -> dict[str, Any]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": anthropic_usage(usage or ZERO),
    }


class AnthropicWriter:
    """Writes one stream: blocks one after the other, and at the end why it stopped and what it used.

    A block that has ended takes no more. So where the arguments of several calls arrive in turns, all but the first
    call wait until that one has ended.
    """

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._blocks = 0
        self._open = ""
        """The kind of the block that is open."""
        self._call = -1
        """Which call the open block is."""
        self._arguments: list[str] = []
        """What was written of its arguments."""
        self._waiting: dict[int, ToolCall] = {}
        self._stopped = Stopped("end")
        self._usage: Usage | None = None
        self._begun = self._over = False

    def write(self, said: Event) -> bytes:
        if self._over:
            return b""
        if isinstance(said, Failed):
            self._over = True
            return event(written_failure(said, "anthropic", self._writing.request_id), "error")
        if isinstance(said, Started):
            return self._begin(said)
        begun = b"" if self._begun else self._begin(Started(self._writing.request_id, self._writing.model))
        if isinstance(said, Used):
            self._usage = said.usage
        elif isinstance(said, Stopped):
            self._stopped = said
        elif isinstance(said, Ended):
            return begun + self._end()
        else:
            return begun + self._content(said)
        return begun

    def _begin(self, said: Started) -> bytes:
        """What was used is not known yet: `message_delta` tells all of it at the end."""
        self._begun = True
        return _event("message_start", message=_message(said.id, said.model or self._writing.model, None))

    def _content(self, said: TextDelta | ThinkingDelta | ToolStarted | ToolDelta | MediaDelta) -> bytes:
        if isinstance(said, TextDelta):
            opened = self._opened("text", {"type": "text", "text": ""})
            return opened + self._delta({"type": "text_delta", "text": said.text})
        if isinstance(said, ThinkingDelta):
            return self._thought(said)
        if isinstance(said, MediaDelta):
            return self._closed() + self._start("image", written_block(said.media)) + self._closed()
        if isinstance(said, ToolDelta):
            return self._argue(said)
        call = ToolCall(said.id, said.name, "")
        if self._open == "tool_use" and not _is_json("".join(self._arguments)):
            self._waiting[said.index] = call
            return b""
        return self._closed() + self._called(said.index, call)

    def _argue(self, said: ToolDelta) -> bytes:
        waiting = self._waiting.get(said.index)
        if waiting is not None:
            arguments = waiting.arguments + said.arguments
            self._waiting[said.index] = msgspec.structs.replace(waiting, arguments=arguments)
            return b""
        if said.index != self._call:
            if said.arguments.strip():
                raise Untranslatable("the provider's answer goes on with a call of a tool after what follows that call")
            return b""
        self._arguments.append(said.arguments)
        return self._delta({"type": "input_json_delta", "partial_json": said.arguments})

    def _called(self, index: int, call: ToolCall) -> bytes:
        self._call, self._arguments = index, []
        block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        begun = self._start("tool_use", block)
        return begun + (self._argue(ToolDelta(index, call.arguments)) if call.arguments else b"")

    def _thought(self, said: ThinkingDelta) -> bytes:
        if said.redacted:
            block = {"type": "redacted_thinking", "data": said.redacted}
            return self._closed() + self._start("redacted_thinking", block) + self._closed()
        opened = self._opened("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if said.text:
            opened += self._delta({"type": "thinking_delta", "thinking": said.text})
        if said.signature:
            opened += self._delta({"type": "signature_delta", "signature": said.signature}) + self._closed()
        return opened

    def _opened(self, kind: str, block: dict[str, Any]) -> bytes:
        return b"" if self._open == kind else self._closed() + self._start(kind, block)

    def _start(self, kind: str, block: dict[str, Any]) -> bytes:
        self._open, index = kind, self._blocks
        self._blocks += 1
        return _event("content_block_start", index=index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)

    def _closed(self) -> bytes:
        if not self._open:
            return b""
        self._open, self._call = "", -1
        closed, waiting = _event("content_block_stop", index=self._blocks - 1), self._waiting
        self._waiting = {}
        return closed + b"".join(self._called(index, call) + self._closed() for index, call in waiting.items())

    def _end(self) -> bytes:
        self._over = True
        delta = {"stop_reason": _REASONS[self._stopped.stop], "stop_sequence": self._stopped.sequence}
        usage = anthropic_usage(self._usage or ZERO)
        return self._closed() + _event("message_delta", delta=delta, usage=usage) + _event("message_stop")


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _event(kind: str, **members: Any) -> bytes:
    return event({"type": kind, **members}, kind)
