"""The groq package: chat at each base URL, streamed and not."""

from __future__ import annotations

from typing import Any

import groq
import pytest
from addresses import GROQ
from billed import STEERED, asked, billed, refused
from installation import Customer, Installation

BASES = {"query": GROQ.query, "path": GROQ.path, "drop-in": "{}".format}
MODEL = "llama-3.3-70b-versatile"
ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": STEERED}]}


@pytest.fixture(params=BASES)
def base_url(request: pytest.FixtureRequest, fake: Installation) -> str:
    return BASES[request.param](fake.url)


@pytest.fixture
def client(base_url: str, customer: Customer) -> groq.Groq:
    return groq.Groq(base_url=base_url, api_key=customer.token, max_retries=0)


def test_chat(fake, customer, client):
    answer = client.chat.completions.create(**ASK)
    assert len(answer.choices[0].message.content.split()) == 40
    assert billed(fake, customer, "groq", MODEL) == asked(answer.usage.prompt_tokens, answer.usage.completion_tokens)


def test_chat_stream(fake, customer, client):
    chunks = list(
        client.chat.completions.create(**ASK, stream=True, extra_body={"stream_options": {"include_usage": True}})
    )
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split()) == 40
    assert billed(fake, customer, "groq", MODEL, streamed=True) == asked()


def test_an_empty_balance_is_the_packages_own_error(fake, base_url):
    poor = fake.customer(1)
    with pytest.raises(groq.APIStatusError) as error:
        groq.Groq(base_url=base_url, api_key=poor.token, max_retries=0).chat.completions.create(**ASK)
    assert error.value.status_code == 402
    assert refused(fake, poor) in str(error.value)


def test_a_wrong_key_is_the_packages_own_error(base_url):
    with pytest.raises(groq.AuthenticationError):
        groq.Groq(base_url=base_url, api_key="rubbish", max_retries=0).chat.completions.create(**ASK)
