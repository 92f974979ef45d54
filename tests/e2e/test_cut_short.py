"""A stream that the balance does not cover to its end: each package raises its own error, with our message."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import anthropic
import cohere
import groq
import openai
import pytest
from addresses import ANTHROPIC, COHERE, GOOGLE, GROQ, MISTRAL, OPENAI
from billed import FEW_TOKENS, TOO_LONG, cut_short
from google import genai
from installation import TOKEN_NANO, Customer, Installation
from mistralai.client import Mistral
from mistralai.client.errors import MistralError

MESSAGES: Any = [{"role": "user", "content": TOO_LONG}]
Stream = Callable[[str, str], Iterable[Any]]
"""Of the gateway's address and a key."""


def openai_client(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=OPENAI.path(url), api_key=key, max_retries=0)


def chat(url: str, key: str) -> Iterable[Any]:
    return openai_client(url, key).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True)


def responses(url: str, key: str) -> Iterable[Any]:
    return openai_client(url, key).responses.create(model="gpt-4o-mini", input=TOO_LONG, stream=True)


def messages(url: str, key: str) -> Iterable[Any]:
    client = anthropic.Anthropic(base_url=ANTHROPIC.path(url), api_key=key, max_retries=0)
    return client.messages.create(model="claude-haiku-4-5", max_tokens=20_000, messages=MESSAGES, stream=True)


def content(url: str, key: str) -> Iterable[Any]:
    client = genai.Client(api_key=key, http_options={"base_url": GOOGLE.path(url)})
    yield from client.models.generate_content_stream(model="gemini-2.5-flash", contents=TOO_LONG)


def groq_chat(url: str, key: str) -> Iterable[Any]:
    client = groq.Groq(base_url=GROQ.path(url), api_key=key, max_retries=0)
    return client.chat.completions.create(model="llama-3.3-70b-versatile", messages=MESSAGES, stream=True)


def mistral_chat(url: str, key: str) -> Iterable[Any]:
    with Mistral(api_key=key, server_url=MISTRAL.path(url)).chat.stream(
        model="mistral-small-latest", messages=MESSAGES
    ) as stream:
        yield from stream


STREAMS: dict[str, tuple[Stream, type[Exception]]] = {
    "openai chat": (chat, openai.APIError),
    "openai responses": (responses, openai.APIError),
    "anthropic": (messages, anthropic.APIError),
    "google-genai": (content, genai.errors.APIError),
    "groq": (groq_chat, groq.APIError),
    "mistralai": (mistral_chat, MistralError),
}


@pytest.fixture
def poor(fake: Installation) -> Customer:
    return fake.customer(FEW_TOKENS * TOKEN_NANO)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream(fake: Installation, poor: Customer, name: str) -> None:
    ask, kind = STREAMS[name]
    received = 0
    with pytest.raises(kind) as error:
        for _ in ask(fake.url, poor.token):
            received += 1
    assert received > 10
    assert cut_short(fake, poor) in f"{error.value} {getattr(error.value, 'body', '')}"


def test_cohere_tells_it_in_the_last_event(fake: Installation, poor: Customer) -> None:
    """Its protocol has no other way; the package raises nothing."""
    client = cohere.ClientV2(api_key=poor.token, base_url=COHERE.path(fake.url))
    *_, last = client.chat_stream(model="command-a-03-2025", messages=MESSAGES)
    assert (last.delta.finish_reason, last.delta.error) == ("ERROR", cut_short(fake, poor))
