"""One call in two dialects: the client's request for the provider, and the provider's answer for the client.

ask = read_request(body, client)
write_request(ask, provider, to)              goes to the provider, at `path_of(ask, provider, path)`
answer = translator(client, provider, ...)
answer.feed(data), ..., answer.finish()       bytes for the client; of a whole answer all of them come at the end
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from gateway.core.sse import EventSplitter, data_of, events
from gateway.errors import ObolError
from gateway.wire.requests import decode_body
from gateway.wire.translate.anthropic.answer_reader import AnthropicReader
from gateway.wire.translate.anthropic.answer_writer import AnthropicWriter, write_anthropic_answer
from gateway.wire.translate.anthropic.request_reader import read_anthropic
from gateway.wire.translate.anthropic.request_writer import write_anthropic
from gateway.wire.translate.failures import read_failure, written_failure
from gateway.wire.translate.framing import Untranslatable, Writing
from gateway.wire.translate.gemini.answer_reader import GeminiReader
from gateway.wire.translate.gemini.answer_writer import GeminiWriter, write_gemini_answer
from gateway.wire.translate.gemini.request_reader import read_gemini
from gateway.wire.translate.gemini.request_writer import write_gemini
from gateway.wire.translate.model import (
    Answer,
    Ask,
    Dialect,
    Ended,
    Event,
    Failed,
    Media,
    MediaDelta,
    Started,
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
from gateway.wire.translate.openai.answer_reader import OpenAIReader
from gateway.wire.translate.openai.answer_writer import OpenAIWriter, write_openai_answer
from gateway.wire.translate.openai.request_reader import read_openai
from gateway.wire.translate.openai.request_writer import write_openai
from gateway.wire.translate.values import To

DIALECTS: dict[str, Dialect] = {
    "openai_chat": "openai",
    "anthropic_messages": "anthropic",
    "gemini_generate": "google",
    "gemini_stream": "google",
}
"""The wire formats that can be translated."""
JSON = "application/json"
SSE = "text/event-stream"


class AnswerReader(Protocol):
    """Reads one answer. Raise Untranslatable for what is no JSON object."""

    def whole(self, body: bytes) -> Answer | Failed: ...

    def events(self, data: bytes) -> Iterator[Event]: ...

    def finish(self) -> Iterator[Event]: ...


class AnswerWriter(Protocol):
    def write(self, said: Event) -> bytes: ...


_WRITE: dict[Dialect, Callable[[Ask, To], dict[str, Any]]] = {
    "openai": write_openai,
    "anthropic": write_anthropic,
    "google": write_gemini,
}
_READERS: dict[Dialect, Callable[[str, str], AnswerReader]] = {
    "openai": OpenAIReader,
    "anthropic": AnthropicReader,
    "google": GeminiReader,
}
_WRITERS: dict[Dialect, Callable[[Writing], AnswerWriter]] = {
    "openai": OpenAIWriter,
    "anthropic": AnthropicWriter,
    "google": GeminiWriter,
}
_WHOLE: dict[Dialect, Callable[[Answer, Writing], dict[str, Any]]] = {
    "openai": write_openai_answer,
    "anthropic": write_anthropic_answer,
    "google": write_gemini_answer,
}


def read_request(body: bytes, client: Dialect, *, model: str | None = None, stream: bool = False) -> Ask:
    """A client's request. `model` is the body's, unless another one is given, as Gemini's path does; `stream` is what
    that path says.

    Raise ObolError `invalid_request`, `forward_model_invalid` or `forward_translation_not_supported`.
    """
    members = decode_body(body, dict[str, Any])
    try:
        if client == "google":
            named = members.get("model")
            model = model or (named.removeprefix("models/") if isinstance(named, str) else None)
            ask = read_gemini(members, model or "", stream=stream)
        else:
            ask = (read_openai if client == "openai" else read_anthropic)(members)
    except RecursionError:
        raise ObolError("invalid_request", "the request body has too many levels", param="body") from None
    if model is not None:
        ask.model = model
    if not ask.model:
        raise ObolError("forward_model_invalid", "the request names no model", param="model")
    return ask


def write_request(ask: Ask, provider: Dialect, to: To) -> bytes:
    """The body for a provider. Raise ObolError as `read_request` does."""
    return msgspec.json.encode(_WRITE[provider](ask, to))


def path_of(ask: Ask, provider: Dialect, path: str) -> str:
    """Where it goes: `path`, or for Gemini the method of the model, whether or not it streams.

    `path` may hold Gemini's whole path, or end before the model's name (".../models").
    """
    if provider != "google":
        return path
    head, separator, _ = path.rpartition("/models/")
    head = head if separator else path.removesuffix("/models")
    method = "streamGenerateContent?alt=sse" if ask.stream else "generateContent"
    return f"{head}/models/{quote(ask.model, safe='')}:{method}"


class StreamTranslator:
    """A provider's server-sent events as the client's. `feed` gives what whole events say."""

    content_type = SSE

    def __init__(self, reader: AnswerReader, writer: AnswerWriter, limit_bytes: int, *, array: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._splitter = EventSplitter(limit_bytes)
        self.content_type = JSON if array else SSE
        self.tail = b""
        """What was given last."""

    @property
    def waiting_bytes(self) -> int:
        """Of the event that is not complete yet."""
        return self._splitter.pending_bytes

    def feed(self, data: bytes) -> bytes:
        """Raise Untranslatable."""
        block = self._splitter.feed(data)
        return self._said(block) if block else b""

    def finish(self) -> bytes:
        """The end of the stream. A stream that was cut short has none."""
        rest = self._splitter.finish()
        said = self._said(rest) if rest.strip() else b""
        return said + self._written(self._reader.finish())

    def _said(self, block: bytes) -> bytes:
        if self._splitter.oversized:
            raise Untranslatable("an event of the provider's stream is too long to be translated")
        payloads = (data_of(block[start:end]) for start, end in events(block))
        return b"".join(self._written(self._reader.events(data)) for data in payloads if data.strip())

    def _written(self, said: Iterator[Event]) -> bytes:
        written = b"".join(map(self._writer.write, said))
        self.tail = written or self.tail
        return written


class WholeTranslator:
    """A provider's whole answer, kept until its end. `streams`: the client wants a stream all the same."""

    def __init__(
        self, reader: AnswerReader, client: Dialect, writing: Writing, limit_bytes: int, *, status: int, streams: bool
    ) -> None:
        self._reader = reader
        self._client = client
        self._writing = writing
        self._limit_bytes = limit_bytes
        self._status = status
        self._streams = streams and status < 400
        self._pieces: list[bytes] = []
        self.waiting_bytes = 0
        self.content_type = SSE if self._streams and not writing.array else JSON
        self.tail = b""

    def feed(self, data: bytes) -> bytes:
        """Raise Untranslatable."""
        self.waiting_bytes += len(data)
        if self.waiting_bytes > self._limit_bytes:
            raise Untranslatable("the provider's answer is too long to be translated")
        self._pieces.append(data)
        return b""

    def finish(self) -> bytes:
        """All of the answer. Raise Untranslatable."""
        body = b"".join(self._pieces)
        if self._status >= 400:
            return self._told(read_failure(body, self._status))
        answer = self._reader.whole(body)
        if self._streams:
            writer = _WRITERS[self._client](self._writing)
            return b"".join(map(writer.write, events_of(answer)))
        if isinstance(answer, Failed):
            return self._told(answer)
        return msgspec.json.encode(_WHOLE[self._client](answer, self._writing))

    def _told(self, error: Failed) -> bytes:
        return msgspec.json.encode(written_failure(error, self._client, self._writing.request_id))


Translator = StreamTranslator | WholeTranslator


def translator(
    client: Dialect,
    provider: Dialect,
    writing: Writing,
    *,
    provider_name: str,
    status: int,
    content_type: str,
    streams: bool,
    limit_bytes: int,
) -> Translator:
    """Of one answer, told by its head. `streams`: the client asked for a stream."""
    reader = _READERS[provider](provider_name, writing.request_id.removeprefix("req_"))
    if status < 400 and streams and ("json" not in content_type.lower()):
        return StreamTranslator(reader, _WRITERS[client](writing), limit_bytes, array=writing.array)
    return WholeTranslator(reader, client, writing, limit_bytes, status=status, streams=streams)


def events_of(answer: Answer | Failed) -> Iterator[Event]:
    """A whole answer as the events of a stream."""
    if isinstance(answer, Failed):
        yield answer
        return
    yield Started(answer.id, answer.model)
    for number, choice in enumerate(answer.choices):
        calls = 0
        for part in choice.parts:
            if isinstance(part, ToolCall):
                yield ToolStarted(calls, part.id, part.name, part.signature, number)
                yield ToolDelta(calls, part.arguments, number)
                calls += 1
            elif isinstance(part, Text):
                yield TextDelta(part.text, number)
            elif isinstance(part, Thinking):
                yield ThinkingDelta(part.text, part.signature, part.redacted, number)
            elif isinstance(part, Media):
                yield MediaDelta(part, number)
        yield Stopped(choice.stop, choice.sequence, number)
    if answer.usage is not None:
        yield Used(answer.usage)
    yield Ended()
