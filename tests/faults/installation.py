"""A real `obol up` with a fake provider that remembers every call, and a look into both engines beside it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from running import token, upstream_map
from scratch import scratch_directory
from supervised import Supervised, obol_up_alone

from gateway.billing.accounts import Accounts, NewConnection, NewMerchant, NewMeter
from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.keys import Keys
from gateway.ledger.wallets import Balance, Wallets
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.secrets import Derived
from gateway.testing import FakeProvider
from gateway.worker.reaper import RETURN_GRACE_S

HOLD_TTL_S = 4
OVERDUE_S = RETURN_GRACE_S + 2.0
"""A hold that nobody renews is ended this much later at the latest: Redis may have been away, and the reaper has its
rounds, on a busy machine."""
RECOVERY_TIMEOUT_S = 30.0
CALM_TIMEOUT_S = 30.0
PIDS = ("worker_pid", "valkey_pid", "postgres_pid")
FIXED = {"rate_type": "fixed", "tier_type": "tokens_1m", "tiers": [{"start": 0, "rate": "20"}]}
GRADUATED = {
    "rate_type": "fixed",
    "tier_type": "tokens_1m",
    "tiers": [{"start": 0, "rate": "20"}, {"start": 2_000, "rate": "11.5"}, {"start": 9_000, "rate": "3"}],
}


@dataclass
class Customer:
    made: NewConnection
    meter: NewMeter
    credit_nano: int
    limit_nano: int
    token: str
    lasting: bool
    """Its credit, or what it may owe, is more than its calls can cost."""


@dataclass
class Installation:
    """`obol up` on engines of its own, two gateways. `store` and `ledger` are the test's own connections."""

    up: Supervised
    provider: FakeProvider
    store: Store
    ledger: Connection
    redis: redis.asyncio.Redis
    settings: Settings
    order_file: Path
    spoiled: bool = False
    """A scenario failed here: the next one had better start anew."""
    merchant: NewMerchant = field(init=False)
    meters: dict[str, NewMeter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = Keys()
        self.wallets = Wallets(self.ledger, self.keys, record_ttl_s=900, report_ttl_s=172_800)
        derived = Derived(self.settings.master_key)
        self._accounts = Accounts(self.store, self.wallets, derived, shards=self.settings.ledger_shards)

    @property
    def shards(self) -> range:
        return range(self.settings.ledger_shards)

    async def seed(self) -> None:
        self.merchant = await self._accounts.create_merchant("faults", "test", "Faults")
        for name, definition in (("fixed", FIXED), ("graduated", GRADUATED)):
            self.meters[name] = await self._accounts.create_meter(
                self.merchant.merchant_id, "test", name, name, definition
            )

    async def customer(
        self, credit_nano: int, *, limit_nano: int = 0, meter: str = "fixed", lasting: bool = True
    ) -> Customer:
        """A customer with its first credit, as a plan gives it: granted in PostgreSQL, applied in Redis."""
        made = await self._accounts.create_customer(self.merchant.merchant_id, "test", limit_nano=limit_nano)
        grant_id = f"grant-{made.connection_id}"
        async with self.store.transaction() as db:
            wallet_id = made.wallet.wallet_id
            await db.execute(
                self.store.sql("accounts.insert_grant"), grant_id, wallet_id, "cycle", credit_nano, "credit"
            )
        await self.wallets.credit(made.wallet, grant_id, "cycle", credit_nano, at_ms=1)
        credential = token(
            secret_key=self.merchant.secret_key,
            connection_secret=made.connection_secret,
            product_secret=self.meters[meter].meter_secret,
        )
        return Customer(made, self.meters[meter], credit_nano, limit_nano, credential, lasting)

    async def balance(self, customer: Customer) -> Balance:
        found = (await self.wallets.balances([customer.made.wallet]))[0]
        assert found is not None
        return found

    # Killing

    def arm(self, order: str) -> None:
        """Write an order for the fail points of all processes."""
        self.fired_file.unlink(missing_ok=True)
        partial = self.order_file.with_suffix(".partial")
        partial.write_text(order)
        partial.rename(self.order_file)

    @property
    def fired_file(self) -> Path:
        return self.order_file.with_name(self.order_file.name + ".fired")

    def fired(self) -> dict[str, Any] | None:
        """Who was killed, where and when; None while nobody was."""
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return dict(json.loads(self.fired_file.read_text()))
        return None

    def kill(self, victims: list[str], *dead: int) -> set[int]:
        """Kill them now; a gateway for each time that it is named. Return their pids."""
        state, killed = self.up.state, set(dead)
        for victim in victims:
            pids = state["workers"] if victim == "gateway" else [state[f"{victim}_pid"]]
            pid = next(pid for pid in pids if pid is not None and pid not in killed)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        return killed

    async def recovered(self, killed: set[int]) -> float:
        """Wait until everything runs again; return the time at which it did."""
        async with asyncio.timeout(RECOVERY_TIMEOUT_S):
            while True:
                state = self.up.state
                pids = {*state["workers"], *(state[name] for name in PIDS)}
                whole = len(state["workers"]) == 2 and None not in pids and not killed & pids
                if whole and await asyncio.to_thread(_ready, f"{self.up.url}/readyz"):
                    return time.time()
                await asyncio.sleep(0.05)

    # Looking

    async def overdue_holds(self) -> list[bytes]:
        """Holds that should have been ended by now."""
        latest_ms = (time.time() - OVERDUE_S) * 1_000
        found = [await self.redis.zrangebyscore(self.keys.holds(shard), 0, latest_ms) for shard in self.shards]
        return [hold for holds in found for hold in holds]

    async def at_rest(self) -> bool:
        """No hold is open, and everything is recorded."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for shard in self.shards:
                pipe.zcard(self.keys.holds(shard))
                pipe.xlen(self.keys.journal(shard))
            return not any(await pipe.execute())

    async def calm(self) -> None:
        """Wait until it is at rest. No hold may be open when its time to live and a round of the reaper are over."""
        deadline_s = time.monotonic() + CALM_TIMEOUT_S
        while not await self.at_rest():
            assert time.monotonic() < deadline_s, "holds stay open or journals stay full"
            assert not (late := await self.overdue_holds()), f"holds open past their time to live: {late}"
            await asyncio.sleep(0.1)

    async def fetch(self, statement: str, *arguments: Any) -> list[dict[str, Any]]:
        async with self.store.connection() as db:
            return [dict(row) for row in await db.fetch(statement, *arguments)]

    async def rows(self, prefix: str) -> dict[str, list[dict[str, Any]]]:
        """The request rows of calls whose key begins with `prefix`, by that key."""
        found: dict[str, list[dict[str, Any]]] = {}
        statement = (
            "SELECT *, coalesce(metadata->>'call', request_id) AS key FROM requests "
            "WHERE starts_with(coalesce(metadata->>'call', request_id), $1)"
        )
        for row in await self.fetch(statement, prefix):
            found.setdefault(row["key"], []).append(row)
        return found

    def provider_calls(self) -> Counter[str]:
        """How often each call reached the provider, by its key."""
        return Counter(record.json["messages"][0]["content"].split()[0] for record in self.provider.requests)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(json.loads(answer.read())["status"] == "ready")
    except (OSError, urllib.error.URLError, ValueError):
        return False


@asynccontextmanager
async def installation(**settings: Any) -> AsyncIterator[Installation]:
    """Started and seeded when the block begins; stopped at its end, which must then be a clean one."""
    directory = scratch_directory("obol-faults-")
    order_file = directory / "order"
    try:
        async with AsyncExitStack() as stack:
            provider = await stack.enter_async_context(FakeProvider())
            given: dict[str, Any] = {
                "test_mode": 1,
                "upstream_map": json.dumps(upstream_map(provider)),
                "fail_point_file": order_file,
                "hold_ttl_s": HOLD_TTL_S,
                "progress_interval_ms": 200,
                "reap_interval_ms": 250,
                "flush_interval_ms": 50,
                "shutdown_drain_s": 5,
                "shutdown_idle_grace_s": 0,
            }
            up = await stack.enter_async_context(obol_up_alone(directory, **(given | settings)))
            made = await _looked_into(stack, up, provider, order_file)
            await made.seed()
            yield made
            if not made.spoiled:
                assert await up.stop() == 0, up.said
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _looked_into(stack: AsyncExitStack, up: Supervised, provider: FakeProvider, order_file: Path) -> Installation:
    state, master_key = up.state, (up.data_dir / "master.key").read_text().strip()
    settings = Settings(redis_url=state["redis_url"], postgres_url=state["postgres_url"], master_key=master_key)
    store = await Store.connect(settings.postgres_url, pool_max=2)
    stack.push_async_callback(store.close)
    ledger = Connection(settings.redis_url, scripts.load(), timeout_ms=settings.redis_timeout_ms)
    keeper = asyncio.create_task(ledger.run())
    stack.callback(keeper.cancel)
    stack.push_async_callback(ledger.close)
    await ledger.wait_ready(10)
    client = redis.asyncio.Redis.from_url(
        settings.redis_url,
        retry=Retry(ConstantBackoff(0.1), 50),
        retry_on_error=[redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError],
    )
    stack.push_async_callback(client.aclose)
    return Installation(up, provider, store, ledger, client, settings, order_file)


async def until_postgres_answers(made: Installation) -> None:
    """The test's own connections break with the server's."""
    async with asyncio.timeout(RECOVERY_TIMEOUT_S):
        while True:
            with suppress(OSError, asyncpg.PostgresError, Exception):
                await made.fetch("SELECT 1")
                return
            await asyncio.sleep(0.1)
