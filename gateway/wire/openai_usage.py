"""The usage object of the OpenAI family (chat, completions, embeddings), in all the dialects providers made of it.

Rules that go by shape, because most vendors behind one API mix several servers:
cached tokens are a part of the prompt; reasoning is a part of the completion unless the total says otherwise (xAI) or
citations are told beside it (Perplexity); audio is a part of the prompt unless the total says otherwise (Mistral).
docs/metering.md has this provider by provider.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.core.usage import Usage
from gateway.wire.fields import COUNT_MAX, count, first, mapping, microseconds, partition

_Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]


class _Inputs(msgspec.Struct):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None
    audio_tokens: _Count | None = None
    image_tokens: _Count | None = None
    cache_creation_input_tokens: None = None
    cached_tokens_details: None = None


class _Outputs(msgspec.Struct):
    reasoning_tokens: _Count | None = None
    audio_tokens: _Count | None = None
    image_tokens: _Count | None = None


class _Usual(msgspec.Struct):
    """The usage object as OpenAI documents it. A vendor's own field that is set makes it unusual."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: _Inputs | None = None
    completion_tokens_details: _Outputs | None = None
    cached_tokens: None = None
    reasoning_tokens: None = None
    prompt_cache_hit_tokens: None = None
    num_cached_tokens: None = None
    image_tokens: None = None
    prompt_audio_seconds: None = None
    citation_tokens: None = None
    num_search_queries: None = None
    web_search_usage: None = None
    server_tool_use_details: None = None
    num_sources_used: _Count | None = None


_NO_INPUTS, _NO_OUTPUTS = _Inputs(), _Outputs()


def chat_usage(value: Any, provider: str) -> Usage | None:
    """Canonical usage of a chat or completions response; None if `value` holds none."""
    try:
        usual = msgspec.convert(value, _Usual)
    except msgspec.ValidationError:
        return _any_usage(value, provider)
    return _usual_usage(usual) or _any_usage(value, provider)


def _usual_usage(usual: _Usual) -> Usage | None:
    """Most responses: the counts add up and each part is within its whole. None where they do not."""
    inputs, outputs = usual.prompt_tokens_details or _NO_INPUTS, usual.completion_tokens_details or _NO_OUTPUTS
    if (
        usual.total_tokens != usual.prompt_tokens + usual.completion_tokens
        or (inputs.cached_tokens or 0) + (inputs.cache_write_tokens or 0) > usual.prompt_tokens
        or (outputs.reasoning_tokens or 0) > usual.completion_tokens
    ):
        return None
    return Usage(
        input_tokens=usual.prompt_tokens,
        cached_input_tokens=inputs.cached_tokens,
        cache_write_tokens=inputs.cache_write_tokens,
        input_audio_tokens=inputs.audio_tokens,
        input_image_tokens=inputs.image_tokens,
        output_tokens=usual.completion_tokens,
        reasoning_tokens=outputs.reasoning_tokens,
        output_audio_tokens=outputs.audio_tokens,
        output_image_tokens=outputs.image_tokens,
        web_searches=usual.num_sources_used,
    )


def _any_usage(value: Any, provider: str) -> Usage | None:
    """The same for whatever vendors made of it."""
    usage = mapping(value)
    prompt, completion = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
    total = count(usage.get("total_tokens"))
    if prompt is None and completion is None:
        return None
    inputs = mapping(usage.get("prompt_tokens_details"))
    outputs = mapping(usage.get("completion_tokens_details"))
    cached_by_class = mapping(inputs.get("cached_tokens_details"))
    audio = count(inputs.get("audio_tokens"))
    reasoning = first(count(outputs.get("reasoning_tokens")), count(usage.get("reasoning_tokens")))
    if prompt is not None and completion is not None and total is not None:
        prompt = _with_audio(prompt, audio, total - completion)
        completion, reasoning = _with_reasoning(completion, reasoning, total - prompt, provider)
    if completion is not None and "citation_tokens" in usage:
        completion += (count(usage["citation_tokens"]) or 0) + (reasoning or 0)
    return partition(
        Usage(
            input_tokens=prompt,
            cached_input_tokens=_cached(usage, inputs),
            cache_write_tokens=_first_count(inputs, "cache_write_tokens", "cache_creation_input_tokens"),
            input_audio_tokens=audio,
            cached_audio_tokens=count(cached_by_class.get("audio_tokens")),
            cached_image_tokens=count(cached_by_class.get("image_tokens")),
            input_image_tokens=first(count(inputs.get("image_tokens")), count(usage.get("image_tokens"))),
            input_video_tokens=count(inputs.get("video_tokens")),
            input_us=microseconds(usage.get("prompt_audio_seconds")),
            output_tokens=completion,
            reasoning_tokens=reasoning,
            output_audio_tokens=count(outputs.get("audio_tokens")),
            output_image_tokens=count(outputs.get("image_tokens")),
            web_searches=_web_searches(usage),
        )
    )


def _web_searches(usage: dict[str, Any]) -> int | None:
    """Searches that are billed by the piece: xAI's sources, Perplexity's queries, OpenRouter's and Xiaomi's tools."""
    return first(
        _first_count(usage, "num_sources_used", "num_search_queries"),
        count(mapping(usage.get("server_tool_use_details")).get("web_search_requests")),
        count(mapping(usage.get("web_search_usage")).get("tool_usage")),
    )


def _first_count(source: dict[str, Any], *names: str) -> int | None:
    return first(*(count(source.get(name)) for name in names))


def _cached(usage: dict[str, Any], inputs: dict[str, Any]) -> int | None:
    """Together, Moonshot, DeepSeek and older Mistral report cached tokens at the top."""
    return first(
        count(inputs.get("cached_tokens")),
        _first_count(usage, "cached_tokens", "prompt_cache_hit_tokens", "num_cached_tokens"),
    )


def _with_audio(prompt: int, audio: int | None, billed_input: int) -> int:
    """Mistral leaves audio input out of prompt_tokens: the total contains it."""
    return prompt + audio if audio and billed_input == prompt + audio else prompt


def _with_reasoning(
    completion: int, reasoning: int | None, billed_output: int, provider: str
) -> tuple[int, int | None]:
    """Output and reasoning where completion_tokens leaves reasoning out.

    xAI says how much it was; Google's compatible endpoint hides it in the total. Elsewhere a total above the
    sum means other things (Cerebras: tokens trimmed by a stop sequence), so the provider's name decides there.
    """
    if reasoning and billed_output == completion + reasoning:
        return billed_output, reasoning
    if provider.startswith("google") and billed_output > completion:
        return billed_output, first(reasoning, billed_output - completion)
    return completion, reasoning


def embedding_usage(value: Any) -> Usage | None:
    """Canonical usage of an embeddings response. Voyage reports the total only; nobody bills output."""
    usage = mapping(value)
    tokens = _first_count(usage, "prompt_tokens", "input_tokens", "total_tokens")
    return None if tokens is None else Usage(input_tokens=tokens)
