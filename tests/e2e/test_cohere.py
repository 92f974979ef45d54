"""The cohere package: chat, streamed and not, tools, embeddings and rerank, at each base URL."""

from __future__ import annotations

from typing import Any

import cohere
import pytest
from addresses import COHERE
from billed import STEERED, asked, billed, billed_as_recorded, refused
from cohere.core.api_error import ApiError
from installation import Customer, Installation

from gateway.local.fake.replay import EXCHANGE_HEADER

BASES = {"query": COHERE.query, "path": COHERE.path, "drop-in": "{}".format}
MODEL = "command-a-reasoning-08-2025"
MESSAGES: Any = [{"role": "user", "content": "Who created Ruby?"}]
STEERED_MESSAGES: Any = [{"role": "user", "content": STEERED}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "knowledge_base",
        "description": "Searches the company knowledge base",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}


@pytest.fixture(params=BASES)
def base_url(request: pytest.FixtureRequest, replay: Installation) -> str:
    return BASES[request.param](replay.url)


@pytest.fixture
def client(base_url, recorded_customer) -> cohere.ClientV2:
    return cohere.ClientV2(api_key=recorded_customer.token, base_url=base_url)


def steered(exchange: str) -> Any:
    return {"additional_headers": {EXCHANGE_HEADER: exchange}}


@pytest.fixture(params=BASES)
def fake_client(request: pytest.FixtureRequest, fake: Installation, customer: Customer) -> cohere.ClientV2:
    """Before the fake provider; `client` is before recorded exchanges."""
    return cohere.ClientV2(api_key=customer.token, base_url=BASES[request.param](fake.url))


def test_chat(fake, customer, fake_client):
    """What is billed are the billed units, not the tokens beside them."""
    answer = fake_client.chat(model=MODEL, messages=STEERED_MESSAGES)
    assert len(answer.message.content[0].text.split()) == 40
    used = answer.usage.billed_units
    assert billed(fake, customer, "cohere", MODEL) == asked(used.input_tokens, used.output_tokens)
    assert answer.usage.tokens.input_tokens > used.input_tokens


def test_chat_stream(fake, customer, fake_client):
    events = list(fake_client.chat_stream(model=MODEL, messages=STEERED_MESSAGES))
    pieces = [event.delta.message.content.text for event in events if event.type == "content-delta"]
    assert len("".join(pieces).split()) == 40
    assert billed(fake, customer, "cohere", MODEL, streamed=True) == asked()


def test_a_tool_call(replay, recorded_customer, client):
    exchange = "cohere__cohere_v2_chat__sync__006"
    answer = client.chat(model=MODEL, messages=MESSAGES, tools=[TOOL], request_options=steered(exchange))
    assert [call.function.name for call in answer.message.tool_calls] == ["knowledge_base"]
    billed_as_recorded(replay, recorded_customer, exchange)


def test_a_tool_call_in_a_stream(replay, recorded_customer, client):
    exchange = "cohere__cohere_v2_chat__stream__001"
    events = list(client.chat_stream(model=MODEL, messages=MESSAGES, tools=[TOOL], request_options=steered(exchange)))
    assert "tool-call-start" in {event.type for event in events}
    assert events[-1].type == "message-end"
    billed_as_recorded(replay, recorded_customer, exchange)


def test_embeddings(replay, recorded_customer, client):
    exchange = "cohere__cohere_embed__sync__001"
    answer = client.embed(
        model="embed-v4.0", texts=["one"], input_type="classification", request_options=steered(exchange)
    )
    assert answer.embeddings.float_
    billed_as_recorded(replay, recorded_customer, exchange)


def test_rerank_is_billed_by_searches(replay, recorded_customer, client):
    answer = client.rerank(
        model="rerank-v3.5", query="q", documents=["a", "b"], request_options=steered("cohere__rerank__sync__001")
    )
    assert answer.results
    assert replay.row(recorded_customer)["usage"] == {"search_units": int(answer.meta.billed_units.search_units)}


def test_an_empty_balance_is_the_packages_own_error(replay, base_url):
    poor = replay.customer(1)
    with pytest.raises(ApiError) as error:
        cohere.ClientV2(api_key=poor.token, base_url=base_url).chat(model=MODEL, messages=MESSAGES)
    assert error.value.status_code == 402
    assert refused(replay, poor) in str(error.value.body)


def test_a_wrong_key_is_the_packages_own_error(base_url):
    with pytest.raises(cohere.UnauthorizedError):
        cohere.ClientV2(api_key="rubbish", base_url=base_url).chat(model=MODEL, messages=MESSAGES)
