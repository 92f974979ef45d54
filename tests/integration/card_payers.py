"""A shop whose customers pay with cards: collector, charger and a processor that can be told to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from card_processor import CARD, InProcess, Machine
from subscribers import CAP_NANO, MERCHANT, Shop, shop
from worker_support import SHARDS

from gateway.billing.charges import Charges
from gateway.billing.payers import Payers
from gateway.billing.plans import Plan
from gateway.cards.contract import Card, Mode, Processor
from gateway.core.money import NANO
from gateway.failpoints import FailPoints
from gateway.ledger.wallets import WalletRef
from gateway.settings import Settings
from gateway.store.sealed import Sealed
from gateway.store.secrets import Derived
from gateway.worker.charger import Charger
from gateway.worker.collector import Collector
from gateway.worker.grants import Grants

MASTER_KEY = "0123456789abcdef0123456789abcdef"
ROUNDS_MAX = 30
ALLOWED_NANO = 20 * NANO
"""The overage of the shop's plans, where they say no other."""


def settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {"charge_timeout_ms": 200, "charge_ask_again_s": 1, "charge_resend_after_s": 1}
    return Settings(**(given | {"overage_cap_nano": CAP_NANO} | changes))


class Till:
    """What the worker does about cards, driven by hand."""

    def __init__(self, market: Shop, processor: Processor, given: Settings, fail: FailPoints | None = None) -> None:
        self.market, self.settings = market, given
        obol = market.obol
        self.charges = Charges(
            obol.store, obol.wallets, overage_cap_nano=given.overage_cap_nano, retry_days=given.charge_retry_days
        )

        def processors(mode: Mode, name: str) -> Processor:
            assert (mode, name) == (processor.mode, processor.name)
            return processor

        self.charger = Charger(obol.store, self.charges, processors, given, fail)
        self.collector = Collector(obol.store, market.turns, processors, given, fail)
        self.payers = Payers(obol.store, Derived(MASTER_KEY), Sealed(MASTER_KEY))
        self.grants = Grants(obol.store, obol.wallets, obol.journal, shards=SHARDS, record_ttl_s=172_800, min_age_s=0)

    async def plan(self, dollars: int, **more: Any) -> Plan:
        return await self.market.plan(dollars, **({"overage_cap_nano": ALLOWED_NANO} | more))

    async def payer(self, name: str, card: Card | None = CARD) -> str:
        """Who pays for the connection `con_<name>`, with this card."""
        payer_id = await self.payers.of_phone("test", f"+1{name}")
        await self.payers.link(MERCHANT, f"con_{name}", payer_id)
        if card is not None:
            await self.payers.add_card(payer_id, "sandbox", f"cus_{payer_id}", card)
        return payer_id

    async def subscriber(self, name: str, plan: Plan, card: Card | None = CARD) -> WalletRef:
        ref = await self.market.customer(name)
        await self.payer(name, card)
        await self.market.subscribe(name, plan, can_charge=card is not None)
        await self.settle()
        return ref

    async def round(self) -> None:
        """What the worker's loops do once: turn, flush, collect, charge, and apply what is owed."""
        await self.market.turn_all()
        await self.market.flush()
        await self.hurry()
        await self.collector.collect_once()
        await self.charger.charge_due()
        await self.charger.idle()
        await self.market.pending().apply_once()
        await self.grants.apply_once()
        await self.market.flush()

    async def hurry(self) -> None:
        """Let no pause pass that is not of the schedule."""
        await self.market.obol.execute(
            "UPDATE collections SET due_at = '-infinity' WHERE limited_at IS NULL AND due_at < 'infinity'"
        )
        await self.market.obol.execute("UPDATE charges SET next_attempt_at = now() WHERE status = 'open'")

    async def settle(self) -> None:
        """Rounds until nothing is left to do now."""
        for _ in range(ROUNDS_MAX):
            await self.round()
            if not await self.busy():
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the collector does not come to rest")

    async def busy(self) -> bool:
        statement = """SELECT EXISTS (SELECT 1 FROM charges WHERE status = 'open')
            OR EXISTS (SELECT 1 FROM collections k LEFT JOIN test_clocks t USING (merchant_id)
                       WHERE k.due_at <= now() + coalesce(t.offset_us, 0) * interval '1 microsecond'
                          OR (k.due_at < 'infinity' AND k.limited_at IS NULL))
            OR EXISTS (SELECT 1 FROM grants WHERE applied_at IS NULL)
            OR EXISTS (SELECT 1 FROM turns WHERE applied_at IS NULL)"""
        return bool(await self.market.obol.value(statement))

    async def days(self, days: int) -> None:
        await self.market.clocks.advance(MERCHANT, timedelta(days=days, minutes=1))
        await self.settle()

    async def made(self, columns: str = "kind, status, amount_cents, attempt") -> list[tuple[Any, ...]]:
        rows = await self.market.obol.fetch(f"SELECT {columns} FROM charges ORDER BY created_at, charge_id")
        return [tuple(row.values()) for row in rows]

    async def limits(self, ref: WalletRef) -> tuple[int, int, bool]:
        """The overage allowed in Redis and in the record, and whether the card can be charged."""
        (row,) = await self.market.obol.fetch(
            "SELECT c.overage_limit_nano, s.can_charge FROM connections c JOIN subscriptions s USING (connection_id) "
            "WHERE c.wallet_id = $1 AND s.status = 'active'",
            ref.wallet_id,
        )
        return (await self.market.balance(ref)).limit_nano, row["overage_limit_nano"], row["can_charge"]


@asynccontextmanager
async def till(valkey: str, postgres: str, **changes: Any) -> AsyncIterator[tuple[Till, Machine]]:
    machine = Machine()
    async with shop(valkey, postgres) as market:
        yield Till(market, InProcess(machine), settings(**changes)), machine
