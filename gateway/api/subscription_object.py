"""The subscription object with its plan, its credits and what will change of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from gateway.api.connection_object import Contact, SubscriptionStatus, contact
from gateway.api.operation import Money, Time
from gateway.api.responses import iso, iso_or_none
from gateway.billing.plans import Rollover
from gateway.core.cycle import Interval
from gateway.ledger.wallets import Balance

Row = Mapping[str, Any]
"""A row of the queries of api_subscriptions.sql."""
EMPTY = Balance("ok", 0, 0, 0, 0, 0, 0, 0)


class SubscriptionPlan(msgspec.Struct):
    """What the plan gives for a cycle."""

    name: str
    period_amount: Money
    included_credit: Money
    billing_interval: Interval
    rollover_type: Rollover
    bundle_rollover_type: Rollover


class SubscriptionCredits(msgspec.Struct):
    """What is left: of the plan's credit for the cycle and of credit bundles."""

    total_remaining: Money
    cycle_remaining: Money
    bundle_remaining: Money


class PendingChange(msgspec.Struct):
    """What happens at the cycle's end. A downgrade names the plan that follows."""

    type: Literal["cancellation", "downgrade"]
    effective_at: Time | None
    plan_id: str | UnsetType = UNSET
    subscription_config_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    period_amount: Money | UnsetType = UNSET
    included_credit: Money | UnsetType = UNSET


class Subscription(msgspec.Struct, kw_only=True):
    """A customer's enrolment in a plan."""

    subscription_id: str
    plan_id: str
    subscription_config_id: str
    name: str
    status: SubscriptionStatus
    auto_top_up_bundle_id: str | None
    started_at: Time
    cancelled_at: Time | None
    cycle_start_at: Time | None
    cycle_end_at: Time | None
    plan: SubscriptionPlan
    credits: SubscriptionCredits
    pending_change: PendingChange | None


class ListedSubscription(Subscription, kw_only=True):
    """As a list over customers shows it."""

    connection_id: str
    customer_id: str
    customer: Contact


class SubscriptionConfig(msgspec.Struct):
    """The plan as the first clients of subscriptions read it."""

    subscription_config_id: str
    plan_id: str
    merchant_id: str
    name: str
    period_amount: Money
    rollover_type: Rollover
    created_at: Time


class SubscribersWallet(Contact, kw_only=True):
    """The wallet of a subscriber, as those clients read it."""

    wallet_id: str
    active_balance: Money
    created_at: Time


class ActiveSubscription(ListedSubscription, kw_only=True):
    """As those clients list it. `billing_anchor`: the day of the month on which cycles of months begin."""

    active_subscription_id: str
    wallet_id: str
    billing_anchor: int
    created_at: Time
    subscription_config: SubscriptionConfig
    wallet: SubscribersWallet


def subscription_object(row: Row, balance: Balance) -> Subscription:
    """`balance`: the customer's, as Redis has it now."""
    return Subscription(**_shared(row, balance))


def listed_subscription(row: Row, balance: Balance) -> ListedSubscription:
    return ListedSubscription(**_listed(row, balance))


def active_subscription(row: Row, balance: Balance) -> ActiveSubscription:
    config = SubscriptionConfig(
        row["plan_id"],
        row["plan_id"],
        row["merchant_id"],
        row["plan_name"],
        Money(row["period_amount_nano"]),
        row["rollover_type"],
        iso(row["plan_created_at"]),
    )
    wallet = SubscribersWallet(
        **msgspec.structs.asdict(contact(row)),
        wallet_id=row["wallet_id"],
        active_balance=Money(balance.total_nano),
        created_at=iso(row["connection_created_at"]),
    )
    return ActiveSubscription(
        **_listed(row, balance),
        active_subscription_id=row["subscription_id"],
        wallet_id=row["wallet_id"],
        billing_anchor=row["anchor_at"].day,
        created_at=iso(row["started_at"]),
        subscription_config=config,
        wallet=wallet,
    )


def _listed(row: Row, balance: Balance) -> dict[str, Any]:
    return {
        **_shared(row, balance),
        "connection_id": row["connection_id"],
        "customer_id": row["connection_id"],
        "customer": contact(row),
    }


def _shared(row: Row, balance: Balance) -> dict[str, Any]:
    left = balance if row["status"] == "active" else EMPTY
    return {
        "subscription_id": row["subscription_id"],
        "plan_id": row["plan_id"],
        "subscription_config_id": row["plan_id"],
        "name": row["plan_name"],
        "status": row["status"],
        "auto_top_up_bundle_id": row["auto_top_up_bundle_id"],
        "started_at": iso(row["started_at"]),
        "cancelled_at": iso_or_none(row["cancelled_at"]),
        "cycle_start_at": iso(row["cycle_start_at"]),
        "cycle_end_at": iso(row["cycle_end_at"]),
        "plan": SubscriptionPlan(
            row["plan_name"],
            Money(row["period_amount_nano"]),
            Money(row["included_credit_nano"]),
            row["billing_interval"],
            row["rollover_type"],
            row["bundle_rollover_type"],
        ),
        "credits": SubscriptionCredits(
            Money(left.cycle_nano + left.bundle_nano), Money(left.cycle_nano), Money(left.bundle_nano)
        ),
        "pending_change": _pending_change(row),
    }


def _pending_change(row: Row) -> PendingChange | None:
    if row["pending_type"] is None:
        return None
    effective_at = iso_or_none(row["pending_at"])
    if row["pending_plan_id"] is None:
        return PendingChange(row["pending_type"], effective_at)
    return PendingChange(
        row["pending_type"],
        effective_at,
        row["pending_plan_id"],
        row["pending_plan_id"],
        row["pending_plan_name"],
        Money(row["pending_period_amount_nano"]),
        Money(row["pending_included_credit_nano"]),
    )
