"""Whether a call may be billed for reasoning that its stream does not show, and for how much at most.

Of such a stream nothing can be read while the model thinks. OpenAI and xAI show no reasoning, Anthropic a summary or
nothing, Gemini thoughts only where asked: all bill the whole of it. Models that show it (DeepSeek's, gpt-oss) hide
nothing. A wrong yes costs a hold that grows while the stream is silent; a wrong no, one that lags behind.
"""

from __future__ import annotations

import re
from typing import Any

from gateway.wire.contract import ALL
from gateway.wire.fields import count, mapping

_HIDING = re.compile(r"(?:^|[/.])(?:o[1-9](?![0-9a-z])|gpt-[5-9]|codex-|grok-(?:3-mini|[4-9])|gemini-(?:2\.5|[3-9]))")
_NO_EFFORT = ("none", "disabled")


def openai_hidden(model: str, effort: Any, reasoning: Any) -> int:
    """`effort`: `reasoning_effort`; `reasoning`: the object of the Responses API and of OpenRouter."""
    asked = mapping(reasoning)
    effort = asked.get("effort") if effort is None else effort
    if effort in _NO_EFFORT or asked.get("enabled") is False:
        return 0
    budget = count(asked.get("max_tokens"))
    if asked or effort is not None or _HIDING.search(model.lower()):
        return ALL if budget is None else budget
    return 0


def anthropic_hidden(thinking: Any) -> int:
    """`thinking`: off unless asked for; `adaptive` has no budget of its own."""
    asked = mapping(thinking)
    if asked.get("type") not in ("enabled", "adaptive"):
        return 0
    budget = count(asked.get("budget_tokens"))
    return ALL if budget is None else budget


def gemini_hidden(model: str, thinking: Any) -> int:
    """`thinking`: the `thinkingConfig`, whose budget of -1 means that the model decides."""
    asked = mapping(thinking)
    budget = count(asked.get("thinkingBudget", asked.get("thinking_budget")))
    if budget is not None:
        return budget
    return ALL if asked or _HIDING.search(model.lower()) else 0
