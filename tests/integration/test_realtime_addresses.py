"""Realtime sessions: where they are found, by whom, and what is refused."""

from __future__ import annotations

import msgspec
import pytest
from realtime_client import PATH, refused, talk
from realtime_gateway import (
    gateway_fixture,  # noqa: F401
    settled,
)
from running import RunningGateway

from gateway.testing import steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "path",
    [
        PATH,
        "/v1/realtime?model=openai/gpt-realtime",
        "/v1/forward?u=https://api.openai.com/v1/realtime?model=gpt-realtime",
        "/v1/forward?u=wss://api.openai.com/v1/realtime?model=gpt-realtime",
        "/v1/forward?u=wss%3A%2F%2Fapi.openai.com%2Fv1%2Frealtime%3Fmodel%3Dgpt-realtime",
        "/v1/forward/realtime?u=https%3A%2F%2Fapi.openai.com%2Fv1&model=gpt-realtime",
        "/v1/forward/https/api.openai.com/v1/realtime?model=gpt-realtime",
        "/v1/forward/wss/api.openai.com/v1/realtime?model=gpt-realtime",
    ],
)
async def test_every_shape_of_the_address_reaches_the_provider(gateway: RunningGateway, path: str):
    customer = await gateway.customer()
    gateway.provider.clear()
    async with talk(gateway, gateway.token_for(customer), path) as one:
        await one.ask("hello")
    (seen,) = gateway.provider.requests
    assert seen.target == "/v1/realtime?model=gpt-realtime"
    assert seen.host == "api.openai.com"
    assert len(await settled(gateway, customer)) == 1


async def test_a_browser_sends_its_credential_as_a_subprotocol(gateway: RunningGateway):
    customer = await gateway.customer()
    credential = gateway.token_for(customer).rstrip("=")
    gateway.provider.clear()
    protocols = ("realtime", f"openai-insecure-api-key.{credential}", "openai-beta.realtime-v1")
    async with talk(gateway, "", protocols=protocols) as one:
        assert one.socket.protocol == "realtime"
        await one.ask("hello")
    (seen,) = gateway.provider.requests
    assert seen.header("sec-websocket-protocol") == "realtime,openai-beta.realtime-v1"
    assert seen.header("authorization") == "Bearer sk-managed-openai"
    assert credential not in str(seen.headers)
    assert len(await settled(gateway, customer)) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/v1/forward?u=https://api.x.ai/v1/realtime?model=grok-voice-latest",
        "/v1/forward?u=https://generativelanguage.googleapis.com/ws/google.ai.generativelanguage.v1beta.BidiGenerateContent",
        "/v1/forward?u=https://api.openai.com/v1/responses",
        "/v1/forward?u=https://api.openai.com/v1/realtime/translations?model=gpt-realtime-translate",
        "/v1/forward?u=https://api.openai.com/v1/%72ealtime?model=gpt-realtime",
        "/v1/responses",
        "/v1/usage",
        "/",
    ],
)
async def test_any_other_websocket_is_refused_before_the_provider_hears_of_it(gateway: RunningGateway, path: str):
    customer = await gateway.customer()
    gateway.provider.clear()
    status, error = await refused(gateway, gateway.token_for(customer), path)
    assert (status, error["code"]) == (400, "invalid_request")
    assert gateway.provider.request_count == 0
    assert (await gateway.balance(customer)).calls == 0


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/realtime", {}, 400, "forward_model_invalid"),
        ("/v1/realtime?model=", {}, 400, "forward_model_invalid"),
        ("/v1/realtime?model=a&model=b", {}, 400, "forward_model_invalid"),
        ("/v1/realtime?model=gpt-live-1", {}, 400, "forward_model_not_supported"),
        ("/v1/realtime?model=gpt-realtime-whisper", {}, 400, "forward_model_not_supported"),
        (PATH, {"Authorization": "Bearer nonsense"}, 401, "unauthorized"),
        (PATH, {"Sec-WebSocket-Version": "12"}, 400, "invalid_request"),
        (PATH, {"x-lava-metadata": "nonsense"}, 400, "metadata_invalid"),
    ],
)
async def test_what_cannot_be_metered_or_read_is_refused(
    gateway: RunningGateway, path: str, headers: dict[str, str], status: int, code: str
):
    customer = await gateway.customer()
    gateway.provider.clear()
    answered, error = await refused(gateway, gateway.token_for(customer), path, **headers)
    assert (answered, error["code"]) == (status, code)
    assert gateway.provider.request_count == 0


async def test_a_provider_that_refuses_the_handshake_is_quoted(gateway: RunningGateway):
    customer = await gateway.customer()
    status, error = await refused(gateway, gateway.token_for(customer), **steering_header(fault="status:429"))
    assert (status, error["message"]) == (429, "The fake provider was asked to answer with status 429.")
    assert await settled(gateway, customer) == []


async def test_a_model_that_transcribes_needs_a_price(gateway: RunningGateway):
    definition = {"rate_type": "percentage", "tiers": [{"start": 0, "rate": "10"}]}
    meter = await gateway.accounts.create_meter(gateway.merchant.merchant_id, "test", "Ten", "ten", definition)
    customer = await gateway.customer()
    unknown = {"audio": {"input": {"transcription": {"model": "nobody-knows"}}}}
    async with talk(gateway, gateway.token_for(customer, meter)) as one:
        await one.say("session.update", session=unknown, event_id="u")
        error = (await one.until("error"))["error"]
        assert (error["code"], error["event_id"]) == ("forward_model_not_supported", "u")
        await one.ask("still there")
    assert len(await settled(gateway, customer)) == 1


async def test_the_session_of_a_dead_provider_address_is_not_charged(gateway: RunningGateway):
    customer = await gateway.customer()
    origin = gateway.parts.origins["https://api.openai.com"]
    gateway.parts.origins["https://api.openai.com"] = msgspec.structs.replace(origin, port=1)
    try:
        status, error = await refused(gateway, gateway.token_for(customer))
    finally:
        gateway.parts.origins["https://api.openai.com"] = origin
    assert (status, error["code"]) == (502, "upstream_failed")
    assert await settled(gateway, customer) == []
