"""Every recorded exchange, replayed through the running gateway: the client's bytes and the row's usage."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import pytest_asyncio
from recorded_exchanges import DIRECTORY, TOKEN_FIELDS, Recorded, exchanges, without_usage_only_chunks
from running import RunningGateway, running_gateway
from yarl import URL

from gateway.local.fake.replay import EXCHANGE_HEADER
from gateway.providers import Provider
from gateway.testing import FakeProvider

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONCURRENCY = 8
TOKEN_NANO = 20_000
"""What the meter of the fixture asks for a token."""

# Of each format at least so many exchanges must have been sent.
LEAST = {
    "openai_chat": 340,
    "openai_responses": 100,
    "anthropic_messages": 50,
    "gemini_stream": 40,
    "gemini_generate": 20,
    "openai_completions": 20,
    "openai_embeddings": 20,
    "images": 30,
    "cohere_v2_chat": 30,
}

# The provider itself refused these for want of a model: so does the gateway, before any call.
REFUSED = frozenset({"hyperbolic__chat_completions__sync__error__002", "together__completions__sync__error__000"})

# Formats whose streams the gateway asks for a usage chunk, and hides it.
HIDING = frozenset({"openai_chat", "openai_completions"})


class Answer(NamedTuple):
    """What the client got."""

    status: int
    body: bytes
    request_id: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    hosts = {one.origin for one in exchanges()}
    async with (
        FakeProvider(replay=DIRECTORY) as provider,
        running_gateway(*engines, provider, more_origins=hosts) as running,
    ):
        yield running


def provider_of(gateway: RunningGateway, one: Recorded) -> Provider | None:
    return gateway.parts.providers.by_origin(one.origin, one.path)


async def send(gateway: RunningGateway, credential: str, one: Recorded) -> Answer:
    """Send an exchange as recorded."""
    url = URL(f"{gateway.url}/v1/forward?u={quote(one.origin + one.exchange.path, safe='')}", encoded=True)
    headers = one.sent_headers | {"Authorization": f"Bearer {credential}", EXCHANGE_HEADER: one.id}
    async with gateway.session.request(one.exchange.method, url, data=one.sent_body, headers=headers) as answer:
        return Answer(answer.status, await answer.read(), answer.headers.get("x-lava-request-id", ""))


async def send_all(gateway: RunningGateway, credential: str, chosen: list[Recorded]) -> dict[str, Answer]:
    """Answers by exchange, CONCURRENCY at a time."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one_of_them(one: Recorded) -> Answer:
        async with slots:
            return await send(gateway, credential, one)

    return dict(zip([one.id for one in chosen], await asyncio.gather(*map(one_of_them, chosen)), strict=True))


def visible_bytes(one: Recorded, provider: Provider | None, format_name: str) -> bytes:
    """What the client must get: the provider's bytes, less a usage chunk that only the gateway asked for."""
    body, encoding = one.provider_bytes()
    asks_itself = provider is not None and provider.inject_usage and format_name in HIDING
    if not (asks_itself and one.exchange.stream and one.exchange.status < 400 and not encoding):
        return body
    return body if one.asked_for_usage else without_usage_only_chunks(body)


def problem_of(one: Recorded, row: dict[str, Any]) -> str | None:
    """What is wrong with the row of an exchange: reported figures are taken as they are, only missing ones counted."""
    expected = one.expected_tokens()
    found = {name: row["usage"][name] for name in TOKEN_FIELDS if name in row["usage"]}
    if row["estimated"]:
        missing = {"input_tokens", "output_tokens"} - expected.keys()
        if not missing:
            return f"counted although {expected} was reported"
        expected |= {name: found.get(name, 0) for name in missing}
    if found != expected:
        return f"usage {found}, reported was {expected}"
    if row["charge_nano"] != TOKEN_NANO * (found.get("input_tokens", 0) + found.get("output_tokens", 0)):
        return f"{found} is charged {row['charge_nano']}"
    return None


async def test_every_exchange_of_a_known_provider_passes_and_is_metered(gateway: RunningGateway) -> None:
    known = [one for one in exchanges() if provider_of(gateway, one) is not None and one.id not in REFUSED]
    customer = await gateway.customer(1_000_000 * 10**9)
    answers = await send_all(gateway, gateway.token_for(customer), known)
    rows = {row["request_id"]: row for row in await gateway.rows("connection_id = $1", customer.connection_id)}
    wrong: dict[str, object] = {}
    formats: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    names: set[str] = set()
    for one in known:
        provider = provider_of(gateway, one)
        assert provider is not None
        format_name = provider.format_of(one.exchange.method, one.path)
        status, body, request_id = answers[one.id]
        if (status, body) != (one.exchange.status, visible_bytes(one, provider, format_name)):
            wrong[one.id] = ("bytes", status, one.exchange.status, len(body), body[:200])
        elif problem := problem_of(one, rows[request_id]):
            wrong[one.id] = problem
        formats[format_name] += 1
        names.add(provider.name)
        kinds["usage chunk hidden"] += body != one.provider_bytes()[0]
        kinds["request body lost"] += one.body_lost
        kinds["counted here"] += rows[request_id]["estimated"] if request_id in rows else 0
        kinds["usage reported"] += bool(one.expected_tokens())
    print(f"\n{len(known)} exchanges of {len(names)} providers in {len(formats)} formats: {dict(formats)}")
    print(f"of these {dict(kinds)}; refused as the provider did: {sorted(REFUSED)}")
    assert not wrong, f"{len(wrong)}: {wrong}"
    assert len(known) >= 760 and len(names) >= 15 and kinds["usage reported"] >= 600
    assert kinds["counted here"] <= 30
    assert all(formats[name] >= least for name, least in LEAST.items())


async def test_every_recorded_usage_chunk_is_hidden_from_a_client_that_does_not_ask(gateway: RunningGateway) -> None:
    """The streams whose clients had asked, sent as clients that do not ask: the same charge, without the chunk."""
    asked = [one for one in exchanges() if one.asked_for_usage and one.exchange.stream and one.exchange.status < 400]
    chosen = [
        replace(one, record=one.record | {"request_headers": {}}, asks=False)
        for one in asked
        if (provider := provider_of(gateway, one)) is not None and provider.inject_usage
    ]
    customer = await gateway.customer(1_000_000 * 10**9)
    answers = await send_all(gateway, gateway.token_for(customer), chosen)
    rows = {row["request_id"]: row for row in await gateway.rows("connection_id = $1", customer.connection_id)}
    hidden = 0
    for one in chosen:
        full, encoding = one.provider_bytes()
        if encoding:  # sent compressed although it was not asked for: passed on as it is
            continue
        answer = answers[one.id]
        assert answer.body == without_usage_only_chunks(full), one.id
        assert problem_of(one, rows[answer.request_id]) is None, one.id
        hidden += answer.body != full
    print(f"\n{hidden} usage chunks hidden in {len(chosen)} streams")
    assert hidden >= 20


async def test_every_exchange_of_another_host_passes(gateway: RunningGateway) -> None:
    """A host that is not in the table is served with the caller's own key, unmetered."""
    others = [one for one in exchanges() if provider_of(gateway, one) is None and "//" not in one.path]
    customer = await gateway.customer(1_000_000 * 10**9)
    credential = gateway.token_for(customer, provider_key="sk-own")
    answers = await send_all(gateway, credential, others)
    wrong = {
        one.id: answers[one.id]
        for one in others
        if answers[one.id][:2] != (one.exchange.status, one.provider_bytes()[0])
    }
    print(f"\n{len(others)} exchanges of {len({one.exchange.host for one in others})} other hosts")
    assert not wrong
    assert len(others) >= 240


async def test_an_empty_path_segment_is_refused(gateway: RunningGateway) -> None:
    """Two parsers could read "//" differently. Some clients of the recordings sent it."""
    unclear = [one for one in exchanges() if "//" in one.path]
    answers = await send_all(gateway, gateway.merchant.secret_key, unclear)
    assert {(answer.status, b"forward_target_invalid" in answer.body) for answer in answers.values()} == {(400, True)}
