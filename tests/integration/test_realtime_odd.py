"""Realtime sessions whose provider is odd, whose money is short, or that only transcribe: a scripted provider."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web
from realtime_client import LOUD, PATH, QUIET, Closed, Talk, refused, talk
from realtime_replay import ReplayProvider
from running import RunningGateway, running_gateway

from gateway import audit
from gateway.app import _mapped
from gateway.core.money import NANO
from gateway.testing import FakeProvider, steering_text

pytestmark = pytest.mark.asyncio(loop_scope="module")

FEE_NANO = 20_000
MANAGED = "sk-canary-managed-0123456789"
OPENAI = "https://api.openai.com"
TRANSCRIBING = {
    "audio": {"input": {"format": {"type": "audio/pcm", "rate": 24_000}, "transcription": {"model": "whisper-1"}}}
}
CREATED = ("received", json.dumps({"type": "session.created", "session": {"model": "gpt-realtime"}}))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with (
        FakeProvider() as provider,
        running_gateway(*engines, provider, client_gone_drain_s=0, provider_keys={"openai": MANAGED}) as running,
    ):
        yield running


async def settled(gateway: RunningGateway, customer: Any) -> list[dict[str, Any]]:
    async with asyncio.timeout(5):
        while (await gateway.balance(customer)).calls:
            await asyncio.sleep(0.01)
    return await gateway.rows("connection_id = $1", customer.connection_id)


def event(kind: str, **fields: Any) -> tuple[str, str]:
    return "received", json.dumps({"type": kind, **fields})


def done(response_id: str, taken: int, given: int) -> tuple[str, str]:
    usage = {"input_tokens": taken, "output_tokens": given}
    return event("response.done", response={"id": response_id, "status": "completed", "usage": usage})


@contextlib.asynccontextmanager
async def scripted(gateway: RunningGateway, customer: Any, *frames: tuple[str, str]) -> AsyncIterator[Talk]:
    """A session with a provider that says this, and then hangs up once the client does."""
    before = gateway.parts.origins[OPENAI]
    async with ReplayProvider().serving() as provider:
        provider.frames = [CREATED, *frames]
        gateway.parts.origins[OPENAI] = _mapped(OPENAI, provider.url)
        try:
            async with talk(gateway, gateway.token_for(customer)) as one:
                yield one
        finally:
            gateway.parts.origins[OPENAI] = before


@contextlib.contextmanager
def changed(gateway: RunningGateway, **changes: Any):
    before = gateway.parts.settings
    gateway.parts.settings = msgspec.structs.replace(before, **changes)
    try:
        yield
    finally:
        gateway.parts.settings = before


async def test_what_a_provider_says_twice_counts_once_and_what_it_did_not_announce_counts(gateway: RunningGateway):
    customer = await gateway.customer()
    once = done("a", 10, 20)
    async with scripted(
        gateway, customer, event("response.created", response={"id": "a"}), once, once, done("b", 1, 2)
    ):
        async with asyncio.timeout(5):
            while len(await gateway.rows("connection_id = $1", customer.connection_id)) < 2:
                await asyncio.sleep(0.02)
    rows = await settled(gateway, customer)
    assert [(row["response_id"], row["usage"]["output_tokens"]) for row in rows] == [("a", 20), ("b", 2)]
    assert 25 * NANO - (await gateway.balance(customer)).total_nano == FEE_NANO * 33


async def test_a_response_that_is_announced_twice_is_one_call(gateway: RunningGateway):
    customer = await gateway.customer()
    created = event("response.created", response={"id": "a"})
    async with scripted(gateway, customer, created, created, done("a", 10, 20), created) as one:
        await one.until("response.done")
        await one.until("response.created")
    (row,) = await settled(gateway, customer)
    assert (row["response_id"], row["estimated"]) == ("a", False)


async def test_what_was_produced_of_a_response_that_was_not_announced_is_charged(gateway: RunningGateway):
    customer = await gateway.customer()
    delta = event("response.output_text.delta", response_id="a", delta="Hello there, how may I help?")
    async with scripted(gateway, customer, delta) as one:
        await one.until("response.output_text.delta")
    (row,) = await settled(gateway, customer)
    assert (row["response_id"], row["estimated"], row["usage"]["output_tokens"]) == ("a", True, 8)


async def test_a_type_that_is_no_text_ends_nothing(gateway: RunningGateway):
    customer = await gateway.customer()
    odd = '{"type": ["response.create"]}'
    async with scripted(gateway, customer, ("sent", odd), done("a", 1, 2)) as one:
        await one.socket.send_str(odd)
        await one.until("response.done")
    (row,) = await settled(gateway, customer)
    assert row["ending"] == "completed"


async def test_a_session_is_not_set_up_by_what_cannot_be_read(gateway: RunningGateway):
    """Else a model that transcribes could hide in it."""
    async with scripted(gateway, await gateway.customer()) as one:
        await one.say("session.update", session={"tools": [[]] * 70_000})
        error = (await one.until("error"))["error"]
        assert (await one.end())[0] == 1008
    assert (error["code"], error["param"]) == ("invalid_request", "session")


async def test_who_asks_and_goes_before_the_response_begins_pays_for_it(gateway: RunningGateway):
    customer = await gateway.customer()
    with changed(gateway, client_gone_drain_s=5):
        async with talk(gateway, gateway.token_for(customer)) as one:
            await one.write("A question " + steering_text(delay_ms=300, chunks=50, chunk_delay_ms=100))
            await one.say("response.create")
        (row,) = await settled(gateway, customer)
    assert (row["ending"], row["estimated"]) == ("client_gone", False)
    assert row["usage"]["input_tokens"] and row["usage"]["output_tokens"] < 20


async def test_what_was_heard_and_not_told_of_is_charged_by_its_length(gateway: RunningGateway):
    customer = await gateway.customer()
    sound = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(LOUD * 4).decode()})
    async with scripted(
        gateway,
        customer,
        event("session.updated", session=TRANSCRIBING),
        ("sent", sound),
        event("input_audio_buffer.committed", item_id="i"),
    ) as one:
        await one.until("session.updated")
        await one.socket.send_str(sound)
        await one.until("input_audio_buffer.committed")
    (row,) = await settled(gateway, customer)
    assert (row["model"], row["ending"], row["estimated"]) == ("whisper-1", "client_gone", True)
    assert row["usage"]["input_us"] == 2_000_000
    assert row["cost_nano"] == 200_000  # $0.36 an hour


async def test_a_session_that_only_transcribes_holds_and_pays_for_transcripts(gateway: RunningGateway):
    customer = await gateway.customer()
    detects = {"audio": {"input": {"turn_detection": None}}}
    async with talk(gateway, gateway.token_for(customer), "/v1/realtime?intent=transcription") as one:
        assert (await gateway.balance(customer)).calls == 0
        await one.say("session.update", session=TRANSCRIBING)
        await one.say("session.update", session=detects)
        await one.until("session.updated")
        await one.until("session.updated")
        await one.speak(LOUD)
        await one.say("input_audio_buffer.commit")
        transcribed = await one.until("conversation.item.input_audio_transcription.completed")
        assert (await gateway.balance(customer)).calls == 1
    (row,) = await settled(gateway, customer)
    assert (row["model"], row["usage"]["input_us"]) == ("whisper-1", 1_000_000)
    assert transcribed["usage"] == {"type": "duration", "seconds": 1}


async def test_a_response_that_begins_by_itself_and_cannot_be_held_for_is_cancelled(gateway: RunningGateway):
    """Two turns in one burst of sound, and money for one: the second is cancelled as it begins."""
    customer = await gateway.customer(FEE_NANO * 3_000)
    alone = {"audio": {"input": {"turn_detection": {"interrupt_response": False, "create_response": True}}}}
    with changed(gateway, hold_step_tokens=500):
        async with talk(gateway, gateway.token_for(customer)) as one:
            await one.say("session.update", session=alone)
            await one.write(steering_text(chunks=50, chunk_delay_ms=10))
            for sound in (LOUD, QUIET, LOUD, QUIET):
                await one.speak(sound)
            with contextlib.suppress(Closed):
                while True:
                    await one.hear()
    responses = {heard["response"]["id"]: heard["response"] for heard in one.heard if heard["type"] == "response.done"}
    assert sorted(response["status"] for response in responses.values()) == ["cancelled", "completed"]
    (error,) = [heard["error"]["code"] for heard in one.heard if heard["type"] == "error"]
    assert error == "balance_reserved"
    assert one.socket.close_code == 1008
    rows = await settled(gateway, customer)
    assert sorted(row["ending"] for row in rows) == ["balance_exhausted", "completed"]
    assert (await gateway.balance(customer)).total_nano >= 0


async def test_silence_that_may_be_reasoning_is_held_for(gateway: RunningGateway):
    customer = await gateway.customer()
    path = "/v1/realtime?model=gpt-realtime-2"
    with changed(gateway, hidden_output_tokens_per_s=50_000):
        async with talk(gateway, gateway.token_for(customer), path) as one:
            await one.write(steering_text(chunks=2, chunk_delay_ms=400))
            before = (await gateway.balance(customer)).held_nano
            await one.say("response.create")
            await one.until("response.output_audio.delta")
            await one.until("response.done")
    counted = gateway.parts.metrics.registry.get_sample_value
    assert counted("obol_hold_extensions_total", {"result": "extended"}) >= 1
    assert before < FEE_NANO * 50_000
    (row,) = await settled(gateway, customer)
    assert row["model"] == "gpt-realtime-2"


async def test_many_sessions_of_one_customer_spend_no_more_than_there_is(gateway: RunningGateway):
    credit_nano = FEE_NANO * 40_000
    customer = await gateway.customer(credit_nano)
    credential = gateway.token_for(customer)

    async def session() -> int:
        answered = 0
        with contextlib.suppress(Exception):
            async with talk(gateway, credential) as one:
                for _ in range(4):
                    await one.ask(steering_text(chunks=5, prompt_tokens=400, completion_tokens=1_500))
                    answered += 1
        return answered

    with changed(gateway, hold_step_tokens=1_500):
        answered = sum(await asyncio.gather(*(session() for _ in range(12))))
    rows = await settled(gateway, customer)
    balance = await gateway.balance(customer)
    assert (balance.held_nano, len(rows)) == (0, answered)
    assert balance.total_nano == credit_nano - sum(row["charge_nano"] for row in rows) >= 0
    assert answered >= 10


async def test_the_installations_key_is_masked_where_a_provider_quotes_it(gateway: RunningGateway):
    async def quote(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": f"bad key: {request.headers['Authorization']}"}}, status=401)

    application, before = web.Application(), gateway.parts.origins[OPENAI]
    application.router.add_get("/v1/realtime", quote)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        gateway.parts.origins[OPENAI] = _mapped(OPENAI, f"http://127.0.0.1:{runner.addresses[0][1]}")
        customer = await gateway.customer()
        status, error = await refused(gateway, gateway.token_for(customer))
    finally:
        gateway.parts.origins[OPENAI] = before
        await runner.cleanup()
    assert (status, error["message"]) == (401, f"bad key: Bearer {'*' * len(MANAGED)}")
    assert await settled(gateway, customer) == []


async def test_it_is_masked_within_a_session_too(gateway: RunningGateway):
    async def quote(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        told = f"bad key: {request.headers['Authorization']}"
        await socket.send_str(CREATED[1])
        await socket.send_str(json.dumps({"type": "error", "error": {"message": told}}))
        await socket.close(code=3000, message=told.encode())
        return socket

    application, before = web.Application(), gateway.parts.origins[OPENAI]
    application.router.add_get("/v1/realtime", quote)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        gateway.parts.origins[OPENAI] = _mapped(OPENAI, f"http://127.0.0.1:{runner.addresses[0][1]}")
        async with talk(gateway, gateway.token_for(await gateway.customer())) as one:
            error = await one.until("error")
            message = await one.socket.receive()
    finally:
        gateway.parts.origins[OPENAI] = before
        await runner.cleanup()
    masked = f"bad key: Bearer {'*' * len(MANAGED)}"
    assert (error["error"]["message"], message.data, message.extra) == (masked, 3000, masked)


async def test_a_merchants_own_session_is_recorded_at_no_charge(gateway: RunningGateway):
    async with talk(gateway, gateway.merchant.secret_key) as one:
        await one.ask("hello")
    async with asyncio.timeout(5):
        while not (rows := await gateway.rows("connection_id IS NULL")):
            await asyncio.sleep(0.02)
    (row,) = rows
    assert (row["billing_mode"], row["charge_nano"], row["usage"]["output_tokens"]) == ("merchant", 0, 18)
    assert row["cost_nano"] > 0


async def test_a_client_that_goes_at_any_moment_leaves_nothing_open(gateway: RunningGateway):
    customer = await gateway.customer()
    host, port = gateway.url.removeprefix("http://").split(":")
    head = (
        f"GET {PATH} HTTP/1.1\r\nHost: g.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Authorization: Bearer {gateway.token_for(customer)}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    for wait_s in (0.0, 0.001, 0.003, 0.01, 0.03):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(head)
        await asyncio.sleep(wait_s)
        writer.transport.abort()
    async with asyncio.timeout(5):
        while gateway.parts.metrics.registry.get_sample_value("obol_realtime_sessions"):
            await asyncio.sleep(0.02)
    assert await settled(gateway, customer) == []


async def test_a_client_that_does_not_wait_for_the_handshake_is_heard(gateway: RunningGateway):
    """It may not, and yet: what it has sent before is not lost, and nothing is read as something else."""
    customer = await gateway.customer()
    host, port = gateway.url.removeprefix("http://").split(":")
    head = (
        f"GET {PATH} HTTP/1.1\r\nHost: g.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Authorization: Bearer {gateway.token_for(customer)}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    text = b'{"type": "nonsense"}'
    frame = bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + frame[:9])
    await asyncio.sleep(0)
    writer.write(frame[9:])
    async with asyncio.timeout(5):
        await reader.readuntil(b"Invalid value: 'nonsense'.")
    writer.transport.abort()
    assert await settled(gateway, customer) == []


async def test_every_charge_of_these_can_be_explained_and_computed_again(gateway: RunningGateway):
    """Stands last: it looks at all that the others have left."""
    await gateway.flusher.flush_once()
    out = io.StringIO()
    assert await audit.audit(gateway.context.settings, out, recompute=True) == 0, out.getvalue()
