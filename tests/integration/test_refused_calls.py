"""Calls that are refused before the provider: credentials, balances, bodies, fields."""

from __future__ import annotations

import gzip
import hashlib
import json

import orjson
import pytest
from running import token
from tests_support import CHAT, chat

pytestmark = pytest.mark.asyncio


async def test_the_balance_runs_out_before_the_provider_is_called(gateway):
    customer = await gateway.customer(credit_nano=1_000_000)
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(max_tokens=1000)) as answer:
        assert answer.status == 402
        error = (await answer.json())["error"]
    assert error["code"] == "insufficient_balance"
    assert error["available"] == "0.0010000000"
    assert gateway.provider.request_count == 0


async def test_an_anthropic_caller_is_told_in_its_dialect(gateway):
    customer = await gateway.customer(credit_nano=1)
    payload = {"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}
    async with gateway.forward(
        "https://api.anthropic.com/v1/messages", gateway.token_for(customer), json=payload
    ) as answer:
        assert answer.status == 402
        body = await answer.json()
    assert (body["type"], body["error"]["type"], body["error"]["code"]) == (
        "error",
        "billing_error",
        "insufficient_balance",
    )


@pytest.mark.parametrize(
    ("credential", "status", "code"),
    [
        ("", 401, "unauthorized"),
        ("rubbish", 401, "unauthorized"),
        ("aks_test_unknown", 401, "unauthorized"),
    ],
)
async def test_bad_credentials(gateway, credential, status, code):
    async with gateway.forward(CHAT, credential, json=chat()) as answer:
        assert answer.status == status
        assert (await answer.json())["error"]["code"] == code
    assert gateway.provider.request_count == 0


async def test_a_body_over_the_limit_is_413(valkey, redis_client, postgres, provider):
    from running import running_gateway

    async with running_gateway(valkey, postgres, provider, max_request_body_bytes=10_000) as gateway:
        customer = await gateway.customer()
        async with gateway.forward(CHAT, gateway.token_for(customer), json=chat("x" * 20_000)) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (413, "body_too_large")

        async def pieces():
            for _ in range(20):
                yield b"x" * 1_000

        async with gateway.forward(CHAT, gateway.token_for(customer), data=pieces()) as answer:
            assert answer.status == 413
    assert provider.request_count == 0


async def test_json_errors_are_json(gateway):
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    for data, code in ((b"{", "invalid_request"), (b'{"messages":[]}', "forward_model_invalid")):
        async with gateway.forward(CHAT, credential, data=data) as answer:
            assert answer.status == 400
            assert json.loads(await answer.read())["error"]["code"] == code
    async with gateway.forward("https://api.openai.com/v1/unheard/of", credential, json={}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "forward_endpoint_not_supported")
    async with gateway.forward("https://example.com/v1/chat/completions", credential, json=chat()) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "forward_endpoint_not_supported")


@pytest.mark.parametrize("model", ["a\x00b", "a\nb", "m" * 5_000])
async def test_a_model_that_no_row_could_hold_is_refused_before_the_hold(gateway, model):
    customer = await gateway.customer()
    async with gateway.forward(CHAT, gateway.token_for(customer), json=chat() | {"model": model}) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, "forward_model_invalid")
    assert gateway.provider.request_count == 0


@pytest.mark.parametrize("encoding", ["gzip", "br", "rubbish"])
async def test_a_compressed_request_body_is_refused_in_json_or_passed_as_it_is(gateway, encoding):
    customer = await gateway.customer()
    credential = gateway.token_for(customer)
    data = gzip.compress(orjson.dumps(chat()))
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    async with gateway.forward(CHAT, credential, data=data, headers=headers) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"], error["param"]) == (400, "invalid_request", "content-encoding")
    assert gateway.provider.request_count == 0
    async with gateway.forward("https://api.openai.com/v1/files", credential, data=data, headers=headers) as answer:
        await answer.read()
    sent = gateway.provider.requests[0]
    assert sent.header("content-encoding") == encoding
    assert sent.body_sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("field", ["connection_secret", "customer_id", "product_secret", "meter_slug"])
async def test_an_empty_field_of_a_token_is_not_nobody_pays(gateway, field):
    credential = token(**{"secret_key": gateway.merchant.secret_key, "meter_id": gateway.meter.meter_id, field: ""})
    async with gateway.forward(CHAT, credential, json=chat()) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, error["code"], error["param"]) == (400, "invalid_request", field)
