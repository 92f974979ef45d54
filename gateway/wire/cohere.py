"""Cohere's own chat (v1: NDJSON, v2: SSE) and embeddings. What it bills are `billed_units`, not `tokens`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from gateway.core.usage import Usage
from gateway.wire.base import BaseFormat
from gateway.wire.ceiling import SEARCHES_MAX, prompt_at_most
from gateway.wire.contract import Meter, RequestFacts
from gateway.wire.fields import count, count_asked, decode, first, items, mapping, partition, text
from gateway.wire.image_tokens import OPENAI
from gateway.wire.media import Media, media_in, media_of, media_usage
from gateway.wire.meters import NDJSON, StreamMeter, meter_for
from gateway.wire.reader import Reader, carries
from gateway.wire.requests import (
    as_json,
    decode_body,
    decode_outlined,
    loads,
    optional_model,
    prompt_text,
    require_model,
    text_pieces,
)
from gateway.wire.shapes import Messages, messages_show


class Members(msgspec.Struct):
    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    conversation_id: Any = None
    connectors: Any = None


class Request(Members):
    """With the outline of the prompt of v2."""

    messages: Messages = None


class Answer(msgspec.Struct):
    """A v1 or v2 response, an embeddings response, or one event of a stream: what each of them lacks is None."""

    id: Any = None
    generation_id: Any = None
    response_id: Any = None
    type: Any = None
    event_type: Any = None
    text: Any = None
    message: Any = None
    meta: Any = None
    usage: Any = None
    delta: Any = None
    response: Any = None
    tool_calls: Any = None
    tool_call_delta: Any = None


_MARKS = (b'"message-start"', b'"message-end"', b'"stream-start"', b'"stream-end"')


class CohereReader(Reader):
    """The final event of a v1 stream carries the whole response in `response`, that of v2 the usage in `delta`."""

    def interesting(self, block: bytes) -> bool:
        return any(mark in block for mark in _MARKS) or carries(block, b'"error"', b'"error":null')

    def observe(self, data: bytes) -> bool:
        answer = decode(data, Answer)
        if answer is None:
            return False
        ended = mapping(answer.response) or mapping(answer.delta)
        self.note_failure(ended.get("error"))
        self.note(None, first(answer.id, answer.generation_id))
        if answer.event_type == "stream-end" or answer.type == "message-end":
            self.note(None, first(ended.get("response_id"), ended.get("generation_id")))
            self.usage = billed_usage(mapping(ended.get("meta")) or ended.get("usage"))
            self.finished = True
            self.final = self.usage is not None
        return False

    def observe_body(self, data: bytes) -> None:
        answer = decode(data, Answer)
        if answer is None:
            return
        self.note(None, first(answer.response_id, answer.generation_id, answer.id))
        self.usage = billed_usage(answer.meta or answer.usage)
        self.finished = True

    def observe_usage(self, usage: dict[str, Any]) -> None:
        self.usage = billed_usage(usage)
        self.final = self.finished = self.usage is not None

    def event_text(self, data: bytes) -> str:
        answer = decode(data, Answer)
        if answer is None or answer.response is not None:
            return ""
        message = mapping(mapping(answer.delta).get("message"))
        v2 = (message.get("content"), message.get("tool_plan"), mapping(message.get("tool_calls")).get("function"))
        call = mapping(answer.tool_call_delta)
        return "".join(text_pieces([answer.text, *v2, call.get("name"), call.get("parameters")]))

    def body_text(self, data: bytes) -> str:
        answer = decode(data, Answer)
        return prompt_text(answer.text, answer.message, as_json(answer.tool_calls)) if answer else ""


def billed_usage(value: Any) -> Usage | None:
    """Canonical usage of a `meta` or `usage` object. A chat's images are among its billed input, an embedding's are
    billed beside it; `tokens`, with the vendor's own additions, tell how many they were."""
    units, tokens = mapping(mapping(value).get("billed_units")), mapping(mapping(value).get("tokens"))
    taken, seen = count(units.get("input_tokens")), count(units.get("image_tokens"))
    usage = Usage(
        input_tokens=taken if seen is None else (taken or 0) + seen,
        input_image_tokens=first(seen, count(tokens.get("image_tokens"))),
        output_tokens=count(units.get("output_tokens")),
        images=count(units.get("images")),
        search_units=count(units.get("search_units")),
    )
    return None if usage == Usage() else partition(usage)


class CohereChat(BaseFormat):
    """`/v1/chat`, which has a default model, and `/v2/chat`, which refuses a request without one itself."""

    reader = CohereReader

    def __init__(self, name: str) -> None:
        self.name = name

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        request = decode_outlined(body, Request, Members)
        return RequestFacts(
            model=optional_model(request.model),
            stream=request.stream is True,
            max_output_tokens=count_asked(request.max_tokens),
            at_most=chat_at_most(body, request),
        )

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        reader = CohereReader(provider)
        if "stream+json" in content_type.lower():
            return StreamMeter(reader, limit_bytes, NDJSON)
        return meter_for(reader, facts, content_type=content_type, limit_bytes=limit_bytes)

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        history = prompt_text(request.get("preamble"), request.get("chat_history"), request.get("message"))
        return prompt_text(history, request.get("messages"), request.get("documents"), as_json(request.get("tools")))

    def request_media(self, body: bytes, model: str) -> Usage:
        return media_usage(media_of(body, "messages"), OPENAI, model)


def chat_at_most(body: bytes, request: Members) -> Usage | None:
    """The most that a chat can use beside text: v1 keeps conversations, and its connectors search."""
    shown = not isinstance(request, Request) or messages_show(request.messages)
    most = prompt_at_most(
        body,
        OPENAI,
        text(request.model) or "",
        media=media_of(body, "messages") if shown else None,
        elsewhere=bool(request.connectors or request.conversation_id),
    )
    return replace(most, search_units=SEARCHES_MAX) if most is not None and request.connectors else most


class CohereEmbed(BaseFormat):
    """`/v1/embed` and `/v2/embed`: billed tokens, image tokens or images."""

    name = "cohere_embed"
    reader = CohereReader

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        model = require_model(decode_body(body, Members).model)
        images = body.count(b"data:image") + body.count(b'"image_url"')
        most = prompt_at_most(body, OPENAI, model, media=_embedded(body) if images else None, elsewhere=False)
        return RequestFacts(
            model=model,
            max_output_tokens=0,
            at_most=None if most is None else replace(most, images=images),
        )

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        inputs = [text(mapping(part).get("text")) for one in items(request.get("inputs")) for part in _parts(one)]
        return prompt_text(request.get("texts"), inputs)

    def request_media(self, body: bytes, model: str) -> Usage:
        return media_usage(_embedded(body), OPENAI, model)


def _embedded(body: bytes) -> Iterator[Media]:
    """v1 has data URLs in `images`, v2 parts in `inputs`."""
    request = loads(body)
    images = [{"image_url": one} for one in items(request.get("images"))]
    yield from media_in(images, request.get("inputs"))


def _parts(value: Any) -> list[Any]:
    return items(mapping(value).get("content"))
