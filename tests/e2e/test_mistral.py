"""The mistralai package: chat, streamed and not, and embeddings. It drops the query of a base URL."""

from __future__ import annotations

import json
from typing import Any

import pytest
from addresses import MISTRAL
from billed import STEERED, UNASKED, asked, billed, billed_as_recorded, refused
from installation import Customer, Installation
from mistralai.client import Mistral
from mistralai.client.errors import SDKError

from gateway.local.fake.replay import EXCHANGE_HEADER

BASES = {"path": MISTRAL.path, "drop-in": "{}".format}
MODEL = "mistral-small-latest"
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"latitude": {"type": "string"}, "longitude": {"type": "string"}},
        },
    },
}
ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": STEERED}]}


@pytest.fixture(params=BASES)
def base_url(request: pytest.FixtureRequest, fake: Installation) -> str:
    return BASES[request.param](fake.url)


@pytest.fixture
def client(base_url: str, customer: Customer) -> Mistral:
    return Mistral(api_key=customer.token, server_url=base_url)


def test_chat(fake, customer, client):
    answer = client.chat.complete(**ASK)
    assert len(answer.choices[0].message.content.split()) == 40
    assert billed(fake, customer, "mistral", MODEL) == asked(answer.usage.prompt_tokens, answer.usage.completion_tokens)


def test_chat_stream(fake, customer, client):
    """Mistral refuses to be asked for usage in a stream, and tells it unasked."""
    with client.chat.stream(model=MODEL, messages=[{"role": "user", "content": UNASKED}]) as stream:
        chunks = [event.data for event in stream]
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split()) == 40
    assert billed(fake, customer, "mistral", MODEL, streamed=True) == asked()


def recorded_client(replay: Installation, customer: Customer) -> Mistral:
    return Mistral(api_key=customer.token, server_url=MISTRAL.path(replay.url))


def test_a_tool_call(replay, recorded_customer):
    exchange = "mistral__chat_completions__sync__002"
    answer = recorded_client(replay, recorded_customer).chat.complete(
        **ASK, tools=[TOOL], tool_choice="any", http_headers={EXCHANGE_HEADER: exchange}
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, sorted(json.loads(call.function.arguments))) == ("weather", ["latitude", "longitude"])
    billed_as_recorded(replay, recorded_customer, exchange)


def test_a_tool_call_in_a_stream(replay, recorded_customer):
    exchange = "mistral__chat_completions__stream__001"
    client = recorded_client(replay, recorded_customer)
    with client.chat.stream(**ASK, tools=[TOOL], http_headers={EXCHANGE_HEADER: exchange}) as stream:
        calls = [call for event in stream for call in event.data.choices[0].delta.tool_calls or ()]
    assert [call.function.name for call in calls] == ["weather"]
    billed_as_recorded(replay, recorded_customer, exchange)


def test_embeddings(replay, recorded_customer):
    exchange = "mistral__embeddings__sync__001"
    answer = recorded_client(replay, recorded_customer).embeddings.create(
        model="mistral-embed", inputs=["one"], http_headers={EXCHANGE_HEADER: exchange}
    )
    assert answer.data and all(one.embedding for one in answer.data)
    billed_as_recorded(replay, recorded_customer, exchange)


def test_an_empty_balance_is_the_packages_own_error(fake, base_url):
    poor = fake.customer(1)
    with pytest.raises(SDKError) as error:
        Mistral(api_key=poor.token, server_url=base_url).chat.complete(**ASK)
    assert error.value.status_code == 402
    assert refused(fake, poor) in str(error.value)


def test_a_base_url_with_a_query_is_refused_with_what_to_use_instead(fake, customer):
    """The package asks for `/v1/forward/v1/chat/completions` without the query."""
    with pytest.raises(SDKError) as error:
        Mistral(api_key=customer.token, server_url=MISTRAL.query(fake.url)).chat.complete(**ASK)
    assert error.value.status_code == 400
    assert "/v1/forward/https/<host>" in error.value.body
    assert fake.rows(customer) == []
