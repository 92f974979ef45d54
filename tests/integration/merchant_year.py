"""A merchant's months on the test clock: customers on mixed plans who use, upgrade, downgrade, cancel and come back.

Beside the real thing runs a book that knows plans, boundaries and pots, and nothing of turns, Lua or journals. After
every step each wallet has to hold what the book says.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from subscribers import MERCHANT, NANO_A_TOKEN, Shop

from gateway.billing.plans import NewBundle, Plan
from gateway.core.cycle import A_YEAR, boundary
from gateway.core.money import NANO
from gateway.ledger.wallets import WalletRef

AT_ONCE = 50
DRIFT = timedelta(minutes=17)
"""Steps come at another time of day each: no cycle that began at one ends just as another is taken."""
PLANS: tuple[dict[str, Any], ...] = (
    {"dollars": 1, "billing_interval": "day", "rollover_type": "full"},
    {"dollars": 6, "billing_interval": "week", "bundle_rollover_type": "none"},
    {"dollars": 9, "billing_interval": "week", "rollover_type": "full", "included_credit_nano": 5 * NANO},
    {"dollars": 20, "billing_interval": "month"},
    {"dollars": 25, "billing_interval": "month", "rollover_type": "full", "bundle_rollover_type": "none"},
    {"dollars": 90, "billing_interval": "month", "overage": "block"},
    {"dollars": 300, "billing_interval": "year", "rollover_type": "full"},
    {"dollars": 0, "billing_interval": "month"},
)
WEIGHTS = (2, 10, 10, 25, 25, 10, 8, 8)


@dataclass
class Customer:
    """What the book knows of one customer. Pots in nano-dollars: cycle, bundle, prepaid, overage."""

    name: str
    ref: WalletRef
    pots: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    plan: Plan | None = None
    subscription_id: str = ""
    anchor: datetime = datetime.min
    number: int = 0
    pending: Plan | str | None = None

    def turn(self, now: datetime) -> tuple[int, int, int]:
        """Pass all boundaries up to `now`. Return turns, credit and what expired."""
        turns = credit = expired = 0
        while (
            self.plan is not None and (end := boundary(self.anchor, self.plan.billing_interval, self.number + 1)) <= now
        ):
            expired += self._expire(cycle_ends=self.pending == "cancel")
            turns += 1
            self.number += 1
            if isinstance(self.pending, Plan):
                if self.pending.billing_interval != self.plan.billing_interval:
                    self.anchor, self.number = end, 0
                self.plan = self.pending
            elif self.pending == "cancel":
                self.plan = None
            self.pending = None
            credit += self._add_credit()
        return turns, credit, expired

    def upgrade(self, plan: Plan) -> tuple[int, int]:
        """At once, from a boundary that is read from the record. Return credit and what expired."""
        expired = self._expire(cycle_ends=False)
        self.plan, self.pending = plan, None
        return self._add_credit(), expired

    def _expire(self, *, cycle_ends: bool) -> int:
        assert self.plan is not None
        expired = 0
        if self.plan.rollover_type == "none" or cycle_ends:
            expired, self.pots[0] = self.pots[0], 0
        if self.plan.bundle_rollover_type == "none":
            expired, self.pots[1] = expired + self.pots[1], 0
        return expired

    def _add_credit(self) -> int:
        credit = 0 if self.plan is None else self.plan.included_credit_nano
        self.pots[0] += credit
        return credit

    def spend(self, nano: int) -> None:
        for pot in range(3):
            part = min(nano, self.pots[pot])
            self.pots[pot], nano = self.pots[pot] - part, nano - part
        self.pots[3] += nano


class Year:
    """Steps through time. `turned`: waits until every cycle that is due has been turned and recorded."""

    def __init__(self, market: Shop, seed: int, turned: Callable[[], Awaitable[None]]) -> None:
        self.market = market
        self.seed = seed
        self.turned = turned
        self.plans: list[Plan] = []
        self.customers: list[Customer] = []
        self.turns = self.credit_nano = self.expired_nano = self.charged_nano = self.granted_nano = 0
        self.changes = {"upgrade": 0, "downgrade": 0, "kept": 0, "cancel": 0, "subscribe": 0, "bundle": 0, "use": 0}
        self._steps = 0
        self._begun_at = datetime.now(UTC)
        self._moved: list[Customer] = []

    async def begin(self, customers: int) -> None:
        bundles = (NewBundle("Small", 2 * NANO, 3 * NANO), NewBundle("Large", 8 * NANO, 10 * NANO))
        self.plans = [await self.market.plan(bundles=bundles, **terms) for terms in PLANS]

        async def join(number: int) -> None:
            name = f"c{number}"
            customer = Customer(name, await self.market.customer(name))
            self.customers.append(customer)
            await self._subscribe(customer)

        await self._all([lambda number=number: join(number) for number in range(customers)])  # type: ignore[misc]
        await self._read_anchors()

    async def step(self, days: int) -> None:
        """Let `days` pass, then let the customers do what they do."""
        self._steps += 1
        self._begun_at += timedelta(days=days)
        now = self._begun_at + self._steps * DRIFT
        await self.market.clocks.move(MERCHANT, now)
        await self.turned()
        for customer in self.customers:
            turns, credit, expired = customer.turn(now)
            self.turns, self.credit_nano = self.turns + turns, self.credit_nano + credit
            self.expired_nano += expired
        await self.check()
        await self._all([lambda customer=customer: self._act(customer) for customer in self.customers])  # type: ignore[misc]
        await self._read_anchors()

    async def check(self) -> None:
        """Every wallet holds what the book says."""
        live = await self.market.obol.wallets.balances([customer.ref for customer in self.customers])
        for customer, found in zip(self.customers, live, strict=True):
            assert found is not None
            pots = [found.cycle_nano, found.bundle_nano, found.prepaid_nano, found.overage_nano]
            assert pots == customer.pots, (customer, found)

    async def check_sums(self) -> None:
        """All credit, less what expired and what was charged, is what is there: by the book and by the record."""
        await self.market.flush()
        value = self.market.obol.value
        held = sum(sum(customer.pots[:3]) - customer.pots[3] for customer in self.customers)
        assert held == self.granted_nano + self.credit_nano - self.expired_nano - self.charged_nano
        assert (
            await value("SELECT sum(cycle_nano + bundle_nano + prepaid_nano - overage_nano)::bigint FROM wallets")
            == held
        )
        assert await value("SELECT sum(charge_nano)::bigint FROM requests") == self.charged_nano
        assert await value("SELECT coalesce(sum(amount_nano), 0)::bigint FROM grants") == self.granted_nano
        assert (
            await value("SELECT sum(credit_nano)::bigint FROM turns WHERE applied_at IS NOT NULL") == self.credit_nano
        )
        expired = "SELECT sum(t.credit_nano - l.cycle_delta - l.bundle_delta)::bigint FROM ledger_entries l "
        assert await value(expired + "JOIN turns t ON t.turn_id = l.reference") == self.expired_nano
        assert await value("SELECT count(*) FROM turns WHERE kind <> 'reset'") == self.turns
        assert await value("SELECT count(*) FROM turns WHERE applied_at IS NULL") == 0

    async def _act(self, customer: Customer) -> None:
        rng = self._rng(customer)
        if rng.random() < 0.65:
            return
        chance = rng.random()
        if customer.plan is None:
            if chance < 0.2:
                await self._subscribe(customer)
        elif chance < 0.05:
            await self._change(customer, rng)
        elif chance < 0.07:
            await self.market.subscriptions.cancel(MERCHANT, customer.subscription_id)
            customer.pending = "cancel"
            self.changes["cancel"] += 1
        elif chance < 0.12:
            await self._buy(customer, rng)
        await self._use(customer, rng)

    def _rng(self, customer: Customer) -> random.Random:
        """The same, in whatever order the customers act."""
        return random.Random(f"{self.seed} {self._steps} {customer.name}")

    async def _subscribe(self, customer: Customer) -> None:
        rng = self._rng(customer)
        (plan,) = rng.choices(self.plans, WEIGHTS)
        customer.subscription_id = await self.market.subscribe(customer.name, plan, can_charge=rng.random() < 0.5)
        customer.plan, customer.pending = plan, None
        customer.pots[0] += plan.included_credit_nano
        self._began(customer, plan.included_credit_nano)
        self.changes["subscribe"] += 1

    async def _change(self, customer: Customer, rng: random.Random) -> None:
        before, plan = customer.plan, rng.choice(self.plans)
        assert before is not None
        dearer = _a_year(plan) > _a_year(before)
        expected = "kept" if plan == before else "upgrade" if dearer else "downgrade"
        done = await self.market.subscriptions.change_plan(MERCHANT, f"con_{customer.name}", plan.plan_id)
        assert done == expected
        self.changes[done] += 1
        if done == "upgrade":
            credit, expired = customer.upgrade(plan)
            self.expired_nano += expired
            self._began(customer, credit)
        else:
            customer.pending = plan if done == "downgrade" else None

    async def _buy(self, customer: Customer, rng: random.Random) -> None:
        assert customer.plan is not None
        bundle = rng.choice(customer.plan.bundles)
        self.changes["bundle"] += 1
        grant_id = f"bundle-{self._steps}-{customer.name}"
        await self.market.subscriptions.grant_bundle(
            MERCHANT, f"con_{customer.name}", bundle.credit_bundle_id, grant_id
        )
        customer.pots[1] += bundle.credit_nano
        self.granted_nano += bundle.credit_nano

    async def _use(self, customer: Customer, rng: random.Random) -> None:
        most = 2 * (customer.pots[0] + customer.pots[1]) // 3 + NANO
        nano = rng.randrange(most // NANO_A_TOKEN) * NANO_A_TOKEN
        await self.market.spend(customer.ref, f"{customer.name}-{self._steps}", nano)
        customer.spend(nano)
        self.charged_nano += nano
        self.changes["use"] += 1

    def _began(self, customer: Customer, credit_nano: int) -> None:
        """A cycle that began now: its anchor is the record's to say."""
        customer.number = 0
        self._moved.append(customer)
        self.turns += 1
        self.credit_nano += credit_nano

    async def _read_anchors(self) -> None:
        moved, self._moved = self._moved, []
        rows = await self.market.obol.fetch(
            "SELECT subscription_id, anchor_at FROM subscriptions WHERE subscription_id = ANY ($1)",
            [customer.subscription_id for customer in moved],
        )
        anchors = {row["subscription_id"]: row["anchor_at"] for row in rows}
        for customer in moved:
            customer.anchor = anchors[customer.subscription_id]

    @staticmethod
    async def _all(works: list[Callable[[], Awaitable[None]]]) -> None:
        """A bounded number at once."""
        for first in range(0, len(works), AT_ONCE):
            await asyncio.gather(*(work() for work in works[first : first + AT_ONCE]))


def _a_year(plan: Plan) -> int:
    return plan.period_amount_nano * A_YEAR[plan.billing_interval]
