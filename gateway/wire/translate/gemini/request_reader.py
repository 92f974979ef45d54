"""Gemini generateContent: a client's request, read. The model and whether it streams stand in the path."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from gateway.wire.translate.fields import Fields, refusal
from gateway.wire.translate.model import (
    ASKED,
    SAID,
    Ask,
    Media,
    Message,
    Output,
    Part,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.wire.translate.schema import json_schema
from gateway.wire.translate.values import (
    json_text,
    one_of,
    standard_base64,
)

_PATHS = {
    "temperature": "generationConfig.temperature",
    "top_k": "generationConfig.topK",
    "seed": "generationConfig.seed",
    "presence_penalty": "generationConfig.presencePenalty",
    "frequency_penalty": "generationConfig.frequencyPenalty",
    "choices": "generationConfig.candidateCount",
    "output": "generationConfig.responseMimeType",
    "effort": "generationConfig.thinkingConfig",
    "thinking_tokens": "generationConfig.thinkingConfig",
}
_LEVELS = ("minimal", "low", "medium", "high")
_MODES = {"AUTO": "auto", "ANY": "any", "NONE": "none", "VALIDATED": "auto"}
_FILE_HOSTS = ("https://generativelanguage.googleapis.com/", "https://www.youtube.com/", "https://youtu.be/")


class _Calls:
    """Names for calls that have no id, and the calls that results are for: by id, else in their order by name."""

    def __init__(self) -> None:
        self._made = 0
        self._open: dict[str, deque[str]] = {}
        self._answered: set[str] = set()

    def called(self, given: str | None, name: str) -> str:
        self._made += 1
        call_id = given or f"call_{self._made}"
        self._open.setdefault(name, deque()).append(call_id)
        return call_id

    def answered(self, given: str | None, name: str) -> str | None:
        if given is not None:
            self._answered.add(given)
            return given
        waiting = self._open.get(name, deque())
        while waiting:
            if (call_id := waiting.popleft()) not in self._answered:
                return call_id
        return None


def read_gemini(body: dict[str, Any], model: str, *, stream: bool) -> Ask:
    """Raise ObolError `invalid_request` or `forward_translation_not_supported` naming the field."""
    asked = Fields(body, camel=True)
    calls = _Calls()
    ask = Ask(
        model=model,
        stream=stream,
        include_usage=True,
        system=_system(asked.inner("systemInstruction"), calls),
        messages=tuple(_message(content, calls) for content in asked.each("contents")),
        tools=tuple(tool for group in asked.each("tools") for tool in _tools(group)),
        choice=_choice(asked.inner("toolConfig")),
        paths=_PATHS,
    )
    _configure(ask, asked.inner("generationConfig"))
    asked.leave("model", "safetySettings", "labels", "store")
    asked.end()
    return ask


def _system(content: Fields | None, calls: _Calls) -> tuple[str, ...]:
    if content is None:
        return ()
    texts = tuple(part.text for part in _parts(content, calls, (Text,)) if isinstance(part, Text))
    content.end()
    return texts


def _configure(ask: Ask, config: Fields | None) -> None:
    """`generationConfig`."""
    if config is None:
        return
    ask.max_tokens = config.whole("maxOutputTokens")
    ask.temperature = config.number("temperature")
    ask.top_p = config.number("topP")
    ask.top_k = config.whole("topK")
    ask.stop = config.texts("stopSequences")
    ask.seed = config.whole("seed")
    ask.presence_penalty = config.number("presencePenalty")
    ask.frequency_penalty = config.number("frequencyPenalty")
    ask.choices = config.whole("candidateCount") or 1
    ask.output = _output(config)
    _think(ask, config.inner("thinkingConfig"))
    config.only("responseModalities", ["TEXT"], ["Text"], ["text"], [])
    config.only("responseLogprobs", False)
    config.end()


def _output(config: Fields) -> Output | None:
    kind = config.text("responseMimeType") or "text/plain"
    schemas = [config.object(name) for name in ("responseJsonSchema", "responseSchema")]
    if kind == "text/plain":
        return None
    if kind != "application/json":
        raise config.refuse("responseMimeType", f"{kind!r} is not text/plain or application/json")
    by_json, by_openapi = schemas
    if by_json is None and by_openapi is not None:
        by_json = json_schema(by_openapi, config.path("responseSchema"))
    return Output(by_json)


def _think(ask: Ask, thinking: Fields | None) -> None:
    if thinking is None:
        return
    tokens, level = thinking.whole("thinkingBudget"), thinking.text("thinkingLevel")
    ask.thinking_tokens = None if tokens is not None and tokens < 0 else tokens
    if level is not None:
        if level.lower() not in _LEVELS:
            raise thinking.refuse("thinkingLevel", f"{level!r} is not one of {', '.join(_LEVELS)}")
        ask.effort = level.lower()  # type: ignore[assignment]
    ask.show_thinking = thinking.flag("includeThoughts") or False
    thinking.end()


def _message(content: Fields, calls: _Calls) -> Message:
    role = one_of(content, "role", ("user", "model", "function")) or "user"
    parts = tuple(_parts(content, calls, SAID if role == "model" else ASKED))
    content.end()
    return Message("assistant" if role == "model" else "user", parts)


def _parts(content: Fields, calls: _Calls, allowed: tuple[type[Part], ...]) -> Iterator[Part]:
    content.leave("role")
    for part in content.each("parts"):
        read_part = _part(part, calls)
        part.end("it is Gemini's own")
        if read_part is not None:
            if not isinstance(read_part, allowed):
                raise refusal(part.at, "such a part does not belong here")
            yield read_part


def _part(part: Fields, calls: _Calls) -> Part | None:
    signature, thought = part.text("thoughtSignature") or "", part.flag("thought")
    if "text" in part:
        text = part.text("text") or ""
        return Thinking(text) if thought else Text(text)
    if "functionCall" in part:
        return _call(part, calls, signature)
    if "functionResponse" in part:
        return _result(part, calls)
    inline = part.inner("inlineData")
    if inline is not None:
        found = Media(
            inline.required_text("mimeType"),
            data=standard_base64(inline.required_text("data")),
            name=inline.text("displayName") or "",
            at=inline.at,
        )
        inline.end()
        return found
    return _file(part) if "fileData" in part else None


def _file(part: Fields) -> Media:
    stored = part.inner("fileData")
    assert stored is not None
    url, kind = stored.required_text("fileUri"), stored.text("mimeType") or "image/*"
    if not url.startswith("https://") or url.startswith(_FILE_HOSTS):
        raise stored.refuse("fileUri", "a file at Google is not at the other provider")
    stored.leave("displayName")
    stored.end()
    return Media(kind, url=url, at=stored.at)


def _call(part: Fields, calls: _Calls, signature: str) -> ToolCall:
    call = part.inner("functionCall")
    assert call is not None
    at, name, arguments = call.path("args"), call.required_text("name"), json_text(call.object("args") or {})
    found = ToolCall(calls.called(call.text("id"), name), name, arguments, signature, at)
    call.end()
    return found


def _result(part: Fields, calls: _Calls) -> ToolResult:
    result = part.inner("functionResponse")
    assert result is not None
    name = result.required_text("name")
    call_id = calls.answered(result.text("id"), name)
    if call_id is None:
        raise result.refuse("name", f"no call of {name!r} waits for a result")
    failed, text = _told(result.object("response") or {})
    result.end()
    return ToolResult(call_id, name, text, failed, at=result.path("name"))


def _told(response: dict[str, Any]) -> tuple[bool, str]:
    """Whether a tool failed, and what it brought: `output`, `result` and `error` are Google's convention."""
    if len(response) == 1:
        ((name, value),) = response.items()
        if name in ("output", "result", "error"):
            return name == "error", value if isinstance(value, str) else json_text(value)
    return False, json_text(response)


def _tools(group: Fields) -> Iterator[Tool]:
    for declared in group.each("functionDeclarations"):
        schema = declared.object("parametersJsonSchema")
        if schema is None and "parameters" in declared:
            schema = json_schema(declared.object("parameters") or {}, declared.path("parameters"))
        yield Tool(declared.required_text("name"), declared.text("description") or "", schema)
        declared.only("behavior", "BLOCKING", "UNSPECIFIED")
        declared.end()
    group.end("it is a tool of Gemini's own")


def _choice(config: Fields | None) -> ToolChoice | None:
    calling = config.inner("functionCallingConfig") if config else None
    if config is not None:
        config.end("it is Gemini's own")
    if calling is None:
        return None
    mode = one_of(calling, "mode", tuple(_MODES)) or "AUTO"
    names = calling.texts("allowedFunctionNames")
    if len(names) > 1 or (names and mode != "ANY"):
        raise calling.refuse("allowedFunctionNames", "the other dialect can be told one function, or any")
    calling.end()
    return ToolChoice("tool", names[0]) if names else ToolChoice(_MODES[mode])  # type: ignore[arg-type]
