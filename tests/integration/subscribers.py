"""A test merchant with plans, customers and a clock, on real engines and without a gateway."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from worker_support import METER, SHARDS, Installation, installation

from gateway.audit import audit
from gateway.billing.clock import Clocks
from gateway.billing.plans import NewPlan, Plan, Plans
from gateway.billing.restore import Restorer
from gateway.billing.subscriptions import Subscriptions
from gateway.billing.turns import Turns
from gateway.core.meter import Meter, from_definition
from gateway.core.money import NANO
from gateway.core.usage import Usage
from gateway.ledger.keys import shard_of
from gateway.ledger.recovery import Recovery
from gateway.ledger.row import encode
from gateway.ledger.wallets import Balance, WalletRef
from gateway.settings import Settings
from gateway.worker.cycles import Cycles
from gateway.worker.grants import PendingTurns
from gateway.worker.resets import Resets

MERCHANT = "mer_1"
CAP_NANO = 7 * NANO
NANO_A_TOKEN = 2_000
GRADUATED_DEFINITION = {"tiers": [{"start": 0, "rate": "2"}, {"start": 1_000_000, "rate": "1"}]}
GRADUATED = from_definition("meter_g", 1, GRADUATED_DEFINITION)


class Shop:
    """The merchant, and what its worker does. `told`: merchants of which something was announced to have changed."""

    def __init__(self, obol: Installation, valkey_url: str, postgres_url: str) -> None:
        self.obol = obol
        self.valkey_url, self.postgres_url = valkey_url, postgres_url
        self.told: list[str] = []
        self.plans = Plans(obol.store)
        self.subscriptions = Subscriptions(obol.store, obol.wallets, overage_cap_nano=CAP_NANO)
        self.clocks = Clocks(obol.store, self._changed)
        self.turns = Turns(obol.store, obol.wallets)

    async def _changed(self, merchant_id: str) -> None:
        self.told.append(merchant_id)

    def worker(self, turns: Any = None) -> Cycles:
        return Cycles(self.obol.store, turns or self.turns, self._changed, overage_cap_nano=CAP_NANO)

    def pending(self) -> PendingTurns:
        return PendingTurns(
            self.obol.store, self.turns, self.obol.journal, shards=SHARDS, record_ttl_s=172_800, min_age_s=0
        )

    def restorer(self) -> Restorer:
        times = {"call_ttl_s": 900, "report_ttl_s": 172_800}
        return Restorer(self.obol.store, self.obol.connection, self.obol.keys, shards=SHARDS, **times)

    async def plan(self, dollars: int, **more: Any) -> Plan:
        given = {"name": f"{dollars} dollars", "period_amount_nano": dollars * NANO} | more
        return await self.plans.create(MERCHANT, NewPlan(**given))

    async def customer(self, name: str) -> WalletRef:
        """Its connection is `con_<name>`, its wallet `wal_<name>`."""
        wallet_id = f"wal_{name}"
        ref = await self.obol.wallet(wallet_id, shard_of(wallet_id, SHARDS), credit_nano=0)
        await self.obol.execute(
            "INSERT INTO connections (connection_id, merchant_id, wallet_id, secret_hash) VALUES ($1, $2, $3, $4)",
            f"con_{name}",
            MERCHANT,
            wallet_id,
            name.encode(),
        )
        return ref

    async def subscriber(self, name: str, plan: Plan, *, can_charge: bool = False) -> tuple[WalletRef, str]:
        ref = await self.customer(name)
        return ref, await self.subscribe(name, plan, can_charge=can_charge)

    async def subscribe(self, name: str, plan: Plan, *, can_charge: bool = False) -> str:
        return await self.subscriptions.subscribe(MERCHANT, f"con_{name}", plan.plan_id, can_charge=can_charge)

    async def spend(self, ref: WalletRef, request_id: str, nano: int, meter: Meter = METER) -> None:
        """Report usage that costs `nano`, in steps of what a token costs."""
        tokens = nano // NANO_A_TOKEN
        row = self.obol.row(ref, request_id, billing_mode="report", meter_id=meter.meter_id)
        row.connection_id, row.usage = f"con_{ref.wallet_id.removeprefix('wal_')}", Usage(output_tokens=tokens)
        settled = await self.obol.report_body(ref, request_id, encode(row), meter, row.usage)
        assert settled.kind == "settled"

    async def at(self, when: datetime) -> bool:
        """Move the clock there and turn what is due. Return whether anything was."""
        await self.clocks.move(MERCHANT, when)
        return await self.turn_all()

    async def advance(self, **by: float) -> bool:
        await self.clocks.advance(MERCHANT, timedelta(**by))
        return await self.turn_all()

    async def turn_all(self) -> bool:
        worker, rounds = self.worker(), 0
        while await worker.turn_once():
            rounds += 1
        resets = Resets(self.obol.store, self.turns, Recovery(self.obol.connection, self.obol.keys))
        while await resets.reset_once():
            pass
        return rounds > 0

    async def balance(self, ref: WalletRef) -> Balance:
        (found,) = await self.obol.wallets.balances([ref])
        assert found is not None
        return found

    async def pots(self, ref: WalletRef) -> tuple[int, int, int, int]:
        """Cycle, bundle, prepaid, overage in nano-dollars."""
        found = await self.balance(ref)
        return found.cycle_nano, found.bundle_nano, found.prepaid_nano, found.overage_nano

    async def flush(self) -> None:
        """Until nothing waits in any journal: a worker that has a shard's cursor at this moment is left to it."""
        await self.obol.flush()
        while await self.obol.journal.lengths(range(SHARDS)):
            await asyncio.sleep(0.02)

    async def audit(self, *, recompute: bool = True) -> str:
        """Flush; then all that `obol audit` has to say: "" where everything agrees."""
        await self.flush()
        out = io.StringIO()
        settings = Settings(redis_url=self.valkey_url, postgres_url=self.postgres_url, ledger_shards=SHARDS)
        return out.getvalue() if await audit(settings, out, recompute=recompute) else ""


@asynccontextmanager
async def shop(valkey: str, postgres: str) -> AsyncIterator[Shop]:
    async with installation(valkey, postgres) as made:
        yield Shop(made, valkey, postgres)


async def turns(obol: Installation, subscription_id: str) -> list[tuple[int, str]]:
    rows = await obol.fetch(
        "SELECT number, kind FROM turns WHERE subscription_id = $1 ORDER BY turn_seq", subscription_id
    )
    return [(row["number"], row["kind"]) for row in rows]


async def subscription(market: Shop, subscription_id: str) -> dict[str, Any]:
    (row,) = await market.obol.fetch("SELECT * FROM subscriptions WHERE subscription_id = $1", subscription_id)
    return row


class KilledOnce:
    """A worker that dies between its commit and Redis: nothing of its turns is applied, or only some."""

    def __init__(self, market: Shop, applied: int) -> None:
        self.market, self.applied = market, applied

    async def apply_to(self, wallet_ids: list[str]) -> int:
        rows = await self.market.obol.store.rows("subscriptions.owed_to", wallet_ids)
        await self.market.turns.apply_in_order(rows[: self.applied])
        raise KeyboardInterrupt
