"""The OpenAI Responses API (also xAI, DeepSeek, Groq, OpenRouter, Azure): usage only in the terminal event."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.usage import Usage
from gateway.wire.base import BaseFormat
from gateway.wire.contract import RequestFacts
from gateway.wire.fields import count, decode, first, items, mapping, partition, text
from gateway.wire.reader import Reader, carries
from gateway.wire.requests import as_json, decode_body, loads, prompt_text, require_model

TERMINAL = ("response.completed", "response.incomplete", "response.failed")
_TERMINAL_MARKS = tuple(f'"{kind}"'.encode() for kind in TERMINAL)


class Request(msgspec.Struct):
    model: Any = None
    stream: Any = None
    max_output_tokens: Any = None
    service_tier: Any = None


class Response(msgspec.Struct):
    id: Any = None
    model: Any = None
    status: Any = None
    usage: Any = None
    error: Any = None
    output: Any = None
    service_tier: Any = None


class Event(msgspec.Struct):
    type: Any = None
    response: Response | None = None
    error: Any = None
    message: Any = None
    delta: Any = None


class ResponsesReader(Reader):
    def interesting(self, block: bytes) -> bool:
        if b'"usage"' not in block and b'"error"' not in block:
            return False
        return carries(block, b'"error"', b'"error":null') or any(kind in block for kind in _TERMINAL_MARKS)

    def observe(self, data: bytes) -> bool:
        event = decode(data, Event)
        if event is None:
            return False
        if event.type == "error":
            self.note_failure(event.message or event.error or "error")
        elif event.error is not None:
            self.note_failure(event.error)
        if event.response is not None and event.type in TERMINAL:
            self._read(event.response)
            self.finished = True
            self.final = self.usage is not None
        return False

    def _read(self, response: Response) -> None:
        self.note(response.model, response.id, response.service_tier)
        self.note_failure(response.error)
        self.usage = responses_usage(response.usage, response.output)

    def observe_body(self, data: bytes) -> None:
        response = decode(data, Response)
        if response is None:
            return
        self._read(response)
        self.finished = response.status not in ("queued", "in_progress")

    def observe_usage(self, usage: dict[str, Any]) -> None:
        self.usage = responses_usage(usage, None)
        self.final = self.finished = self.usage is not None

    def identify(self, data: bytes) -> None:
        event = decode(data, Event)
        if event is not None and event.response is not None:
            self.note(event.response.model, event.response.id, event.response.service_tier)

    def event_text(self, data: bytes) -> str:
        event = decode(data, Event)
        return (text(event.delta) or "") if event else ""

    def body_text(self, data: bytes) -> str:
        response = decode(data, Response)
        return "\n".join(_item_text(mapping(item)) for item in (items(response.output) if response else []))


def _item_text(item: dict[str, Any]) -> str:
    return prompt_text(item.get("content"), item.get("summary"), item.get("name"), item.get("arguments"))


def responses_usage(value: Any, output: Any) -> Usage | None:
    """Canonical usage: cached and reasoning tokens are parts of their sides, with every provider."""
    usage = mapping(value)
    inputs, outputs = mapping(usage.get("input_tokens_details")), mapping(usage.get("output_tokens_details"))
    taken, given = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    if taken is None and given is None:
        return None
    return partition(
        Usage(
            input_tokens=taken,
            cached_input_tokens=count(inputs.get("cached_tokens")),
            cache_write_tokens=count(inputs.get("cache_write_tokens")),
            input_audio_tokens=count(inputs.get("audio_tokens")),
            input_image_tokens=count(inputs.get("image_tokens")),
            output_tokens=given,
            reasoning_tokens=count(outputs.get("reasoning_tokens")),
            output_audio_tokens=count(outputs.get("audio_tokens")),
            web_searches=_web_searches(usage, output),
        )
    )


def _web_searches(usage: dict[str, Any], output: Any) -> int | None:
    """Searches the provider made and bills by the call: xAI counts them, OpenAI lists them in the output."""
    details = mapping(usage.get("server_side_tool_usage_details"))
    if details:
        return sum(count(details.get(name)) or 0 for name in ("web_search_calls", "x_search_calls"))
    listed = sum(mapping(item).get("type") == "web_search_call" for item in items(output))
    return first(count(usage.get("num_server_side_tools_used")), listed or None)


class OpenAIResponses(BaseFormat):
    """`/responses`."""

    name = "openai_responses"
    reader = ResponsesReader

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_body(body, Request)
        return RequestFacts(
            model=require_model(request.model, path),
            stream=request.stream is True,
            max_output_tokens=count(request.max_output_tokens),
            service_tier=text(request.service_tier),
        )

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        return prompt_text(
            request.get("instructions"),
            request.get("input"),
            as_json(request.get("tools")),
            as_json(mapping(request.get("text")).get("format")),
        )
