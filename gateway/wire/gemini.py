"""Google Gemini and Vertex AI: generateContent, its stream (SSE or a JSON array), embeddings, countTokens.

The model and the method stand in the path. Every chunk of a stream has usageMetadata; only the last one counts,
whole: numbers go down as well as up between chunks, and a member it lacks is zero.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.wire.base import BaseFormat
from gateway.wire.ceiling import SEARCHES_MAX, prompt_at_most
from gateway.wire.contract import ALL, Meter, RequestFacts
from gateway.wire.fields import count, decode, first, items, largest, mapping, partition, text
from gateway.wire.image_tokens import GOOGLE
from gateway.wire.media import media_of, media_usage
from gateway.wire.meters import FREE, ArrayMeter, SilentMeter, meter_for
from gateway.wire.reader import Reader, carries
from gateway.wire.reasoning import gemini_hidden
from gateway.wire.requests import as_json, decode_outlined, loads, prompt_text

_MODEL = re.compile(r"/([^/:]+):[A-Za-z]+$")


NOTHING = Raw()


class Members(msgspec.Struct):
    generationConfig: Any = None
    generation_config: Any = None
    cachedContent: Any = None
    cached_content: Any = None


class Part(msgspec.Struct):
    """Which kind of part it is; never decoded further."""

    inlineData: Raw = NOTHING
    inline_data: Raw = NOTHING
    fileData: Raw = NOTHING
    file_data: Raw = NOTHING
    functionResponse: Content | None = None
    """Of a tool's result, which may have parts of its own."""


class Content(msgspec.Struct):
    parts: list[Part] | None = None


class Request(Members):
    """With the outline of the prompt."""

    contents: list[Content] | None = None
    content: Content | None = None
    requests: list[Request] | None = None
    tools: list[dict[str, Raw]] | None = None


class Chunk(msgspec.Struct):
    """A response body, or one chunk of a stream."""

    responseId: Any = None
    modelVersion: Any = None
    usageMetadata: Any = None
    candidates: Any = None
    error: Any = None


class GeminiReader(Reader):
    """Remembers the last event with usage unparsed, so that a stream costs one JSON parse."""

    usage_key = b'"usageMetadata"'

    def __init__(self, provider: str) -> None:
        super().__init__(provider)
        self._last = b""
        self._searches = 0

    def interesting(self, block: bytes) -> bool:
        return b'"usageMetadata"' in block or b'"finishReason"' in block or b'"error"' in block

    def observe(self, data: bytes) -> bool:
        if b'"usageMetadata"' in data:
            self._last = data
        if b'"finishReason"' in data:
            self.finished = True
        if b'"webSearchQueries"' in data:
            self._searches = max(self._searches, _queries(decode(data, Chunk)))
        if carries(data, b'"error"', b'"error":null'):
            self._note_error(data)
        return False

    def _note_error(self, data: bytes) -> None:
        if chunk := decode(data, Chunk):
            self.note_failure(chunk.error)

    def conclude(self) -> None:
        chunk = decode(self._last, Chunk) if self._last else None
        if chunk is None:
            return
        self.note(chunk.modelVersion, chunk.responseId)
        self.usage = gemini_usage(chunk.usageMetadata, self.finished, self._billed_searches())
        self.service_tier = text(mapping(chunk.usageMetadata).get("serviceTier")) or self.service_tier

    def _billed_searches(self) -> int | None:
        """Before Gemini 3 a grounded answer is billed once, since then by the query."""
        if not self._searches:
            return None
        return 1 if (self.model or "").startswith(("gemini-1", "gemini-2")) else self._searches

    def observe_body(self, data: bytes) -> None:
        chunk = decode(data, Chunk)
        if chunk is None:
            return
        self.note(chunk.modelVersion, chunk.responseId)
        self.note_failure(chunk.error)
        self._searches = _queries(chunk)
        self._last = data
        self.finished = self.failed is None

    def observe_usage(self, usage: dict[str, Any]) -> None:
        self.usage = gemini_usage(usage, True, None)
        self.finished = self.usage is not None
        self._last = b""

    def identify(self, data: bytes) -> None:
        if chunk := decode(data, Chunk):
            self.note(chunk.modelVersion, chunk.responseId)

    def event_text(self, data: bytes) -> str:
        chunk = decode(data, Chunk)
        candidates = items(chunk.candidates) if chunk else []
        parts = [mapping(mapping(candidate).get("content")).get("parts") for candidate in candidates]
        return "".join(_part_text(mapping(part)) for group in parts for part in items(group))

    body_text = event_text


def _part_text(part: dict[str, Any]) -> str:
    call = mapping(part.get("functionCall"))
    code = mapping(part.get("executableCode")).get("code")
    return "".join(
        filter(None, (text(part.get("text")), text(call.get("name")), as_json(call.get("args")), text(code)))
    )


def _queries(chunk: Chunk | None) -> int:
    """How many web searches the candidates are grounded on."""
    candidates = items(chunk.candidates) if chunk else []
    grounding = (mapping(mapping(candidate).get("groundingMetadata")) for candidate in candidates)
    return sum(len(items(metadata.get("webSearchQueries"))) for metadata in grounding)


def gemini_usage(value: Any, finished: bool, searches: int | None) -> Usage | None:
    """Canonical usage of a usageMetadata. Thinking is outside candidates, tool prompts outside the prompt.

    Where a stream was cut before any candidate was counted, its output is not reported.
    """
    usage = mapping(value)
    prompt, tools = count(usage.get("promptTokenCount")), count(usage.get("toolUsePromptTokenCount"))
    candidates, thoughts = count(usage.get("candidatesTokenCount")), count(usage.get("thoughtsTokenCount"))
    total = count(usage.get("totalTokenCount"))
    if prompt is None and candidates is None and total is None:
        return None
    asked = first(usage.get("promptTokensDetails"), usage.get("promptTokenDetails"))
    inputs = items(asked) + items(usage.get("toolUsePromptTokensDetails"))
    cached, outputs = usage.get("cacheTokensDetails"), usage.get("candidatesTokensDetails")
    known = finished or candidates is not None
    return partition(
        Usage(
            input_tokens=None if prompt is None and tools is None else (prompt or 0) + (tools or 0),
            cached_input_tokens=count(usage.get("cachedContentTokenCount")),
            input_audio_tokens=_modality(inputs, "AUDIO"),
            cached_audio_tokens=_modality(cached, "AUDIO"),
            cached_image_tokens=_modality(cached, *_SEEN),
            input_image_tokens=_modality(inputs, *_SEEN),
            input_video_tokens=_modality(inputs, "VIDEO"),
            output_tokens=(candidates or 0) + (thoughts or 0) if known else None,
            reasoning_tokens=thoughts,
            output_audio_tokens=_modality(outputs, "AUDIO"),
            output_image_tokens=_modality(outputs, "IMAGE"),
            web_searches=searches,
        )
    )


_SEEN = ("IMAGE", "DOCUMENT")
"""Pages of documents are priced as images."""


def _modality(details: Any, *modalities: str) -> int | None:
    """The tokens of these modalities; None if none is listed."""
    entries = (mapping(entry) for entry in items(details))
    counts = [count(entry.get("tokenCount")) for entry in entries if entry.get("modality") in modalities]
    told = [number for number in counts if number is not None]
    return sum(told) if told else None


class EmbedReader(GeminiReader):
    """Embeddings have input only, and before gemini-embedding-2 no usage at all."""

    def conclude(self) -> None:
        super().conclude()
        if self.usage is not None:
            self.usage = replace(self.usage, output_tokens=None)


def _hidden(model: str, configs: tuple[dict[str, Any], ...]) -> int:
    given = (config.get(name) for config in configs for name in ("thinkingConfig", "thinking_config"))
    return gemini_hidden(model, first(*given))


class Gemini(BaseFormat):
    """`/models/{model}:{method}`. Which method it is, the provider table has told by the format's name."""

    dialect = "google"
    reader = GeminiReader

    def __init__(self, name: str) -> None:
        self.name = name

    def read_request(self, body: bytes, path: str, query: str, content_type: str = "") -> RequestFacts:
        match = _MODEL.search(path)
        if match is None:
            message = "the path names no model: it must end in models/{model}:{method}"
            raise ObolError("forward_model_invalid", message, param="model")
        model, request = unquote(match.group(1)), decode_outlined(body, Request, Members)
        configs = (mapping(request.generationConfig), mapping(request.generation_config))
        maximum = largest(config.get(name) for config in configs for name in ("maxOutputTokens", "max_output_tokens"))
        choices = largest(config.get(name) for config in configs for name in ("candidateCount", "candidate_count"))
        return RequestFacts(
            model=model,
            stream=self.name == "gemini_stream",
            max_output_tokens=0 if self.name == "gemini_embed" else maximum,
            choices=max(choices or 1, 1),
            free=self.name == "gemini_count_tokens",
            hidden_tokens_max=_hidden(model, configs),
            at_most=gemini_at_most(body, request, configs, model),
        )

    def meter(
        self, facts: RequestFacts, *, provider: str, content_type: str, hide_usage: bool, limit_bytes: int
    ) -> Meter:
        if facts.free:
            return SilentMeter(FREE)
        reader = EmbedReader(provider) if self.name == "gemini_embed" else GeminiReader(provider)
        if facts.stream and "event-stream" not in content_type.lower():
            return ArrayMeter(reader, limit_bytes)
        return meter_for(reader, facts, content_type=content_type, limit_bytes=limit_bytes)

    def request_text(self, body: bytes) -> str:
        request = loads(body)
        embeds = [mapping(entry).get("content") for entry in items(request.get("requests"))]
        system = request.get("systemInstruction") or request.get("system_instruction")
        contents = (request.get("contents"), request.get("content"), embeds)
        return prompt_text(system, *contents, as_json(request.get("tools")))

    def request_media(self, body: bytes, model: str) -> Usage:
        return media_usage(media_of(body, *_MEDIA_MEMBERS), GOOGLE, model)


_MEDIA_MEMBERS = ("contents", "content", "requests", "systemInstruction", "system_instruction")
_CLIENT_TOOLS = {"functionDeclarations", "function_declarations"}
_DRAWS = re.compile(r"image|banana|omni")


def gemini_at_most(body: bytes, request: Members, configs: tuple[dict[str, Any], ...], model: str) -> Usage | None:
    """The most that a call can use beside text: cached content, files and what tools find are not in the body."""
    outlined = request if isinstance(request, Request) else None
    tools = _tools(outlined) - _CLIENT_TOOLS
    most = prompt_at_most(
        body,
        GOOGLE,
        model,
        media=media_of(body, *_MEDIA_MEMBERS) if outlined is None or _shows(outlined) else None,
        elsewhere=bool(tools or request.cachedContent or request.cached_content),
    )
    modalities = [one for config in configs for name in _MODALITIES for one in items(config.get(name))]
    draws = "IMAGE" in modalities or _DRAWS.search(model) is not None
    speaks = "AUDIO" in modalities or "tts" in model
    if not (draws or speaks or tools):
        return most
    return replace(
        most or Usage(input_tokens=len(body)),
        output_image_tokens=ALL if draws else None,
        output_audio_tokens=ALL if speaks else None,
        web_searches=SEARCHES_MAX if tools else None,
    )


_MODALITIES = ("responseModalities", "response_modalities")


def _tools(request: Request | None) -> set[str]:
    """Names of the tools; where they cannot be read, one that is none of the client's."""
    if request is None:
        return {"?"}
    return {name for tool in request.tools or () for name in tool}


def _shows(request: Request) -> bool:
    """Whether it may hold anything but text."""
    contents = [*(request.contents or ()), *([request.content] if request.content else ())]
    return any(map(_content_shows, contents)) or any(map(_shows, request.requests or ()))


def _content_shows(content: Content) -> bool:
    for part in content.parts or ():
        if part.inlineData or part.inline_data or part.fileData or part.file_data:
            return True
        if part.functionResponse is not None and _content_shows(part.functionResponse):
            return True
    return False
