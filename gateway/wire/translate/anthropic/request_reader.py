"""Anthropic messages: a client's request, read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.wire.translate.fields import Fields, invalid, refusal
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
from gateway.wire.translate.values import EFFORTS, json_text, one_of

_PATHS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "parallel": "tool_choice.disable_parallel_tool_use",
    "output": "output_config.format",
    "effort": "output_config.effort",
    "thinking_tokens": "thinking.budget_tokens",
}


def read_anthropic(body: dict[str, Any]) -> Ask:
    """Raise ObolError `invalid_request` or `forward_translation_not_supported` naming the field."""
    asked = Fields(body)
    thinking, effort, output = _reasoning(asked)
    parallel, choice = _choice(asked)
    names: dict[str, str] = {}
    ask = Ask(
        model=asked.required_text("model"),
        stream=asked.flag("stream") or False,
        include_usage=True,
        system=tuple(part.text for part in _blocks(asked, "system", names, (Text,)) if isinstance(part, Text)),
        messages=tuple(_message(message, names) for message in asked.each("messages")),
        tools=tuple(_tool(tool) for tool in asked.each("tools")),
        choice=choice,
        parallel=parallel,
        max_tokens=asked.whole("max_tokens"),
        temperature=asked.number("temperature"),
        top_p=asked.number("top_p"),
        top_k=asked.whole("top_k"),
        stop=asked.texts("stop_sequences"),
        output=output,
        effort=effort,
        thinking_tokens=thinking,
        user=_user(asked),
        paths=_PATHS,
    )
    if ask.max_tokens is None:
        raise invalid("max_tokens", "is missing")
    asked.leave("cache_control")
    asked.only("service_tier", "auto", "standard_only")
    asked.only("speed", "standard")
    asked.end()
    return ask


def _user(asked: Fields) -> str | None:
    metadata = asked.inner("metadata")
    if metadata is None:
        return None
    user = metadata.text("user_id")
    metadata.end()
    return user


def _reasoning(asked: Fields) -> tuple[int | None, Any, Output | None]:
    """Tokens to think with, effort, and the form of the output."""
    config = asked.inner("output_config")
    effort = one_of(config, "effort", EFFORTS) if config else None
    wanted = (config.inner("format") if config else None) or asked.inner("output_format")
    output = None
    if wanted is not None:
        if wanted.text("type") != "json_schema":
            raise wanted.refuse("type", "only json_schema is known")
        output = Output(wanted.object("schema") or {}, strict=True)
        wanted.end()
    if config is not None:
        config.end()
    return _thinking(asked.inner("thinking")), effort, output


def _thinking(thinking: Fields | None) -> int | None:
    if thinking is None:
        return None
    kind = thinking.required("type", one_of(thinking, "type", ("enabled", "disabled", "adaptive")))
    tokens = thinking.whole("budget_tokens")
    if kind == "enabled":
        thinking.required("budget_tokens", tokens)
    thinking.leave("display")
    thinking.end()
    return {"disabled": 0, "enabled": tokens}.get(kind)


def _choice(asked: Fields) -> tuple[bool | None, ToolChoice | None]:
    """Whether tools may be called in parallel, and which."""
    chosen = asked.inner("tool_choice")
    if chosen is None:
        return None, None
    mode = chosen.required("type", one_of(chosen, "type", ("auto", "any", "none", "tool")))
    serial = chosen.flag("disable_parallel_tool_use")
    choice = ToolChoice(mode, chosen.required_text("name") if mode == "tool" else "")
    chosen.end()
    return None if serial is None else not serial, choice


def _message(message: Fields, names: dict[str, str]) -> Message:
    role = message.required_text("role")
    if role not in ("user", "assistant"):
        raise refusal(message.path("role"), f"{role!r} is not user or assistant")
    parts = tuple(_blocks(message, "content", names, ASKED if role == "user" else SAID))
    message.end()
    return Message("user" if role == "user" else "assistant", parts)


def _blocks(holder: Fields, name: str, names: dict[str, str], allowed: tuple[type[Part], ...]) -> Iterator[Part]:
    """A string, or blocks of the kinds `allowed`. `names` learns which call of a tool has which name."""
    content = holder.take(name)
    if isinstance(content, str):
        if content:
            yield Text(content)
        return
    if content is not None and not isinstance(content, list):
        raise invalid(holder.path(name), "must be a string or an array of blocks")
    for number, value in enumerate(content or ()):
        block = Fields(value, f"{holder.path(name)}[{number}]")
        part = _block(block, names)
        if not isinstance(part, allowed):
            raise refusal(f"{block.at}.type", "such a block does not belong here")
        block.leave("cache_control", "caller")
        if isinstance(part, Text):  # of an answer that is sent back
            block.leave("citations")
        block.end()
        yield part


def _block(block: Fields, names: dict[str, str]) -> Part:
    kind = block.required_text("type")
    if kind == "text":
        return Text(block.text("text") or "")
    if kind in ("image", "document"):
        return _media(block, kind)
    if kind == "thinking":
        return Thinking(block.text("thinking") or "", block.text("signature") or "")
    if kind == "redacted_thinking":
        return Thinking(redacted=block.required_text("data"))
    if kind == "tool_use":
        call = ToolCall(
            block.required_text("id"),
            block.required_text("name"),
            json_text(block.object("input") or {}),
            at=block.path("input"),
        )
        names[call.id] = call.name
        return call
    if kind == "tool_result":
        return _result(block, names)
    raise block.refuse("type", f"a block of type {kind!r} is Anthropic's own")


def _media(block: Fields, kind: str) -> Media:
    source = block.inner("source")
    if source is None:
        raise invalid(block.path("source"), "is missing")
    whence = source.text("type")
    if whence not in ("base64", "url"):
        raise source.refuse("type", f"a source of type {whence!r} is not at the other provider")
    name = block.text("title") or ""
    citing = block.inner("citations") if kind == "document" else None
    if citing is not None:
        citing.only("enabled", False)
        citing.end("only Anthropic cites")
    usual = "image/*" if kind == "image" else "application/pdf"
    found = Media(
        source.text("media_type") or usual,
        data=source.text("data") or "",
        url=source.text("url") or "",
        name=name,
        at=block.at,
    )
    source.end()
    return found


def _result(block: Fields, names: dict[str, str]) -> ToolResult:
    call_id, parts = block.required_text("tool_use_id"), list(_blocks(block, "content", names, (Text, Media)))
    texts = [part.text for part in parts if isinstance(part, Text)]
    return ToolResult(
        call_id,
        names.get(call_id, ""),
        "\n".join(texts),
        failed=block.flag("is_error") or False,
        media=tuple(part for part in parts if isinstance(part, Media)),
        at=block.path("tool_use_id"),
    )


def _tool(tool: Fields) -> Tool:
    kind = tool.text("type") or "custom"
    if kind != "custom":
        raise tool.refuse("type", f"{kind!r} is a tool of Anthropic's own")
    found = Tool(
        tool.required_text("name"), tool.text("description") or "", tool.object("input_schema"), tool.flag("strict")
    )
    tool.leave("cache_control", "eager_input_streaming")
    tool.only("defer_loading", False)
    tool.only("allowed_callers", ["direct"])
    tool.end()
    return found
