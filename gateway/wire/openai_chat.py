"""OpenAI chat completions, and everyone who copied them (about twenty-five vendors).

Source: the recordings, and the field names of the openai Python package.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.core.usage import Usage
from gateway.wire.base import BaseFormat
from gateway.wire.ceiling import SEARCHES_MAX, hidden_prompt_tokens, prompt_at_most
from gateway.wire.contract import ALL, Meter, RequestFacts
from gateway.wire.fields import count_asked, decode, items, largest, mapping, text
from gateway.wire.image_tokens import OPENAI
from gateway.wire.inject import with_usage
from gateway.wire.media import media_of, media_usage
from gateway.wire.meters import meter_for
from gateway.wire.openai_usage import chat_usage
from gateway.wire.reader import Reader, carries
from gateway.wire.reasoning import openai_hidden
from gateway.wire.requests import (
    as_json,
    decode_outlined,
    loads,
    prompt_text,
    require_model,
    text_pieces,
    uncollectable,
)
from gateway.wire.shapes import Messages, Parts, kinds, messages_show


class Members(msgspec.Struct):
    """The members of a chat request that matter here; of any type, for clients err."""

    model: Any = None
    stream: Any = None
    stream_options: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None
    service_tier: Any = None
    deferred: Any = None
    reasoning_effort: Any = None
    reasoning: Any = None
    modalities: Any = None
    web_search_options: Any = None
    search_parameters: Any = None
    plugins: Any = None
    enable_search: Any = None


class Request(Members):
    """With the outline of the prompt."""

    messages: Messages = None
    tools: Parts = None


class Chunk(msgspec.Struct):
    """A response body, or one chunk of a stream: they differ only inside `choices`."""

    id: Any = None
    model: Any = None
    choices: Any = None
    usage: Any = None
    x_groq: Any = None
    error: Any = None
    message: Any = None
    service_tier: Any = None
    moderation: Any = None


_EVENT_ERROR = re.compile(rb"(?:^|\r)event: ?error", re.MULTILINE)
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')


class ChatReader(Reader):
    """Keeps the last usage object of a stream. Several providers send more than one; they are never added."""

    def __init__(self, provider: str) -> None:
        super().__init__(provider)
        self._latest = b""

    def interesting(self, block: bytes) -> bool:
        at = block.find(b'"usage"')
        while at >= 0:
            if not block.startswith(b":null", at + 7):
                return True
            at = block.find(b'"usage"', at + 12)
        if b"[DONE]" in block:
            return True
        if b"error" not in block:
            return False
        return carries(block, b'"error"', b'"error":null') or _EVENT_ERROR.search(block) is not None

    def observe(self, data: bytes) -> bool:
        if b"[DONE]" in data and data.strip() == b"[DONE]":
            self.finished = True
            return False
        if b"error" in data or b'"usage"' not in data:
            self.identify(data)
        if self.usage is None or _NO_CHOICES.search(data):
            return self._read(data)
        if _USAGE.search(data):
            self._latest = data
        return False

    def conclude(self) -> None:
        """Where every chunk has a running total, only the first and the last are parsed."""
        if self._latest:
            self._read(self._latest)

    def _read(self, data: bytes) -> bool:
        chunk = decode(data, Chunk)
        usage = chat_usage(_usage_of(chunk), self.provider) if chunk else None
        if chunk is None or usage is None:
            return False
        self._note(chunk)
        self.usage, self._latest, self.final = usage, b"", True
        choices = items(chunk.choices)
        self.finished = self.finished or not choices or any(mapping(one).get("finish_reason") for one in choices)
        return chunk.choices == [] and chunk.error is None and chunk.moderation is None

    def _note(self, chunk: Chunk) -> None:
        self.note(chunk.model, chunk.id, chunk.service_tier)
        self.note_failure(chunk.error)
        if chunk.choices is None and chunk.usage is None:
            self.note_failure(chunk.message)

    def observe_body(self, data: bytes) -> None:
        chunk = decode(data, Chunk)
        if chunk is None:
            return
        self._note(chunk)
        self.usage = chat_usage(_usage_of(chunk), self.provider)
        self.finished = self.failed is None

    def observe_usage(self, usage: dict[str, Any]) -> None:
        self.usage, self._latest = chat_usage(usage, self.provider) or self.usage, b""
        self.final = self.finished = self.usage is not None

    def identify(self, data: bytes) -> None:
        if chunk := decode(data, Chunk):
            self._note(chunk)

    def event_text(self, data: bytes) -> str:
        return self._text(data, "delta")

    def body_text(self, data: bytes) -> str:
        return self._text(data, "message")

    def _text(self, data: bytes, member: str) -> str:
        chunk = decode(data, Chunk)
        choices = items(chunk.choices) if chunk else []
        return "".join(choice_text(mapping(choice), member) for choice in choices)


def _usage_of(chunk: Chunk) -> Any:
    """The usage object: at the top, else Groq's older place, else Moonshot's."""
    if chunk.usage:
        return chunk.usage
    if usage := mapping(chunk.x_groq).get("usage"):
        return usage
    choices = items(chunk.choices)
    return mapping(choices[0]).get("usage") if choices else None


def choice_text(choice: dict[str, Any], member: str) -> str:
    """The text of one choice: reasoning, content, refusal and the arguments of tool calls."""
    message = mapping(choice.get(member))
    reasoning = text(message.get("reasoning_content")) or text(message.get("reasoning")) or ""
    calls = [mapping(call).get("function") for call in items(message.get("tool_calls"))]
    calls.append(message.get("function_call"))
    named = "".join((text(mapping(call).get(name)) or "") for call in calls for name in ("name", "arguments"))
    return reasoning + "".join(text_pieces([message.get("content"), message.get("refusal")])) + named


class OpenAIChat(BaseFormat):
    """`/chat/completions`."""

    name = "openai_chat"
    reader: type[Reader] = ChatReader

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_outlined(body, Request, Members)
        model = require_model(request.model, path)
        if request.deferred:
            raise uncollectable("deferred")
        return RequestFacts(
            model=model,
            stream=request.stream is True,
            max_output_tokens=largest((request.max_completion_tokens, request.max_tokens)),
            choices=max(count_asked(request.n) or 1, 1),
            include_usage=mapping(request.stream_options).get("include_usage") is True,
            service_tier=text(request.service_tier),
            at_most=chat_at_most(body, request, model),
            hidden_tokens_max=openai_hidden(model, request.reasoning_effort, request.reasoning),
        )

    def upstream_body(self, body: bytes, facts: RequestFacts, *, inject_usage: bool) -> bytes:
        if inject_usage and facts.stream and not facts.include_usage:
            return with_usage(body)
        return body

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        reader = self.reader(provider)
        return meter_for(reader, facts, content_type=content_type, hide_usage=hide_usage, limit_bytes=limit_bytes)

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        tools = as_json(request.get("tools")) + as_json(request.get("functions"))
        return prompt_text(request.get("messages"), tools, as_json(request.get("response_format")))

    def request_media(self, body: bytes, model: str) -> Usage:
        return media_usage(media_of(body, "messages"), OPENAI, model)


_SEARCHING = re.compile(r"compound|sonar|-search-|:online$")


@lru_cache(maxsize=1_024)
def _searching(model: str) -> bool:
    """The model searches on its own."""
    return _SEARCHING.search(model) is not None


_CLIENT_TOOLS = {"function", "custom", ""}


def chat_at_most(body: bytes, request: Members, model: str) -> Usage | None:
    """The most that a chat can use beside text."""
    outlined = request if isinstance(request, Request) else None
    searches = bool(
        request.web_search_options is not None
        or request.search_parameters
        or request.plugins
        or request.enable_search
        or _searching(model)
        or outlined is None
        or (outlined.tools and kinds(outlined.tools) - _CLIENT_TOOLS)
    )
    media = media_of(body, "messages") if outlined is None or messages_show(outlined.messages) else None
    most = prompt_at_most(body, OPENAI, model, media=media, elsewhere=searches, tool_tokens=hidden_prompt_tokens(model))
    if not searches and not request.modalities:
        return most
    return replace(
        most or Usage(input_tokens=len(body)),
        output_audio_tokens=ALL if request.modalities else None,
        web_searches=SEARCHES_MAX if searches else None,
    )
