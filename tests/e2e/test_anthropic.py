"""The anthropic package: messages, streamed and not, and token counts, at each base URL."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest
from addresses import ANTHROPIC
from billed import STEERED, asked, billed, refused
from installation import Customer, Installation

BASES = {"query": ANTHROPIC.query, "path": ANTHROPIC.path, "drop-in": "{}".format}
MODEL = "claude-haiku-4-5"
ASK: Any = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": STEERED}]}


@pytest.fixture(params=BASES)
def base_url(request: pytest.FixtureRequest, fake: Installation) -> str:
    return BASES[request.param](fake.url)


@pytest.fixture
def client(base_url: str, customer: Customer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=base_url, api_key=customer.token, max_retries=0)


def test_messages(fake, customer, client):
    answer = client.messages.create(**ASK)
    assert len(answer.content[0].text.split()) == 40
    assert billed(fake, customer, "anthropic", MODEL) == asked(answer.usage.input_tokens, answer.usage.output_tokens)


def test_messages_stream(fake, customer, client):
    with client.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()
    assert len(text.split()) == 40
    tokens = billed(fake, customer, "anthropic", MODEL, streamed=True)
    assert tokens == asked(answer.usage.input_tokens, answer.usage.output_tokens)


def test_beta_messages(fake, customer, client):
    """What goes to beta endpoints has a header or a query of its own; both reach the provider."""
    client.beta.messages.create(**ASK, betas=["context-management-2025-06-27"])
    assert billed(fake, customer, "anthropic", MODEL) == asked()
    assert "context-management-2025-06-27" in fake.seen()[-1].header("anthropic-beta")


def test_counting_tokens_is_free(fake, customer, client):
    counted = client.messages.count_tokens(model=MODEL, messages=ASK["messages"])
    assert counted.input_tokens > 0
    assert [row["charge_nano"] for row in fake.rows(customer)] in ([], [0])


def test_the_environment_alone(fake, customer, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", customer.token)
    anthropic.Anthropic().messages.create(**ASK)
    assert billed(fake, customer, "anthropic", MODEL) == asked()


def test_the_models_of_the_gateway(fake, customer):
    client = anthropic.Anthropic(base_url=fake.url, api_key=customer.token, max_retries=0)
    assert MODEL in [model.id for model in client.models.list()]


def test_an_auth_token_is_a_key_too(fake, customer, base_url):
    anthropic.Anthropic(base_url=base_url, auth_token=customer.token, max_retries=0).messages.create(**ASK)
    assert billed(fake, customer, "anthropic", MODEL) == asked()


def test_a_key_in_the_header_of_earlier_versions(fake, customer, base_url):
    """Before 2.0 the package sent `x-api-key`."""
    headers = {"x-api-key": customer.token, "Authorization": anthropic.omit}
    client = anthropic.Anthropic(base_url=base_url, api_key="unused", default_headers=headers, max_retries=0)
    client.messages.create(**ASK)
    assert billed(fake, customer, "anthropic", MODEL) == asked()


def test_the_asynchronous_client(fake, customer, base_url):
    async def ask() -> anthropic.types.Message:
        async with (
            anthropic.AsyncAnthropic(base_url=base_url, api_key=customer.token, max_retries=0) as client,
            client.messages.stream(**ASK) as stream,
        ):
            return await stream.get_final_message()

    assert asyncio.run(ask()).stop_reason == "end_turn"
    assert billed(fake, customer, "anthropic", MODEL, streamed=True) == asked()


@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_balance_is_the_packages_own_error(fake, base_url, stream):
    poor = fake.customer(1)
    client = anthropic.Anthropic(base_url=base_url, api_key=poor.token, max_retries=0)
    with pytest.raises(anthropic.APIStatusError) as error:
        client.messages.create(**ASK, stream=stream)
    assert error.value.status_code == 402
    assert error.value.body["type"] == "error" and error.value.body["error"]["code"] == "insufficient_balance"
    assert refused(fake, poor) in str(error.value)


def test_a_wrong_key_is_the_packages_own_error(base_url):
    client = anthropic.Anthropic(base_url=base_url, api_key="rubbish", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError) as error:
        client.messages.create(**ASK)
    assert error.value.body["error"]["code"] == "unauthorized"
