"""Two hundred streams on a balance that pays for a tenth of them: it ends at 0 or above, and each cut says why."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio
import redis
from processes import gateway_processes
from running import RunningGateway, running_gateway
from tests_support import CHAT, chat, events_of
from yarl import URL

from gateway.ledger.keys import Keys
from gateway.testing import FakeProvider, steering_header

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROCESSES = 3
STREAMS = 200
STEP_TOKENS = 64
TOKEN_NANO = 20_000
WORDS = 1_600
CUT = {"insufficient_balance", "balance_reserved"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(
    engines: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[RunningGateway, list[str]]]:
    directory: Path = tmp_path_factory.mktemp("processes")
    settings = {"hold_step_tokens": STEP_TOKENS, "connection_calls_max": 0}
    async with (
        FakeProvider() as provider,
        running_gateway(*engines, provider) as own,
        gateway_processes(PROCESSES, *engines, provider, directory, **settings) as urls,
    ):
        yield own, urls


class LeastAvailable:
    """The least that the wallet had available, by reading it over and over."""

    def __init__(self, url: str, key: str) -> None:
        self._client, self._key = redis.Redis.from_url(url), key
        self._over = False
        self.nano = 2**60
        self.readings = 0

    def watch(self) -> None:
        with self._client:
            while not self._over:
                fields = ("cycle", "bundle", "prepaid", "overage", "held")
                cycle_, bundle, prepaid, overage, held = (int(x or 0) for x in self._client.hmget(self._key, fields))
                self.nano = min(self.nano, cycle_ + bundle + prepaid - overage - held)
                self.readings += 1

    async def __aenter__(self) -> LeastAvailable:
        self._watching = asyncio.ensure_future(asyncio.to_thread(self.watch))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await self._watching


async def stream(session: aiohttp.ClientSession, url: str, credential: str, body: bytes, steer: dict[str, str]) -> str:
    """How it ended, as the client is told: "done", or the code of the error before or within the stream."""
    headers = {"Authorization": f"Bearer {credential}", "Content-Type": "application/json", **steer}
    target = URL(f"{url}/v1/forward?u={CHAT}", encoded=True)
    async with session.post(target, data=body, headers=headers) as answer:
        received = await answer.read()
        if answer.status != 200:
            assert answer.status == 402
            return f"refused {orjson.loads(received)['error']['code']}"
    events = events_of(received)
    assert events[-1] == "[DONE]"
    return str(events[-2]["error"]["code"]) if "error" in events[-2] else "done"


@pytest.mark.parametrize("told", ["at the end", "never"])
async def test_two_hundred_streams_cannot_overspend(fleet, told):
    """Whether the provider tells the usage with its last chunk, which the streams cut short do not reach, or not at
    all."""
    own, urls = fleet
    fault: dict[str, Any] = {} if told == "at the end" else {"fault": "no_usage"}
    # Thirty-two words a chunk, so that the test's own parts are not what limits it; all are let in before any produces.
    pace = {"chunks": 50, "chunk_delay_ms": 20, "delay_ms": 2_000}
    steer = steering_header(completion_tokens=WORDS, prompt_tokens=3, **pace, **fault)
    balance_nano = STREAMS * WORDS * TOKEN_NANO // 10
    customer = await own.customer(balance_nano)
    body = orjson.dumps(chat(stream=True))
    assert STREAMS * (len(body) + STEP_TOKENS) * TOKEN_NANO <= balance_nano  # all of them are let in
    key = Keys().wallet(customer.wallet.shard, customer.wallet.wallet_id)
    timeout = aiohttp.ClientTimeout(total=100)
    async with (
        LeastAvailable(own.context.settings.redis_url, key) as least,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session,
    ):
        credential = own.token_for(customer)
        calls = (stream(session, url, credential, body, steer) for url, _ in zip(cycle(urls), range(STREAMS)))
        outcomes = Counter(await asyncio.gather(*calls))
        async with asyncio.timeout(20):
            while (balance := await own.balance(customer)).held_nano:
                await asyncio.sleep(0.02)
    assert least.readings > 100 and least.nano >= 0
    assert balance.overage_nano == 0 and 0 <= balance.total_nano < balance_nano // 5, balance
    rows = await own.rows("connection_id = $1", customer.connection_id)
    while await own.flusher.flush_once():
        rows = await own.rows("connection_id = $1", customer.connection_id)
    endings = Counter(row["ending"] for row in rows)
    cut = sum(count for code, count in outcomes.items() if code in CUT)
    refused = sum(count for code, count in outcomes.items() if code.startswith("refused "))
    assert outcomes.keys() <= CUT | {f"refused {code}" for code in CUT} | {"done"}, outcomes
    assert cut + refused + outcomes["done"] == STREAMS and cut > STREAMS * 3 // 4, outcomes
    assert endings["completed"] == outcomes["done"] and endings["balance_exhausted"] >= cut
    assert all(row["estimated"] for row in rows if row["ending"] == "balance_exhausted")
    assert balance.total_nano == balance_nano - sum(row["charge_nano"] for row in rows)
