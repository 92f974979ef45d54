"""Calls whose provider speaks another dialect: what is refused, how they end, and where they fall back to."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import anthropic
import orjson
import pytest
from dialects import (  # noqa: F401
    CHAT,
    CLAUDE,
    GEMINI,
    GOOGLE,
    GPT,
    MESSAGES,
    STEER,
    TOKEN_NANO,
    anthropic_client,
    charged,
    chunk,
    customer_fixture,
    gateway_fixture,
    post,
    script_fixture,
    settled,
    sse,
)
from scripted_provider import ScriptedProvider
from tests_support import events_of

from gateway.app import _mapped
from gateway.proxy.http_client import Timeouts
from gateway.testing import steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")


# What is refused


@pytest.mark.parametrize(
    ("path", "status", "code", "param"),
    [
        (
            "/v1/rewrite/bedrock/https://api.openai.com/v1/chat/completions",
            400,
            "forward_translation_not_supported",
            "format",
        ),
        (
            "/v1/rewrite/cohere/https://api.openai.com/v1/chat/completions",
            400,
            "forward_translation_not_supported",
            "format",
        ),
        ("/v1/rewrite/openai/", 400, "forward_target_missing", "url"),
        ("/v1/rewrite/openai/https://api.openai.com/v1/embeddings", 400, "forward_translation_not_supported", "url"),
        ("/v1/rewrite/openai/https://api.cohere.com/v2/chat", 400, "forward_translation_not_supported", "url"),
        ("/v1/rewrite/openai/https://127.0.0.1/v1/messages", 400, "forward_target_invalid", "u"),
        ("/v1/rewrite/openai/http://api.openai.com/v1/chat/completions", 400, "forward_target_invalid", "u"),
        ("/v1/rewrite/openai/https://api.openai.com/v1/batches", 400, "forward_endpoint_not_supported", "u"),
        ("/v1/rewrite/openai/https://example.com/v1/messages", 400, "forward_endpoint_not_supported", "u"),
    ],
)
async def test_what_cannot_be_rewritten(gateway, customer, path, status, code, param):
    async with post(gateway, customer, path, CHAT) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (status, code, param)
    assert gateway.provider.request_count == 0


async def test_other_methods_and_credentials(gateway, customer):
    async with gateway.session.get(f"{gateway.url}/v1/rewrite/openai/{CLAUDE}") as answer:
        assert answer.status == 405 and (await answer.json())["error"]["code"] == "method_not_allowed"
    async with gateway.session.post(f"{gateway.url}/v1/rewrite/google/{CLAUDE}", json=GEMINI) as answer:
        assert (answer.status, (await answer.json())["error"]["status"]) == (401, "UNAUTHENTICATED")
    url = f"{gateway.url}/v1/rewrite/openai/{CLAUDE}"
    async with gateway.session.post(
        url, json=CHAT, headers=STEER | {"x-api-key": gateway.token_for(customer)}
    ) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", CHAT | {"seed": 1}, "seed"),
        ("/v1/chat/completions", CHAT | {"new_member": 1}, "new_member"),
        ("/v1/responses", {"model": "claude-sonnet-4-5", "input": "a"}, "model"),
        (
            f"/v1/rewrite/openai/{GOOGLE}",
            CHAT | {"parallel_tool_calls": False, "tools": [{"type": "x"}]},
            "tools[0].type",
        ),
        ("/v1beta/models/gpt-4o-mini:countTokens", GEMINI, "model"),
        (
            "/v1beta/models/gpt-4o-mini:generateContent",
            GEMINI | {"tools": [{"googleSearch": {}}]},
            "tools[0].googleSearch",
        ),
    ],
)
async def test_what_has_no_counterpart_is_named(gateway, customer, path, body, param):
    async with post(gateway, customer, path, body) as answer:
        told = await answer.json()
    assert answer.status == 400 and "translat" in told["error"]["message"]
    if "googleapis" not in str(told):
        assert (told["error"]["code"], told["error"]["param"]) == ("forward_translation_not_supported", param)
    assert gateway.provider.request_count == 0 and not await gateway.rows("connection_id = $1", customer.connection_id)


# Holds, endings, encodings


async def test_too_little_is_told_in_the_clients_dialect(gateway):
    customer = await gateway.customer(0)
    gateway.provider.clear()
    async with anthropic_client(gateway, customer) as client:
        with pytest.raises(anthropic.APIStatusError) as raised:
            await client.messages.create(model="gpt-4o-mini", max_tokens=9, messages=MESSAGES)
    assert (raised.value.status_code, raised.value.body["error"]["type"]) == (402, "billing_error")
    assert gateway.provider.request_count == 0


LONG = steering_header(completion_tokens=6_000, prompt_tokens=5, chunks=1_500)


@pytest.mark.parametrize("client", ["openai", "anthropic", "google", "array"])
async def test_a_balance_that_runs_out_ends_the_stream_in_the_clients_dialect(gateway, client):
    """It is extended as the provider's stream goes on, until nothing is left; what the client was sent is whole."""
    customer = await gateway.customer(3_000 * TOKEN_NANO)
    paths = {
        "openai": ("/v1/chat/completions", CHAT | {"stream": True}),
        "anthropic": ("/v1/messages", CHAT | {"model": "gpt-4o-mini", "max_tokens": 20_000, "stream": True}),
        "google": ("/v1beta/models/gpt-4o-mini:streamGenerateContent?alt=sse", GEMINI),
        "array": ("/v1beta/models/gpt-4o-mini:streamGenerateContent", GEMINI),
    }
    async with post(gateway, customer, *paths[client], **LONG) as answer:
        body = await answer.read()
    assert answer.status == 200
    values = json.loads(body) if client == "array" else [value for value in events_of(body) if value != "[DONE]"]
    assert len(values) > 50 and values[-1]["error"]["message"].startswith("the balance is used up")
    if client == "openai":
        assert body.endswith(b"data: [DONE]\n\n") and values[-1]["error"]["code"] == "insufficient_balance"
    if client == "anthropic":
        assert b"event: error\n" in body and values[-1]["type"] == "error"
    async with asyncio.timeout(10):
        while (balance := await gateway.balance(customer)).held_nano:
            await asyncio.sleep(0.02)
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert row["ending"] == "balance_exhausted" and row["charge_nano"] > 1_500 * TOKEN_NANO
    assert balance.total_nano >= 0 and balance.total_nano + row["charge_nano"] == 3_000 * TOKEN_NANO


async def test_a_compressed_answer_is_read(gateway, customer):
    for stream in (False, True):
        steer = steering_header(prompt_tokens=300, completion_tokens=40, fault="gzip_always")
        async with post(gateway, customer, "/v1/chat/completions", CHAT | {"stream": stream}, **steer) as answer:
            body = await answer.read()
        assert "content-encoding" not in answer.headers and answer.status == 200
        assert (b"[DONE]" in body) is stream
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    assert [row["charge_nano"] for row in rows] == [340 * TOKEN_NANO] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_long_answer_is_whole(gateway, customer, stream):
    """It is translated a slice at a time, or in a thread."""
    steer = steering_header(prompt_tokens=300, completion_tokens=20_000, chunks=500)
    body = CHAT | {"model": "gpt-4o-mini", "max_tokens": 30_000, "stream": stream}
    async with post(gateway, customer, "/v1/messages", body, **steer) as answer:
        received = await answer.read()
    values = events_of(received) if stream else [json.loads(received)]
    texts = [value["delta"].get("text", "") for value in values if value["type"] == "content_block_delta"]
    text = "".join(texts) if stream else values[0]["content"][0]["text"]
    assert len(text.split()) == 20_000 and values[-1]["type"] == ("message_stop" if stream else "message")
    await charged(gateway, customer, 20_300)


async def test_a_whole_answer_that_is_cut_is_an_error(gateway, customer):
    """What cannot be told whole is not told; what the provider had produced is billed."""
    steer = steering_header(prompt_tokens=300, completion_tokens=40, fault="reset_mid_stream")
    async with post(
        gateway, customer, "/v1/messages", CHAT | {"model": "gpt-4o-mini", "max_tokens": 50}, **steer
    ) as got:
        told = await got.json()
    assert (got.status, told["type"], told["error"]["code"]) == (502, "error", "upstream_failed")
    assert (await settled(gateway, customer))["ending"] in ("truncated", "upstream_failed")


async def test_a_stream_that_is_cut_is_cut_for_the_client_too(gateway, customer):
    steer = steering_header(prompt_tokens=300, completion_tokens=40, chunks=40, fault="truncated")
    with pytest.raises(aiohttp.ClientPayloadError):
        async with post(gateway, customer, "/v1/chat/completions", CHAT | {"stream": True}, **steer) as answer:
            await answer.read()
    row = await settled(gateway, customer)
    assert (row["ending"], row["estimated"]) == ("truncated", True) and row["charge_nano"] > 0


async def test_a_stream_that_stands_still_before_its_end_has_none(gateway, customer, script):
    """It told why it stopped, and not what it used: a client would take that for nothing."""
    usual = gateway.parts.timeouts
    gateway.parts.timeouts = Timeouts(usual.first_byte_s, 0.2, usual.total_s)
    script.play(chunk({"content": "Hello"}), chunk({}, "stop"), ScriptedProvider.HANG)
    body = CHAT | {"model": "gpt-4o-mini", "max_tokens": 50, "stream": True}
    received = b""
    try:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with post(gateway, customer, "/v1/messages", body) as answer:
                async for piece in answer.content.iter_any():
                    received += piece
    finally:
        gateway.parts.timeouts = usual
    assert b"Hello" in received and b"message_stop" not in received
    assert (await settled(gateway, customer))["ending"] == "upstream_timeout"


async def test_a_client_that_leaves_is_billed_the_providers_own_figures(gateway, customer):
    steer = steering_header(prompt_tokens=300, completion_tokens=40, chunks=40, chunk_delay_ms=5)
    async with post(gateway, customer, "/v1/chat/completions", CHAT | {"stream": True}, **steer) as answer:
        await answer.content.readany()
        answer.close()
    row = await settled(gateway, customer)
    assert (row["ending"], row["estimated"], row["charge_nano"]) == ("client_gone", False, 340 * TOKEN_NANO)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_none_is_told_as_such(gateway, customer, script, stream):
    """Not passed off as one. The provider was at work: the prompt is counted."""
    kind = b"text/event-stream" if stream else b"application/json"
    script.play(b"data: <html>\n\n" if stream else b"<html>", content_type=kind)
    counter = gateway.parts.metrics.translations.labels("openai", "anthropic", "unreadable")
    before = counter._value.get()
    async with post(gateway, customer, "/v1/chat/completions", CHAT | {"stream": stream}) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"]) == (502, "upstream_failed") and "cannot be translated" in error["message"]
    assert counter._value.get() - before == 1
    assert (await settled(gateway, customer))["estimated"]


# Fallbacks


@pytest.mark.parametrize("path", ["/v1/chat/completions", f"/v1/forward?u={GPT}", f"/v1/rewrite/openai/{GPT}"])
async def test_a_fallback_may_speak_another_dialect(gateway, customer, path):
    """The first one refuses; the second is asked in its own dialect, and billed, and the client sees its own."""
    chain = orjson.dumps(["anthropic/claude-sonnet-4-5", {"url": GOOGLE}]).decode()
    body = {"model": "gpt-4o-mini", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    origins = dict(gateway.parts.origins)
    try:
        gateway.parts.origins["https://api.openai.com"] = _mapped("https://api.openai.com", "http://127.0.0.1:9")
        async with post(gateway, customer, path, body, **{"x-lava-fallbacks": chain}) as answer:
            values = events_of(await answer.read())
    finally:
        gateway.parts.origins.update(origins)
    assert values[-1] == "[DONE]" and values[-2]["usage"]["total_tokens"] == 340
    row = await charged(gateway, customer)
    assert (row["provider"], row["model"]) == ("anthropic", "claude-sonnet-4-5")
    (seen,) = gateway.provider.requests
    assert seen.target == "/v1/messages" and seen.json["max_tokens"] == 4096


async def test_the_last_error_of_a_chain_is_told_in_the_clients_dialect(gateway, customer):
    chain = orjson.dumps([{"url": CLAUDE, "model": "claude-sonnet-4-5"}]).decode()
    origins, body = dict(gateway.parts.origins), {"model": "gpt-4o-mini", "messages": MESSAGES}
    try:
        for origin in ("https://api.openai.com", "https://api.anthropic.com"):
            gateway.parts.origins[origin] = _mapped(origin, "http://127.0.0.1:9")
        async with post(gateway, customer, f"/v1/forward?u={GPT}", body, **{"x-lava-fallbacks": chain}) as answer:
            told = await answer.json()
    finally:
        gateway.parts.origins.update(origins)
    assert (answer.status, told["error"]["code"], "type" in told) == (502, "upstream_failed", False)


async def test_a_fallback_that_cannot_be_said_is_refused_before_anything_is_sent(gateway, customer):
    body = {"model": "gpt-4o-mini", "messages": MESSAGES, "seed": 7}
    chain = orjson.dumps(["anthropic/claude-sonnet-4-5"]).decode()
    async with post(gateway, customer, "/v1/chat/completions", body, **{"x-lava-fallbacks": chain}) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (
        400,
        "forward_translation_not_supported",
        "x-lava-fallbacks",
    )
    assert "x-lava-fallbacks[0]: seed" in error["message"] and gateway.provider.request_count == 0


async def test_a_name_that_no_model_has_is_refused(gateway, customer):
    async with post(gateway, customer, f"/v1/rewrite/openai/{CLAUDE}", CHAT | {"model": "m" * 513}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "forward_model_invalid")
