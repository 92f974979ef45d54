"""Each vendor's package with the others' models, at the gateway's own base URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from billed import STEERED, asked, billed
from google import genai
from installation import Customer, Installation

MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5", "google": "gemini-2.5-flash"}
MESSAGES: Any = [{"role": "user", "content": STEERED}]


def by_openai(url: str, key: str, model: str, stream: bool) -> tuple[str, int, int]:
    chat = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0).chat.completions
    if not stream:
        answer = chat.create(model=model, messages=MESSAGES)
        return answer.choices[0].message.content or "", answer.usage.prompt_tokens, answer.usage.completion_tokens
    chunks = list(chat.create(model=model, messages=MESSAGES, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens


def by_anthropic(url: str, key: str, model: str, stream: bool) -> tuple[str, int, int]:
    messages = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0).messages
    ask: Any = {"model": model, "max_tokens": 100, "messages": MESSAGES}
    if stream:
        with messages.stream(**ask) as events:
            answer = events.get_final_message()
    else:
        answer = messages.create(**ask)
    return answer.content[0].text, answer.usage.input_tokens, answer.usage.output_tokens


def by_google(url: str, key: str, model: str, stream: bool) -> tuple[str, int, int]:
    client = genai.Client(api_key=key, http_options={"base_url": url})
    if stream:
        chunks = list(client.models.generate_content_stream(model=model, contents=STEERED))
    else:
        chunks = [client.models.generate_content(model=model, contents=STEERED)]
    used = chunks[-1].usage_metadata
    return "".join(chunk.text or "" for chunk in chunks), used.prompt_token_count, used.candidates_token_count


CLIENTS: dict[str, Callable[[str, str, str, bool], tuple[str, int, int]]] = {
    "openai": by_openai,
    "anthropic": by_anthropic,
    "google": by_google,
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("client", "vendor"), [(one, of) for one in CLIENTS for of in MODELS if one != of])
def test_an_answer(fake: Installation, customer: Customer, client: str, vendor: str, stream: bool) -> None:
    text, input_tokens, output_tokens = CLIENTS[client](fake.url, customer.token, MODELS[vendor], stream)
    assert len(text.split()) == 40
    provider = "googleOpenaiCompatible" if (client, vendor) == ("openai", "google") else vendor
    tokens = billed(fake, customer, provider, MODELS[vendor], streamed=stream)
    assert tokens == asked(input_tokens, output_tokens)
