"""The official openai and anthropic packages, unmodified but for their base URL, through the running gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anthropic
import openai
import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway

from gateway.billing.accounts import NewConnection
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN_NANO = 20_000
CREDIT_NANO = 25 * 10**9
STEER = steering_header(prompt_tokens=300, completion_tokens=40, chunks=40)
MESSAGES = [{"role": "user", "content": "Say it in forty words."}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def customer(gateway: RunningGateway) -> NewConnection:
    return await gateway.customer(CREDIT_NANO)


@pytest_asyncio.fixture(loop_scope="module")
async def openai_client(gateway: RunningGateway, customer: NewConnection) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_with(gateway, gateway.token_for(customer)) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def anthropic_client(gateway: RunningGateway, customer: NewConnection) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic_with(gateway, gateway.token_for(customer)) as client:
        yield client


def openai_with(gateway: RunningGateway, api_key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1/forward?u=https://api.openai.com/v1", api_key=api_key, max_retries=0
    )


def anthropic_with(gateway: RunningGateway, api_key: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url=f"{gateway.url}/v1/forward?u=https://api.anthropic.com", api_key=api_key, max_retries=0
    )


async def charged_nano(gateway: RunningGateway, customer: NewConnection) -> int:
    """What the only call of a customer was charged, by its row and by the balance."""
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert (row["ending"], row["estimated"]) == ("completed", False)
    assert CREDIT_NANO - (await gateway.balance(customer)).cycle_nano == row["charge_nano"]
    return int(row["charge_nano"])


async def test_openai_chat(gateway, customer, openai_client):
    answer = await openai_client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, extra_headers=STEER)
    assert answer.choices[0].message.content and answer.usage.total_tokens == 340
    assert await charged_nano(gateway, customer) == 340 * TOKEN_NANO


@pytest.mark.parametrize("asked", [False, True])
async def test_openai_chat_stream(gateway, customer, openai_client, asked):
    """The usage chunk reaches only the client that asked for it; both are charged."""
    options = {"stream_options": {"include_usage": True}} if asked else {}
    stream = await openai_client.chat.completions.create(
        model="gpt-4o-mini", messages=MESSAGES, stream=True, extra_headers=STEER, **options
    )
    chunks = [chunk async for chunk in stream]
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split()) == 40
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([340] if asked else [])
    assert all(chunk.choices for chunk in chunks) is not asked
    assert await charged_nano(gateway, customer) == 340 * TOKEN_NANO


async def test_openai_responses(gateway, customer, openai_client):
    answer = await openai_client.responses.create(model="gpt-4o-mini", input="forty words", extra_headers=STEER)
    assert len(answer.output_text.split()) == 40 and answer.usage.total_tokens == 340
    assert await charged_nano(gateway, customer) == 340 * TOKEN_NANO


async def test_openai_responses_stream(gateway, customer, openai_client):
    stream = await openai_client.responses.create(
        model="gpt-4o-mini", input="forty words", stream=True, extra_headers=STEER
    )
    events = [event async for event in stream]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert len(text.split()) == 40
    assert events[-1].type == "response.completed" and events[-1].response.usage.total_tokens == 340
    assert await charged_nano(gateway, customer) == 340 * TOKEN_NANO


async def test_openai_embeddings(gateway, customer, openai_client):
    answer = await openai_client.embeddings.create(
        model="text-embedding-3-small", input=["one two", "three"], extra_headers=steering_header(prompt_tokens=77)
    )
    assert len(answer.data) == 2 and len(answer.data[0].embedding) > 100
    assert await charged_nano(gateway, customer) == answer.usage.total_tokens * TOKEN_NANO > 0


async def test_anthropic_messages(gateway, customer, anthropic_client):
    steer = steering_header(prompt_tokens=300, cached_tokens=100, cache_write_tokens=50, completion_tokens=40)
    answer = await anthropic_client.messages.create(
        model="claude-sonnet-4-5", max_tokens=100, messages=MESSAGES, extra_headers=steer
    )
    assert len(answer.content[0].text.split()) == 40
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens) == (150, 100)
    assert await charged_nano(gateway, customer) == 340 * TOKEN_NANO


async def test_anthropic_messages_stream(gateway, customer, anthropic_client):
    async with anthropic_client.messages.stream(
        model="claude-sonnet-4-5", max_tokens=100, messages=MESSAGES, extra_headers=STEER
    ) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        answer = await stream.get_final_message()
    assert len(text.split()) == 40
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (300, 40)
    assert await charged_nano(gateway, customer) == 340 * TOKEN_NANO


async def test_the_provider_sees_its_own_paths_and_nothing_of_ours(gateway, customer, openai_client, anthropic_client):
    gateway.provider.clear()
    await openai_client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    await anthropic_client.messages.create(model="claude-sonnet-4-5", max_tokens=10, messages=MESSAGES)
    seen = gateway.provider.requests
    assert [(one.host, one.target) for one in seen] == [
        ("api.openai.com", "/v1/chat/completions"),
        ("api.anthropic.com", "/v1/messages"),
    ]
    assert gateway.token_for(customer) not in repr(seen)


async def test_openai_errors_are_the_packages_own(gateway, openai_client):
    poor = await gateway.customer(1)
    ask = {"model": "gpt-4o-mini", "messages": MESSAGES}
    async with openai_with(gateway, gateway.token_for(poor)) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(**ask)
    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_balance")
    async with openai_with(gateway, "rubbish") as client:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await client.chat.completions.create(**ask, stream=True)
    assert unknown.value.code == "unauthorized"
    with pytest.raises(openai.RateLimitError) as limited:
        await openai_client.chat.completions.create(**ask, extra_headers=steering_header(fault="status:429"))
    assert "fake provider" in str(limited.value)
    assert limited.value.response.headers["x-lava-request-id"].startswith("req_")


async def test_anthropic_errors_are_the_packages_own(gateway, anthropic_client):
    poor = await gateway.customer(1)
    ask = {"model": "claude-sonnet-4-5", "max_tokens": 10, "messages": MESSAGES}
    async with anthropic_with(gateway, gateway.token_for(poor)) as client:
        with pytest.raises(anthropic.APIStatusError) as refused:
            await client.messages.create(**ask)
    assert (refused.value.status_code, refused.value.body["error"]["code"]) == (402, "insufficient_balance")
    async with anthropic_with(gateway, "rubbish") as client:
        with pytest.raises(anthropic.AuthenticationError) as unknown:
            await client.messages.create(**ask)
    assert unknown.value.body["error"]["code"] == "unauthorized"
    with pytest.raises(anthropic.RateLimitError) as limited:
        await anthropic_client.messages.create(**ask, extra_headers=steering_header(fault="status:429"))
    assert limited.value.body["type"] == "error"
