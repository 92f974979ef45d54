"""Every recorded chat exchange translates to the other two dialects and back, with what it says and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest
from anthropic.types import Message
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter
from recorded import Exchange, exchanges
from told import TOKENS, payloads, tokens, told, translate, translated

from gateway.errors import ObolError
from gateway.wire.formats import FORMATS
from gateway.wire.translate.model import Ask
from gateway.wire.translate.translation import DIALECTS, read_request, write_request
from gateway.wire.translate.values import To

OTHERS = [("openai", "anthropic"), ("openai", "google"), ("anthropic", "openai")]
OTHERS += [("anthropic", "google"), ("google", "openai"), ("google", "anthropic")]


def recorded(dialect: str) -> list[Exchange]:
    """Successful ones. Two kinds of Gemini's streams are never asked for: a JSON array, and arguments in pieces."""
    found = [one for one in exchanges() if one.status == 200 and DIALECTS.get(one.format) == dialect]
    array = [one for one in found if one.format == "gemini_stream" and "json" in one.content_type]
    return [one for one in found if one not in array and b'"partialArgs"' not in one.response]


def broken(one: Exchange) -> bool:
    """It ends in an error, or tells an error beside its end: then there is nothing to compare."""
    meter = one.meter()
    meter.feed(one.response)
    meter.finish()
    return meter.reading().failed is not None


def expected_tokens(one: Exchange, client: str) -> dict[str, int]:
    """As recorded. Some tell more reasoning than output: a part is no larger than its whole. Gemini has no word for
    what is written to a cache: it is within the prompt."""
    found = {name: one.expected[name] or 0 for name in TOKENS}
    if client == "google":
        found["cache_write_tokens"] = 0
    found["reasoning_tokens"] = min(found["reasoning_tokens"], found["output_tokens"])
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize(("provider", "client"), OTHERS)
def test_recorded_answers_keep_what_they_say_and_cost(provider: str, client: str):
    """Text, reasoning, calls of tools, why it stopped, all token classes; and the same again on the way back."""
    compared = 0
    for one in recorded(provider):
        if broken(one):
            continue
        before = told(provider, one.response, stream=one.stream, content_type=one.content_type)
        if "anthropic" in (client, provider):
            before = before[:1]  # more choices are refused beforehand
        body, content_type = translated(one, client)
        assert told(client, body, stream=one.stream, content_type=content_type) == before, one.id
        counts, finished = tokens(body, client, stream=one.stream, content_type=content_type)
        assert counts == expected_tokens(one, client), one.id
        again, content_type = translate(body, client, provider, stream=one.stream)
        assert told(provider, again, stream=one.stream, content_type=content_type) == before, one.id
        assert tokens(again, provider, stream=one.stream, content_type=content_type)[0] == counts, one.id
        compared += finished
    assert compared > {"openai": 400, "anthropic": 40, "google": 60}[provider]


def test_recorded_answers_are_what_the_packages_expect():
    """The vendors' own types read every translated answer; Anthropic's have no picture in an answer."""
    for one in [*recorded("openai"), *recorded("google")]:
        if not one.stream and not broken(one) and b"inlineData" not in one.response:
            Message.model_validate_json(translated(one, "anthropic")[0], strict=True)
    for one in [*recorded("anthropic"), *recorded("google")]:
        body, content_type = translated(one, "openai")
        kind = ChatCompletionChunk if one.stream else ChatCompletion
        for value in payloads("openai", body, stream=one.stream, content_type=content_type):
            kind.model_validate(value, strict=True)


def test_recorded_gemini_arrays_are_json():
    """A Gemini client that asks for no events gets one array."""
    for one in recorded("openai")[::3] + recorded("anthropic"):
        if one.stream and not broken(one):
            body, content_type = translated(one, "google", array=True)
            assert content_type == "application/json"
            counts, finished = tokens(body, "google", stream=True, content_type=content_type)
            assert counts == expected_tokens(one, "google") and (body.endswith(b"]") or not finished), one.id


# Requests

ASKED = ("system", "messages", "tools", "choice", "temperature", "top_p", "top_k", "stop", "seed", "choices")
REFUSED_AT_MOST = {"openai": 130, "anthropic": 20, "google": 30}
"""Of the recorded requests and two targets each: those that ask for what only their vendor has."""


def asks(dialect: str) -> Iterator[tuple[Exchange, Ask | ObolError]]:
    for one in exchanges():
        if DIALECTS.get(one.format) == dialect and one.request:
            model = FORMATS[one.format].read_request(one.request, one.path, one.query).model if one.stream else None
            model = one.path.rpartition("/")[2].partition(":")[0] if dialect == "google" else model or "a-model"
            try:
                yield one, read_request(one.request, dialect, model=model, stream=one.stream)
            except ObolError as error:
                yield one, error


def plain(ask: Ask) -> dict[str, object]:
    """What is told to a model, without ids, paths and vendors' proofs, arguments as values."""
    found = {name: getattr(ask, name) for name in ASKED}
    found["messages"] = [(message.role, [_shown(part) for part in message.parts]) for message in ask.messages]
    found["messages"] = _merged(found["messages"])
    found["tools"] = [(tool.name, tool.description, tool.schema or {}) for tool in ask.tools]
    found["schema"] = ask.output.schema if ask.output else None
    return found


def _shown(part: object) -> tuple[object, ...]:
    import json

    kind = type(part).__name__
    if kind == "ToolCall":
        return kind, part.name, json.loads(part.arguments)
    if kind == "ToolResult":
        return kind, part.name, part.text
    if kind == "Media":
        return kind, part.data or part.url
    return (kind, part.text)


def _merged(messages: list[tuple[str, list[tuple[object, ...]]]]) -> list[tuple[str, list[tuple[object, ...]]]]:
    """Consecutive messages of one role as one, its text joined; reasoning of earlier turns is its vendor's only."""
    found: list[tuple[str, list[tuple[object, ...]]]] = []
    for role, parts in messages:
        kept = [part for part in parts if part[0] != "Thinking" and part != ("Text", "")]
        if found and found[-1][0] == role:
            found[-1] = (role, found[-1][1] + kept)
        elif kept:
            found.append((role, kept))
    return [(role, _joined(parts) if role == "assistant" else parts) for role, parts in found]


def _joined(parts: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    text = "".join(str(part[1]) for part in parts if part[0] == "Text")
    return [("Text", text), *(part for part in parts if part[0] != "Text")]


@pytest.mark.parametrize(("client", "provider"), OTHERS)
def test_recorded_requests_say_the_same(client: str, provider: str):
    """To the other dialect and back: what the model is told, and how; or refused by a field's name."""
    outcomes: Counter[str] = Counter()
    for one, ask in asks(client):
        if isinstance(ask, ObolError):
            assert ask.code in ("forward_translation_not_supported", "invalid_request") and ask.param, one.id
            outcomes["refused"] += 1
            continue
        try:
            body = write_request(ask, provider, To())
        except ObolError as error:
            assert error.code == "forward_translation_not_supported" and error.param, one.id
            outcomes["refused"] += 1
            continue
        back = read_request(body, provider, model=ask.model, stream=ask.stream)
        there = plain(back)
        assert there == plain(ask), one.id
        outcomes["translated"] += 1
    assert outcomes["translated"] > {"openai": 350, "anthropic": 40, "google": 50}[client]
    assert outcomes["refused"] < REFUSED_AT_MOST[client]


def test_recorded_requests_become_what_the_packages_send():
    """The vendors' own types read every translated request."""
    kinds = {
        "openai": TypeAdapter(CompletionCreateParamsNonStreaming),
        "anthropic": TypeAdapter(MessageCreateParamsNonStreaming),
    }
    read = Counter[str]()
    for client, provider in OTHERS:
        for _, ask in asks(client) if provider in kinds else ():
            if isinstance(ask, Ask):
                ask.stream = False
                with suppress(ObolError):
                    kinds[provider].validate_json(write_request(ask, provider, To(provider="openai")))
                    read[provider] += 1
    assert read["anthropic"] > 400 and read["openai"] > 90
