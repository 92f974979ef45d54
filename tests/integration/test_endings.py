"""The table "How a call can end" of docs/reliability.md, case by case: charge, row, metric, what the client gets.

The cases run all at once, for most of them wait for a limit of a second.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import pytest_asyncio
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat

from gateway.billing.accounts import NewConnection
from gateway.core.money import NANO
from gateway.local.fake.records import Record
from gateway.proxy.call import BILLED, Ending
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN_NANO = 20_000
ANTHROPIC = "https://api.anthropic.com/v1/messages"
CLAUDE = {"model": "claude-sonnet-4-5", "max_tokens": 400, "stream": True, "messages": chat()["messages"]}
STREAM = chat(stream=True, stream_options={"include_usage": True})
DRAIN_S = 2
USED = 130
"""Tokens that the fake provider tells, unless a case says otherwise."""


class Client:
    """A client by hand: it reads as much as it likes and leaves when it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def send(
        cls, gateway: RunningGateway, credential: str, target: str, body: bytes, steer: dict[str, str]
    ) -> Client:
        where = urlsplit(gateway.url)
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (where.hostname, where.port))
        reader, writer = await asyncio.open_connection(sock=raw, limit=1_024)
        headers = {"Host": where.netloc, "Authorization": f"Bearer {credential}", "Content-Length": str(len(body))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers | steer).items())
        writer.write(f"POST /v1/forward?u={target} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        return cls(reader, writer)

    async def read_all(self) -> bytes:
        """To the end of the answer, or of the connection."""
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n") and (piece := await self.reader.read(64 * 1024)):
            received += piece
            length = re.search(rb"content-length: (\d+)", received.partition(b"\r\n\r\n")[0].lower())
            if length and len(received.partition(b"\r\n\r\n")[2]) >= int(length[1]):
                break
        return received

    async def read_until(self, mark: bytes) -> bytes:
        received = b""
        while mark not in received:
            received += await self.reader.read(256)
        return received

    def leave(self) -> None:
        self.writer.transport.abort()


async def stays(client: Client, provider: FakeProvider, number: int) -> bytes:
    return await client.read_all()


async def asked(provider: FakeProvider, number: int) -> Record:
    """What the provider has seen of the request, once it has."""
    async with asyncio.timeout(10):
        while not (found := [each for each in provider.requests if f'"case-{number}"' in repr(each.headers)]):
            await asyncio.sleep(0.02)
    return found[0]


async def leaves_first(client: Client, provider: FakeProvider, number: int) -> bytes:
    await asked(provider, number)
    client.leave()
    return b""


async def leaves_mid_stream(client: Client, provider: FakeProvider, number: int) -> bytes:
    received = await client.read_until(b'"delta":{"content":')
    client.leave()
    return received


async def leaves_unread(client: Client, provider: FakeProvider, number: int) -> bytes:
    """Nothing is read, and the connection is closed once the provider has sent all."""
    await asked(provider, number)
    await asyncio.sleep(0.3)
    client.leave()
    return b""


async def never_reads(client: Client, provider: FakeProvider, number: int) -> bytes:
    """Not until long after the provider is let go."""
    record = await asked(provider, number)
    async with asyncio.timeout(20):
        while record.outcome == "in_progress":
            await asyncio.sleep(0.05)
    await asyncio.sleep(3)
    client.leave()
    return b""


@dataclass(frozen=True)
class Case:
    """What happens, and what must come of it. `tokens`: charged; None: counted here, so some."""

    ending: Ending
    steer: dict[str, Any] = field(default_factory=dict)
    client: Callable[..., Any] = stays
    target: str = CHAT
    body: dict[str, Any] = field(default_factory=lambda: STREAM)
    tokens: int | None = USED
    estimated: bool = False
    status: str = "completed"
    http_status: int | None = 200
    credit_tokens: int = 1_000_000
    told: bytes = b""
    """Stands in what the client gets."""
    provider: str = "completed"
    """How the request ended as the provider saw it."""
    within_s: float = 60.0
    """A client that leaves is noticed, whatever the provider does: its call is over sooner than by any other limit."""


COUNTED: dict[str, Any] = {"tokens": None, "estimated": True}
FREE: dict[str, Any] = {"tokens": 0, "status": "error"}
CASES = {
    "the provider tells its usage": Case("completed", told=b"[DONE]"),
    "the provider tells its usage, unstreamed": Case("completed", body=chat(), told=b'"total_tokens":130'),
    "usage told twice": Case("completed", {"fault": "usage_twice"}),
    "usage told with every chunk": Case("completed", {"fault": "usage_cumulative"}),
    "no usage told": Case("completed", {"fault": "no_usage"}, **COUNTED),
    "no usage told, unstreamed": Case("completed", {"fault": "no_usage"}, body=chat(), **COUNTED),
    "an error status": Case("provider_error", {"fault": "status:500"}, http_status=500, told=b" 500 ", **FREE),
    "too many requests": Case("provider_error", {"fault": "status:429"}, http_status=429, told=b"retry-after", **FREE),
    "reset before the head": Case(
        "upstream_failed",
        {"fault": "reset_before_first_byte"},
        http_status=None,
        told=b'"upstream_failed"',
        provider="reset",
        **FREE,
    ),
    "silence before the head": Case(
        "upstream_timeout",
        {"delay_ms": 20_000},
        http_status=None,
        told=b'"upstream_timeout"',
        provider="disconnected",
        **FREE,
    ),
    "silence in the middle": Case(
        "upstream_timeout", {"fault": "stall"}, status="error", provider="disconnected", **COUNTED
    ),
    "reset in the middle": Case("truncated", {"fault": "reset_mid_stream"}, provider="reset", **COUNTED),
    "reset in the middle, unstreamed": Case(
        "truncated", {"fault": "reset_mid_stream"}, body=chat(), provider="reset", tokens=None, estimated=True
    ),
    "an end without its mark": Case("truncated", {"fault": "truncated"}, **COUNTED),
    "an error event": Case("error_event", {"fault": "error_event"}, told=b'"error"', **FREE),
    "an error event of Anthropic, whose prompt was told": Case(
        "error_event", {"fault": "error_event"}, target=ANTHROPIC, body=CLAUDE, tokens=100, status="error"
    ),
    "an error as the body of status 200": Case("error_event", {"fault": "error_event"}, body=chat(), **FREE),
    "the client leaves before the first byte, which comes": Case(
        "client_gone", {"delay_ms": 400}, leaves_first, body=chat()
    ),
    "the client leaves before the first byte, which does not come": Case(
        "client_gone",
        {"delay_ms": 20_000},
        leaves_first,
        body=chat("some words to count"),
        http_status=None,
        provider="disconnected",
        within_s=DRAIN_S + 1.5,
        **COUNTED,
    ),
    "the client leaves in the middle": Case("client_gone", {"chunk_delay_ms": 5}, leaves_mid_stream, told=b'"delta"'),
    "the client leaves in the middle of what has no end": Case(
        "client_gone",
        {"chunk_delay_ms": 20, "completion_tokens": 5_000},
        leaves_mid_stream,
        provider="disconnected",
        **COUNTED,
    ),
    "the client leaves while the provider is silent": Case(
        "client_gone",
        {"chunk_delay_ms": 30_000, "completion_tokens": 5_000},
        leaves_mid_stream,
        provider="disconnected",
        within_s=DRAIN_S + 1.5,
        **COUNTED,
    ),
    "the client leaves without reading the end": Case("completed", {}, leaves_unread),
    "the client reads nothing": Case(
        "client_stalled", {"completion_tokens": 40_000}, never_reads, provider="disconnected", **COUNTED
    ),
    "the balance is used up": Case(
        "balance_exhausted",
        {"completion_tokens": 5_000, "chunk_delay_ms": 1, "chunks": 500},
        status="error",
        credit_tokens=900,
        told=b"insufficient_balance",
        provider="disconnected",
        **COUNTED,
    ),
}
"""`cancelled`, `hold_lost` and `expired` have tests of their own: they need more than a provider and a client."""
ELSEWHERE = {"cancelled", "hold_lost", "expired"}


@dataclass
class Outcome:
    received: bytes
    row: dict[str, Any]
    spent_tokens: float
    held_nano: int
    overage_nano: int
    provider: str


class Played:
    """The outcomes, and what the metrics counted meanwhile."""

    def __init__(self, outcomes: dict[str, Outcome], counted: dict[str, float], held_left: int) -> None:
        self.outcomes, self.counted, self.held_left = outcomes, counted, held_left


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    limits = {"first_byte_timeout_s": 4, "chunk_idle_timeout_s": 4, "request_timeout_s": 6, "hold_step_tokens": 256}
    limits["client_gone_drain_s"] = DRAIN_S
    async with FakeProvider() as provider, running_gateway(*engines, provider, **limits) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def played(gateway: RunningGateway) -> Played:
    before = endings_counted(gateway)
    customers = [await gateway.customer(case.credit_tokens * TOKEN_NANO) for case in CASES.values()]
    work = (play(gateway, *each) for each in zip(range(len(CASES)), CASES.values(), customers, strict=True))
    received = await asyncio.gather(*work)
    async with asyncio.timeout(10):
        while gateway.parts.live:
            await asyncio.sleep(0.02)
    after = endings_counted(gateway)
    outcomes = {
        name: await outcome(gateway, number, case, customer, answer)
        for number, (name, case), customer, answer in zip(
            range(len(CASES)), CASES.items(), customers, received, strict=True
        )
    }
    counted = {ending: after[ending] - before.get(ending, 0) for ending in after}
    return Played(outcomes, counted, len(gateway.parts.live))


async def play(gateway: RunningGateway, number: int, case: Case, customer: NewConnection) -> bytes:
    fields = {"prompt_tokens": 100, "completion_tokens": 30} | case.steer
    steer = steering_header(**fields) | {"x-case": f'"case-{number}"'}
    body = orjson.dumps(case.body)
    client = await Client.send(gateway, gateway.token_for(customer), case.target, body, steer)
    try:
        return bytes(await case.client(client, gateway.provider, number))
    finally:
        client.leave()


async def outcome(
    gateway: RunningGateway, number: int, case: Case, customer: NewConnection, received: bytes
) -> Outcome:
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    balance = await gateway.balance(customer)
    record = await asked(gateway.provider, number)
    spent_nano = case.credit_tokens * TOKEN_NANO - balance.total_nano
    assert spent_nano == row["charge_nano"]
    return Outcome(received, row, spent_nano / TOKEN_NANO, balance.held_nano, balance.overage_nano, record.outcome)


def endings_counted(gateway: RunningGateway) -> dict[str, float]:
    gateway.parts.metrics.flush()
    samples = gateway.parts.metrics.registry.collect()
    found = [sample for metric in samples if metric.name == "obol_endings" for sample in metric.samples]
    return {sample.labels["ending"]: sample.value for sample in found if sample.name == "obol_endings_total"}


@pytest.mark.parametrize("name", CASES)
async def test_how_a_call_ends(played: Played, name: str) -> None:
    case, found = CASES[name], played.outcomes[name]
    row = found.row
    assert (row["ending"], row["status"], row["http_status"]) == (case.ending, case.status, case.http_status)
    assert row["estimated"] is case.estimated
    assert row["duration_us"] < case.within_s * 1e6
    assert (found.held_nano, found.overage_nano) == (0, 0)
    if case.tokens is None:
        assert found.spent_tokens > 0
    else:
        assert found.spent_tokens == case.tokens
    if case.http_status is not None and case.http_status < 400 and row["charge_nano"]:
        used = row["usage"]
        assert found.spent_tokens == (used["input_tokens"] or 0) + (used.get("output_tokens") or 0)
    assert case.told in found.received
    assert found.provider == case.provider


async def test_every_ending_is_counted_by_its_name(played: Played) -> None:
    expected = Counter(case.ending for case in CASES.values())
    assert {ending: count for ending, count in played.counted.items() if count} == expected
    assert played.held_left == 0


async def test_the_table_in_the_documents_is_complete() -> None:
    """Each ending has a line there, and a case here or a test elsewhere."""
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = text.partition("## How a call can end\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    endings = set(Ending.__args__)  # type: ignore[attr-defined]
    assert documented == endings
    assert {case.ending for case in CASES.values()} | ELSEWHERE == endings
    assert all(CASES[name].ending in BILLED for name in CASES if CASES[name].tokens != 0)


CHUNKS = 12


@pytest.mark.parametrize(("drained", "steer"), [(True, {}), (False, {"fault": "no_usage"})])
async def test_a_client_that_leaves_after_any_chunk(
    gateway: RunningGateway, drained: bool, steer: dict[str, Any]
) -> None:
    """Check 2: the provider's final usage after a drain, else a row flagged estimated, neither nothing nor too much."""
    customer = await gateway.customer(10 * NANO)
    credential, body = gateway.token_for(customer), orjson.dumps(STREAM)
    fields = {"prompt_tokens": 100, "completion_tokens": 30, "chunks": CHUNKS, "chunk_delay_ms": 20} | steer
    headers = steering_header(**fields)

    async def cut_after(chunks: int) -> None:
        client = await Client.send(gateway, credential, CHAT, body, headers)
        received = b""
        while received.count(b'"delta":') < chunks:
            received += await client.reader.read(64)
        client.leave()

    await asyncio.gather(*(cut_after(chunks) for chunks in range(1, CHUNKS + 2)))
    async with asyncio.timeout(10):
        while gateway.parts.live:
            await asyncio.sleep(0.02)
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    assert len(rows) == CHUNKS + 1
    assert {row["ending"] for row in rows} <= {"client_gone", "completed"}
    assert [row["ending"] for row in rows].count("client_gone") >= CHUNKS - 1
    assert {row["estimated"] for row in rows} == {not drained}
    charges = {row["charge_nano"] // TOKEN_NANO for row in rows}
    assert charges == {USED} if drained else max(charges) < 100 and min(charges) > 20
    spent_nano = 10 * NANO - (await gateway.balance(customer)).total_nano
    assert spent_nano == sum(row["charge_nano"] for row in rows)


async def test_what_a_gateway_cuts_when_it_ends_is_billed(gateway: RunningGateway) -> None:
    """`cancelled`: the process was told to stop and the call did not end in time. drain.py cancels its handler."""
    customer = await gateway.customer(NANO)
    before = endings_counted(gateway).get("cancelled", 0)
    headers = steering_header(prompt_tokens=100, completion_tokens=500, chunk_delay_ms=5)
    client = await Client.send(gateway, gateway.token_for(customer), CHAT, orjson.dumps(STREAM), headers)
    await client.read_until(b'"content":" a')
    for request in gateway.server.in_progress:
        request.task.cancel()
    async with asyncio.timeout(5):
        while gateway.parts.live:
            await asyncio.sleep(0.02)
    client.leave()
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    assert (row["ending"], row["status"], row["estimated"]) == ("cancelled", "error", True)
    assert 0 < row["charge_nano"] < 500 * TOKEN_NANO
    assert endings_counted(gateway)["cancelled"] == before + 1
