"""`x-lava-fallbacks`: the next provider in line when one fails, under one hold and for one charge."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import msgspec
import orjson
import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway
from tests_support import events_of
from yarl import URL

from gateway.billing.accounts import NewConnection
from gateway.local.fake.directive import Directive
from gateway.local.fake.server import FakeServer
from gateway.proxy.http_client import Timeouts
from gateway.proxy.upstream import Origin
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN_NANO = 20_000
CREDIT_NANO = 25 * 10**9
OPENAI, GROQ, GOOGLE = "https://api.openai.com", "https://api.groq.com", "https://generativelanguage.googleapis.com"
OWN_HOST = "https://llm.example.org"
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
NEXT = "llama-3.3-70b-versatile"
GROQ_URL = "api.groq.com/openai/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    """All origins are played by a provider that answers; a test has one of them fail."""
    keys = {name: f"sk-of-{name}" for name in ("openai", "groq", "deepseek", "anthropic")}
    answering = FakeProvider(Directive(prompt_tokens=30, completion_tokens=10, chunks=5))
    started = running_gateway(*engines, answering, provider_keys=keys, more_origins=[OWN_HOST])
    async with answering, started as running:
        yield running


@pytest.fixture
def origins(gateway: RunningGateway) -> Iterator[dict[str, Origin]]:
    gateway.provider.clear()
    usual = dict(gateway.parts.origins)
    yield gateway.parts.origins
    gateway.parts.origins.update(usual)


@pytest_asyncio.fixture(loop_scope="module")
async def customer(gateway: RunningGateway) -> NewConnection:
    return await gateway.customer(CREDIT_NANO)


def at(url: str, host: str) -> Origin:
    parts = URL(url)
    return Origin("http", parts.host or "", parts.port or 0, host, "stand_in")


def ask(gateway: RunningGateway, customer: NewConnection, *fallbacks: Any, path="/v1/chat/completions", **more: Any):
    body, token = more.pop("body", CHAT), more.pop("token", None) or gateway.token_for(customer)
    headers = {"Authorization": f"Bearer {token}", "x-lava-fallbacks": orjson.dumps(fallbacks).decode()}
    url = URL(gateway.url + path, encoded=True)
    return gateway.session.post(url, data=orjson.dumps(body), headers=headers | more.pop("headers", {}), **more)


async def billed(gateway: RunningGateway, customer: NewConnection) -> dict[str, Any]:
    """The row of a customer's only call: its charge has left the balance, once, and nothing is held."""
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    balance = await gateway.balance(customer)
    assert (CREDIT_NANO - balance.cycle_nano, balance.held_nano) == (row["charge_nano"], 0)
    return row


def counted(gateway: RunningGateway, hop: int, outcome: str) -> float:
    return gateway.parts.metrics.hops.labels(str(hop), outcome)._value.get()


FAILURES = {
    "status:429": "rate_limited",
    "status:500": "server_error",
    "status:503": "server_error",
    "status:529": "server_error",
    "reset_before_first_byte": "network_error",
    "refused": "network_error",
}


FORWARD = f"/v1/forward?u={OPENAI}/v1/chat/completions"


@pytest.mark.parametrize(
    ("fault", "path", "named"),
    [
        *((fault, "/v1/chat/completions", "name") for fault in FAILURES),
        ("status:503", "/v1/chat/completions", "place"),
        ("status:503", FORWARD, "name"),
        ("reset_before_first_byte", FORWARD, "place"),
    ],
)
async def test_the_next_one_answers_and_is_billed(gateway, origins, customer, fault, path, named):
    before = counted(gateway, 0, FAILURES[fault]), counted(gateway, 1, "answered")
    fallback = f"groq/{NEXT}" if named == "name" else {"url": GROQ_URL, "model": NEXT}
    async with FakeProvider(Directive(fault="" if fault == "refused" else fault)) as failing:
        origins[OPENAI] = at(failing.url, "api.openai.com")
        if fault == "refused":
            with socket.create_server(("127.0.0.1", 0)) as closed:
                origins[OPENAI] = at(f"http://127.0.0.1:{closed.getsockname()[1]}", "api.openai.com")
        async with ask(gateway, customer, fallback, path=path) as answer:
            assert answer.status == 200
            told = await answer.json()
        first = failing.requests
    assert told["model"] == NEXT and told["usage"]["total_tokens"] == 40
    row = await billed(gateway, customer)
    assert (row["provider"], row["model"], row["ending"]) == ("groq", NEXT, "completed")
    assert (row["charge_nano"], row["endpoint"]) == (40 * TOKEN_NANO, f"POST https://{GROQ_URL}")
    (second,) = gateway.provider.requests
    assert second.json == CHAT | {"model": NEXT}
    assert second.header("authorization") == "Bearer sk-of-groq"
    assert all(one.header("authorization") == "Bearer sk-of-openai" and one.json == CHAT for one in first)
    assert second.header("x-lava-fallbacks") is None
    after = counted(gateway, 0, FAILURES[fault]), counted(gateway, 1, "answered")
    assert after == (before[0] + 1, before[1] + 1)


async def test_a_stream_comes_from_the_next_one(gateway, origins, customer):
    async with FakeProvider(Directive(fault="status:503")) as failing:
        origins[OPENAI] = at(failing.url, "api.openai.com")
        async with ask(gateway, customer, "xai/grok-4", body=CHAT | {"stream": True, "max_tokens": 50_000}) as answer:
            events = events_of(await answer.read())
    assert events[-1] == "[DONE]" and all(event["choices"] for event in events[:-1])
    row = await billed(gateway, customer)
    assert (row["provider"], row["charge_nano"], row["streamed"]) == ("xai", 40 * TOKEN_NANO, True)
    (second,) = gateway.provider.requests
    assert second.json["stream_options"] == {"include_usage": True}  # as this provider has to be asked


async def test_a_stream_of_the_next_one_ends_where_its_hold_can_grow_no_more(gateway, origins):
    """Credit for the prompt, the first step (2,048 tokens) and little more; the stream would be 8,000 tokens long."""
    poor = await gateway.customer(120_000_000)
    steer = steering_header(prompt_tokens=30, completion_tokens=8_000, chunks=500)
    async with FakeProvider(Directive(fault="status:503")) as failing:
        origins[OPENAI] = at(failing.url, "api.openai.com")
        body = CHAT | {"stream": True, "max_tokens": 50_000}
        async with ask(gateway, poor, "xai/grok-4", body=body, headers=steer) as answer:
            assert answer.status == 200
            events = events_of(await answer.read())
    assert events[-2]["error"]["code"] == "insufficient_balance"
    (row,) = await gateway.rows("connection_id = $1", poor.connection_id)
    balance = await gateway.balance(poor)
    assert (row["ending"], row["provider"], balance.held_nano) == ("balance_exhausted", "xai", 0)
    assert balance.cycle_nano == 120_000_000 - row["charge_nano"] >= 0 and balance.overage_nano == 0


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_a_provider_is_not_left_for_what_the_caller_did_wrong(gateway, origins, customer, status):
    async with FakeProvider(Directive(fault=f"status:{status}")) as failing:
        origins[OPENAI] = at(failing.url, "api.openai.com")
        async with ask(gateway, customer, f"groq/{NEXT}") as answer:
            assert answer.status == status
    assert gateway.provider.requests == []
    assert (await billed(gateway, customer))["ending"] == "provider_error"


async def test_a_provider_that_keeps_silent_is_not_left(gateway, origins, customer):
    """It may be at work: a second one would be paid for the same."""
    usual = gateway.parts.timeouts
    gateway.parts.timeouts = Timeouts(0.2, 0.2, 5)
    try:
        async with FakeProvider(Directive(delay_ms=5_000)) as failing:
            origins[OPENAI] = at(failing.url, "api.openai.com")
            async with ask(gateway, customer, f"groq/{NEXT}") as answer:
                assert (answer.status, (await answer.json())["error"]["code"]) == (504, "upstream_timeout")
    finally:
        gateway.parts.timeouts = usual
    assert gateway.provider.requests == []


async def test_nothing_is_sent_elsewhere_once_an_answer_has_begun(gateway, origins, customer):
    async with FakeProvider(Directive(fault="reset_mid_stream", chunks=20)) as failing:
        origins[OPENAI] = at(failing.url, "api.openai.com")
        with pytest.raises(aiohttp.ClientError):
            async with ask(gateway, customer, f"groq/{NEXT}", body=CHAT | {"stream": True}) as answer:
                assert answer.status == 200
                await answer.read()
    assert gateway.provider.requests == []
    await asyncio.sleep(0.05)
    row = await billed(gateway, customer)
    assert (row["provider"], row["ending"]) == ("openai", "truncated")


async def test_the_last_error_passes_through_when_all_fail(gateway, origins, customer):
    async with FakeProvider(Directive(fault="status:503")) as failing:
        for origin in (OPENAI, GROQ, GOOGLE):
            origins[origin] = at(failing.url, origin.removeprefix("https://"))
        async with ask(gateway, customer, f"groq/{NEXT}", "gemini-2.5-flash") as answer:
            assert (answer.status, answer.headers["content-type"]) == (503, "application/json")
            assert "fake provider" in await answer.text()
        asked = [one.host for one in failing.requests]
    assert asked == ["api.openai.com", "api.groq.com", "generativelanguage.googleapis.com"]
    row = await billed(gateway, customer)
    assert (row["provider"], row["http_status"], row["charge_nano"]) == ("googleOpenaiCompatible", 503, 0)


async def test_a_chain_takes_no_longer_than_one_call_may(gateway, origins, customer):
    usual = gateway.parts.settings
    gateway.parts.settings = msgspec.structs.replace(usual, request_timeout_s=1)
    try:
        async with FakeProvider(Directive(delay_ms=700, fault="status:503")) as failing:
            origins[OPENAI] = origins[GROQ] = at(failing.url, "api.groq.com")
            async with ask(gateway, customer, f"groq/{NEXT}", "gemini-2.5-flash") as answer:
                assert answer.status == 504
            assert failing.request_count == 2
    finally:
        gateway.parts.settings = usual
    assert gateway.provider.requests == []


async def test_a_client_that_left_is_not_served_by_the_next_one(gateway, origins, customer):
    async with FakeProvider(Directive(delay_ms=300, fault="status:503")) as failing:
        origins[OPENAI] = at(failing.url, "api.openai.com")
        with pytest.raises(asyncio.TimeoutError):
            async with ask(gateway, customer, f"groq/{NEXT}", timeout=aiohttp.ClientTimeout(total=0.1)):
                pass
        await asyncio.sleep(0.4)
    assert gateway.provider.requests == []
    await gateway.parts.background.drain(5)
    balance = await gateway.balance(customer)
    assert (balance.cycle_nano, balance.held_nano) == (CREDIT_NANO, 0)


PERCENTAGE = {"rate_type": "percentage", "tier_type": "requests", "tiers": [{"start": 0, "rate": "10"}]}


async def test_the_hold_is_that_of_the_dearest(gateway, customer):
    """A customer who can pay for the first choice only is refused before anything is sent."""
    meter = await gateway.accounts.create_meter(gateway.merchant.merchant_id, "test", "Cost", "cost", PERCENTAGE)
    poor = await gateway.customer(100_000)
    token = gateway.token_for(poor, meter)
    gateway.provider.clear()
    async with ask(gateway, poor, "openai/gpt-4-32k", token=token) as answer:
        told = (await answer.json())["error"]
    assert (answer.status, told["code"]) == (402, "insufficient_balance")
    assert gateway.provider.requests == []
    async with ask(gateway, poor, "openai/gpt-4.1-nano", token=token) as answer:
        assert answer.status == 200


async def test_a_callers_key_goes_to_its_own_provider_only(gateway, origins, customer):
    token = gateway.token_for(customer, provider_key="sk-the-callers-own")
    async with FakeProvider(Directive(fault="status:503")) as failing:
        origins[OPENAI] = at(failing.url, "api.openai.com")
        async with ask(gateway, customer, "openai/gpt-4.1-nano", f"groq/{NEXT}", token=token) as answer:
            assert answer.status == 200
        keys = [one.header("authorization") for one in failing.requests]
    assert keys == ["Bearer sk-the-callers-own"] * 2
    (second,) = gateway.provider.requests
    assert second.header("authorization") == "Bearer sk-of-groq"
    assert "sk-the-callers-own" not in repr(second.headers)
    assert (await billed(gateway, customer))["provider_key_type"] == "managed"


async def test_the_query_of_a_callers_own_host_stays_there(gateway, origins, customer):
    """Nobody here knows which parameter of it is a secret."""
    token = gateway.token_for(customer, provider_key="sk-the-callers-own")
    path = f"/v1/forward?u={OWN_HOST}/v1/chat/completions?apikey=secret"
    async with FakeProvider(Directive(fault="status:503")) as failing:
        origins[OWN_HOST] = at(failing.url, "llm.example.org")
        async with ask(gateway, customer, f"groq/{NEXT}", path=path, token=token) as answer:
            assert answer.status == 200
        assert [one.target for one in failing.requests] == ["/v1/chat/completions?apikey=secret"]
    (second,) = gateway.provider.requests
    assert (second.host + second.target, second.header("authorization")) == (GROQ_URL, "Bearer sk-of-groq")


@pytest.mark.parametrize(
    ("path", "body", "fallback", "host"),
    [
        (
            "/v1/messages",
            {"model": "claude-sonnet-4-5", "max_tokens": 50, "messages": CHAT["messages"]},
            "deepseek/deepseek-chat",
            "api.deepseek.com/anthropic/v1/messages",
        ),
        (
            "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            {"contents": [{"parts": [{"text": "hello"}]}]},
            "gemini-2.5-flash-lite",
            "generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash-lite:streamGenerateContent?alt=sse",
        ),
        (
            f"/v1/forward?u={GOOGLE}/v1beta/models/gemini-2.5-flash:generateContent",
            {"contents": [{"parts": [{"text": "hello"}]}]},
            {"url": "generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro:generateContent"},
            "generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro:generateContent",
        ),
        (
            "/v1/responses",
            {"model": "gpt-4o-mini", "input": "hello"},
            "gpt-4.1-nano",
            "api.openai.com/v1/responses",
        ),
    ],
)
async def test_other_formats(gateway, origins, customer, path, body, fallback, host):
    async with FailsFirst() as failing:
        for origin in list(origins):
            origins[origin] = at(failing.url, origin.removeprefix("https://"))
        async with ask(gateway, customer, fallback, path=path, body=body) as answer:
            assert answer.status == 200
            await answer.read()
        first, second = failing.requests
    assert (first.status, second.host + second.target) == (503, host)
    row = await billed(gateway, customer)
    assert (row["charge_nano"], row["model"] in str(fallback)) == (40 * TOKEN_NANO, True)


class FailsFirst(FakeProvider):
    """Answers 503 to its first request, and the others as they should be."""

    def __init__(self) -> None:
        super().__init__()
        self._server = _FailsFirst()
        self._runner = self._server.runner()


class _FailsFirst(FakeServer):
    @property
    def defaults(self) -> Directive:
        return (
            Directive(fault="status:503") if self.log.count <= 1 else Directive(prompt_tokens=30, completion_tokens=10)
        )

    @defaults.setter
    def defaults(self, _: Directive) -> None:
        """There are none but these."""


# What cannot be a chain


@pytest.mark.parametrize(
    ("header", "code", "told"),
    [
        ("groq/x", "invalid_request", "not a JSON array"),
        ("{}", "invalid_request", "not a JSON array"),
        ("[1]", "invalid_request", "$[0]"),
        ('[{"model": "x"}]', "invalid_request", "url"),
        ('[{"url": "api.openai.com/v1/chat/completions", "modle": "x"}]', "invalid_request", "modle"),
        ('["a","b","c","d","e"]', "invalid_request", "more than 4"),
        (f'["{"x" * 4_100}"]', "invalid_request", "longer than"),
        ('["unheard-of-1"]', "forward_model_not_supported", "[0]"),
        (f'["groq/{NEXT}", "eleven_flash_v2"]', "forward_translation_not_supported", "[1]"),
        ('[{"url": "api.elevenlabs.io/v1/text-to-speech/x"}]', "forward_translation_not_supported", "openai_chat"),
        (
            '[{"url": "https://llm.example.org/v1/chat/completions"}]',
            "forward_endpoint_not_supported",
            "llm.example.org",
        ),
        ('[{"url": "http://127.0.0.1/v1/chat/completions"}]', "forward_target_invalid", "[0]"),
        ('[{"url": "api.openai.com/v1/fine_tuning/jobs"}]', "forward_endpoint_not_supported", "cannot be metered"),
    ],
)
async def test_a_chain_that_cannot_be_is_refused_before_anything_is_sent(
    gateway, origins, customer, header, code, told
):
    async with ask(gateway, customer, headers={"x-lava-fallbacks": header}) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (400, code, "x-lava-fallbacks")
    assert told in error["message"]
    assert gateway.provider.requests == []
    assert (await gateway.balance(customer)).held_nano == 0


async def test_a_fallback_whose_provider_has_no_key_here_is_refused(gateway, origins, customer):
    del origins["https://api.x.ai"]  # no stand-in for it any more
    async with ask(gateway, customer, "xai/grok-4") as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["code"], error["param"]) == (502, "upstream_key_missing", "x-lava-fallbacks")


async def test_a_chain_does_not_multiply_a_large_body(gateway, origins, customer):
    usual = gateway.parts.settings
    gateway.parts.settings = msgspec.structs.replace(usual, max_request_body_bytes=300)
    try:
        async with ask(gateway, customer, f"groq/{NEXT}", f"groq/{NEXT}") as answer:
            assert answer.status == 200
        gateway.provider.clear()
        async with ask(gateway, customer, *[f"groq/{NEXT}"] * 4) as answer:
            error = (await answer.json())["error"]
    finally:
        gateway.parts.settings = usual
    assert (answer.status, error["code"], error["param"]) == (413, "body_too_large", "x-lava-fallbacks")
    assert gateway.provider.requests == []


async def test_a_call_that_is_not_metered_has_no_chain(gateway, origins, customer):
    headers = {"Authorization": f"Bearer {gateway.token_for(customer)}", "x-lava-fallbacks": f'["groq/{NEXT}"]'}
    url = URL(f"{gateway.url}/v1/forward?u={OPENAI}/v1/models", encoded=True)
    async with gateway.session.get(url, headers=headers) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "x-lava-fallbacks")
    assert gateway.provider.requests == []


async def test_an_empty_chain_is_none(gateway, origins, customer):
    async with ask(gateway, customer) as answer:
        assert answer.status == 200
    assert (await billed(gateway, customer))["provider"] == "openai"
