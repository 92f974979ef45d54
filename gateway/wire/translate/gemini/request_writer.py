"""Gemini generateContent: a request, written for a provider."""

from __future__ import annotations

from typing import Any

from gateway.wire.translate.fields import invalid, refusal
from gateway.wire.translate.model import (
    Ask,
    Media,
    Message,
    Part,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from gateway.wire.translate.values import To, arguments_of, budget_of, effort_of, present

_LEVELS = ("minimal", "low", "medium", "high")
NO_SIGNATURE = "skip_thought_signature_validator"
"""What Google documents for calls of tools that another model made: Gemini 3 refuses those without a signature."""


def write_gemini(ask: Ask, _: To) -> dict[str, Any]:
    """The body for Gemini. Raise ObolError `forward_translation_not_supported`."""
    if ask.parallel is False and ask.tools:
        raise refusal(ask.where("parallel"), "Gemini cannot be told to call one tool at a time")
    if ask.tier not in (None, "auto", "default"):
        raise refusal(ask.where("tier"), "Gemini has no such tier")
    declared = [_written_tool(tool) for tool in ask.tools]
    body = {
        "systemInstruction": {"parts": [{"text": text} for text in ask.system]} if ask.system else None,
        "contents": [_written(message, ask.model) for message in ask.messages],
        "tools": [{"functionDeclarations": declared}] if declared else None,
        "toolConfig": _written_choice(ask.choice) if declared else None,
        "generationConfig": _written_config(ask) or None,
    }
    return present(body)


def _written_config(ask: Ask) -> dict[str, Any]:
    return present(
        {
            "maxOutputTokens": ask.max_tokens,
            "temperature": ask.temperature,
            "topP": ask.top_p,
            "topK": ask.top_k,
            "stopSequences": list(ask.stop) or None,
            "seed": ask.seed,
            "presencePenalty": ask.presence_penalty,
            "frequencyPenalty": ask.frequency_penalty,
            "candidateCount": ask.choices if ask.choices > 1 else None,
            "responseMimeType": "application/json" if ask.output else None,
            "responseJsonSchema": ask.output.schema if ask.output else None,
            "thinkingConfig": _written_thinking(ask),
        }
    )


def _written_thinking(ask: Ask) -> dict[str, Any] | None:
    """Gemini 3 is told a level, those before it a number of tokens."""
    budget, effort = budget_of(ask), effort_of(ask)
    if budget is None:
        return None
    if ask.model.startswith("gemini-3"):
        level = effort if effort in _LEVELS else "minimal" if not budget else "high"
        return {"thinkingLevel": level, "includeThoughts": budget > 0}
    return {"thinkingBudget": budget, "includeThoughts": budget > 0}


def _written(message: Message, model: str) -> dict[str, Any]:
    parts = [written_part(part) for part in message.parts if not isinstance(part, Thinking)]
    if message.role == "assistant" and model.startswith("gemini-3"):
        first = next((part for part in parts if "functionCall" in part), None)
        if first is not None:
            first.setdefault("thoughtSignature", NO_SIGNATURE)
    return {"role": "model" if message.role == "assistant" else "user", "parts": parts}


def written_part(part: Part) -> dict[str, Any]:
    """One part, of a request or of an answer."""
    if isinstance(part, Text):
        return {"text": part.text}
    if isinstance(part, Thinking):
        return {"text": part.text, "thought": True}
    if isinstance(part, Media):
        if not part.data:
            raise refusal(part.at, "Gemini is sent data, not URLs")
        return {"inlineData": {"mimeType": part.media_type, "data": part.data}}
    if isinstance(part, ToolCall):
        call = {"functionCall": {"id": part.id, "name": part.name, "args": arguments_of(part)}}
        return call | {"thoughtSignature": part.signature} if part.signature else call
    if part.media:
        raise refusal(part.media[0].at, "to Gemini the result of a tool is text")
    if not part.name:
        raise invalid(part.at, "names no call of a tool in the messages before it")
    response = {"error" if part.failed else "result": part.text}
    return {"functionResponse": {"id": part.call_id, "name": part.name, "response": response}}


def _written_tool(tool: Tool) -> dict[str, Any]:
    return present(
        {"name": tool.name, "description": tool.description or None, "parametersJsonSchema": tool.schema or None}
    )


def _written_choice(choice: ToolChoice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    mode = {"auto": "AUTO", "none": "NONE"}.get(choice.mode, "ANY")
    names = {"allowedFunctionNames": [choice.name]} if choice.mode == "tool" else {}
    return {"functionCallingConfig": {"mode": mode} | names}
