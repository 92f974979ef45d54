"""Anthropic messages (also Azure, DeepSeek and Moonshot under their /anthropic paths), and count_tokens.

`input_tokens` leaves cache reads and writes out: they are added here. A stream tells its usage in `message_start`
and, cumulative and final, in `message_delta`, whose non-null members win.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.core.usage import ExtraUsage, Usage
from gateway.wire.base import BaseFormat
from gateway.wire.ceiling import SEARCHES_MAX, prompt_at_most
from gateway.wire.contract import ALL, RequestFacts
from gateway.wire.fields import count, count_asked, decode, items, mapping, partition, text
from gateway.wire.image_tokens import ANTHROPIC
from gateway.wire.media import media_of, media_usage
from gateway.wire.reader import Reader
from gateway.wire.reasoning import anthropic_hidden
from gateway.wire.requests import as_json, decode_outlined, loads, prompt_text, require_model
from gateway.wire.shapes import Messages, Part, Parts, cache_controls, kinds, messages_show


class Members(msgspec.Struct):
    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    service_tier: Any = None
    thinking: Any = None
    mcp_servers: Any = None
    container: Any = None
    cache_control: Any = None


class Request(Members):
    """With the outline of the prompt."""

    messages: Messages = None
    system: str | list[Part] | None = None
    tools: Parts = None


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
        fast = "fast" if merged.get("speed") == "fast" else None  # a price of its own, told beside the tier
        self.service_tier = fast or text(merged.get("service_tier")) or self.service_tier

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
        request = decode_outlined(body, Request, Members)
        model = require_model(request.model)
        return RequestFacts(
            model=model,
            stream=request.stream is True,
            max_output_tokens=count_asked(request.max_tokens),
            service_tier=text(request.service_tier),
            free=self.name == "anthropic_count_tokens",
            at_most=messages_at_most(body, request, model),
            hidden_tokens_max=anthropic_hidden(request.thinking),
        )

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        return prompt_text(request.get("system"), request.get("messages"), as_json(request.get("tools")))

    def request_media(self, body: bytes, model: str) -> Usage:
        return media_usage(media_of(body, "messages"), ANTHROPIC, model)


_TEXT_PARTS = frozenset({"text", "thinking", "redacted_thinking", "tool_use", "tool_result", "server_tool_use"})
_CLIENT_TOOLS = re.compile(r"(?:custom|(?:computer|text_editor|bash|memory)_[0-9]{8})?")
"""Tools that the client carries out: what they bring is in the next request."""
_TOOL_PROMPT_TOKENS = 1_024
"""What the API adds to explain that there are tools (159 to 600, by the model), and again for each of its own tools
(up to 735, the computer)."""


def messages_at_most(body: bytes, request: Members, model: str) -> Usage | None:
    """The most that a message can use beside text, and whether its prompt may be written to a cache, at a surcharge."""
    outlined = request if isinstance(request, Request) else None
    tools = {"?"} if outlined is None else kinds(outlined.tools) if outlined.tools else set()
    server_tools = any(not _CLIENT_TOOLS.fullmatch(kind) for kind in tools)
    shown = outlined is None or messages_show(outlined.messages, _TEXT_PARTS)
    most = prompt_at_most(
        body,
        ANTHROPIC,
        model,
        media=media_of(body, "messages") if shown else None,
        elsewhere=bool(server_tools or request.mcp_servers or request.container),
        tool_tokens=_TOOL_PROMPT_TOKENS * (1 + len(tools - {"", "custom"})) if tools else 0,
    )
    cached = _caches(request)
    if cached is None and not server_tools:
        return most
    return replace(
        most or Usage(input_tokens=len(body)),
        cache_write_tokens=ALL if cached is not None else None,
        cache_write_1h_tokens=ALL if mapping(cached).get("ttl") == "1h" else None,
        web_searches=SEARCHES_MAX if server_tools else None,
    )


def _caches(request: Members) -> Any:
    """The `cache_control` of the longest lifetime, None where there is none."""
    if not isinstance(request, Request):
        return {"ttl": "1h"}
    found = [] if request.cache_control is None else [request.cache_control]
    if type(request.system) is list:
        found += cache_controls(request.system)
    if request.tools:
        found += cache_controls(request.tools)
    if type(request.messages) is list:
        for message in request.messages:
            if type(message.content) is list:
                found += cache_controls(message.content)
    return next((one for one in found if mapping(one).get("ttl") == "1h"), found[0] if found else None)
