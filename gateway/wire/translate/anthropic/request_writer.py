"""Anthropic messages: a request, written for a provider."""

from __future__ import annotations

import re
from typing import Any

from gateway.wire.translate.fields import refusal
from gateway.wire.translate.model import (
    Ask,
    Media,
    Message,
    Part,
    Text,
    Thinking,
    Tool,
    ToolCall,
)
from gateway.wire.translate.values import To, arguments_of, budget_of, effort_of, present

_NO_SCHEMA = {"type": "object", "properties": {}}
_BUDGET_MIN_TOKENS = 1_024
_ADAPTIVE = re.compile(r"claude-(?!3|instant|2|(?:opus|sonnet|haiku)-4(?:-[015])?(?:-latest|-\d{8}|@\d+)?$)")
"""Models that are told an effort; those before 4.6 are told a number of tokens."""


def write_anthropic(ask: Ask, to: To) -> dict[str, Any]:
    """The body for Anthropic. Raise ObolError `forward_translation_not_supported`."""
    _refuse(ask)
    thinking, effort = _written_thinking(ask)
    limit = ask.max_tokens if ask.max_tokens is not None else to.max_tokens + thinking.get("budget_tokens", 0)
    if thinking.get("budget_tokens", 0) >= limit:
        thinking["budget_tokens"] = limit - 1
        if limit <= _BUDGET_MIN_TOKENS:
            raise refusal(ask.where("effort"), f"Anthropic reasons with more than {_BUDGET_MIN_TOKENS} tokens to give")
    output = {"format": {"type": "json_schema", "schema": ask.output.schema}} if ask.output else {}
    body = {
        "model": ask.model,
        "max_tokens": limit,
        "system": _written_system(ask.system),
        "messages": [_written(message) for message in ask.messages],
        "stream": ask.stream or None,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "top_k": ask.top_k,
        "stop_sequences": list(ask.stop) or None,
        "tools": [_written_tool(tool) for tool in ask.tools] or None,
        "tool_choice": _written_choice(ask) if ask.tools else None,
        "thinking": thinking or None,
        "output_config": output | ({"effort": effort} if effort else {}) or None,
        "metadata": {"user_id": ask.user} if ask.user else None,
        "service_tier": "standard_only" if ask.tier == "default" else None,
    }
    return present(body)


def _refuse(ask: Ask) -> None:
    """What Anthropic has nothing like."""
    if ask.choices > 1:
        raise refusal(ask.where("choices"), "Anthropic gives one answer")
    if ask.temperature is not None and ask.temperature > 1:
        raise refusal(ask.where("temperature"), "Anthropic takes 0 to 1")
    if ask.seed is not None:
        raise refusal(ask.where("seed"), "Anthropic takes no seed")
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(ask, name):
            raise refusal(ask.where(name), "Anthropic has no such penalty")
    if ask.output is not None and ask.output.schema is None:
        raise refusal(ask.where("output"), "Anthropic writes JSON by a schema only")


def _written_thinking(ask: Ask) -> tuple[dict[str, Any], str | None]:
    """How reasoning is asked for. Within a loop of tools whose reasoning did not come back it cannot be."""
    wanted = bool(budget_of(ask))
    if not wanted or _reasoning_lost(ask):
        return {}, None
    if _ADAPTIVE.match(ask.model):
        effort = effort_of(ask)
        return {"type": "adaptive", "display": "summarized"}, "low" if effort == "minimal" else effort
    return {"type": "enabled", "budget_tokens": max(_BUDGET_MIN_TOKENS, budget_of(ask) or 0)}, None


def _reasoning_lost(ask: Ask) -> bool:
    """The last turn of the assistant calls tools, and does not begin with signed reasoning, as Anthropic demands."""
    last = next((message.parts for message in reversed(ask.messages) if message.role == "assistant"), ())
    if not last or not any(isinstance(part, ToolCall) for part in last):
        return False
    first = last[0]
    return not (isinstance(first, Thinking) and (first.signature or first.redacted))


def _written_system(texts: tuple[str, ...]) -> Any:
    if len(texts) <= 1:
        return texts[0] if texts else None
    return [{"type": "text", "text": text} for text in texts]


def _written(message: Message) -> dict[str, Any]:
    """Results of tools come first, as Anthropic demands."""
    blocks = [written_block(part) for part in message.parts if not _empty(part)]
    if message.role == "user":
        blocks.sort(key=lambda block: block["type"] != "tool_result")
    return {"role": message.role, "content": blocks or ""}


def _empty(part: Part) -> bool:
    """What Anthropic would not take: text of nothing, and reasoning that is not its own."""
    if isinstance(part, Thinking):
        return not (part.signature or part.redacted)
    return isinstance(part, Text) and not part.text


def written_block(part: Part) -> dict[str, Any]:
    """One part as a block, of a request or of an answer."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, ToolCall):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": arguments_of(part)}
    if isinstance(part, Thinking):
        if part.redacted:
            return {"type": "redacted_thinking", "data": part.redacted}
        return {"type": "thinking", "thinking": part.text, "signature": part.signature}
    if isinstance(part, Media):
        return _written_media(part)
    content: Any = part.text
    if part.media:
        content = [{"type": "text", "text": part.text}] if part.text else []
        content += [_written_media(media) for media in part.media]
    block = {"type": "tool_result", "tool_use_id": part.call_id, "content": content}
    return block | {"is_error": True} if part.failed else block


def _written_media(media: Media) -> dict[str, Any]:
    kind = "image" if media.media_type.startswith("image/") else "document"
    if kind == "document" and media.media_type != "application/pdf":
        raise refusal(media.at, f"Anthropic takes no {media.media_type}")
    if media.url:
        source = {"type": "url", "url": media.url}
    else:
        source = {"type": "base64", "media_type": media.media_type, "data": media.data}
    return present({"type": kind, "source": source, "title": media.name or None if kind == "document" else None})


def _written_tool(tool: Tool) -> dict[str, Any]:
    schema = tool.schema or _NO_SCHEMA
    strict = True if tool.strict else None
    written = {"name": tool.name, "description": tool.description or None, "input_schema": schema, "strict": strict}
    return present(written)


def _written_choice(ask: Ask) -> dict[str, Any] | None:
    serial = {"disable_parallel_tool_use": True} if ask.parallel is False else {}
    if ask.choice is None:
        return {"type": "auto"} | serial if serial else None
    if ask.choice.mode == "none":
        return {"type": "none"}
    named = {"name": ask.choice.name} if ask.choice.mode == "tool" else {}
    return {"type": ask.choice.mode} | named | serial
