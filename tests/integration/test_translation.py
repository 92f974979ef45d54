"""Calls whose provider speaks another dialect: vendors' packages talk to other vendors' models, billed as ever."""

from __future__ import annotations

import json

import anthropic
import openai
import pytest
from dialects import (  # noqa: F401
    CHAT,
    CLAUDE,
    GEMINI,
    GOOGLE,
    GPT,
    MESSAGES,
    PIXEL,
    STEER,
    TOKEN_NANO,
    anthropic_client,
    charged,
    chunk,
    customer_fixture,
    gateway_fixture,
    openai_client,
    post,
    script_fixture,
    settled,
    sse,
)
from tests_support import events_of
from yarl import URL

from gateway.testing import steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

CACHED = steering_header(prompt_tokens=300, completion_tokens=40, cached_tokens=100, reasoning_tokens=8, chunks=20)


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
