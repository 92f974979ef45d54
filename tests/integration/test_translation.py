"""Calls whose provider speaks another dialect: vendors' packages talk to other vendors' models, billed as ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import orjson
import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway
from scripted_provider import ScriptedProvider
from tests_support import events_of
from yarl import URL

from gateway.app import _mapped
from gateway.billing.accounts import NewConnection
from gateway.proxy.http_client import Timeouts
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN_NANO = 20_000
CREDIT_NANO = 25 * 10**9
STEER = steering_header(prompt_tokens=300, completion_tokens=40, chunks=40)
CACHED = steering_header(prompt_tokens=300, completion_tokens=40, cached_tokens=100, reasoning_tokens=8, chunks=20)
MESSAGES = [{"role": "user", "content": "Say it in forty words."}]
CHAT = {"model": "claude-sonnet-4-5", "messages": MESSAGES}
GEMINI = {"contents": [{"role": "user", "parts": [{"text": "Say it in forty words."}]}]}
CLAUDE, GPT = "https://api.anthropic.com/v1/messages", "https://api.openai.com/v1/chat/completions"
GOOGLE = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
PIXEL = "iVBORw0KGgo="


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    keys = {name: f"sk-of-{name}" for name in ("openai", "anthropic", "google")}
    async with FakeProvider() as provider, running_gateway(*engines, provider, provider_keys=keys) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def customer(gateway: RunningGateway) -> NewConnection:
    gateway.provider.clear()
    return await gateway.customer(CREDIT_NANO)


@pytest_asyncio.fixture(loop_scope="module")
async def script(gateway: RunningGateway) -> AsyncIterator[ScriptedProvider]:
    """It stands behind every origin instead of the fake provider."""
    origins = gateway.parts.origins
    async with ScriptedProvider() as provider:
        gateway.parts.origins = {origin: _mapped(origin, provider.url) for origin in origins}
        yield provider
    gateway.parts.origins = origins


async def settled(gateway: RunningGateway, customer: NewConnection) -> dict[str, Any]:
    """The row of a customer's only call; its charge has left the balance, and nothing is held."""
    async with asyncio.timeout(10):
        while (balance := await gateway.balance(customer)).held_nano:
            await asyncio.sleep(0.02)
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert CREDIT_NANO - balance.cycle_nano == row["charge_nano"]
    return row


async def charged(gateway: RunningGateway, customer: NewConnection, tokens: int = 340) -> dict[str, Any]:
    row = await settled(gateway, customer)
    assert (row["ending"], row["estimated"], row["charge_nano"]) == ("completed", False, tokens * TOKEN_NANO)
    return row


def post(gateway: RunningGateway, customer: NewConnection, path: str, body: Any, **headers: str):
    given = {"Authorization": f"Bearer {gateway.token_for(customer)}", "Content-Type": "application/json"}
    url = URL(gateway.url + path, encoded=True)
    return gateway.session.post(url, data=orjson.dumps(body), headers=STEER | given | headers)


def openai_client(gateway: RunningGateway, customer: NewConnection, base: str = "/v1") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=gateway.url + base, api_key=gateway.token_for(customer), max_retries=0, default_headers=STEER
    )


def anthropic_client(gateway: RunningGateway, customer: NewConnection, base: str = "") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        base_url=gateway.url + base, api_key=gateway.token_for(customer), max_retries=0, default_headers=STEER
    )


# The openai package


@pytest.mark.parametrize(
    ("base", "model", "target"),
    [
        ("/v1", "claude-sonnet-4-5", CLAUDE),
        ("/v1", "anthropic/claude-sonnet-4-5", CLAUDE),
        (f"/v1/rewrite/openai/{CLAUDE}", "claude-sonnet-4-5", CLAUDE),
        ("/v1/rewrite/openai/api.anthropic.com/v1/messages/v1", "claude-sonnet-4-5", CLAUDE),
        (f"/v1/rewrite/openai/{CLAUDE.replace('//', '/')}", "claude-sonnet-4-5", CLAUDE),
        (f"/v1/rewrite/openai/{CLAUDE.replace(':', '%3A').replace('/', '%2F')}", "claude-sonnet-4-5", CLAUDE),
        (f"/v1/rewrite/openai/{GOOGLE}", "gemini-2.5-flash", GOOGLE),
        ("/v1/rewrite/openai/https://api.openai.com/v1", "gpt-4o-mini", GPT),
    ],
)
async def test_the_openai_package(gateway, customer, base, model, target):
    async with openai_client(gateway, customer, base) as client:
        answer = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=100)
    assert len(answer.choices[0].message.content.split()) == 40
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (300, 40)
    assert answer.choices[0].finish_reason in ("stop", "length")
    row = await charged(gateway, customer)
    assert row["endpoint"] == f"POST {target}" and row["model"] == model.removeprefix("anthropic/")
    (seen,) = gateway.provider.requests
    assert f"https://{seen.host}{seen.target}" == target
    secret = seen.header("x-api-key") or seen.header("x-goog-api-key") or seen.header("authorization")
    assert "sk-of-" in secret and gateway.token_for(customer) not in str(seen.headers)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("base", ["/v1", f"/v1/rewrite/openai/{GOOGLE}"])
async def test_its_streams(gateway, customer, base, asked):
    """The usage chunk is for those who asked for it, though the provider tells it always."""
    options = {"stream_options": {"include_usage": True}} if asked else {}
    async with openai_client(gateway, customer, base) as client:
        stream = await client.chat.completions.create(**CHAT, stream=True, extra_headers=CACHED, **options)
        chunks = [chunk async for chunk in stream]
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split()) > 10
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    told = [chunk.usage for chunk in chunks if chunk.usage]
    assert [(one.prompt_tokens, one.completion_tokens) for one in told] == ([(300, 40)] if asked else [])
    if asked:
        assert told[0].prompt_tokens_details.cached_tokens == 100
        assert told[0].completion_tokens_details.reasoning_tokens == 8
    await charged(gateway, customer)


def sse(*events: dict[str, Any]) -> list[bytes]:
    return [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), json.dumps(event).encode()) for event in events]


TOOL_STREAM = sse(
    {
        "type": "message_start",
        "message": {"id": "msg_1", "model": "claude-sonnet-4-5", "usage": {"input_tokens": 9, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Let me see."}},
    {"type": "content_block_stop", "index": 0},
    *(
        event
        for index, city in ((1, "Rome"), (2, "Oslo"))
        for event in (
            {
                "type": "content_block_start",
                "index": index,
                "content_block": {"type": "tool_use", "id": f"toolu_{index}", "name": "weather", "input": {}},
            },
            *(
                {
                    "type": "content_block_delta",
                    "index": index,
                    "delta": {"type": "input_json_delta", "partial_json": piece},
                }
                for piece in ('{"city":', f' "{city}"', "}")
            ),
            {"type": "content_block_stop", "index": index},
        )
    ),
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 31}},
    {"type": "message_stop"},
)
TOOL = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


async def test_tools_called_in_parallel_arrive_piece_by_piece(gateway, customer, script):
    script.play(*TOOL_STREAM)
    async with openai_client(gateway, customer) as client:
        asked = {"tools": [{"type": "function", "function": TOOL}], "stream_options": {"include_usage": True}}
        async with client.chat.completions.stream(**CHAT, **asked) as stream:
            pieces = [event async for event in stream if event.type == "tool_calls.function.arguments.delta"]
            answer = (await stream.get_final_completion()).choices[0]
    calls = [(call.id, call.function.name, call.function.arguments) for call in answer.message.tool_calls]
    assert calls == [("toolu_1", "weather", '{"city": "Rome"}'), ("toolu_2", "weather", '{"city": "Oslo"}')]
    assert answer.message.content == "Let me see." and answer.finish_reason == "tool_calls"
    assert [event.arguments_delta for event in pieces if event.arguments_delta][:3] == ['{"city":', ' "Rome"', "}"]
    await charged(gateway, customer, 40)


async def test_a_key_and_metadata_of_the_callers_own(gateway, customer):
    """As everywhere: the provider is shown the caller's key for it, and the row has what the query says."""
    token, path = gateway.token_for(customer, provider_key="sk-mine"), f"/v1/rewrite/openai/{CLAUDE}"
    url = f"{path}?metadata=%7B%22team%22%3A%22a%22%7D"
    async with post(gateway, customer, url, CHAT, Authorization=f"Bearer {token}") as answer:
        assert answer.status == 200 and answer.headers["x-request-id"]
    assert gateway.provider.requests[0].header("x-api-key") == "sk-mine"
    row = await charged(gateway, customer)
    assert (row["metadata"], row["provider_key_type"]) == ({"team": "a"}, "unmanaged")


async def test_what_the_provider_is_sent(gateway, customer):
    """System, an image, a tool and its result, in the words of its own dialect, without headers of the other vendor."""
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "20 C"},
    ]
    async with openai_client(gateway, customer) as client:
        await client.chat.completions.create(
            model=CHAT["model"],
            messages=messages,
            tools=[{"type": "function", "function": TOOL}],
            tool_choice="required",
            extra_headers={"OpenAI-Organization": "org", "anthropic-beta": "a-feature"},
        )
    (seen,) = gateway.provider.requests
    assert seen.json == {
        "model": "claude-sonnet-4-5",
        "max_tokens": 4096,
        "system": "Be brief.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "20 C"}]},
        ],
        "tools": [{"name": "weather", "input_schema": TOOL["parameters"]}],
        "tool_choice": {"type": "any"},
    }
    assert (seen.header("anthropic-version"), seen.header("anthropic-beta")) == ("2023-06-01", "a-feature")
    assert seen.header("openai-organization") is None and seen.header("content-type") == "application/json"


async def test_errors_of_the_provider_are_the_packages_own(gateway, customer):
    steer = steering_header(fault="status:429")
    async with openai_client(gateway, customer) as client:
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(**CHAT, extra_headers=steer)
    assert raised.value.status_code == 429 and raised.value.type == "rate_limit_error"
    assert "status 429" in raised.value.message and raised.value.response.headers["retry-after"] == "1"
    row = await settled(gateway, customer)
    assert (row["ending"], row["http_status"], row["charge_nano"]) == ("provider_error", 429, 0)


async def test_an_error_within_a_stream(gateway, customer):
    async with openai_client(gateway, customer) as client:
        with pytest.raises(openai.APIError, match="Overloaded"):
            async for _ in await client.chat.completions.create(
                **CHAT, stream=True, extra_headers=steering_header(fault="error_event", chunks=20)
            ):
                pass
    assert (await settled(gateway, customer))["ending"] == "error_event"


# The anthropic package


@pytest.mark.parametrize(
    ("base", "model", "target"),
    [
        ("", "gpt-4o-mini", GPT),
        ("", "gemini-2.5-flash", GOOGLE),
        (f"/v1/rewrite/anthropic/{GPT}", "gpt-4o-mini", GPT),
        (f"/v1/rewrite/anthropic/{GOOGLE}", "gemini-2.5-flash", GOOGLE),
        ("/v1/rewrite/anthropic/https://api.anthropic.com", "claude-sonnet-4-5", CLAUDE),
    ],
)
async def test_the_anthropic_package(gateway, customer, base, model, target):
    async with anthropic_client(gateway, customer, base) as client:
        answer = await client.messages.create(
            model=model, max_tokens=100, messages=MESSAGES, extra_headers=CACHED, system="Be brief."
        )
    assert answer.content[-1].text and answer.stop_reason in ("end_turn", "max_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (200, 40)
    assert answer.usage.cache_read_input_tokens == 100
    row = await charged(gateway, customer)
    assert row["endpoint"] == f"POST {target}"
    assert gateway.provider.requests[0].header("anthropic-version") is None or target == CLAUDE


@pytest.mark.parametrize("model", ["gpt-4o-mini", "gemini-2.5-flash"])
async def test_its_helper_for_streams(gateway, customer, model):
    async with (
        anthropic_client(gateway, customer) as client,
        client.messages.stream(model=model, max_tokens=100, messages=MESSAGES, extra_headers=CACHED) as stream,
    ):
        texts = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    assert len(texts) > 10 and final.content[-1].text == "".join(texts)
    assert (final.usage.input_tokens, final.usage.output_tokens, final.stop_reason) == (200, 40, "end_turn")
    await charged(gateway, customer)


def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: %b\n\n" % json.dumps({"id": "c", "model": "gpt-4o-mini", "choices": [choice]}).encode()


def call_chunk(index: int, name: str | None, arguments: str) -> bytes:
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    return chunk({"tool_calls": [{"index": index, "id": f"call_{index}" if name else None, "function": function}]})


async def test_tools_called_by_another_vendors_model(gateway, customer, script):
    usage = {"prompt_tokens": 9, "completion_tokens": 31, "total_tokens": 40}
    script.play(
        chunk({"role": "assistant", "content": "Let me see."}),
        *(call_chunk(0, "weather", ""), call_chunk(0, None, '{"city": '), call_chunk(0, None, '"Rome"}')),
        *(call_chunk(1, "weather", '{"city": "Oslo"}'), chunk({}, "tool_calls")),
        b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({"choices": [], "usage": usage}).encode(),
    )
    tool = {"name": "weather", "input_schema": TOOL["parameters"]}
    async with (
        anthropic_client(gateway, customer) as client,
        client.messages.stream(model="gpt-4o-mini", max_tokens=100, messages=MESSAGES, tools=[tool]) as stream,
    ):
        final = await stream.get_final_message()
    assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
    assert [block.input for block in final.content[1:]] == [{"city": "Rome"}, {"city": "Oslo"}]
    assert final.stop_reason == "tool_use" and final.usage.output_tokens == 31
    await charged(gateway, customer, 40)


async def test_its_errors(gateway, customer):
    async with anthropic_client(gateway, customer) as client:
        with pytest.raises(anthropic.RateLimitError) as raised:
            await client.messages.create(
                model="gpt-4o-mini", max_tokens=9, messages=MESSAGES, extra_headers=steering_header(fault="status:429")
            )
        assert raised.value.body["error"]["type"] == "rate_limit_error"
        with pytest.raises(anthropic.BadRequestError) as refused:
            await client.messages.create(model="gpt-4o-mini", max_tokens=9, messages=MESSAGES, extra_body={"top_k": 5})
    error = refused.value.body["error"]
    assert (error["code"], error["param"]) == ("forward_translation_not_supported", "top_k")
    assert gateway.provider.request_count == 1


# Clients of Gemini


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1beta/models/claude-sonnet-4-5:{verb}", CLAUDE),
        ("/v1/models/openai%2Fgpt-4o-mini:{verb}", GPT),
        (f"/v1/rewrite/google/{GPT}/v1beta/models/gpt-4o-mini:{{verb}}", GPT),
        (f"/v1/rewrite/google/{CLAUDE}/v1/models/claude-sonnet-4-5:{{verb}}", CLAUDE),
    ],
)
async def test_clients_of_gemini(gateway, customer, path, target):
    """Whole, as events, and as the array that Google sends without `alt=sse`; the key may stand in the query."""
    key = gateway.token_for(customer)
    forms = [("generateContent", f"?key={key}"), ("streamGenerateContent", "?alt=sse"), ("streamGenerateContent", "")]
    for verb, query in forms:
        given = {"x-goog-api-key": key} if "key=" not in query else {}
        url = URL(gateway.url + path.format(verb=verb) + query, encoded=True)
        async with gateway.session.post(url, json=GEMINI, headers=STEER | given) as answer:
            body = await answer.read()
        assert answer.status == 200, body
        found = json.loads(body) if "json" in answer.content_type else events_of(body)
        values = found if isinstance(found, list) else [found]
        assert answer.content_type == ("text/event-stream" if "sse" in query else "application/json")
        texts = [part["text"] for value in values for part in value["candidates"][0]["content"]["parts"]]
        assert len("".join(texts).split()) == 40 and values[-1]["candidates"][0]["finishReason"] == "STOP"
        used = values[-1]["usageMetadata"]
        assert (used["promptTokenCount"], used["candidatesTokenCount"], used["totalTokenCount"]) == (300, 40, 340)
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    assert [(row["endpoint"], row["charge_nano"]) for row in rows] == [(f"POST {target}", 340 * TOKEN_NANO)] * 3


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
