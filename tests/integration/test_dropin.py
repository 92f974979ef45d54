"""The gateway's own routes: a vendor's package needs a base URL and a key, and is metered as ever."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import orjson
import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway
from tests_support import events_of
from yarl import URL

from gateway.billing.accounts import NewConnection
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN_NANO = 20_000
CREDIT_NANO = 25 * 10**9
STEER = steering_header(prompt_tokens=300, completion_tokens=40, chunks=40)
MESSAGES = [{"role": "user", "content": "Say it in forty words."}]
GEMINI = {"contents": [{"role": "user", "parts": [{"text": "Say it in forty words."}]}]}
COUNTED = {"prompt_tokens": 300, "completion_tokens": 40}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    async with FakeProvider() as provider, running_gateway(*engines, provider) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def customer(gateway: RunningGateway) -> NewConnection:
    gateway.provider.clear()
    return await gateway.customer(CREDIT_NANO)


async def charged(gateway: RunningGateway, customer: NewConnection) -> dict[str, Any]:
    """The row of a customer's only call; its charge has left the balance."""
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert (row["ending"], row["estimated"]) == ("completed", False)
    assert CREDIT_NANO - (await gateway.balance(customer)).cycle_nano == row["charge_nano"]
    return row


def post(gateway: RunningGateway, customer: NewConnection, path: str, body: Any, **headers: str):
    given = {"Authorization": f"Bearer {gateway.token_for(customer)}"} | headers
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return gateway.session.post(f"{gateway.url}{path}", data=data, headers=STEER | given)


# The vendors' own packages


def openai_client(gateway: RunningGateway, customer: NewConnection, base: str = "/v1") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=gateway.url + base, api_key=gateway.token_for(customer), max_retries=0, default_headers=STEER
    )


@pytest.mark.parametrize("base", ["/v1", "/v1/openai"])
async def test_the_openai_package(gateway, customer, base):
    async with openai_client(gateway, customer, base) as client:
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert answer.usage.total_tokens == 340
    row = await charged(gateway, customer)
    assert (row["provider"], row["model"], row["charge_nano"]) == ("openai", "gpt-4o-mini", 340 * TOKEN_NANO)
    (seen,) = gateway.provider.requests
    assert (seen.host, seen.target) == ("api.openai.com", "/v1/chat/completions")


@pytest.mark.parametrize("asked", [False, True])
async def test_its_streams(gateway, customer, asked):
    options = {"stream_options": {"include_usage": True}} if asked else {}
    async with openai_client(gateway, customer) as client:
        stream = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True, **options)
        chunks = [chunk async for chunk in stream]
    assert len("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split()) == 40
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([340] if asked else [])
    assert (await charged(gateway, customer))["charge_nano"] == 340 * TOKEN_NANO


@pytest.mark.parametrize("model", ["gpt-4o-mini", "openai/gpt-4o-mini"])
async def test_its_responses(gateway, customer, model):
    async with openai_client(gateway, customer) as client:
        stream = await client.responses.create(model=model, input="forty words", stream=True)
        events = [event async for event in stream]
    assert events[-1].response.usage.total_tokens == 340
    assert (await charged(gateway, customer))["charge_nano"] == 340 * TOKEN_NANO
    assert gateway.provider.requests[0].json["model"] == "gpt-4o-mini"


async def test_its_other_resources(gateway, customer):
    async with openai_client(gateway, customer) as client:
        embedded = await client.embeddings.create(model="text-embedding-3-small", input=["one", "two"])
        completed = await client.completions.create(model="gpt-3.5-turbo-instruct", prompt="once")
        moderated = await client.moderations.create(model="omni-moderation-latest", input="kind words")
        image = await client.images.generate(model="gpt-image-1", prompt="a gate")
        spoken = await client.audio.speech.create(model="tts-1", voice="alloy", input="ten chars!")
        heard = await client.audio.transcriptions.create(
            model="openai/whisper-1", file=("a.wav", b"RIFF0000", "audio/wav")
        )
    assert len(embedded.data) == 2 and completed.usage.total_tokens == 340 and moderated.results and image.data
    assert spoken.content and heard.text
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    targets = [seen.target for seen in gateway.provider.requests]
    assert targets == [row["endpoint"].removeprefix("POST https://api.openai.com") for row in rows]
    assert [(row["model"], row["ending"]) for row in rows][-1] == ("whisper-1", "completed")
    assert b"openai/" not in gateway.provider.requests[-1].kept_body


async def test_the_azure_client_of_the_openai_package(gateway, customer):
    """Key in `api-key`, deployment in the path, a version that only Azure has."""
    client = openai.AsyncAzureOpenAI(
        azure_endpoint=gateway.url, api_key=gateway.token_for(customer), api_version="2024-10-21", max_retries=0
    )
    async with client:
        answer = await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, extra_headers=STEER)
    assert answer.usage.total_tokens == 340
    assert (await charged(gateway, customer))["model"] == "gpt-4o-mini"
    (seen,) = gateway.provider.requests
    assert (seen.host, seen.target) == ("api.openai.com", "/v1/chat/completions")


@pytest.mark.parametrize(("model", "suffix"), [("gpt-4o-mini", "chat/completions"), ("dall-e-3", "images/generations")])
async def test_a_deployment_named_in_the_path_alone_is_put_into_the_body(gateway, customer, model, suffix):
    body = b'{"messages": [{"role": "user", "content": "hello"}], "prompt": "a gate"}'
    async with post(gateway, customer, f"/openai/deployments/{model}/{suffix}?api-version=1", body) as answer:
        assert answer.status == 200
    assert gateway.provider.requests[0].kept_body == b'{"model":"%b",' % model.encode() + body[1:]


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"])
async def test_the_anthropic_package(gateway, customer, model):
    token = gateway.token_for(customer)
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=token, max_retries=0) as client:
        counted = await client.messages.count_tokens(model=model, messages=MESSAGES)
        async with client.messages.stream(
            model=model, max_tokens=100, messages=MESSAGES, extra_headers=STEER
        ) as stream:
            answer = await stream.get_final_message()
    assert counted.input_tokens > 0
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (300, 40)
    free, row = await gateway.rows("connection_id = $1", customer.connection_id)
    assert (free["charge_nano"], row["charge_nano"], row["provider"]) == (0, 340 * TOKEN_NANO, "anthropic")
    seen = gateway.provider.requests
    assert [one.target for one in seen] == ["/v1/messages/count_tokens", "/v1/messages"]
    assert {one.json["model"] for one in seen} == {"claude-sonnet-4-5"}
    assert token not in repr(seen)


# What the packages send that are not installed here


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/v1beta/models/gemini-2.5-flash:generateContent", "/v1beta/models/gemini-2.5-flash:generateContent"),
        ("/v1/models/gemini-2.5-flash:generateContent", "/v1beta/models/gemini-2.5-flash:generateContent"),
        ("/v1beta/models/google/gemini-2.5-flash:generateContent", "/v1beta/models/gemini-2.5-flash:generateContent"),
        (
            "/v1beta/models/google%2Fgemini-2.5-flash%3AgenerateContent",
            "/v1beta/models/gemini-2.5-flash:generateContent",
        ),
        (
            "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
        ),
        (
            "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
            "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        ),
    ],
)
async def test_google_clients(gateway, customer, path, sent):
    """The key in the header, or where there is no other parameter in the query."""
    token = gateway.token_for(customer)
    by_header = "?" in path or "%" in path
    url = gateway.url + path + ("" if by_header else f"?key={token}")
    headers = STEER | ({"x-goog-api-key": token} if by_header else {})
    async with gateway.session.post(URL(url, encoded=True), data=orjson.dumps(GEMINI), headers=headers) as answer:
        assert answer.status == 200
        body = await answer.read()
    assert b"usageMetadata" in body and body.startswith(
        b"[" if path.endswith("streamGenerateContent") else (b"{", b"data:")
    )
    row = await charged(gateway, customer)
    assert (row["provider"], row["model"], row["charge_nano"]) == ("google", "gemini-2.5-flash", 340 * TOKEN_NANO)
    (seen,) = gateway.provider.requests
    assert (seen.host, seen.target, seen.kept_body) == ("generativelanguage.googleapis.com", sent, orjson.dumps(GEMINI))


@pytest.mark.parametrize("verb", ["embedContent", "batchEmbedContents", "countTokens"])
async def test_googles_embeddings_and_counts(gateway, customer, verb):
    content = {"content": {"parts": [{"text": "three little words"}]}}
    bodies = {"batchEmbedContents": {"requests": [content]}, "embedContent": content, "countTokens": GEMINI}
    path = f"/v1beta/models/gemini-embedding-001:{verb}"
    async with post(gateway, customer, path, bodies[verb]) as answer:
        assert answer.status == 200 and await answer.read()
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert (row["model"], row["ending"]) == ("gemini-embedding-001", "completed")
    assert (row["charge_nano"] == 0) is (verb == "countTokens")


@pytest.mark.parametrize(
    ("path", "model", "url", "sent"),
    [
        (
            "/v1/chat/completions",
            "groq/openai/gpt-oss-20b",
            "api.groq.com/openai/v1/chat/completions",
            "openai/gpt-oss-20b",
        ),
        ("/openai/v1/chat/completions", "openai/gpt-oss-20b", "api.groq.com/openai/v1/chat/completions", None),
        ("/v1/chat/completions", "mistral-large-latest", "api.mistral.ai/v1/chat/completions", None),
        ("/v1/chat/completions", "DeepSeek/deepseek-chat", "api.deepseek.com/v1/chat/completions", "deepseek-chat"),
        ("/v1/messages", "deepseek-chat", "api.deepseek.com/anthropic/v1/messages", None),
        (
            "/v1/chat/completions",
            "gemini-2.5-flash",
            "generativelanguage.googleapis.com/v1beta/openai/chat/completions",
            None,
        ),
        ("/v1/chat/completions", "command-r-plus", "api.cohere.ai/compatibility/v1/chat/completions", None),
        ("/v2/chat", "command-r-plus", "api.cohere.ai/v2/chat", None),
        ("/v1/embed", "embed-v4.0", "api.cohere.ai/v1/embed", None),
        ("/v2/rerank", "rerank-v3.5", "api.cohere.ai/v2/rerank", None),
        ("/v1/rerank", "rerank-v3.5", "api.cohere.ai/v1/rerank", None),
        ("/v1/fim/completions", "codestral-latest", "api.mistral.ai/v1/fim/completions", None),
        (
            "/v1/text-to-speech/21m00/stream?output_format=pcm_16000",
            None,
            "api.elevenlabs.io/v1/text-to-speech/21m00/stream?output_format=pcm_16000",
            None,
        ),
        ("/v1/moderations", None, "api.openai.com/v1/moderations", None),
        ("/v1/chat/completions", "unheard-of/x-1", None, None),
    ],
)
async def test_where_a_model_goes(gateway, customer, path, model, url, sent):
    body = {
        "messages": MESSAGES,
        "max_tokens": 9,
        "input": "x",
        "prompt": "x",
        "text": "x",
        "documents": ["x"],
        "query": "x",
    }
    body |= {"model": model} if model else {}
    async with post(gateway, customer, path, body) as answer:
        told = await answer.json()
    if url is None:
        assert (answer.status, told["error"]["code"]) == (400, "forward_model_not_supported")
        assert gateway.provider.requests == []
        return
    (seen,) = gateway.provider.requests
    assert seen.host + seen.target == url
    assert seen.json == body | ({"model": sent} if sent else {})


@pytest.mark.parametrize("header", ["x-api-key", "x-goog-api-key", "xi-api-key"])
async def test_the_credential_may_stand_where_the_vendors_clients_put_it(gateway, customer, header):
    token = gateway.token_for(customer)
    body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": MESSAGES}
    async with gateway.session.post(f"{gateway.url}/v1/messages", json=body, headers=STEER | {header: token}) as answer:
        assert answer.status == 200 and await answer.read()
    assert (await charged(gateway, customer))["provider"] == "anthropic"
    assert token not in repr(gateway.provider.requests)


async def test_metadata_in_the_query_is_the_gateways(gateway, customer):
    path = "/v1/chat/completions?metadata=%7B%22feature%22%3A%22chat%22%7D&x=1"
    body = {"model": "gpt-4o-mini", "messages": MESSAGES}
    headers = STEER | {"Authorization": f"Bearer {gateway.token_for(customer)}"}
    async with gateway.session.post(URL(gateway.url + path, encoded=True), json=body, headers=headers) as answer:
        assert answer.status == 200 and await answer.read()
    assert (await charged(gateway, customer))["metadata"] == {"feature": "chat"}
    assert gateway.provider.requests[0].target == "/v1/chat/completions?x=1"


async def test_the_answer_and_the_body_are_passed_on_byte_for_byte(gateway, customer):
    said = b'"messages":[{"role":"user","content":"\\"model\\": 1"}]'
    body = b'{ "stream":false,\n "model" :  "openai/gpt-4o-mini" , ' + said + b"}"
    bare = body.replace(b'"openai/gpt-4o-mini"', b'"gpt-4o-mini"')
    async with post(gateway, customer, "/v1/chat/completions", body) as answer:
        through = await answer.read()
    (seen,) = gateway.provider.requests
    assert seen.kept_body == bare
    async with gateway.session.post(
        f"{gateway.provider.url}/v1/chat/completions", data=bare, headers=STEER | {"Host": "api.openai.com"}
    ) as direct:
        assert through == await direct.read()


async def test_a_large_body_is_passed_on_but_for_its_model(gateway, customer):
    body = orjson.dumps({"messages": [{"role": "user", "content": "word " * 60_000}], "model": "openai/gpt-4o-mini"})
    async with post(gateway, customer, "/v1/chat/completions", body) as answer:
        assert answer.status == 200 and await answer.read()
    (seen,) = gateway.provider.requests
    assert seen.body_sha256 == hashlib.sha256(body.replace(b"openai/", b"")).hexdigest()
    assert (await charged(gateway, customer))["charge_nano"] == 340 * TOKEN_NANO


# Refusals


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/v1/chat/completions", {"model": "unheard-of-1"}, lambda told: told["error"]["code"]),
        ("/v1/messages", {"model": "unheard-of-1"}, lambda told: (told["type"] == "error") and told["error"]["code"]),
        ("/v1beta/models/unheard-of-1:generateContent", {}, lambda told: told["error"]["details"][0]["reason"]),
    ],
)
async def test_an_unknown_model_is_refused_in_the_dialect_of_the_route(gateway, customer, path, body, place):
    async with post(gateway, customer, path, body) as answer:
        told = await answer.json()
    assert (answer.status, place(told)) == (400, "forward_model_not_supported")
    assert "unheard-of-1" in told["error"]["message"] and gateway.provider.requests == []
    assert await gateway.rows("connection_id = $1", customer.connection_id) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/v1/chat/completions", "openai"), ("/v1/messages", "anthropic"), ("/v1beta/models/x:countTokens", "google")],
)
async def test_a_call_without_credential_is_refused_in_the_dialect_of_the_route(gateway, path, kind):
    async with gateway.session.post(gateway.url + path, data=b"not even JSON") as answer:
        told = await answer.json()
    assert answer.status == 401
    expected = {"openai": "authentication_error", "anthropic": "authentication_error", "google": "UNAUTHENTICATED"}[
        kind
    ]
    assert told["error"]["status" if kind == "google" else "type"] == expected
    assert (told.get("type") == "error") is (kind == "anthropic")


async def test_a_missing_model_is_named(gateway, customer):
    async with post(gateway, customer, "/v1/chat/completions", {"messages": MESSAGES}) as answer:
        told = (await answer.json())["error"]
    assert (answer.status, told["code"], told["param"]) == (400, "forward_model_invalid", "model")


async def test_a_poor_customer_is_told_by_its_package(gateway):
    poor = await gateway.customer(1)
    async with openai_client(gateway, poor) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            await client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_balance")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_only_post_is_served(gateway, customer, method):
    headers = {"Authorization": f"Bearer {gateway.token_for(customer)}"}
    async with gateway.session.request(method, f"{gateway.url}/v1/messages", headers=headers) as answer:
        body = await answer.read()
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert (json.loads(body)["type"] == "error") if method != "HEAD" else body == b""
    assert gateway.provider.requests == []


async def test_with_a_key_of_the_callers_own_an_ambiguous_model_has_to_name_its_provider(gateway, customer):
    """Else the key could go to somebody that it is not for."""
    own = gateway.token_for(customer, provider_key="sk-own")
    body = {"model": "Qwen/Qwen2.5-VL-72B-Instruct", "messages": MESSAGES}
    async with post(gateway, customer, "/v1/chat/completions", body, Authorization=f"Bearer {own}") as answer:
        told = (await answer.json())["error"]
    assert (answer.status, told["code"]) == (400, "forward_model_not_supported")
    assert "hyperbolic" in told["message"] and "nebius" in told["message"]
    body["model"] = "nebius/" + body["model"]
    async with post(gateway, customer, "/v1/chat/completions", body, Authorization=f"Bearer {own}") as answer:
        assert answer.status == 200
    (seen,) = gateway.provider.requests
    assert (seen.host, seen.header("authorization")) == ("api.studio.nebius.com", "Bearer sk-own")


@pytest.mark.parametrize(
    ("path", "body", "code", "told"),
    [
        ("/v1/images/generations", {"prompt": "x"}, "forward_model_invalid", "openai/<model>"),
        ("/v1/chat/completions", {"model": "openai/gpt-oss-20b"}, "forward_model_not_supported", "groq/openai/gpt-oss"),
    ],
)
async def test_with_a_key_of_the_callers_own_nothing_is_sent_on_a_guess(gateway, customer, path, body, code, told):
    own = gateway.token_for(customer, provider_key="sk-own")
    async with post(gateway, customer, path, body | {"messages": MESSAGES}, Authorization=f"Bearer {own}") as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (400, code, "model") and told in error["message"]
    assert gateway.provider.requests == []


async def test_a_line_that_anyone_may_make_up_is_not_remembered(gateway, customer):
    """Else a few thousand of them, which need no credential, would take 100 MB for good."""
    for size, remembered in ((8, 1), (2_000, 0)):
        path = f"/v1/chat/completions?x={'y' * size}"
        async with post(gateway, customer, path, {"model": "gpt-4o-mini", "messages": MESSAGES}) as answer:
            assert answer.status == 200 and await answer.read()
        assert sum(line.endswith("?x=" + "y" * size) for _, line in gateway.parts.routes) == remembered
        assert gateway.provider.requests[-1].target == path


# Models


async def get(gateway: RunningGateway, path: str, **headers: str) -> tuple[int, Any]:
    async with gateway.session.get(URL(gateway.url + path, encoded=True), headers=headers) as answer:
        return answer.status, await answer.json()


async def test_models_lists_what_is_priced_and_each_can_be_asked_for(gateway):
    status, listed = await get(gateway, "/v1/models")
    assert (status, listed["object"]) == (200, "list")
    by_id = {model["id"]: model for model in listed["data"]}
    assert len(by_id) == len(listed["data"]) > 300
    assert {model["object"] for model in listed["data"]} == {"model"}
    assert by_id["gpt-4o-mini"] == {"id": "gpt-4o-mini", "object": "model", "created": 0, "owned_by": "openai"}
    assert by_id["claude-sonnet-4-5"]["owned_by"] == "anthropic" and by_id["gemini-2.5-flash"]["owned_by"] == "google"
    book, catalogue = gateway.parts.pricing.book, gateway.parts.catalogue
    for name, model in list(by_id.items())[::20]:
        asked = catalogue.find(name, book)
        assert (asked.provider.name, book.find(asked.provider.name, asked.model) is None) == (model["owned_by"], False)


@pytest.mark.parametrize("name", ["gpt-4o-mini", "novita/deepseek/deepseek-ocr-2"])
async def test_one_model_is_retrieved(gateway, name):
    status, model = await get(gateway, f"/v1/models/{name}")
    assert (status, model["id"], model["object"]) == (200, name, "model")


async def test_models_in_the_shapes_of_the_other_vendors(gateway, customer):
    _, google = await get(gateway, "/v1beta/models")
    assert {"name": "models/gemini-2.5-flash", "displayName": "gemini-2.5-flash"} in google["models"]
    assert await get(gateway, "/v1/models?key=x") == (200, google)
    status, missing = await get(gateway, "/v1beta/models/unheard-of")
    assert (status, missing["error"]["status"]) == (404, "NOT_FOUND")
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="any") as client:
        page = await client.models.list()
        one = await client.models.retrieve("claude-sonnet-4-5")
    assert one.type == "model" and one.id in {model.id for model in page.data} and not page.has_next_page()
    async with openai_client(gateway, customer) as client:
        assert "gpt-4o-mini" in {model.id async for model in client.models.list()}
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("unheard-of")


async def test_the_rest_of_the_api_keeps_its_paths(gateway):
    for path in ("/v1/requests", "/v1/meters", "/v1/connections", "/v1/usage?start=2026-01-01"):
        assert (await get(gateway, path, authorization=f"Bearer {gateway.merchant.secret_key}"))[0] == 200


async def test_what_warms_a_connection_is_answered_and_free(gateway, customer):
    assert await get(gateway, "/v1/tcp_warming", authorization=f"Bearer {gateway.token_for(customer)}") == (200, {})
    assert gateway.provider.requests == []
    assert await gateway.rows("connection_id = $1", customer.connection_id) == []


# A target in the path, for clients that drop the query of a base URL


@pytest.mark.parametrize("stream", [False, True])
async def test_mistrals_client_with_a_target_in_the_path(gateway, customer, stream):
    body = {"model": "mistral-large-latest", "messages": MESSAGES, "stream": stream}
    path = "/v1/forward/https/api.mistral.ai/v1/chat/completions"
    steer = steering_header(**COUNTED, fault="usage_cumulative" if stream else "")  # Mistral tells it un-asked
    async with post(gateway, customer, path, body, **steer) as answer:
        assert answer.status == 200
        read = await answer.read()
    assert not stream or events_of(read)[-1] == "[DONE]"
    row = await charged(gateway, customer)
    assert (row["provider"], row["charge_nano"]) == ("mistral", 340 * TOKEN_NANO)
    (seen,) = gateway.provider.requests
    assert (seen.host, seen.target, seen.json) == ("api.mistral.ai", "/v1/chat/completions", body)


async def test_warming_with_a_target_in_the_path_is_passed_on_and_free(gateway, customer):
    path = "/v1/forward/https/api.cerebras.ai/v1/tcp_warming"
    async with gateway.session.get(
        gateway.url + path, headers={"Authorization": f"Bearer {gateway.token_for(customer)}"}
    ) as answer:
        assert answer.status in (200, 404)  # the provider's own
        await answer.read()
    (seen,) = gateway.provider.requests
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert (seen.target, row["charge_nano"]) == ("/v1/tcp_warming", 0)
