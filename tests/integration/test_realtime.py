"""Realtime sessions through a running gateway: passed on, metered, held and settled response by response."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from aiohttp import WSMsgType
from realtime_client import LOUD, QUIET, Closed, refused, talk
from realtime_gateway import (
    gateway_fixture,  # noqa: F401
    settled,
)
from running import RunningGateway

from gateway.core.money import NANO
from gateway.local.fake import realtime as fake_realtime
from gateway.testing import steering_header, steering_text

pytestmark = pytest.mark.asyncio(loop_scope="module")

FEE_NANO = 20_000
"""Of a token, under the meter of `running.py`."""


async def spent(gateway: RunningGateway, customer: Any, credit_nano: int = 25 * NANO) -> int:
    balance = await gateway.balance(customer)
    assert balance.held_nano == 0
    return credit_nano - balance.total_nano


def usage_of(done: dict[str, Any]) -> tuple[int, int]:
    usage = done["response"]["usage"]
    return usage["input_tokens"], usage["output_tokens"]


async def test_each_response_is_a_call_of_its_own_with_the_usage_that_the_provider_told(gateway: RunningGateway):
    customer = await gateway.customer()
    gateway.provider.clear()
    async with talk(gateway, gateway.token_for(customer), headers={"x-lava-metadata-team": "voice"}) as one:
        first = await one.ask("Say a short greeting.")
        second = await one.ask(steering_text(chunks=3, prompt_tokens=90, cached_tokens=40) + " and again")
    rows = await settled(gateway, customer)
    told = [usage_of(first), usage_of(second)]
    assert told == [(8, 18), (90, 9)]
    assert [(row["input_tokens"], row["output_tokens"]) for row in rows] == told
    assert rows[1]["cached_input_tokens"] == 40
    assert [row["response_id"] for row in rows] == [first["response"]["id"], second["response"]["id"]]
    assert len({row["request_id"] for row in rows}) == 2
    assert {(row["model"], row["provider"], row["status"], row["ending"], row["estimated"]) for row in rows} == {
        ("gpt-realtime", "openai", "completed", "completed", False)
    }
    assert [row["metadata"] for row in rows] == [{"team": "voice"}] * 2
    assert {row["endpoint"] for row in rows} == {"GET https://api.openai.com/v1/realtime"}
    assert await spent(gateway, customer) == FEE_NANO * (8 + 18 + 90 + 9)
    (seen,) = gateway.provider.requests
    assert seen.header("authorization") == "Bearer sk-managed-openai"
    assert gateway.token_for(customer) not in str(seen.headers)


async def test_the_cost_of_text_and_sound_is_the_published_one(gateway: RunningGateway):
    """A meter that passes the cost on: what is debited is what genai-prices says in Decimal."""
    from genai_prices import Usage, calc_price

    definition = {"rate_type": "percentage", "tiers": [{"start": 0, "rate": "0"}], "base_cost_payer": "wallet"}
    meter = await gateway.accounts.create_meter(gateway.merchant.merchant_id, "test", "Cost", "cost", definition)
    customer = await gateway.customer()
    steer = steering_header(prompt_tokens=1_000, cached_tokens=300)
    async with talk(gateway, gateway.token_for(customer, meter), headers=steer) as one:
        await one.speak(LOUD * 40)  # 20 s: 200 tokens
        await one.speak(QUIET)
        done = await one.until("response.done")
    (row,) = await settled(gateway, customer)
    told = done["response"]["usage"]
    inputs, outputs = told["input_token_details"], told["output_token_details"]
    assert (inputs["audio_tokens"], inputs["cached_tokens_details"]["audio_tokens"]) == (201, 201)
    cost = calc_price(
        Usage(
            input_tokens=told["input_tokens"],
            cache_read_tokens=inputs["cached_tokens"],
            input_audio_tokens=inputs["audio_tokens"],
            cache_audio_read_tokens=inputs["cached_tokens_details"]["audio_tokens"],
            output_tokens=told["output_tokens"],
            output_audio_tokens=outputs["audio_tokens"],
        ),
        "gpt-realtime",
        provider_id="openai",
    ).total_price
    expected_nano = int((cost * NANO).to_integral_value())
    assert await spent(gateway, customer) == row["cost_nano"] == expected_nano
    assert cost > Decimal(0)


async def test_bytes_text_pings_and_close_codes_pass_both_ways(gateway: RunningGateway):
    customer = await gateway.customer()
    async with talk(gateway, gateway.token_for(customer), autoping=False) as one:
        odd = '{ "type":"session.update",\n"session": {"instructions": "Zoë \\u00e9 \U0001f600"}}'
        await one.socket.send_str(odd)
        await one.until("session.updated")
        await one.socket.send_bytes(b'{"type": "nonsense"}')
        assert (await one.until("error"))["error"]["message"] == "Invalid value: 'nonsense'."
        await one.socket.ping(b"are you there")
        message = await one.socket.receive(timeout=5)
        assert (message.type, message.data) == (WSMsgType.PONG, b"are you there")
        await one.socket.close(code=4321, message=b"enough")
    (seen,) = gateway.provider.requests[-1:]
    assert seen.messages == [odd.encode(), b'{"type": "nonsense"}']
    assert await settled(gateway, customer) == []
    assert await spent(gateway, customer) == 0


async def test_there_is_a_hold_before_the_provider_hears_of_the_session_and_one_ahead_of_each_response(
    gateway: RunningGateway,
):
    customer = await gateway.customer()
    async with talk(gateway, gateway.token_for(customer)) as one:
        ahead = await gateway.balance(customer)
        assert ahead.calls == 1
        assert ahead.held_nano > FEE_NANO * 2_048
        await one.write(steering_text(chunks=4, chunk_delay_ms=30))
        await one.say("response.create")
        await one.until("response.output_audio.delta")
        during = await gateway.balance(customer)
        assert during.calls == 2  # the response's own, and one for what may begin next
        await one.until("response.done")
        assert (await gateway.balance(customer)).calls == 1
    assert len(await settled(gateway, customer)) == 1


async def test_without_money_nothing_reaches_the_provider(gateway: RunningGateway):
    gateway.provider.clear()
    poor = await gateway.customer(1_000)
    status, error = await refused(gateway, gateway.token_for(poor))
    assert (status, error["code"], error["type"]) == (402, "insufficient_balance", "insufficient_quota")
    assert gateway.provider.request_count == 0
    assert (await gateway.balance(poor)).calls == 0


async def test_a_response_that_speech_began_by_itself_is_held_for_and_charged(gateway: RunningGateway):
    customer = await gateway.customer()
    transcribing = {"audio": {"input": {"transcription": {"model": "gpt-realtime-whisper"}}}}
    async with talk(gateway, gateway.token_for(customer)) as one:
        await one.say("session.update", session=transcribing)
        await one.until("session.updated")
        for _ in range(2):
            await one.speak(LOUD)
            await one.speak(LOUD)
            await one.speak(QUIET)
            await one.until("response.done")
    rows = await settled(gateway, customer)
    spoken = [row for row in rows if row["model"] == "gpt-realtime"]
    heard = [row for row in rows if row["model"] == "gpt-realtime-whisper"]
    assert (len(spoken), len(heard)) == (2, 2)
    assert [row["input_us"] for row in heard] == [2_000_000, 2_000_000]
    assert {row["cost_nano"] for row in heard} == {2 * 1_020_000_000 // 3_600 + 1}
    assert [row["input_audio_tokens"] for row in spoken] == [11, 22]
    assert [row["output_audio_tokens"] for row in spoken] == [12, 12]


async def test_the_hold_grows_while_a_response_speaks(gateway: RunningGateway):
    customer = await gateway.customer()
    before = extensions(gateway)
    async with talk(gateway, gateway.token_for(customer)) as one:
        await one.ask(steering_text(chunks=600))  # 60 s of sound: 1,200 tokens, for which 2,400 are held
    assert extensions(gateway) > before
    assert len(await settled(gateway, customer)) == 1


def extensions(gateway: RunningGateway) -> float:
    name = "obol_hold_extensions_total"
    return gateway.parts.metrics.registry.get_sample_value(name, {"result": "extended"}) or 0.0


async def test_a_response_that_uses_the_balance_up_is_cancelled_and_the_session_closed(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
):
    """The hold for the next response is given up for it first, and nothing of it passes that is not held for."""
    monkeypatch.setattr(fake_realtime, "SOUND_PER_WORD", base64.b64encode(LOUD).decode())  # ten tokens
    credit_nano = FEE_NANO * 4_600
    customer = await gateway.customer(credit_nano)
    with step(gateway, 100):
        async with talk(gateway, gateway.token_for(customer)) as one:
            assert (await gateway.balance(customer)).available_nano > credit_nano // 2  # there is room for two
            await one.write(steering_text(chunks=2_000))
            await one.say("response.create")
            with contextlib.suppress(Closed):
                while True:
                    await one.hear()
    (error,) = [event["error"] for event in one.heard if event["type"] == "error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_balance")
    (done,) = [event["response"] for event in one.heard if event["type"] == "response.done"]
    assert done["status"] == "cancelled"
    assert one.kinds()[one.kinds().index("error") + 1 :] == ["response.done"]
    assert one.socket.close_code == 1008
    (row,) = await settled(gateway, customer)
    assert (row["ending"], row["status"]) == ("balance_exhausted", "error")
    left_nano = (await gateway.balance(customer)).total_nano
    assert 0 <= left_nano < credit_nano // 5
    assert 10 * one.kinds().count("response.output_audio.delta") <= row["output_tokens"]  # what passed is charged


@contextlib.contextmanager
def step(gateway: RunningGateway, tokens: int, **more: Any):
    before = gateway.parts.settings
    gateway.parts.settings = msgspec.structs.replace(before, hold_step_tokens=tokens, **more)
    try:
        yield
    finally:
        gateway.parts.settings = before


async def test_a_response_that_cannot_be_held_for_is_not_asked_for(gateway: RunningGateway):
    """While another one speaks: the client is told, and the session goes on."""
    customer = await gateway.customer(FEE_NANO * 4_000)
    gateway.provider.clear()
    with step(gateway, 1_000):
        async with talk(gateway, gateway.token_for(customer)) as one:
            await one.write(steering_text(chunks=40, chunk_delay_ms=10))
            await one.say("response.create")
            await one.until("response.created")
            await one.say("response.create", event_id="mine", response={"conversation": "none"})
            error = (await one.until("error"))["error"]
            assert (error["event_id"], error["code"]) == ("mine", "balance_reserved")
            await one.until("response.done")
            assert "response.done" in one.kinds()
    (seen,) = gateway.provider.requests
    assert [json.loads(message)["type"] for message in seen.messages].count("response.create") == 1
    assert len(await settled(gateway, customer)) == 1


async def test_speech_waits_for_a_hold_while_a_response_holds_what_there_is(gateway: RunningGateway):
    customer = await gateway.customer(FEE_NANO * 4_000)
    gateway.provider.clear()
    with step(gateway, 1_000):
        async with talk(gateway, gateway.token_for(customer)) as one:
            await one.write(steering_text(chunks=20, chunk_delay_ms=10))
            await one.say("response.create")
            await one.until("response.created")
            await one.speak(LOUD)
            done = await one.until("response.done")
            assert done["response"]["status"] == "completed"  # nobody interrupted it
            await one.until("input_audio_buffer.speech_started")


async def test_a_session_whose_balance_is_used_up_is_closed_when_its_response_is_done(gateway: RunningGateway):
    customer = await gateway.customer(FEE_NANO * 6_000)
    with step(gateway, 500):
        async with talk(gateway, gateway.token_for(customer)) as one:
            done = await one.ask(steering_text(chunks=2, prompt_tokens=500, completion_tokens=490))
            assert usage_of(done) == (500, 490)
            await one.ask(steering_text(chunks=2, prompt_tokens=1_000, completion_tokens=490))
            await one.end()
    assert one.kinds()[-1] == "error"
    assert one.heard[-1]["error"]["code"] == "insufficient_balance"
    assert one.socket.close_code == 1008
    assert len(await settled(gateway, customer)) == 2
    assert (await gateway.balance(customer)).total_nano == FEE_NANO * (6_000 - 990 - 1_490)


# How a session ends.


async def test_a_client_that_goes_pays_what_its_response_had_used(gateway: RunningGateway):
    """The response is cancelled, and the provider says what it cost."""
    customer = await gateway.customer()
    async with talk(gateway, gateway.token_for(customer)) as one:
        await one.write(steering_text(chunks=1_000, chunk_delay_ms=5))
        await one.say("response.create")
        await one.until("response.output_audio.delta")
        one.socket._response.connection.transport.abort()
    (row,) = await settled(gateway, customer)
    assert (row["ending"], row["estimated"]) == ("client_gone", False)
    assert 3 <= row["output_tokens"] < 1_000
    assert await spent(gateway, customer) == FEE_NANO * (row["input_tokens"] + row["output_tokens"])
    assert json.loads(gateway.provider.requests[-1].messages[-1])["type"] == "response.cancel"


@pytest.mark.parametrize(("fault", "code"), [("reset_mid_stream", 1011), ("truncated", 1011)])
async def test_what_a_provider_said_before_it_went_is_counted_here(gateway: RunningGateway, fault: str, code: int):
    customer = await gateway.customer()
    async with talk(gateway, gateway.token_for(customer)) as one:
        await one.write(steering_text(fault=fault) + " one two three four")
        await one.say("response.create")
        await one.end()
    assert one.socket.close_code == code
    (row,) = await settled(gateway, customer)
    assert (row["ending"], row["estimated"]) == ("truncated", True)
    assert row["output_audio_tokens"] == 4  # two words, a tenth of a second each
    assert row["output_tokens"] == 4 + 2
    assert 10 < row["input_tokens"] < 60
    assert await spent(gateway, customer) == FEE_NANO * (row["input_tokens"] + row["output_tokens"])


async def test_a_response_without_usage_is_counted_and_a_failed_one_is_free(gateway: RunningGateway):
    customer = await gateway.customer()
    async with talk(gateway, gateway.token_for(customer)) as one:
        await one.ask(steering_text(fault="no_usage", chunks=5))
        done = await one.ask(steering_text(fault="error_event", prompt_tokens=0, completion_tokens=0))
        assert done["response"]["status"] == "failed"
    counted, failed = await settled(gateway, customer)
    assert (counted["ending"], counted["estimated"], counted["output_audio_tokens"]) == ("completed", True, 10)
    assert (failed["ending"], failed["estimated"], failed["output_tokens"]) == ("error_event", False, 0)


async def test_a_session_is_closed_when_it_is_idle_or_lasts_too_long(gateway: RunningGateway):
    customer = await gateway.customer()
    with step(gateway, 2_048, realtime_idle_timeout_s=0):
        async with talk(gateway, gateway.token_for(customer)) as one:
            await one.end()
    assert one.socket.close_code == 1001
    with step(gateway, 2_048, realtime_session_timeout_s=0):
        async with talk(gateway, gateway.token_for(customer)) as one:
            await one.write(steering_text(chunks=1_000, chunk_delay_ms=5))
            await one.say("response.create")
            await one.end()
    assert one.socket.close_code == 1001
    (row,) = await settled(gateway, customer)
    assert (row["ending"], row["estimated"]) == ("upstream_timeout", False)
    assert [event["response"]["status"] for event in one.heard if event["type"] == "response.done"] == ["cancelled"]


async def test_a_message_that_is_too_large_ends_the_session(gateway: RunningGateway):
    customer = await gateway.customer()
    with step(gateway, 2_048, realtime_max_message_bytes=10_000):
        async with talk(gateway, gateway.token_for(customer)) as one:
            await one.speak(bytes(20_000))
            await one.end()
    assert one.socket.close_code == 1009
    counted = gateway.parts.metrics.registry.get_sample_value
    assert counted("obol_limits_reached_total", {"limit": "realtime_max_message_bytes"}) == 1
    await settled(gateway, customer)


async def test_one_session_too_many_is_refused(gateway: RunningGateway):
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    with step(gateway, 2_048, realtime_sessions_max=1):
        async with talk(gateway, credential) as one:
            status, error = await refused(gateway, credential)
            await one.ask("still there")
    assert (status, error["code"]) == (429, "too_many_requests")
    assert len(await settled(gateway, customer)) == 1


async def test_a_slow_reader_is_not_read_for(gateway: RunningGateway):
    """Back-pressure: a client that does not read stops the provider, and memory stays bounded."""
    customer = await gateway.customer()
    async with talk(gateway, gateway.token_for(customer)) as one:
        await one.write(steering_text(chunks=4_000))  # 26 MB
        await one.say("response.create")
        one.socket._response.connection.transport.pause_reading()
        seen = gateway.provider.requests[-1]
        await asyncio.sleep(0.3)
        while (before := seen.response_bytes) != (await asyncio.sleep(0.2), seen.response_bytes)[1]:
            pass
        assert before < 6_000  # events, of 8,000: what the buffers of four sockets hold
        one.socket._response.connection.transport.abort()
    (row,) = await settled(gateway, customer)
    assert row["ending"] == "client_gone"
