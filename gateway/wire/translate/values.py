"""Values that several dialects read and write in the same way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import msgspec

from gateway.wire.translate.fields import Fields, invalid
from gateway.wire.translate.model import Ask, Effort, Thinking, ToolCall

EFFORTS: tuple[Effort, ...] = get_args(Effort)
LOW_TOKENS = 2_048
MEDIUM_TOKENS = 8_192
"""Budgets up to these are low and medium effort. Google's own compatible API takes 1,024, 8,192 and 24,576."""
BUDGETS: dict[Effort, int] = {"none": 0, "minimal": 1_024, "low": 1_024, "medium": 8_192}
HIGH_BUDGET_TOKENS = 24_576


class To(msgspec.Struct, frozen=True, kw_only=True):
    """The provider that a request is written for, by its name in the provider table."""

    provider: str = ""
    asks_usage: bool = False
    """Its streams tell their usage only when asked."""
    max_tokens: int = 4_096
    """What is asked of a provider that demands a limit, where the client has set none."""


def present(members: dict[str, Any]) -> dict[str, Any]:
    """Without the members that are None."""
    return {name: value for name, value in members.items() if value is not None}


def one_of(fields: Fields, name: str, allowed: tuple[Any, ...]) -> Any:
    """A string of a known set, or None. Raise ObolError `forward_translation_not_supported` for another one."""
    value = fields.text(name)
    if value is not None and value not in allowed:
        raise fields.refuse(name, f"{value!r} is not one of {', '.join(allowed)}")
    return value


def effort_of(ask: Ask) -> Effort | None:
    """How much reasoning is asked for, where a number of tokens cannot be."""
    if ask.effort is not None or not ask.thinking_tokens:
        return ask.effort
    return "low" if ask.thinking_tokens <= LOW_TOKENS else "medium" if ask.thinking_tokens <= MEDIUM_TOKENS else "high"


def budget_of(ask: Ask) -> int | None:
    """The tokens that may be used for reasoning, where an effort cannot be told; 0: none."""
    if ask.thinking_tokens is not None or ask.effort is None:
        return ask.thinking_tokens
    return BUDGETS.get(ask.effort, HIGH_BUDGET_TOKENS)


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments of a call as an object. Raise ObolError `invalid_request` where those in a request are none.

    A model's own, which may have been cut off by its limit, are then given as Anthropic's documentation has it.
    """
    try:
        found = msgspec.json.decode(call.arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    if call.at:
        raise invalid(call.at, "must be a JSON object")
    return {"INVALID_JSON": call.arguments}


def json_text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def reasoning_details(thoughts: Iterable[Thinking]) -> list[dict[str, Any]]:
    """Reasoning that carries a proof, in the form in which OpenRouter sends it and takes it back."""
    details: list[dict[str, Any]] = []
    for thought in thoughts:
        if thought.redacted:
            details.append({"type": "reasoning.encrypted", "data": thought.redacted})
        elif thought.signature:
            details.append({"type": "reasoning.text", "text": thought.text, "signature": thought.signature})
    return details


def standard_base64(data: str) -> str:
    """Google writes the alphabet for URLs and leaves the padding out; the others take neither."""
    data = data.replace("-", "+").replace("_", "/")
    return data + "=" * (-len(data) % 4)
