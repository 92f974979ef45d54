"""Canonical usage in each dialect's own vocabulary, so that its numbers add up as its clients expect.

Nothing is left out of the totals: a class that a dialect has no name for is within the whole that it is a part of.
"""

from __future__ import annotations

from typing import Any

from gateway.core.usage import Usage
from gateway.wire.translate.values import present


def openai_usage(usage: Usage) -> dict[str, Any]:
    """Parts are within `prompt_tokens` and `completion_tokens`."""
    inputs = {
        "cached_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "audio_tokens": usage.input_audio_tokens,
        "image_tokens": usage.input_image_tokens,
    }
    outputs = {
        "reasoning_tokens": usage.reasoning_tokens,
        "audio_tokens": usage.output_audio_tokens,
        "image_tokens": usage.output_image_tokens,
    }
    told = {
        "prompt_tokens": usage.input_tokens or 0,
        "completion_tokens": usage.output_tokens or 0,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": present(inputs) or None,
        "completion_tokens_details": present(outputs) or None,
    }
    return present(told)


def anthropic_usage(usage: Usage) -> dict[str, Any]:
    """`input_tokens` leaves out what was read from and written to a cache."""
    read, written = usage.cached_input_tokens, usage.cache_write_tokens
    hour, lifetimes = usage.cache_write_1h_tokens, None
    if hour is not None:
        lifetimes = {"ephemeral_5m_input_tokens": (written or 0) - hour, "ephemeral_1h_input_tokens": hour}
    reasoning, searches = usage.reasoning_tokens, usage.web_searches
    told = {
        "input_tokens": (usage.input_tokens or 0) - (read or 0) - (written or 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "cache_creation": lifetimes,
        "output_tokens": usage.output_tokens or 0,
        "output_tokens_details": None if reasoning is None else {"thinking_tokens": reasoning},
        "server_tool_use": None if searches is None else {"web_search_requests": searches, "web_fetch_requests": 0},
    }
    return present(told)


def google_usage(usage: Usage) -> dict[str, Any]:
    """Thinking stands beside the candidates."""
    reasoning = usage.reasoning_tokens
    told = {
        "promptTokenCount": usage.input_tokens or 0,
        "cachedContentTokenCount": usage.cached_input_tokens,
        "candidatesTokenCount": (usage.output_tokens or 0) - (reasoning or 0),
        "thoughtsTokenCount": reasoning,
        "totalTokenCount": usage.total_tokens,
        "promptTokensDetails": _modalities(
            usage.input_tokens, usage.input_audio_tokens, usage.input_image_tokens, usage.input_video_tokens
        ),
        "candidatesTokensDetails": _modalities(
            (usage.output_tokens or 0) - (reasoning or 0), usage.output_audio_tokens, usage.output_image_tokens, None
        ),
    }
    return present(told)


def _modalities(
    whole: int | None, audio: int | None, images: int | None, video: int | None
) -> list[dict[str, Any]] | None:
    """The parts by modality, where any but text is told."""
    parts = present({"AUDIO": audio, "IMAGE": images, "VIDEO": video})
    if not parts:
        return None
    parts = {"TEXT": max(0, (whole or 0) - sum(parts.values()))} | parts
    return [{"modality": name, "tokenCount": tokens} for name, tokens in parts.items() if tokens]
