"""An hour of the collector over 10,000 wallets, on the test clock: three collectors and chargers beside each other."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from card_payers import Till, settings
from card_processor import InProcess, Machine
from subscribers import MERCHANT, shop
from worker_support import SHARDS

from gateway.core.collection import NANO_A_CENT
from gateway.core.money import NANO
from gateway.ledger.keys import shard_of
from gateway.ledger.wallets import WalletRef

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("charges")]

WALLETS = 10_000
STEPS = 4
STEP_MINUTES = 15
WORKERS = 3
AT_ONCE = 500
FILL = """
INSERT INTO payers (payer_id, mode, phone_hash, phone_sealed)
    SELECT 'pay_' || n, 'test', n::text::bytea, '' FROM generate_series(1, $1::integer) n;
INSERT INTO payment_methods (payment_method_id, payer_id, processor, customer_ref, method_ref, brand, last4, exp_month,
                             exp_year, is_default)
    SELECT 'pm_' || n, 'pay_' || n, 'sandbox', 'cus_' || n, CASE WHEN n % 50 = 0 THEN 'pm_bad' ELSE 'pm_good' END,
           'visa', '4242', 12, 2031, true FROM generate_series(1, $1::integer) n;
INSERT INTO connections (connection_id, merchant_id, wallet_id, secret_hash, payer_id, overage_limit_nano)
    SELECT 'con_' || n, 'mer_1', 'wal_' || n, n::text::bytea, 'pay_' || n, 20000000000
    FROM generate_series(1, $1::integer) n;
INSERT INTO subscriptions (subscription_id, connection_id, merchant_id, plan_id, started_at, anchor_at, cycle_start_at,
                           cycle_end_at, can_charge)
    SELECT 'sub_' || n, 'con_' || n, 'mer_1', $2, now(), now(), now(), now() + interval '1 month', true
    FROM generate_series(1, $1::integer) n;
INSERT INTO collections (wallet_id, merchant_id, due_at)
    SELECT 'wal_' || n, 'mer_1', '-infinity' FROM generate_series(1, $1::integer) n;
ANALYZE
"""


async def fill(desk: Till) -> list[WalletRef]:
    plan = await desk.plan(1)
    obol = desk.market.obol
    refs = [WalletRef(f"wal_{n}", shard_of(f"wal_{n}", SHARDS), MERCHANT) for n in range(1, WALLETS + 1)]
    names, shards = [ref.wallet_id for ref in refs], [ref.shard for ref in refs]
    await obol.execute(
        "INSERT INTO wallets (wallet_id, merchant_id, shard) "
        "SELECT name, 'mer_1', shard FROM unnest($1::text[], $2::integer[]) AS u (name, shard)",
        names,
        shards,
    )
    for statement in FILL.split(";"):
        arguments: list[Any] = [WALLETS] if "$1" in statement else []
        await obol.execute(statement, *arguments, *([plan.plan_id] if "$2" in statement else []))
    for ref in refs:
        await obol.wallets.open(ref, status="ok", limit_nano=20 * NANO, create=True)
    return refs


@asynccontextmanager
async def working(desks: list[Till], looks: list[float]) -> AsyncIterator[None]:
    """The loops of some workers, which take turns. One of them applies what another could not."""
    stop = asyncio.Event()

    async def loop(desk: Till) -> None:
        while not stop.is_set():
            began_s = time.perf_counter()
            more = await desk.collector.collect_once()
            looks.append(time.perf_counter() - began_s)
            more = await desk.charger.charge_due() or more
            await asyncio.sleep(0 if more else 0.05)

    async def apply_owed(desk: Till) -> None:
        while not stop.is_set():
            await desk.grants.apply_once()
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as group:
        group.create_task(apply_owed(desks[0]))
        for desk in desks:
            group.create_task(loop(desk))
        yield
        stop.set()


async def test_an_hour_over_10_000_wallets(valkey: str, redis_client: Any, postgres: str, seed: int) -> None:
    rng, machine, looks = random.Random(seed), Machine(), list[float]()
    async with shop(valkey, postgres) as market:
        desks = [Till(market, InProcess(machine), settings(charge_calls_max=32)) for _ in range(WORKERS)]
        refs = await fill(desks[0])
        spent, spending_s, began_s, cpu_s = 0, 0.0, time.monotonic(), time.process_time()
        async with working(desks, looks):
            for step in range(STEPS):
                step_s = time.monotonic()
                for page in range(0, WALLETS, AT_ONCE):
                    used = [(ref, rng.randrange(0, 3 * NANO, 2_000)) for ref in refs[page : page + AT_ONCE]]
                    await asyncio.gather(
                        *(market.spend(ref, f"{ref.wallet_id}-{step}", nano) for ref, nano in used if nano)
                    )
                    spent += sum(nano for _, nano in used)
                await market.clocks.advance(MERCHANT, timedelta(minutes=STEP_MINUTES))
                spending_s += time.monotonic() - step_s
                while await market.obol.journal.lengths(range(SHARDS)) or await desks[0].busy():
                    await market.obol.flush()
                    await asyncio.sleep(0.1)
        took_s, cpu_s = time.monotonic() - began_s, time.process_time() - cpu_s
        for desk in desks:
            await desk.charger.idle()
        await market.flush()
        await judge(desks[0], machine, refs, spent)
        plan = await explained(market.obol)
    charges = len(machine.succeeded())
    looks.sort()
    print(
        f"\n{WALLETS:,} wallets, {STEPS * STEP_MINUTES} minutes: {charges:,} charges "
        f"in {took_s:.0f} s, of which {spending_s:.0f} s of usage; {cpu_s:.0f} s of CPU\n"
        f"a look: median {looks[len(looks) // 2] * 1e3:.1f} ms, longest {looks[-1] * 1e3:.0f} ms\n{plan}"
    )
    assert charges > WALLETS // 2
    assert "Seq Scan on collections" not in plan


async def judge(desk: Till, machine: Machine, refs: list[WalletRef], spent: int) -> None:
    value = desk.market.obol.value
    paid = machine.succeeded()
    assert await value("SELECT count(*) FROM charges WHERE status = 'succeeded'") == len(paid)
    assert await value("SELECT sum(amount_nano)::bigint FROM grants") == sum(paid.values()) * NANO_A_CENT
    owed = "SELECT sum(overage_nano - prepaid_nano)::bigint FROM wallets"
    assert await value(owed) == spent - sum(paid.values()) * NANO_A_CENT
    limited = "SELECT count(*) FROM collections WHERE limited_at IS NOT NULL"
    unpaid = "SELECT count(*) FROM wallets WHERE overage_nano >= 5000000000"
    assert await value(unpaid) == await value(limited) > 0
    assert await desk.market.audit(recompute=False) == ""


async def explained(obol: Any) -> str:
    """How the collector finds what is due among all wallets."""
    statement = obol.store.sql("collections.due").replace("$1", "200")
    return "\n".join(row["QUERY PLAN"] for row in await obol.fetch(f"EXPLAIN {statement}"))
