"""OpenAI chat completions: a client's request, read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gateway.wire.translate.fields import Fields, invalid, refusal
from gateway.wire.translate.model import (
    Ask,
    Media,
    Message,
    Output,
    Part,
    Role,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
)
from gateway.wire.translate.values import EFFORTS, one_of

_PATHS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "choices": "n",
    "parallel": "parallel_tool_calls",
    "output": "response_format",
    "effort": "reasoning_effort",
    "tier": "service_tier",
}
_HARMLESS = ("store", "metadata", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options")
_DATA_URL = re.compile(r"data:([^;,]+)((?:;[^;,]+)*);base64,", re.IGNORECASE)
_SOUND = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_MODES = {"auto": "auto", "none": "none", "required": "any", "any": "any"}


def read_openai(body: dict[str, Any]) -> Ask:
    """Raise ObolError `invalid_request` or `forward_translation_not_supported` naming the field."""
    asked = Fields(body)
    system, messages = _messages(asked)
    limits = (asked.whole("max_completion_tokens"), asked.whole("max_tokens"))
    ask = Ask(
        model=asked.required_text("model"),
        stream=asked.flag("stream") or False,
        include_usage=_include_usage(asked.inner("stream_options")),
        system=system,
        messages=messages,
        tools=tuple(_tool(tool) for tool in asked.each("tools")),
        choice=_choice(asked),
        parallel=asked.flag("parallel_tool_calls"),
        max_tokens=next((limit for limit in limits if limit is not None), None),
        temperature=asked.number("temperature"),
        top_p=asked.number("top_p"),
        stop=asked.texts("stop"),
        output=_output(asked),
        seed=asked.whole("seed"),
        presence_penalty=asked.number("presence_penalty"),
        frequency_penalty=asked.number("frequency_penalty"),
        choices=_answers(asked),
        effort=one_of(asked, "reasoning_effort", EFFORTS),
        user=asked.text("safety_identifier") or asked.text("user"),
        tier=one_of(asked, "service_tier", ("auto", "default")),
        paths=_PATHS,
    )
    asked.leave("user", *_HARMLESS)
    for name, usual in (("logprobs", False), ("top_logprobs", 0), ("logit_bias", {}), ("modalities", ["text"])):
        asked.only(name, usual)
    asked.only("verbosity", "medium")
    asked.end()
    return ask


def _answers(asked: Fields) -> int:
    wanted = asked.whole("n")
    if wanted is not None and wanted < 1:
        raise invalid(asked.path("n"), "must be at least 1")
    return wanted or 1


def _include_usage(options: Fields | None) -> bool:
    if options is None:
        return False
    asked = options.flag("include_usage") or False
    options.leave("include_obfuscation")
    options.end()
    return asked


def _messages(asked: Fields) -> tuple[tuple[str, ...], tuple[Message, ...]]:
    """System texts, which must come first, and the rest; results of tools are the beginning of a user's message."""
    system: list[str] = []
    messages: list[tuple[Role, list[Part]]] = []
    names: dict[str, str] = {}
    for message in asked.each("messages"):
        role = message.required_text("role")
        if role in ("system", "developer"):
            if messages:
                raise message.refuse("role", "the other dialect has system messages at the beginning only")
            message.leave("name")
            system += _texts(message)
            message.end()
            continue
        parts = list(_of_role(message, role, names))
        message.end()
        speaker: Role = "assistant" if role == "assistant" else "user"
        if messages and messages[-1][0] == speaker and isinstance(messages[-1][1][-1], ToolResult):
            messages[-1][1].extend(parts)
        elif parts:
            messages.append((speaker, parts))
    return tuple(system), tuple(Message(speaker, tuple(parts)) for speaker, parts in messages)


def _of_role(message: Fields, role: str, names: dict[str, str]) -> Iterator[Part]:
    if role == "user":
        yield from _parts(message)
    elif role == "assistant":
        yield from _said(message, names)
    elif role == "tool":
        yield _result(message, names)
    else:
        raise refusal(message.path("role"), f"there is no role {role!r} but system, developer, user, assistant, tool")


def _said(message: Fields, names: dict[str, str]) -> Iterator[Part]:
    """An assistant's message. Its reasoning comes back where this gateway sent it, with its proof."""
    yield from _reasoning(message)
    yield from _parts(message)
    refused = message.text("refusal")
    if refused:
        yield Text(refused)
    for call in message.each("tool_calls"):
        found = _call(call)
        names[found.id] = found.name
        yield found
    message.leave("annotations")


def _reasoning(message: Fields) -> Iterator[Thinking]:
    plain = message.text("reasoning_content") or message.text("reasoning")
    message.leave("reasoning")
    details = [detail for detail in message.array("reasoning_details") if isinstance(detail, dict)]
    for detail in details:
        kind, text = detail.get("type"), detail.get("text")
        if kind == "reasoning.encrypted" and isinstance(detail.get("data"), str):
            yield Thinking(redacted=detail["data"])
        elif kind == "reasoning.text" and isinstance(text, str):
            yield Thinking(text, detail.get("signature") or "")
    if plain and not details:
        yield Thinking(plain)


def _call(call: Fields) -> ToolCall:
    call.only("type", "function")
    call.leave("index")
    function, signature = call.inner("function"), _proof(call.inner("extra_content"))
    if function is None:
        raise invalid(call.path("function"), "is missing")
    at, arguments = function.path("arguments"), function.text("arguments") or "{}"
    found = ToolCall(call.required_text("id"), function.required_text("name"), arguments, signature, at)
    function.end()
    call.end()
    return found


def _proof(extra: Fields | None) -> str:
    google = extra.inner("google") if extra else None
    if extra is None or google is None:
        return ""
    signature = google.text("thought_signature") or ""
    google.end()
    extra.end()
    return signature


def _result(message: Fields, names: dict[str, str]) -> ToolResult:
    call_id, at = message.required_text("tool_call_id"), message.path("tool_call_id")
    given = list(_parts(message))
    name = message.text("name") or names.get(call_id, "")
    texts = "".join(part.text for part in given if isinstance(part, Text))
    return ToolResult(call_id, name, texts, media=tuple(part for part in given if isinstance(part, Media)), at=at)


def _texts(message: Fields) -> Iterator[str]:
    at = message.path("content")
    for number, part in enumerate(_parts(message)):
        if not isinstance(part, Text):
            raise refusal(f"{at}[{number}]", "a system message is text")
        yield part.text


def _parts(message: Fields) -> Iterator[Text | Media]:
    """The content: a string, or parts."""
    content = message.take("content")
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    if content is not None and not isinstance(content, list):
        raise invalid(message.path("content"), "must be a string or an array of parts")
    for number, value in enumerate(content or ()):
        part = Fields(value, f"{message.path('content')}[{number}]")
        yield _part(part)
        part.leave("cache_control")
        part.end()


def _part(part: Fields) -> Text | Media:
    kind = part.required_text("type")
    if kind in ("text", "refusal"):
        return Text(part.required_text(kind))
    inner = part.inner(kind) if kind in ("image_url", "input_audio", "file") else None
    if inner is None:
        raise part.refuse("type", f"a part of type {kind!r} is not known")
    if kind == "image_url":
        inner.leave("detail")
        media = _at_url(inner.required_text("url"), "image/*", inner.path("url"))
    elif kind == "input_audio":
        sound = one_of(inner, "format", tuple(_SOUND)) or "wav"
        media = Media(_SOUND[sound], data=inner.required_text("data"), at=inner.at)
    else:
        name, data = inner.text("filename") or "", inner.text("file_data")
        if data is None:
            raise inner.refuse("file_id", "a file that the provider stores is not at the other one")
        media = _at_url(data, "application/pdf", inner.path("file_data"), name)
    inner.end()
    return media


def _at_url(url: str, media_type: str, at: str, name: str = "") -> Media:
    found = _DATA_URL.match(url)
    if found:
        return Media(found[1].lower(), data=url[found.end() :], name=name, at=at)
    if not url.lower().startswith(("https://", "http://")):
        raise invalid(at, "must be a URL, or base64 data in a data: URL")
    return Media(media_type, url=url, name=name, at=at)


def _tool(tool: Fields) -> Tool:
    kind = tool.text("type") or "function"
    function = tool.inner("function") if kind == "function" else None
    if function is None:
        raise tool.refuse("type", f"a tool of type {kind!r} is the provider's own")
    found = Tool(
        function.required_text("name"),
        function.text("description") or "",
        function.object("parameters"),
        function.flag("strict"),
    )
    tool.leave("cache_control")
    function.end()
    tool.end()
    return found


def _choice(asked: Fields) -> ToolChoice | None:
    path, value = asked.path("tool_choice"), asked.take("tool_choice")
    if value is None:
        return None
    if isinstance(value, str):
        if value not in _MODES:
            raise refusal(path, f"{value!r} is not auto, none or required")
        return ToolChoice(_MODES[value])  # type: ignore[arg-type]
    chosen = Fields(value, path)
    function = chosen.inner("function")
    if chosen.text("type") != "function" or function is None:
        raise chosen.refuse("type", "only a function can be chosen")
    choice = ToolChoice("tool", function.required_text("name"))
    function.end()
    chosen.end()
    return choice


def _output(asked: Fields) -> Output | None:
    wanted = asked.inner("response_format")
    kind = wanted.required_text("type") if wanted else "text"
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        wanted.end()
        return Output(None)
    described = wanted.inner("json_schema") if kind == "json_schema" else None
    if described is None:
        raise wanted.refuse("type", f"{kind!r} is not text, json_object or json_schema")
    described.leave("description")
    output = Output(described.object("schema") or {}, described.text("name") or "", described.flag("strict"))
    described.end()
    wanted.end()
    return output
