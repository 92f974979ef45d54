"""Redis loses a stream's hold, or a part of it, while it runs: it is held again, or the stream ends."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from rolling_gateway import LONG, ended, gateway_fixture, running_fixture, tokens  # noqa: F401
from running import RunningGateway
from tests_support import CHAT, chat, events_of

from gateway.billing.accounts import NewConnection
from gateway.ledger.connection import LedgerAway
from gateway.ledger.keys import Keys
from gateway.ledger.wallets import now_ms
from gateway.proxy.call import Call
from gateway.proxy.reconnection import hold_again
from gateway.testing import steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_hold_that_redis_lost_is_made_again(gateway):
    customer = await gateway.customer()
    again = gateway.parts.metrics.holds_again._value.get()
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True), headers=LONG) as answer:
        await answer.content.readany()
        (call,) = gateway.parts.live
        names, shard = Keys(), customer.wallet.shard
        hold = names.hold(shard, gateway.merchant.merchant_id, call.request_id)
        ledger = gateway.parts.ledger
        await ledger.command("DEL", hold)
        await ledger.command("ZREM", names.holds(shard), hold)
        await ledger.command("HSET", names.wallet(shard, customer.wallet.wallet_id), "held", 0, "calls", 0)
        assert b"[DONE]" in await answer.content.read()
    balance, row = await ended(gateway, customer)
    assert gateway.parts.metrics.holds_again._value.get() == again + 1
    assert (row["ending"], balance.total_nano) == ("completed", 25 * 10**9 - tokens(2_005))
    assert (balance.held_nano, balance.calls) == (0, 0)


LONGER = steering_header(completion_tokens=6_000, prompt_tokens=5, chunks=1_500, chunk_delay_ms=2)
CUT_EARLY = steering_header(completion_tokens=6_000, prompt_tokens=5, chunks=1_500, chunk_delay_ms=5)
"""For streams that end by what Redis lost, noticed within a second or so: long after that on any machine."""


def other_of(customer: NewConnection) -> str:
    """The id of another call of this customer: an id that has ended holds nothing again."""
    return f"other-{customer.wallet.wallet_id}"


async def redis_loses(
    gateway: RunningGateway, customer: NewConnection, call: Call, left_tokens: int, *, taken: bool
) -> str:
    """The hold comes back with so much, 0: not at all; another call may have taken what is free. Its key."""
    names, shard, ledger = Keys(), customer.wallet.shard, gateway.parts.ledger
    hold = names.hold(shard, gateway.merchant.merchant_id, call.request_id)
    if left_tokens:
        await ledger.command("HSET", hold, "a", tokens(left_tokens))
    else:
        await ledger.command("DEL", hold)
        await ledger.command("ZREM", names.holds(shard), hold)
    wallet = names.wallet(shard, customer.wallet.wallet_id)
    await ledger.command("HSET", wallet, "held", tokens(left_tokens), "calls", 1 if left_tokens else 0)
    if taken:
        free_nano, until_ms = tokens(7_000 - left_tokens), now_ms() + 600_000
        other = await gateway.parts.wallets.hold(
            customer.wallet, other_of(customer), free_nano, expires_ms=until_ms, descriptor=b"{}"
        )
        assert other.kind == "held"
    return hold


async def other_ends(gateway: RunningGateway, customer: NewConnection) -> None:
    """After the stream was settled: with its hold lost, nothing is held before that."""
    async with asyncio.timeout(10):
        while gateway.parts.live:
            await asyncio.sleep(0.01)
    await gateway.parts.wallets.release(customer.wallet, other_of(customer))


async def held_ahead(gateway: RunningGateway) -> Call:
    """The call, once its hold is so large that it asks for no more soon."""
    async with asyncio.timeout(5):
        while True:
            for call in gateway.parts.live:
                if call.rolling is not None and call.rolling.held_tokens >= 4_096:
                    return call
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("left_tokens", [400, 0])
async def test_a_stream_whose_hold_came_back_smaller_ends_where_the_money_is_gone(gateway, left_tokens):
    """Redis has lost its last extension, or the hold; the next renewal notices."""
    customer = await gateway.customer(tokens(7_000))
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True), headers=CUT_EARLY) as answer:
        call = await held_ahead(gateway)
        await redis_loses(gateway, customer, call, left_tokens, taken=True)
        error = events_of(await answer.read())[-2]["error"]
    assert error["code"] == "balance_reserved"
    await other_ends(gateway, customer)
    balance, row = await ended(gateway, customer)
    assert row["ending"] == "balance_exhausted"
    assert 0 < row["charge_nano"] < tokens(2_000)  # of 6,005
    assert (balance.total_nano, balance.calls) == (tokens(7_000) - row["charge_nano"], 0)


async def test_a_stream_of_which_no_text_is_kept_is_cut(gateway):
    """Its hold covered all that it may produce, until a part of it was lost."""
    customer = await gateway.customer(tokens(7_000))
    body = chat(stream=True, max_tokens=6_000)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=body, headers=CUT_EARLY) as answer:
        async with asyncio.timeout(5):
            while not (call := await held_ahead(gateway)).rolling._text_gone:
                await asyncio.sleep(0.005)
        await redis_loses(gateway, customer, call, 100, taken=True)
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    await other_ends(gateway, customer)
    _, row = await ended(gateway, customer)
    assert row["ending"] == "balance_exhausted"


@pytest.mark.parametrize("left_tokens", [400, pytest.param(0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reconnected", [False, True])
async def test_a_hold_that_came_back_smaller_grows_again(gateway, monkeypatch, left_tokens, reconnected):
    customer = await gateway.customer(tokens(7_000))

    def away(*arguments: Any, **named: Any) -> Any:
        raise LedgerAway("Redis is away")

    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True), headers=LONGER) as answer:
        call = await held_ahead(gateway)
        if reconnected:
            monkeypatch.setattr("gateway.proxy.renewal._renew", away)
        held_nano = call.held_nano
        hold = await redis_loses(gateway, customer, call, left_tokens, taken=False)
        if reconnected:
            await hold_again(gateway.parts)
            assert int(await gateway.parts.ledger.command("HGET", hold, "a")) >= held_nano
        async with asyncio.timeout(5):
            while int(await gateway.parts.ledger.command("HGET", hold, "a") or 0) < held_nano:
                await asyncio.sleep(0.01)
        assert b"[DONE]" in await answer.read()
    balance, row = await ended(gateway, customer)
    assert (row["ending"], balance.total_nano) == ("completed", tokens(7_000 - 6_005))


@pytest.mark.parametrize("left_tokens", [400, 0])
async def test_a_new_connection_notices_that_a_hold_cannot_grow_again(gateway, monkeypatch, left_tokens):
    customer = await gateway.customer(tokens(7_000))
    monkeypatch.setattr("gateway.proxy.renewal._renew", lambda *arguments, **named: None)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True), headers=LONGER) as answer:
        call = await held_ahead(gateway)
        await redis_loses(gateway, customer, call, left_tokens, taken=True)
        await hold_again(gateway.parts)
        await asyncio.sleep(0)
        assert call.rolling.held_tokens <= left_tokens
        assert b"balance_reserved" in await answer.read()
    await other_ends(gateway, customer)
    _, row = await ended(gateway, customer)
    assert row["ending"] == "balance_exhausted"
