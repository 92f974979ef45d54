"""Clients that close their connection as soon as they have read a stream's end mark: they did not leave early."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from running import running_gateway
from scripted_provider import ScriptedProvider
from tests_support import CHAT, chat

TOKEN_NANO = 20_000


def event(**fields: object) -> bytes:
    return (
        b"data: "
        + orjson.dumps({"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o-mini", **fields})
        + b"\n\n"
    )


WORD = event(choices=[{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}])
FINISH = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USAGE = event(choices=[], usage={"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("last_read", "ending"), [(b"[DONE]", "completed"), (b"Hello", "client_gone")], ids=["at the end mark", "before it"]
)
async def test_how_the_call_ends(valkey, redis_client, postgres, last_read: bytes, ending: str):
    """The body goes on for a moment: a provider's last chunk, which has no bytes, often is a packet of its own."""
    async with ScriptedProvider() as provider, running_gateway(valkey, postgres, provider) as gateway:
        provider.play(WORD, 0.2, FINISH + USAGE + DONE, 0.2)
        customer = await gateway.customer()
        asking = chat(stream=True, stream_options={"include_usage": True})
        async with gateway.forward(CHAT, gateway.token_for(customer), json=asking) as answer:
            received = b""
            while last_read not in received:
                received += await answer.content.readany()
            answer.close()
        async with asyncio.timeout(5):
            while (await gateway.balance(customer)).calls:
                await asyncio.sleep(0.01)
        (row,) = await gateway.rows()
        assert (row["ending"], row["status"], row["estimated"]) == (ending, "completed", False)
        assert row["charge_nano"] == 15 * TOKEN_NANO
