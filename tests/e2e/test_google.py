"""The google-genai package: content, streamed and not, embeddings and token counts, at each base URL."""

from __future__ import annotations

import asyncio

import pytest
from addresses import GOOGLE
from billed import STEERED, asked, billed, billed_as_recorded, refused
from google import genai
from google.genai import errors
from installation import Customer, Installation

from gateway.local.fake.replay import EXCHANGE_HEADER

BASES = {"query": GOOGLE.query, "path": GOOGLE.path, "drop-in": "{}".format}
MODEL = "gemini-2.5-flash"
TOOL = {
    "name": "square_root",
    "description": "Calculates the square root of a number",
    "parameters": {"type": "OBJECT", "properties": {"number": {"type": "NUMBER"}}, "required": ["number"]},
}


@pytest.fixture(params=BASES)
def base_url(request: pytest.FixtureRequest, fake: Installation) -> str:
    return BASES[request.param](fake.url)


def client_for(base_url: str, key: str) -> genai.Client:
    return genai.Client(api_key=key, http_options={"base_url": base_url})


@pytest.fixture
def client(base_url: str, customer: Customer) -> genai.Client:
    return client_for(base_url, customer.token)


def test_content(fake, customer, client):
    answer = client.models.generate_content(model=MODEL, contents=STEERED)
    assert len(answer.text.split()) == 40
    used = answer.usage_metadata
    assert billed(fake, customer, "google", MODEL) == asked(used.prompt_token_count, used.candidates_token_count)


def test_content_stream(fake, customer, client):
    chunks = list(client.models.generate_content_stream(model=MODEL, contents=STEERED))
    assert len("".join(chunk.text or "" for chunk in chunks).split()) == 40
    used = chunks[-1].usage_metadata
    tokens = billed(fake, customer, "google", MODEL, streamed=True)
    assert tokens == asked(used.prompt_token_count, used.candidates_token_count)


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_both_versions_of_the_api(fake, customer, base_url, version):
    """3.x asks for /v1/models, earlier versions for /v1beta/models."""
    client = genai.Client(api_key=customer.token, http_options={"base_url": base_url, "api_version": version})
    assert client.models.generate_content(model=MODEL, contents=STEERED).text
    assert billed(fake, customer, "google", MODEL) == asked()


def test_embeddings(fake, customer, client):
    answer = client.models.embed_content(model="gemini-embedding-001", contents=["one two", "three"])
    assert [len(one.values) > 100 for one in answer.embeddings] == [True, True]
    row = fake.row(customer)
    assert (row["provider"], row["model"], row["ending"]) == ("google", "gemini-embedding-001", "completed")
    assert row["usage"]["input_tokens"] > 0


@pytest.mark.parametrize("shape", ["query", "path"])
def test_a_tool_call(replay, recorded_customer, shape):
    exchange = "google__gemini_generate__sync__005"
    client = client_for(BASES[shape](replay.url), recorded_customer.token)
    answer = client.models.generate_content(
        model="gemini-flash-lite-latest",
        contents="Use the square_root tool to calculate the square root of 132413.",
        config={
            "tools": [{"function_declarations": [TOOL]}],
            "tool_config": {"function_calling_config": {"mode": "ANY"}},
            "http_options": {"headers": {EXCHANGE_HEADER: exchange}},
        },
    )
    assert [(call.name, call.args) for call in answer.function_calls] == [("square_root", {"number": 132413})]
    billed_as_recorded(replay, recorded_customer, exchange)


@pytest.mark.parametrize("shape", ["query", "path"])
def test_a_tool_call_in_a_stream(replay, recorded_customer, shape):
    exchange = "google__gemini_stream__stream__053"
    client = client_for(BASES[shape](replay.url), recorded_customer.token)
    config = {"tools": [{"function_declarations": [TOOL]}], "http_options": {"headers": {EXCHANGE_HEADER: exchange}}}
    chunks = list(client.models.generate_content_stream(model=MODEL, contents="The weather?", config=config))
    calls = [call for chunk in chunks for call in chunk.function_calls or ()]
    assert [call.name for call in calls] == ["weather"]
    billed_as_recorded(replay, recorded_customer, exchange)


def test_counting_tokens_is_free(fake, customer, client):
    assert client.models.count_tokens(model=MODEL, contents="one two three").total_tokens > 0
    assert [row["charge_nano"] for row in fake.rows(customer)] in ([], [0])


def test_the_models_of_the_gateway(fake, customer):
    client = client_for(fake.url, customer.token)
    assert f"models/{MODEL}" in [model.name for model in client.models.list()]


def test_the_asynchronous_client(fake, customer, base_url):
    async def ask() -> int:
        async with client_for(base_url, customer.token).aio as client:
            stream = await client.models.generate_content_stream(model=MODEL, contents=STEERED)
            return len([chunk async for chunk in stream])

    assert asyncio.run(ask()) > 1
    assert billed(fake, customer, "google", MODEL, streamed=True) == asked()


@pytest.mark.parametrize("stream", [False, True])
def test_an_empty_balance_is_the_packages_own_error(fake, base_url, stream):
    poor = fake.customer(1)
    client = client_for(base_url, poor.token)
    with pytest.raises(errors.ClientError) as error:
        if stream:
            list(client.models.generate_content_stream(model=MODEL, contents=STEERED))
        else:
            client.models.generate_content(model=MODEL, contents=STEERED)
    assert error.value.code == 402
    assert refused(fake, poor) in error.value.message


def test_a_wrong_key_is_the_packages_own_error(base_url):
    client = client_for(base_url, "rubbish")  # closed as soon as nobody refers to it
    with pytest.raises(errors.ClientError) as error:
        client.models.generate_content(model=MODEL, contents=STEERED)
    assert (error.value.code, error.value.status) == (401, "UNAUTHENTICATED")
