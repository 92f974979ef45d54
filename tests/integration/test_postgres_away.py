"""PostgreSQL away: traffic of cached credentials goes on, the journals are bounded, and all recovers by itself."""

from __future__ import annotations

import asyncio
import contextlib
import io
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import redis.asyncio
from running import MASTER_KEY, RunningGateway, running_gateway
from scratch import scratch_directory
from setbacks import background_worker, flushed
from tests_support import CHAT, chat

from gateway import app as gateway_app
from gateway import audit
from gateway.billing import principals
from gateway.errors import ConfigurationError
from gateway.local.engines import running
from gateway.local.postgres import Postgres
from gateway.settings import Settings
from gateway.store import migrate
from gateway.testing import FakeProvider, steering_header

JOURNAL_MAX = 20


class StoppablePostgres:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.engine = Postgres(directory, fsync=False)
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        self._stack.enter_context(running(self.engine, self._directory / "postgres.log"))

    def stop(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def stoppable() -> Iterator[StoppablePostgres]:
    directory = scratch_directory("obol-away-")
    server = StoppablePostgres(directory)
    server.start()
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(migrate.run(server.engine.url))
    yield server
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest_asyncio.fixture
async def gateway(
    valkey: str, redis_client: redis.asyncio.Redis, stoppable: StoppablePostgres, provider: FakeProvider
) -> AsyncIterator[RunningGateway]:
    changes: dict[str, Any] = {"journal_entries_max": JOURNAL_MAX, "principal_cache_ttl_s": 1}
    async with running_gateway(valkey, stoppable.engine.url, provider, **changes) as made:
        yield made


async def probe(gateway: RunningGateway) -> tuple[int, dict[str, Any]]:
    async with gateway.session.get(f"{gateway.url}/readyz") as answer:
        return answer.status, await answer.json()


async def test_traffic_goes_on_until_the_journals_are_full_and_then_recovers(
    gateway: RunningGateway, stoppable: StoppablePostgres, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(principals, "OLD_WAIT_S", 0.2)
    known, stranger = await gateway.customer(), await gateway.customer()
    credential, unseen = gateway.token_for(known), gateway.token_for(stranger)

    async def call(credential: str = credential) -> tuple[int, str]:
        async with gateway.forward(CHAT, credential, json=chat()) as answer:
            body = await answer.json()
            if answer.status == 503:
                assert int(answer.headers["retry-after"]) > 0
            return answer.status, body.get("error", {}).get("code", "")

    async def report() -> tuple[int, str]:
        payload = {
            "request_id": "r-1",
            "connection_id": known.connection_id,
            "meter_slug": gateway.meter.meter_slug,
            "input_tokens": 10,
        }
        headers = {"Authorization": f"Bearer {gateway.merchant.secret_key}"}
        async with gateway.session.post(f"{gateway.url}/v1/requests", json=payload, headers=headers) as answer:
            return answer.status, (await answer.json()).get("error", {}).get("code", "")

    async with background_worker(gateway) as flusher:
        assert await call() == (200, "")
        assert (await report())[0] == 200
        await flushed(gateway)
        assert (await probe(gateway))[1]["status"] == "ready"
        stoppable.stop()
        await asyncio.sleep(1.2)  # what is cached has grown old

        served = 0
        states = set()
        while (outcome := await call()) == (200, ""):
            served += 1
            assert served < 200
            states.add((await probe(gateway))[1]["journals"])
            await asyncio.sleep(0.02)
        assert outcome == (503, "journal_full")
        assert served >= JOURNAL_MAX - 1 and states >= {"ok", "half full"}
        sent = provider.request_count
        assert await call(unseen) == (503, "store_unavailable")
        assert (await report())[1] in ("journal_full", "store_unavailable")
        status, state = await probe(gateway)
        assert (status, state["status"], state["journals"], state["store"]) == (503, "not ready", "full", "away")
        async with gateway.session.get(f"{gateway.url}/metrics") as answer:
            text = await answer.text()
        assert f"obol_journal_entries_max {JOURNAL_MAX}.0" in text
        assert 'obol_refusals_total{code="journal_full"} 1.0' in text
        assert provider.request_count == sent == served + 1

        stoppable.start()  # in this thread: the server ends with the one that started it
        async with asyncio.timeout(20):
            while (outcome := await call())[0] != 200:
                assert outcome[1] in ("journal_full", "store_unavailable")
                await asyncio.sleep(0.05)
            assert (await call(unseen))[0] == 200
        await flushed(gateway)
        assert flusher.stopped == {}
    async with gateway.context.store.connection() as db:
        assert await db.fetchval("SELECT count(*) FROM requests") == provider.request_count + 1
    out = io.StringIO()
    assert await audit.audit(gateway.context.settings, out, recompute=True) == 0, out.getvalue()


async def test_a_call_in_flight_settles_when_the_journals_are_full(
    valkey: str, redis_client: redis.asyncio.Redis, postgres: str, provider: FakeProvider
) -> None:
    async with running_gateway(valkey, postgres, provider, journal_entries_max=JOURNAL_MAX) as gateway:
        customer = await gateway.customer()
        credential = gateway.token_for(customer)

        async def status(**more: Any) -> int:
            async with gateway.forward(CHAT, credential, json=chat(), **more) as answer:
                await answer.read()
                return answer.status

        calling = asyncio.create_task(status(headers=steering_header(delay_ms=500)))
        await asyncio.sleep(0.2)
        for number in range(JOURNAL_MAX):
            await gateway.context.wallets.credit(customer.wallet, f"filler-{number}", "bundle", 1, at_ms=1)
        await gateway.parts.journals.measure()
        assert gateway.parts.journals.full
        assert await calling == 200
        balance = await gateway.balance(customer)
        assert balance is not None and balance.total_nano < 25 * 10**9 and balance.held_nano == 0
        assert await status() == 503
        await gateway.rows()
        await gateway.parts.journals.measure()
        assert await status() == 200


async def test_a_gateway_that_starts_without_postgres_waits_and_says_so(
    valkey: str, redis_client: redis.asyncio.Redis, stoppable: StoppablePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(redis_url=valkey, postgres_url=stoppable.engine.url, master_key=MASTER_KEY)
    stoppable.stop()
    monkeypatch.setattr(gateway_app, "START_TIMEOUT_S", 0.5)
    with pytest.raises(ConfigurationError, match="cannot be used: the database is not reachable"):
        async with gateway_app.assemble(settings):
            raise AssertionError("it may not be used")
    monkeypatch.setattr(gateway_app, "START_TIMEOUT_S", 20)
    began_s = time.monotonic()
    asyncio.get_running_loop().call_later(0.5, stoppable.start)
    async with gateway_app.assemble(settings) as (parts, _, _):
        assert parts.ledger.connected and time.monotonic() - began_s > 0.4
