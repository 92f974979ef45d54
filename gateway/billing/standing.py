"""Where a subscription stands, and where it stands after each of its cycles. Pure but for the reading of a row.

Upgrades (more money a year) begin a new cycle at once; all other changes wait for the end of the cycle. What is left
rolls over as the plan of the cycle that ends says; what comes is of the plan from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from gateway.billing.plans import Overage, Rollover
from gateway.billing.turns import NewTurn, TurnKind
from gateway.core.cycle import A_YEAR, Interval, boundary
from gateway.ledger.turn import Turn


class Terms(msgspec.Struct, frozen=True):
    """What of a plan a cycle depends on."""

    plan_id: str
    billing_interval: Interval
    period_amount_nano: int
    included_credit_nano: int
    rollover_type: Rollover
    bundle_rollover_type: Rollover
    overage: Overage
    overage_cap_nano: int | None
    default_auto_top_up_bundle_id: str | None = None
    archived: bool = False

    @property
    def a_year_nano(self) -> int:
        return self.period_amount_nano * A_YEAR[self.billing_interval]

    def limit_nano(self, cap_nano: int, *, can_charge: bool) -> int:
        """The overage allowed, where the installation allows `cap_nano` to plans that do not say."""
        if self.overage == "block" or not can_charge:
            return 0
        return cap_nano if self.overage_cap_nano is None else self.overage_cap_nano


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where a subscription stands, its row locked. The cycle is number `cycle_number` from `anchor_at`."""

    subscription_id: str
    connection_id: str
    merchant_id: str
    wallet_id: str
    shard: int
    status: Literal["active", "cancelled"]
    can_charge: bool
    started_at: datetime
    anchor_at: datetime
    cycle_number: int
    turns: int
    cycle_start_at: datetime
    cycle_end_at: datetime
    auto_top_up_bundle_id: str | None
    pending_type: Literal["cancellation", "downgrade"] | None
    pending_at: datetime | None
    cancelled_at: datetime | None
    ended_at: datetime | None
    terms: Terms
    pending_terms: Terms | None

    def without_pending(self) -> Standing:
        return replace(self, pending_type=None, pending_at=None, pending_terms=None, cancelled_at=None)

    def begun(self, terms: Terms, at: datetime) -> Standing:
        """On this plan, in a first cycle that begins at `at`."""
        moved = replace(self, terms=terms, anchor_at=at, cycle_number=0)
        if terms.plan_id != self.terms.plan_id:
            moved = replace(moved, auto_top_up_bundle_id=terms.default_auto_top_up_bundle_id)
        return moved._in_cycle(0)

    def renewed(self) -> Standing:
        return self._in_cycle(self.cycle_number + 1)

    def ended(self) -> Standing:
        return replace(self, status="cancelled", ended_at=self.cycle_end_at, pending_type=None, pending_at=None)

    def _in_cycle(self, number: int) -> Standing:
        start, end = (boundary(self.anchor_at, self.terms.billing_interval, each) for each in (number, number + 1))
        return replace(self, cycle_number=number, cycle_start_at=start, cycle_end_at=end)


def next_turn(before: Standing, cap_nano: int) -> tuple[NewTurn, Standing]:
    """The turn at the end of the current cycle, and where the subscription stands then."""
    due_at, pending = before.cycle_end_at, before.pending_terms
    if before.pending_type == "cancellation":
        return turned("end", before, before.ended(), due_at, cap_nano)
    if before.pending_type == "downgrade":
        assert pending is not None, "a downgrade without the plan it leads to"
        settled = before.without_pending()
        if pending.billing_interval == before.terms.billing_interval:
            # The day of the month stays that of the anchor.
            bundle = pending.default_auto_top_up_bundle_id
            after = replace(settled, terms=pending, auto_top_up_bundle_id=bundle).renewed()
        else:
            after = settled.begun(pending, due_at)
        return turned("downgrade", before, after, due_at, cap_nano)
    return turned("renewal", before, before.renewed(), due_at, cap_nano)


def turned(
    kind: TurnKind, before: Standing, after: Standing, due_at: datetime, cap_nano: int
) -> tuple[NewTurn, Standing]:
    """What is left rolls over as the plan of the cycle that ends says; what comes is of the plan from now on."""
    after = replace(after, turns=before.turns + 1)
    ends = kind == "end"
    turn = Turn(
        keep_cycle=before.terms.rollover_type == "full" and not ends,
        keep_bundle=before.terms.bundle_rollover_type == "full",
        credit_nano=0 if ends else after.terms.included_credit_nano,
        reset_meters=True,
    )
    limit_nano = 0 if ends else after.terms.limit_nano(cap_nano, can_charge=after.can_charge)
    return turn_of(kind, before, due_at, turn, limit_nano), after


def turn_of(kind: TurnKind, before: Standing, due_at: datetime, turn: Turn, limit_nano: int) -> NewTurn:
    return NewTurn(
        merchant_id=before.merchant_id,
        wallet_id=before.wallet_id,
        subscription_id=before.subscription_id,
        number=before.turns,
        due_at=due_at,
        kind=kind,
        turn=turn,
        limit_nano=limit_nano,
    )


def through(
    standing: Standing, now: datetime, cap_nano: int, *, turns_max: int | None = None
) -> tuple[Standing, list[NewTurn]]:
    """The subscription after all of its cycles that have ended by `now`, or the first `turns_max` of them."""
    made: list[NewTurn] = []
    while standing.status == "active" and standing.cycle_end_at <= now and len(made) != turns_max:
        turn, standing = next_turn(standing, cap_nano)
        made.append(turn)
    return standing, made


def read_standing(row: Mapping[str, Any]) -> Standing:
    """Of a row of the queries subscriptions.standing and locked."""
    known = {name: value for name, value in row.items() if name in Standing.__struct_fields__}
    return msgspec.convert(known, Standing)
