"""The openai package's realtime client, at each base URL: a WebSocket through the gateway, metered and charged."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from addresses import OPENAI
from billed import COMPLETION_TOKENS, PROMPT_TOKENS, STEERED, billed
from installation import Customer, Installation
from websockets.exceptions import InvalidStatus

BASES = {
    "query": OPENAI.query,
    "query with a slash": lambda gateway: OPENAI.query(gateway) + "/",
    "path": OPENAI.path,
    "drop-in": "{}/v1".format,
}
MODEL = "gpt-realtime"
ITEM: Any = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": STEERED}]}
TOKENS = {"input_tokens": PROMPT_TOKENS, "output_tokens": COMPLETION_TOKENS}


@pytest.fixture(params=BASES)
def base_url(request: pytest.FixtureRequest, fake: Installation) -> str:
    return BASES[request.param](fake.url)


def test_a_session(fake: Installation, customer: Customer, base_url: str):
    client = openai.OpenAI(base_url=base_url, api_key=customer.token, max_retries=0)
    heard = []
    with client.realtime.connect(model=MODEL) as connection:
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        connection.conversation.item.create(item=ITEM)
        connection.response.create()
        for event in connection:
            heard.append(event)
            if event.type == "response.done":
                break
    assert [event.type for event in heard[:2]] == ["session.created", "session.updated"]
    assert heard[-1].response.usage.total_tokens == PROMPT_TOKENS + COMPLETION_TOKENS
    assert "".join(event.delta for event in heard if event.type == "response.output_text.delta")
    assert billed(fake, customer, "openai", MODEL, streamed=True) == TOKENS


def test_an_asynchronous_session(fake: Installation, customer: Customer, base_url: str):
    async def session() -> list[str]:
        async with (
            openai.AsyncOpenAI(base_url=base_url, api_key=customer.token, max_retries=0) as client,
            client.realtime.connect(model=MODEL) as connection,
        ):
            await connection.conversation.item.create(item=ITEM)
            await connection.response.create()
            heard: list[str] = []
            while "response.done" not in heard:
                heard.append((await connection.recv()).type)
            return heard

    assert "response.output_audio.delta" in asyncio.run(session())
    assert billed(fake, customer, "openai", MODEL, streamed=True) == TOKENS


def test_without_money_the_handshake_is_refused(fake: Installation, base_url: str):
    poor = fake.customer(1_000)
    client = openai.OpenAI(base_url=base_url, api_key=poor.token, max_retries=0)
    with pytest.raises(InvalidStatus) as refused, client.realtime.connect(model=MODEL):
        pass
    assert refused.value.response.status_code == 402
    assert b"insufficient_balance" in refused.value.response.body
    assert fake.rows(poor) == []
