"""Anthropic messages (also Azure, DeepSeek and Moonshot under their /anthropic paths), and count_tokens.

`input_tokens` leaves cache reads and writes out: they are added here. A stream tells its usage in `message_start`
and, cumulative and final, in `message_delta`, whose non-null members win.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import ExtraUsage, Usage
from gateway.wire.base import BaseFormat
from gateway.wire.contract import RequestFacts
from gateway.wire.fields import count, decode, items, mapping, partition, text
from gateway.wire.reader import Reader
from gateway.wire.requests import as_json, decode_body, loads, prompt_text, require_model


class Request(msgspec.Struct):
    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    service_tier: Any = None


class Message(msgspec.Struct):
    """A response body; also the `message` of `message_start`."""

    id: Any = None
    model: Any = None
    usage: Any = None
    content: Any = None
    error: Any = None


class Event(msgspec.Struct):
    type: Any = None
    message: Message | None = None
    usage: Any = None
    error: Any = None
    delta: Any = None
    content_block: Any = None


class AnthropicReader(Reader):
    def __init__(self, provider: str) -> None:
        super().__init__(provider)
        self._merged: dict[str, Any] = {}

    def interesting(self, block: bytes) -> bool:
        return b'"message_' in block or b'"error"' in block

    def observe(self, data: bytes) -> bool:
        event = decode(data, Event)
        if event is None:
            return False
        if event.type == "error" or event.error is not None:
            self.note_failure(event.error or "error")
        elif event.type == "message_start" and event.message is not None:
            self.note(event.message.model, event.message.id)
            self._merge(event.message.usage)
        elif event.type == "message_delta" and isinstance(event.usage, dict):
            self._merge(event.usage)
            self.final = True
        elif event.type == "message_stop":
            self.finished = True
        return False

    def _merge(self, usage: Any) -> None:
        self._merged |= {name: value for name, value in mapping(usage).items() if value is not None}

    def conclude(self) -> None:
        """Until a `message_delta` came, the output count is the placeholder of `message_start`: not reported."""
        if not self._merged:
            return
        merged = self._merged if self.final else {**self._merged, "output_tokens": None}
        self.usage = messages_usage(merged)
        self.service_tier = text(merged.get("service_tier")) or self.service_tier

    def observe_body(self, data: bytes) -> None:
        message = decode(data, Message)
        if message is None:
            return
        self.note(message.model, message.id)
        self.note_failure(message.error)
        self._merge(message.usage)
        self.final = True
        self.finished = self.failed is None

    def observe_usage(self, usage: dict[str, Any]) -> None:
        self._merge(usage)
        self.final = self.finished = True

    def event_text(self, data: bytes) -> str:
        event = decode(data, Event)
        if event is None or event.type == "error":
            return ""
        delta = mapping(event.delta)
        block = mapping(event.content_block)
        parts = (delta.get(name) for name in ("text", "thinking", "partial_json", "content"))
        started = (block.get("text"), block.get("name")) if block else ()
        return "".join(part for part in (*parts, *started) if isinstance(part, str))

    def body_text(self, data: bytes) -> str:
        message = decode(data, Message)
        blocks = [mapping(block) for block in (items(message.content) if message else [])]
        return "\n".join(_block_text(block) for block in blocks)


def _block_text(block: dict[str, Any]) -> str:
    return prompt_text(block.get("text"), block.get("thinking"), block.get("name"), as_json(block.get("input")))


def messages_usage(value: Any) -> Usage | None:
    """Canonical usage of a (merged) Anthropic usage object."""
    usage = mapping(value)
    taken, given = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if taken is None and given is None:
        return None
    read, written = count(usage.get("cache_read_input_tokens")), count(usage.get("cache_creation_input_tokens"))
    lifetimes = mapping(usage.get("cache_creation"))
    return partition(
        Usage(
            input_tokens=None if taken is None else taken + (read or 0) + (written or 0),
            cached_input_tokens=read,
            cache_write_tokens=written,
            cache_write_1h_tokens=count(lifetimes.get("ephemeral_1h_input_tokens")),
            output_tokens=given,
            reasoning_tokens=count(mapping(usage.get("output_tokens_details")).get("thinking_tokens")),
            web_searches=count(mapping(usage.get("server_tool_use")).get("web_search_requests")),
            extra=_extra(usage.get("iterations")),
        )
    )


def _extra(iterations: Any) -> tuple[ExtraUsage, ...]:
    """The iterations that the totals leave out: everything but messages (compaction, advisor)."""
    entries = [mapping(entry) for entry in items(iterations)]
    return tuple(_extra_usage(entry) for entry in entries if text(entry.get("type")) not in (None, "message"))


def _extra_usage(entry: dict[str, Any]) -> ExtraUsage:
    read, written = count(entry.get("cache_read_input_tokens")), count(entry.get("cache_creation_input_tokens"))
    return ExtraUsage(
        kind=str(entry["type"]),
        model=text(entry.get("model")),
        input_tokens=(count(entry.get("input_tokens")) or 0) + (read or 0) + (written or 0),
        cached_input_tokens=read or 0,
        cache_write_tokens=written or 0,
        output_tokens=count(entry.get("output_tokens")) or 0,
    )


class AnthropicMessages(BaseFormat):
    """`/messages` and, under the name anthropic_count_tokens, `/messages/count_tokens`, which is free."""

    dialect = "anthropic"
    reader = AnthropicReader

    def __init__(self, name: str) -> None:
        self.name = name

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_body(body, Request)
        return RequestFacts(
            model=require_model(request.model),
            stream=request.stream is True,
            max_output_tokens=count(request.max_tokens),
            service_tier=text(request.service_tier),
            free=self.name == "anthropic_count_tokens",
        )

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        return prompt_text(request.get("system"), request.get("messages"), as_json(request.get("tools")))
