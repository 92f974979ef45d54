"""A stream's hold covers the prompt and a first step, grows ahead of it, and ends it where it can grow no more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from rolling_gateway import (  # noqa: F401
    LONG,
    STEP_TOKENS,
    ended,
    gateway_fixture,
    running_fixture,
    script_fixture,
    tokens,
)
from running import RunningGateway
from scripted_provider import ScriptedProvider
from test_sdks import anthropic_with, openai_with
from tests_support import CHAT, chat, events_of

from gateway.billing.accounts import NewConnection
from gateway.ledger.connection import LedgerAway
from gateway.proxy import rolling
from gateway.testing import steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")


def poor(gateway: RunningGateway) -> Any:
    """A customer whose credit is enough for some 700 tokens."""
    return gateway.customer(tokens(900))


async def cut_short(gateway: RunningGateway, customer: NewConnection, left_tokens: int = 260) -> dict[str, Any]:
    """What was produced was billed, not more than there was, and little is left.

    The prompt is held for at a token a byte. Where another tokenizer than ours counts, the stream ends a third earlier.
    """
    balance, row = await ended(gateway, customer)
    assert (row["ending"], row["status"], row["estimated"]) == ("balance_exhausted", "error", True)
    assert 0 <= balance.total_nano <= tokens(left_tokens) and balance.overage_nano == 0
    assert balance.total_nano == tokens(900) - row["charge_nano"]
    assert row["charge_nano"] == tokens(row["usage"]["input_tokens"] + row["usage"]["output_tokens"])
    return row


ANTHROPIC = "https://api.anthropic.com/v1/messages"
GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.0-flash:streamGenerateContent"


@pytest.mark.parametrize(
    ("members", "held_tokens"),
    [
        ({"stream": True}, STEP_TOKENS),
        ({"stream": True, "max_tokens": 5_000}, STEP_TOKENS),
        ({"stream": True, "max_tokens": 100, "n": 2}, 200),
        ({"stream": True, "max_tokens": 100, "n": 9}, STEP_TOKENS),
        ({"max_tokens": 5_000}, 5_000),
        ({}, 4_096),
    ],
)
async def test_what_is_held_first(gateway, members, held_tokens):
    """A stream: the prompt and a step, or all that it may produce if that is less. Any other call: its ceiling."""
    customer, body = await gateway.customer(), json.dumps(chat(**members)).encode()
    steer = steering_header(completion_tokens=1, prompt_tokens=1, delay_ms=150)
    headers = {"Content-Type": "application/json", **steer}
    call = asyncio.ensure_future(
        gateway.forward(CHAT, gateway.token_for(customer), data=body, headers=headers).__aenter__()
    )
    async with asyncio.timeout(5):
        while not (held := (await gateway.balance(customer)).held_nano):
            await asyncio.sleep(0.005)
    assert held == tokens(len(body) + held_tokens)
    answer = await call
    await answer.read()
    await ended(gateway, customer)


async def test_the_hold_grows_ahead_of_the_stream_in_a_few_steps(gateway):
    customer = await gateway.customer()
    before = gateway.parts.metrics.hold_extensions.labels("extended")._value.get()
    seen: list[tuple[int, int, int]] = []
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True), headers=LONG) as answer:
        words = 0
        async for line in answer.content:
            words += b'"content":" ' in line
            for call in gateway.parts.live:
                if call.rolling is not None:
                    seen.append((words, call.rolling.used_tokens(), call.rolling.held_tokens))
    assert len(seen) > 100
    assert all(words <= used for words, used, _ in seen)  # never low
    assert all(used <= held + 64 * 1024 for _, used, held in seen)
    assert [held for _, _, held in seen] == sorted(held for _, _, held in seen)
    grown = gateway.parts.metrics.hold_extensions.labels("extended")._value.get() - before
    assert 3 <= grown <= 7  # 256, 512, ... for some 13,000 bytes of text
    balance, row = await ended(gateway, customer)
    assert (row["ending"], row["estimated"], row["charge_nano"]) == ("completed", False, tokens(2_005))
    assert balance.total_nano == 25 * 10**9 - tokens(2_005)


async def test_a_call_without_charge_has_no_rolling_hold(gateway):
    async with gateway.forward(CHAT, gateway.merchant.secret_key, json=chat(stream=True), headers=LONG) as answer:
        assert all(call.rolling is None for call in gateway.parts.live)
        assert events_of(await answer.read())[-1] == "[DONE]"


@pytest.mark.parametrize("asked", [False, True])
async def test_the_openai_package_raises_its_error(gateway, asked):
    customer = await poor(gateway)
    options = {"stream_options": {"include_usage": True}} if asked else {}
    words: list[str] = []
    async with openai_with(gateway, gateway.token_for(customer)) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o-mini", messages=chat()["messages"], stream=True, extra_headers=LONG, **options
        )
        with pytest.raises(openai.APIError, match="the balance is used up") as caught:
            async for chunk in stream:
                words.append(chunk.choices[0].delta.content or "")
    assert caught.value.code == "insufficient_balance" and caught.value.type == "insufficient_quota"
    row = await cut_short(gateway, customer)
    received = len("".join(words).split())
    assert 300 < received <= row["usage"]["output_tokens"]


async def test_the_openai_package_raises_its_error_on_responses(gateway):
    customer = await poor(gateway)
    async with openai_with(gateway, gateway.token_for(customer)) as client:
        stream = await client.responses.create(model="gpt-4o-mini", input="hi", stream=True, extra_headers=LONG)
        with pytest.raises(openai.APIError, match="the balance is used up") as caught:
            async for _ in stream:
                pass
    assert caught.value.code == "insufficient_balance"
    await cut_short(gateway, customer)


async def test_the_anthropic_package_raises_its_error(gateway):
    customer = await poor(gateway)
    async with anthropic_with(gateway, gateway.token_for(customer)) as client:
        stream = await client.messages.create(
            model="claude-sonnet-4-5", max_tokens=4_000, messages=chat()["messages"], stream=True, extra_headers=LONG
        )
        with pytest.raises(anthropic.APIError, match="the balance is used up") as caught:
            async for _ in stream:
                pass
    assert caught.value.body["error"]["code"] == "insufficient_balance"  # type: ignore[index]
    await cut_short(gateway, customer, 350)


async def test_completions_and_gemini_streams_end_as_their_formats_do(gateway):
    prompt = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    completions = "https://api.openai.com/v1/completions"
    for target, body in (
        (completions, {"model": "gpt-3.5-turbo-instruct", "prompt": "hi", "stream": True}),
        (f"{GEMINI}?alt=sse", prompt),
        (GEMINI, prompt),
    ):
        customer = await poor(gateway)
        async with gateway.forward(target, gateway.token_for(customer), json=body, headers=LONG) as answer:
            received = await answer.read()
        found = json.loads(received) if target == GEMINI else events_of(received)
        if target == completions:
            assert found.pop() == "[DONE]"
        assert "error" in found[-1] and all("error" not in event for event in found[:-1])
        assert "insufficient_balance" in json.dumps(found[-1])
        balance, row = await ended(gateway, customer)
        assert row["ending"] == "balance_exhausted" and 0 <= balance.total_nano < tokens(400)


def chunks(count: int) -> list[bytes]:
    return [
        b'data: {"id":"c1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[{"index":0,"delta":'
        b'{"content":" w%d"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n' % number
        for number in range(count)
    ]


def elements(count: int) -> list[bytes]:
    return [
        (b"," if number else b"[") + b'{\n "candidates": [{"content": {"parts": [{"text": " w%d"}]}}],\n'
        b' "modelVersion": "gemini-2.0-flash"\n}\n' % number
        for number in range(count)
    ]


@pytest.mark.parametrize("framing", ["sse", "array"])
@pytest.mark.parametrize("size", [7, 101, 997])
async def test_the_error_follows_a_whole_event_wherever_the_network_cuts(gateway, script, framing, size):
    """The client has asked for its usage, so that it gets the provider's bytes as they come, parts of events too."""
    stream = b"".join(chunks(1_200) if framing == "sse" else elements(1_200))
    script.play(
        *(
            step
            for start in range(0, len(stream), size)
            for step in (stream[start : start + size], 0.001 * (start % 1_400 < size))
        ),
        ScriptedProvider.HANG,
        content_type=b"text/event-stream" if framing == "sse" else b"application/json",
    )
    customer = await poor(gateway)
    options = {"stream_options": {"include_usage": True}}
    target, body = (CHAT, chat(stream=True, **options)) if framing == "sse" else (GEMINI, {"contents": []})
    async with gateway.forward(target, gateway.token_for(customer), json=body) as answer:
        received = await answer.read()
    found = events_of(received) if framing == "sse" else json.loads(received)
    texts = [json.dumps(event) for event in found]
    assert sum("insufficient_balance" in text for text in texts) == 1
    assert len(found) > 100
    await asyncio.wait_for(script.hung_up.wait(), 5)
    await cut_short(gateway, customer, 260 if framing == "sse" else 350)


async def test_an_event_that_never_ends_is_cut_with_its_stream(gateway, script):
    """The client has a part of an event, so nothing can be told: it sees that the answer is not complete."""
    script.play(
        *(step for chunk in chunks(300) for step in (chunk, 0.001)), chunks(1)[0][:60], 0.01, b"x" * 9_000, script.HANG
    )
    customer = await gateway.customer(tokens(1_500))
    body = chat(stream=True, stream_options={"include_usage": True})
    async with gateway.forward(CHAT, gateway.token_for(customer), json=body) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    _, row = await ended(gateway, customer)
    assert row["ending"] == "balance_exhausted"


async def test_the_hold_grows_with_what_other_calls_leave(gateway):
    """Refused because of another call's hold: told apart, and with when to come back."""
    customer = await gateway.customer(tokens(5_000))
    credential = gateway.token_for(customer)
    slow = gateway.forward(
        CHAT, credential, json=chat(max_tokens=3_600), headers=steering_header(delay_ms=1_500, completion_tokens=1)
    )
    other = asyncio.ensure_future(slow.__aenter__())
    async with asyncio.timeout(5):
        while not (await gateway.balance(customer)).held_nano:
            await asyncio.sleep(0.005)
    async with gateway.forward(CHAT, credential, json=chat(stream=True), headers=LONG) as answer:
        error = events_of(await answer.read())[-2]["error"]
    assert error["code"] == "balance_reserved"
    refused = gateway.forward(CHAT, credential, json=chat(max_tokens=3_000))
    async with refused as answer:
        assert (answer.status, answer.headers["retry-after"]) == (402, "1")
        assert (await answer.json())["error"]["code"] == "balance_reserved"
    await (await other).read()
    async with asyncio.timeout(10):
        while (await gateway.balance(customer)).held_nano:
            await asyncio.sleep(0.02)
    assert (await gateway.balance(customer)).total_nano > tokens(2_000)
    async with gateway.forward(CHAT, credential, json=chat(stream=True), headers=LONG) as answer:
        assert events_of(await answer.read())[-1] == "[DONE]"
    endings = [row["ending"] for row in await gateway.rows("connection_id = $1", customer.connection_id)]
    assert endings == ["completed", "balance_exhausted", "completed"]


@pytest.mark.parametrize("allowed_tokens", [500, 3_000])
async def test_with_overage_a_stream_ends_only_at_the_cap(gateway, allowed_tokens):
    customer = await gateway.customer(tokens(900), limit_nano=tokens(allowed_tokens))
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True), headers=LONG) as answer:
        received = events_of(await answer.read())
    balance, row = await ended(gateway, customer)
    if allowed_tokens == 3_000:
        assert (row["ending"], balance.overage_nano) == ("completed", tokens(2_005 - 900))
        return
    assert received[-2]["error"]["code"] == "insufficient_balance"
    assert row["ending"] == "balance_exhausted"
    assert tokens(allowed_tokens - 150) <= balance.overage_nano <= tokens(allowed_tokens)


REASONING = {"model": "o3-mini", "messages": chat()["messages"], "stream": True}


async def test_silent_reasoning_is_held_for_and_ends_a_call_before_its_first_byte(gateway, script):
    """2,000 tokens a second in these tests: 900 are used up in half a second of silence. What may have been produced in
    it is charged, for the provider charges it."""
    script.play(before_head_s=30.0)
    customer = await poor(gateway)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=REASONING) as answer:
        assert answer.status == 402
        assert (await answer.json())["error"]["code"] == "insufficient_balance"
    await asyncio.wait_for(script.hung_up.wait(), 5)
    row = await cut_short(gateway, customer, 120)
    assert row["usage"]["reasoning_tokens"] == row["usage"]["output_tokens"] > 700


async def test_silent_reasoning_ends_a_stream_with_an_error_event(gateway, script):
    pings = [step for _ in range(100) for step in (b": still thinking\n\n", 0.1)]
    script.play(chunks(1)[0], *pings)
    customer = await poor(gateway)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=REASONING) as answer:
        received = events_of(await answer.read())
    assert received[-2]["error"]["code"] == "insufficient_balance"
    await asyncio.wait_for(script.hung_up.wait(), 5)
    row = await cut_short(gateway, customer, 120)
    assert 600 < row["usage"]["reasoning_tokens"] < row["usage"]["output_tokens"]


async def test_silence_counts_for_no_more_than_was_asked_for(gateway, script):
    script.play(chunks(1)[0], 1.2, *chunks(3), b"data: [DONE]\n\n")
    customer = await poor(gateway)
    body = REASONING | {"max_completion_tokens": 600}
    async with gateway.forward(CHAT, gateway.token_for(customer), json=body) as answer:
        assert events_of(await answer.read())[-1] == "[DONE]"
    _, row = await ended(gateway, customer)
    assert (row["ending"], row["usage"]["output_tokens"] < 50) == ("completed", True)


async def test_a_model_that_shows_its_reasoning_may_be_silent(gateway, script):
    script.play(chunks(1)[0], 1.0, *chunks(3), b"data: [DONE]\n\n")
    customer = await poor(gateway)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True)) as answer:
        assert events_of(await answer.read())[-1] == "[DONE]"


async def test_a_ledger_that_is_away_makes_the_stream_wait_and_in_the_end_stop(gateway, monkeypatch):
    """Nothing is passed on that is not held for."""
    monkeypatch.setattr(rolling, "LEDGER_WAIT_S", 0.4)
    customer = await gateway.customer()
    extend, back, asked, held_nano = gateway.parts.wallets.extend, asyncio.Event(), [], []

    async def away(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments)
        if len(asked) <= 2 or back.is_set():
            return await extend(*arguments, **named)
        held_nano.extend(call.held_nano for call in gateway.parts.live)
        raise LedgerAway("Redis is away")

    monkeypatch.setattr(gateway.parts.wallets, "extend", away)
    body = chat(stream=True)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=body, headers=LONG) as answer:
        received = events_of(await answer.read())
    assert received[-2]["error"]["code"] == "ledger_unavailable"
    _, row = await ended(gateway, customer)
    assert (row["ending"], row["estimated"]) == ("hold_lost", True)
    assert 0 < row["charge_nano"] <= held_nano[0]
    asyncio.get_running_loop().call_later(0.2, back.set)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=body, headers=LONG) as answer:
        assert events_of(await answer.read())[-1] == "[DONE]"
