"""How far a live stream has come stands on its hold, so that a gateway that dies charges what was produced, once."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from processes import gateway_process
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat, events_of
from yarl import URL

from gateway import audit
from gateway.core.money import NANO
from gateway.ledger.keys import Keys
from gateway.ledger.row import decode
from gateway.testing import FakeProvider, steering_header
from gateway.wire.meters import KEPT_TEXT_BYTES
from gateway.worker.reaper import Reaper

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN_NANO = 20_000
INTERVAL_MS = 400
ANTHROPIC = "https://api.anthropic.com/v1/messages"
GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.0-flash:streamGenerateContent?alt=sse"
PROMPT = "What does a gateway meter, and how does it know when a stream ends? " * 10
SLOW = steering_header(prompt_tokens=200, completion_tokens=2_000, chunks=400, chunk_delay_ms=5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(engines: tuple[str, str]) -> AsyncIterator[RunningGateway]:
    settings = {"progress_interval_ms": INTERVAL_MS, "hold_ttl_s": 1}
    async with FakeProvider() as provider, running_gateway(*engines, provider, **settings) as started:
        yield started


async def until(condition: Callable[[], Awaitable[Any]], within_s: float = 10.0) -> Any:
    async with asyncio.timeout(within_s):
        while not (found := await condition()):
            await asyncio.sleep(0.02)
    return found


async def hold_of(gateway: RunningGateway, shard: int, request_id: str) -> dict[bytes, bytes]:
    key = Keys().hold(shard, gateway.merchant.merchant_id, request_id)
    found = await gateway.parts.ledger.command("HGETALL", key)
    return dict(zip(found[::2], found[1::2], strict=True))


def reaper(gateway: RunningGateway) -> Reaper:
    parts, shards = gateway.parts, gateway.context.settings.ledger_shards
    return Reaper(parts.ledger, Keys(), parts.wallets, shards=shards, grace_s=0)


WIRES = {
    CHAT: chat(PROMPT, stream=True, stream_options={"include_usage": True}),
    ANTHROPIC: {
        "model": "claude-sonnet-4-5",
        "max_tokens": 4_000,
        "stream": True,
        "messages": chat(PROMPT)["messages"],
    },
    GEMINI: {"contents": [{"role": "user", "parts": [{"text": PROMPT}]}]},
}


@pytest.mark.parametrize("target", WIRES)
async def test_progress_is_written_on_the_hold_and_near_the_truth(gateway, target):
    """At most the interval apart; within a third of what was received, where the provider has not told."""
    customer = await gateway.customer()
    shard, at_s, written = customer.wallet.shard, asyncio.get_running_loop().time, []
    async with gateway.forward(target, gateway.token_for(customer), json=WIRES[target], headers=SLOW) as answer:
        request_id, received, begun_s = answer.headers["x-lava-request-id"], 0, at_s()
        while piece := await answer.content.readany():
            received += len(piece)
            hold = await hold_of(gateway, shard, request_id)
            progress = int(hold.get(b"p", 0))
            if progress and (not written or written[-1][1] != progress):
                written.append((at_s(), progress, received, hold[b"d"]))
    assert len(written) >= 4
    times = [begun_s, *(when for when, *_ in written)]
    assert max(after - before for before, after in itertools.pairwise(times)) < INTERVAL_MS / 1000 + 0.25
    assert [nano for _, nano, *_ in written] == sorted(nano for _, nano, *_ in written)
    for _, nano, seen, body in written:
        row = decode(body)
        assert (row.ending, row.status, row.estimated, row.request_id) == ("expired", "error", True, request_id)
        assert nano == row.usage.total_tokens * TOKEN_NANO and row.price_version and row.cost_nano > 0
        assert abs((row.usage.output_tokens or 0) - 2_000 * seen / received) < 2_000 * seen / received / 3 + 60
        assert 130 <= (row.usage.input_tokens or 0) <= 200
    await until(lambda: settled(gateway, customer))


async def settled(gateway: RunningGateway, customer: Any) -> bool:
    return not (await gateway.balance(customer)).held_nano


async def test_nothing_is_written_for_calls_that_end_within_the_interval(gateway, monkeypatch):
    written: list[str] = []
    issue = gateway.parts.wallets.issue_extend

    def watched(ref: Any, request_id: str, *arguments: Any, **named: Any) -> Any:
        written.append(request_id)
        return issue(ref, request_id, *arguments, **named)

    monkeypatch.setattr(gateway.parts.wallets, "issue_extend", watched)
    customer = await gateway.customer()
    steer = steering_header(completion_tokens=40, chunks=40, chunk_delay_ms=1)
    for _ in range(5):
        async with gateway.forward(CHAT, gateway.token_for(customer), json=chat(stream=True), headers=steer) as answer:
            assert events_of(await answer.read())[-1] == "[DONE]"
    assert written == []


async def test_the_hold_of_a_live_call_never_expires(gateway):
    """Its time to live is one second here, and the reaper looks all the time."""
    customer, over = await gateway.customer(), asyncio.Event()
    ended = 0

    async def reap() -> None:
        nonlocal ended
        while not over.is_set():
            ended += await reaper(gateway).reap_once()
            await asyncio.sleep(0.02)

    reaping = asyncio.ensure_future(reap())
    steer = steering_header(completion_tokens=1, delay_ms=2_500)
    streams = [(WIRES[CHAT], SLOW), (chat(), steer)]
    credential = gateway.token_for(customer)
    async with asyncio.TaskGroup() as calls:
        for body, headers in streams:
            calls.create_task(read(gateway, credential, body, headers))
    await until(lambda: settled(gateway, customer))
    over.set()
    await reaping
    rows = await gateway.rows("connection_id = $1", customer.connection_id)
    assert (ended, [row["ending"] for row in rows]) == (0, ["completed", "completed"])


async def read(gateway: RunningGateway, credential: str, body: dict[str, Any], headers: dict[str, str]) -> bytes:
    async with gateway.forward(CHAT, credential, json=body, headers=headers) as answer:
        assert answer.status == 200
        return await answer.read()


TIERS = {
    "rate_type": "fixed",
    "tier_type": "tokens_1m",
    "tiers": [{"start": 0, "rate": "40"}, {"start": 500, "rate": "10"}],
}


async def test_a_killed_gateway_charges_the_progress_once(gateway, engines, tmp_path: Path):
    """kill -9 in the middle of streams, under one price and under tiers, paid and not; and of a call not streamed."""
    settings = {"hold_ttl_s": 2, "progress_interval_ms": 200}
    customer, tiered = await gateway.customer(), await gateway.customer()
    meter = await gateway.accounts.create_meter(gateway.merchant.merchant_id, "test", "Tiers", "tiers", TIERS)
    credentials = {
        "flat": gateway.token_for(customer),
        "tiers": gateway.token_for(tiered, meter),
        "unpaid": gateway.merchant.secret_key,
    }
    steer = steering_header(prompt_tokens=200, completion_tokens=3_000, chunks=600, chunk_delay_ms=10)
    whole = steering_header(completion_tokens=100, delay_ms=30_000)
    async with gateway_process(*engines, gateway.provider, tmp_path, **settings) as running:
        target = URL(f"{running.url}/v1/forward?u={CHAT}", encoded=True)

        async def call(credential: str, body: dict[str, Any], headers: dict[str, str]) -> None:
            try:
                sent = {"Authorization": f"Bearer {credential}", **headers}
                async with gateway.session.post(target, json=body, headers=sent) as answer:
                    await answer.read()
            except OSError:
                pass

        calls = [asyncio.ensure_future(call(one, WIRES[CHAT], steer)) for one in credentials.values()]
        calls.append(asyncio.ensure_future(call(credentials["flat"], chat(), whole)))
        await until(lambda: held(gateway, 4))
        await asyncio.sleep(1.0)
        running.process.kill()
        await running.process.wait()
        await asyncio.wait(calls)
    assert await reaper(gateway).reap_once() == 0  # not yet
    ended = 0
    async with asyncio.timeout(10):
        while ended < 4:
            ended += await reaper(gateway).reap_once()
            await asyncio.sleep(0.1)
    assert await reaper(gateway).reap_once() == 0
    rows = await gateway.rows("ending = 'expired'")
    assert len(rows) == 4 and all(row["status"] == "error" and row["estimated"] for row in rows)
    by_meter: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        by_meter.setdefault((row["billing_mode"], row["meter_id"], row["streamed"]), []).append(row)
    (flat,) = by_meter["customer", gateway.meter.meter_id, True]
    (whole_call,) = by_meter["customer", gateway.meter.meter_id, False]
    (graduated,) = by_meter["customer", meter.meter_id, True]
    (unpaid,) = by_meter["merchant", None, True]
    tokens = [row["usage"]["input_tokens"] + row["usage"]["output_tokens"] for row in (flat, graduated, unpaid)]
    assert all(300 < count < 2_500 for count in tokens), tokens
    assert (flat["charge_nano"], whole_call["charge_nano"], unpaid["charge_nano"]) == (tokens[0] * TOKEN_NANO, 0, 0)
    charged = min(tokens[1], 500) * 40_000 + max(tokens[1] - 500, 0) * 10_000
    assert graduated["charge_nano"] == charged and unpaid["cost_nano"] > 0
    assert (await gateway.balance(customer)).total_nano == 25 * NANO - flat["charge_nano"]
    assert (await gateway.balance(tiered)).total_nano == 25 * NANO - charged
    assert (await gateway.balance(customer)).held_nano == (await gateway.balance(tiered)).held_nano == 0
    out = io.StringIO()
    assert await audit.audit(gateway.context.settings, out, recompute=True) == 0, out.getvalue()


async def held(gateway: RunningGateway, count: int) -> bool:
    shards = range(gateway.context.settings.ledger_shards)
    open_holds = [await gateway.parts.ledger.command("ZCARD", Keys().holds(shard)) for shard in shards]
    return sum(open_holds) == count


async def test_an_estimate_is_never_more_than_was_held(gateway):
    """Of a stream without usage, whose text is counted here by another tokenizer than the provider's limit, and is
    longer than what is kept to be counted: a wallet is not taken beyond its holds."""
    body = orjson.dumps(chat(stream=True, max_tokens=1_500, stream_options={"include_usage": True}))
    hold_nano = (len(body) + 1_500) * TOKEN_NANO
    customer = await gateway.customer(hold_nano)
    steer = {"Content-Type": "application/json", **steering_header(completion_tokens=1_500, fault="no_usage")}
    async with gateway.forward(CHAT, gateway.token_for(customer), data=body, headers=steer) as answer:
        received = await answer.read()
    assert len(received) > KEPT_TEXT_BYTES
    await until(lambda: settled(gateway, customer))
    (row,) = await gateway.rows("connection_id = $1", customer.connection_id)
    balance = await gateway.balance(customer)
    assert (row["estimated"], row["charge_nano"], balance.overage_nano) == (True, hold_nano, 0)
