"""Agents of pydantic-ai over the OpenAI, Anthropic and Google clients, each with a base URL and a key alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import pytest
from addresses import ANTHROPIC, GOOGLE, OPENAI
from billed import STEERED, asked, billed, refused
from installation import Installation
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Case(NamedTuple):
    provider: str
    name: str
    model: Callable[[str, str], Model]
    """Of a base URL and a key."""
    bases: dict[str, Callable[[str], str]]
    always_streams: bool = False


OPENAI_BASES = {"query": OPENAI.query, "path": OPENAI.path, "drop-in": "{}/v1".format}
CASES = {
    "chat": Case(
        "openai",
        "gpt-4o-mini",
        lambda url, key: OpenAIChatModel("gpt-4o-mini", provider=OpenAIProvider(base_url=url, api_key=key)),
        OPENAI_BASES | {"query": lambda gateway: OPENAI.query(gateway) + "/"},
    ),
    "responses": Case(
        "openai",
        "gpt-4o-mini",
        lambda url, key: OpenAIResponsesModel("gpt-4o-mini", provider=OpenAIProvider(base_url=url, api_key=key)),
        OPENAI_BASES,
    ),
    "anthropic": Case(
        "anthropic",
        "claude-haiku-4-5",
        lambda url, key: AnthropicModel("claude-haiku-4-5", provider=AnthropicProvider(base_url=url, api_key=key)),
        {"query": ANTHROPIC.query, "path": ANTHROPIC.path, "drop-in": "{}".format},
        always_streams=True,
    ),
    "google": Case(
        "google",
        "gemini-2.5-flash",
        lambda url, key: GoogleModel("gemini-2.5-flash", provider=GoogleProvider(base_url=url, api_key=key)),
        {"query": GOOGLE.query, "path": GOOGLE.path, "drop-in": "{}".format},
    ),
}
EACH = pytest.mark.parametrize(("case", "base"), [(case, base) for case in CASES for base in CASES[case].bases])


def agent(installation: Installation, case: str, base: str, key: str) -> Agent:
    return Agent(CASES[case].model(CASES[case].bases[base](installation.url), key))


@EACH
def test_an_answer(fake, customer, case, base):
    answer = agent(fake, case, base, customer.token).run_sync(STEERED)
    assert len(answer.output.split()) == 40
    used = answer.usage
    streamed = CASES[case].always_streams
    tokens = billed(fake, customer, CASES[case].provider, CASES[case].name, streamed=streamed)
    assert tokens == asked(used.input_tokens, used.output_tokens)


@EACH
def test_a_stream(fake, customer, case, base):
    async def ask() -> str:
        async with agent(fake, case, base, customer.token).run_stream(STEERED) as stream:
            return "".join([piece async for piece in stream.stream_text(delta=True)])

    assert len(asyncio.run(ask()).split()) == 40
    assert billed(fake, customer, CASES[case].provider, CASES[case].name, streamed=True) == asked()


@EACH
def test_an_empty_balance_is_the_packages_own_error(fake, case, base):
    poor = fake.customer(1)
    with pytest.raises(ModelHTTPError) as error:
        agent(fake, case, base, poor.token).run_sync(STEERED)
    assert error.value.status_code == 402
    assert refused(fake, poor) in str(error.value.body)
