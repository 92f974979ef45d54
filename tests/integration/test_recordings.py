"""Every recorded exchange, replayed through the running gateway: the client's bytes and the row's usage."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, NamedTuple
from urllib.parse import quote

import independent_cost
import pytest
import pytest_asyncio
from recorded_exchanges import DIRECTORY, TOKEN_FIELDS, Recorded, exchanges, without_usage_only_chunks
from running import RunningGateway, running_gateway
from yarl import URL

from gateway.local.fake import encodings
from gateway.local.fake.replay import ENCODE_HEADER, EXCHANGE_HEADER, SPLIT_HEADER, recorded_reply
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
    "images": 25,
    "hyperbolic_images": 8,
    "cohere_v2_chat": 30,
}

# The provider itself refused these for want of a model: so does the gateway, before any call.
REFUSED = frozenset({"hyperbolic__chat_completions__sync__error__002", "together__completions__sync__error__000"})

# Formats whose streams the gateway asks for a usage chunk, and hides it.
HIDING = frozenset({"openai_chat", "openai_completions"})


Row = dict[str, Any]
Steering = Callable[[Recorded], dict[str, str]]


def unsteered(one: Recorded) -> dict[str, str]:
    return {}


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


def format_of(gateway: RunningGateway, one: Recorded) -> str:
    provider = provider_of(gateway, one)
    of = provider.format_of if provider is not None else gateway.parts.providers.format_elsewhere
    return of(one.exchange.method, one.path)


async def send(gateway: RunningGateway, credential: str, one: Recorded, steering: dict[str, str]) -> Answer:
    """Send an exchange as recorded."""
    url = URL(f"{gateway.url}/v1/forward?u={quote(one.origin + one.exchange.path, safe='')}", encoded=True)
    headers = one.sent_headers | {"Authorization": f"Bearer {credential}", EXCHANGE_HEADER: one.id} | steering
    async with gateway.session.request(one.exchange.method, url, data=one.sent_body, headers=headers) as answer:
        return Answer(answer.status, await answer.read(), answer.headers.get("x-lava-request-id", ""))


async def send_all(
    gateway: RunningGateway, credential: str, chosen: list[Recorded], steering: Steering = unsteered
) -> dict[str, Answer]:
    """Answers by exchange, CONCURRENCY at a time."""
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one_of_them(one: Recorded) -> Answer:
        async with slots:
            return await send(gateway, credential, one, steering(one))

    return dict(zip([one.id for one in chosen], await asyncio.gather(*map(one_of_them, chosen)), strict=True))


def visible_bytes(one: Recorded, provider: Provider | None, format_name: str, steering: dict[str, str]) -> bytes:
    """What the client must get: the provider's bytes, less a usage chunk that only the gateway asked for."""
    headers, pieces = recorded_reply(one.exchange, steering)
    body = b"".join(pieces)
    asks_itself = provider is not None and provider.inject_usage and format_name in HIDING
    streamed = one.exchange.stream and one.exchange.status < 400
    if one.asked_for_usage or not (asks_itself and streamed) or headers.get("Content-Encoding"):
        return body
    return without_usage_only_chunks(body)


def problem_of(one: Recorded, row: dict[str, Any]) -> str | None:
    """What is wrong with the row of an exchange: reported figures are taken as they are, only missing ones counted."""
    expected = one.expected_tokens()
    found = {name: row["usage"][name] for name in TOKEN_FIELDS if name in row["usage"]}
    if row["estimated"]:
        missing = {"input_tokens", "output_tokens"} - expected.keys()
        if not missing:
            return f"counted although {expected} was reported"
        expected |= {name: found[name] for name in missing & found.keys()}
    if found != expected:
        return f"usage {found}, reported was {expected}"
    if row["charge_nano"] != TOKEN_NANO * (found.get("input_tokens", 0) + found.get("output_tokens", 0)):
        return f"{found} is charged {row['charge_nano']}"
    return None


class Outcome:
    """What came of many exchanges."""

    def __init__(self) -> None:
        self.wrong: dict[str, object] = {}
        self.formats: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.names: set[str] = set()

    def add(self, gateway: RunningGateway, one: Recorded, answer: Answer, row: Row | None, steer: Steering) -> None:
        provider, format_name = provider_of(gateway, one), format_of(gateway, one)
        name = provider.name if provider is not None else one.exchange.host
        expected = visible_bytes(one, provider, format_name, steer(one))
        if (answer.status, answer.body) != (one.exchange.status, expected):
            self.wrong[one.id] = ("bytes", answer.status, one.exchange.status, len(answer.body), answer.body[:200])
        elif row is None:
            self.wrong[one.id] = "no row"
        else:
            self._add_row(one, name, row)
        self.formats[format_name] += 1
        self.names.add(name)
        self.kinds["usage chunk hidden"] += answer.body != b"".join(recorded_reply(one.exchange, steer(one))[1])
        self.kinds["request body lost"] += one.body_lost
        self.kinds["usage reported"] += bool(one.expected_tokens())

    def _add_row(self, one: Recorded, name: str, row: Row) -> None:
        if problem := problem_of(one, row):
            self.wrong[one.id] = problem
        self.kinds["counted here"] += row["estimated"]
        if (
            row["estimated"]
            or row["model"] is None
            or row["provider"] == one.exchange.host
            or one.exchange.status >= 400
        ):
            return  # a price is known by the provider's name, not by a host's
        cost_nano = independent_cost.cost_nano(one, name, row)
        if cost_nano is not None and cost_nano != row["cost_nano"]:
            self.wrong[one.id] = ("cost", row["cost_nano"], cost_nano, row["usage"])
        self.kinds["cost computed independently"] += cost_nano is not None

    def tell(self, exchanges_sent: int) -> None:
        names, formats = len(self.names), len(self.formats)
        print(f"\n{exchanges_sent} exchanges of {names} providers in {formats} formats: {dict(self.formats)}")
        print(f"of these {dict(self.kinds)}; {len(self.wrong)} wrong")


async def replay(gateway: RunningGateway, chosen: list[Recorded], steering: Steering = unsteered) -> Outcome:
    """Send them, and look at each answer and row."""
    customer = await gateway.customer(1_000_000 * 10**9)
    own_key = {} if provider_of(gateway, chosen[0]) is not None else {"provider_key": "sk-own"}
    answers = await send_all(gateway, gateway.token_for(customer, **own_key), chosen, steering)
    rows = {row["request_id"]: row for row in await gateway.rows("connection_id = $1", customer.connection_id)}
    outcome = Outcome()
    for one in chosen:
        outcome.add(gateway, one, answers[one.id], rows.get(answers[one.id].request_id), steering)
    outcome.tell(len(chosen))
    assert not outcome.wrong, f"{len(outcome.wrong)}: {outcome.wrong}"
    return outcome


def known_exchanges(gateway: RunningGateway) -> list[Recorded]:
    return [one for one in exchanges() if provider_of(gateway, one) is not None and one.id not in REFUSED]


def other_exchanges(gateway: RunningGateway) -> list[Recorded]:
    return [one for one in exchanges() if provider_of(gateway, one) is None and "//" not in one.path]


async def test_every_exchange_of_a_known_provider_passes_and_is_metered(gateway: RunningGateway) -> None:
    known = known_exchanges(gateway)
    outcome = await replay(gateway, known)
    assert len(known) >= 760 and len(outcome.names) >= 15 and outcome.kinds["usage reported"] >= 600
    assert outcome.kinds["counted here"] <= 36 and outcome.kinds["cost computed independently"] >= 450
    assert all(outcome.formats[name] >= least for name, least in LEAST.items())


async def test_every_exchange_of_another_host_passes_and_is_metered(gateway: RunningGateway) -> None:
    """A host that is not in the table is reached with the caller's own key, and metered by the format of its path."""
    others = other_exchanges(gateway)
    outcome = await replay(gateway, others)
    assert len(others) >= 240 and outcome.kinds["usage reported"] >= 190
    assert outcome.formats["http"] == 0


def cut_and_encoded(one: Recorded) -> dict[str, str]:
    """Cut at random places, in one encoding or none: each fifth of the exchanges in another one."""
    number = zlib.crc32(one.id.encode())
    encoding = ("identity", *encodings.NAMES)[number % 5]
    return {SPLIT_HEADER: f"random:{number}", ENCODE_HEADER: encoding}


@pytest.mark.slow
async def test_cuts_and_encodings_change_nothing(gateway: RunningGateway) -> None:
    """The client's bytes are the provider's, compressed or not, and the usage is the same."""
    known = known_exchanges(gateway)
    chosen = {one.id: one for one in [*sample(known, 200), *(one for one in known if one.exchange.stream)]}
    outcome = await replay(gateway, list(chosen.values()), cut_and_encoded)
    assert outcome.kinds["usage reported"] >= 300
    await replay(gateway, sample(other_exchanges(gateway), 60), cut_and_encoded)


@pytest.mark.slow
async def test_single_bytes_change_nothing(gateway: RunningGateway) -> None:
    small = [one for one in known_exchanges(gateway) if len(one.provider_bytes()[0]) < 4_000]
    await replay(gateway, sample(small, 60), lambda one: {SPLIT_HEADER: "every"})


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ("identity", *encodings.NAMES))
async def test_every_exchange_in_every_encoding(gateway: RunningGateway, encoding: str) -> None:
    """Uncompressed cut at random places (the largest in pieces of 997 bytes), compressed in such pieces."""

    def steering(one: Recorded) -> dict[str, str]:
        small = encoding == "identity" and len(one.provider_bytes()[0]) < 40_000
        cut = f"random:{zlib.crc32(one.id.encode())}" if small else "997"
        return {SPLIT_HEADER: cut, ENCODE_HEADER: encoding}

    await replay(gateway, known_exchanges(gateway), steering)
    await replay(gateway, other_exchanges(gateway), steering)


def sample(chosen: list[Recorded], size: int) -> list[Recorded]:
    return random.Random(20261123).sample(chosen, size)


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


async def test_an_empty_path_segment_is_refused(gateway: RunningGateway) -> None:
    """Two parsers could read "//" differently. Some clients of the recordings sent it."""
    unclear = [one for one in exchanges() if "//" in one.path]
    answers = await send_all(gateway, gateway.merchant.secret_key, unclear)
    assert {(answer.status, b"forward_target_invalid" in answer.body) for answer in answers.values()} == {(400, True)}
