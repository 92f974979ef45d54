"""OpenAI chat completions: a request, written for a provider."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from gateway.wire.translate.fields import refusal
from gateway.wire.translate.model import (
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
from gateway.wire.translate.values import To, effort_of, present, reasoning_details

_SOUND_FORMATS = {"audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/mp3": "mp3"}
_CHOICES = {"auto": "auto", "none": "none", "any": "required"}
_NEEDS_REASONING_BACK = frozenset({"deepseek", "moonshot"})
"""Their models want the reasoning of earlier turns again; most others refuse a message that has it."""


def write_openai(ask: Ask, to: To) -> dict[str, Any]:
    """The body for a provider of this dialect. Raise ObolError `forward_translation_not_supported`."""
    if ask.top_k is not None:
        raise refusal(ask.where("top_k"), "OpenAI's dialect has no top_k")
    # OpenAI's own reasoning models refuse the older name, most other vendors the newer one.
    limit = "max_completion_tokens" if to.provider == "openai" else "max_tokens"
    body = {
        "model": ask.model,
        "messages": [*_system(ask.system), *(one for message in ask.messages for one in _written(message, to))],
        "stream": ask.stream or None,
        "stream_options": {"include_usage": True} if ask.stream and to.asks_usage else None,
        limit: ask.max_tokens,
        "temperature": ask.temperature,
        "top_p": ask.top_p,
        "stop": list(ask.stop) or None,
        "tools": [_written_tool(tool) for tool in ask.tools] or None,
        "tool_choice": _written_choice(ask.choice) if ask.tools else None,
        "parallel_tool_calls": ask.parallel if ask.tools else None,
        "response_format": _written_output(ask.output),
        "seed": ask.seed,
        "presence_penalty": ask.presence_penalty,
        "frequency_penalty": ask.frequency_penalty,
        "n": ask.choices if ask.choices > 1 else None,
        "reasoning_effort": effort_of(ask),
        "user": ask.user,
        "service_tier": ask.tier,
    }
    return present(body)


def _system(texts: tuple[str, ...]) -> list[dict[str, Any]]:
    if not texts:
        return []
    content = texts[0] if len(texts) == 1 else [{"type": "text", "text": text} for text in texts]
    return [{"role": "system", "content": content}]


def _written(message: Message, to: To) -> Iterator[dict[str, Any]]:
    """One message; of a user's, the results of tools are messages of their own, and the first."""
    if message.role == "assistant":
        yield _written_answer(message, to)
        return
    rest = [part for part in message.parts if not isinstance(part, ToolResult)]
    for part in message.parts:
        if isinstance(part, ToolResult):
            if part.media:
                raise refusal(part.media[0].at, "in OpenAI's dialect the result of a tool is text")
            yield {"role": "tool", "tool_call_id": part.call_id, "content": part.text}
    if len(rest) == 1 and isinstance(rest[0], Text):
        yield {"role": "user", "content": rest[0].text}
    elif rest:
        yield {"role": "user", "content": [_written_part(part) for part in rest]}


def _written_answer(message: Message, to: To) -> dict[str, Any]:
    for part in message.parts:
        if isinstance(part, Media):
            raise refusal(part.at, "in OpenAI's dialect an assistant's message has no media")
    calls = [part for part in message.parts if isinstance(part, ToolCall)]
    reasoning = "".join(part.text for part in message.parts if isinstance(part, Thinking) and not part.signature)
    return present(
        {
            "role": "assistant",
            "content": "".join(part.text for part in message.parts if isinstance(part, Text)) or None,
            "reasoning_content": reasoning or None if to.provider in _NEEDS_REASONING_BACK else None,
            "tool_calls": [written_call(call) for call in calls] or None,
        }
    ) | ({} if calls or any(isinstance(part, Text) for part in message.parts) else {"content": ""})


def written_call(call: ToolCall) -> dict[str, Any]:
    """A call of a tool as messages have it; Gemini's proof stands where Google's own OpenAI dialect has it."""
    written: dict[str, Any] = {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
    if call.signature:
        written["extra_content"] = {"google": {"thought_signature": call.signature}}
    return written


def written_reasoning(thoughts: Iterable[Thinking]) -> dict[str, Any]:
    """Reasoning as members of a message or delta: text for those who show it, details for those who give it back."""
    thoughts = list(thoughts)
    text = "".join(thought.text for thought in thoughts)
    return present({"reasoning_content": text or None, "reasoning_details": reasoning_details(thoughts) or None})


def _written_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    assert isinstance(part, Media)
    if part.media_type.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": part.url or data_url(part)}}
    if part.url:
        raise refusal(part.at, "OpenAI's dialect takes only images by their URL")
    if part.media_type in _SOUND_FORMATS:
        return {"type": "input_audio", "input_audio": {"data": part.data, "format": _SOUND_FORMATS[part.media_type]}}
    if part.media_type == "application/pdf":
        return {"type": "file", "file": {"filename": part.name or "document.pdf", "file_data": data_url(part)}}
    raise refusal(part.at, f"OpenAI's dialect has no part for {part.media_type}")


def data_url(media: Media) -> str:
    return f"data:{media.media_type};base64,{media.data}"


def _written_tool(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description or None,
        "parameters": tool.schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": present(function)}


def _written_choice(choice: ToolChoice | None) -> Any:
    if choice is None:
        return None
    return _CHOICES.get(choice.mode) or {"type": "function", "function": {"name": choice.name}}


def _written_output(output: Output | None) -> Any:
    if output is None:
        return None
    if output.schema is None:
        return {"type": "json_object"}
    schema = {"name": output.name or "answer", "schema": output.schema, "strict": output.strict}
    return {"type": "json_schema", "json_schema": present(schema)}
