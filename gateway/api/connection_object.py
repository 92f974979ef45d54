"""The connection object, also called customer: one shape for both vocabularies and all eras."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from gateway.api.operation import Money, Time
from gateway.api.responses import iso
from gateway.core.cycle import boundary, cycle_at
from gateway.ledger.wallets import Balance

Row = Mapping[str, Any]
"""A row of the queries `connections.find` and `connections.page`."""
SubscriptionStatus = Literal["active", "cancelled"]


class Contact(msgspec.Struct):
    """Who the customer is; "" where it is not known."""

    phone: str
    email: str
    first_name: str
    last_name: str


class ConnectionWallet(Contact, kw_only=True):
    """The purse as the first clients read it. `balance`: all pots less the overage."""

    balance: Money
    autopay_enabled: bool


class Balances(msgspec.Struct):
    """The pots. `available`: what calls may reserve now; null without a limit."""

    cycle: Money
    bundle: Money
    prepaid: Money
    overage: Money
    held: Money
    available: Money | None


class SubscriptionSummary(msgspec.Struct):
    """The plan that the customer has. Without one it is on the free plan."""

    subscription_id: str
    plan_id: str
    subscription_config_id: str
    name: str
    status: SubscriptionStatus


class Connection(msgspec.Struct, kw_only=True):
    """A customer of the merchant."""

    connection_id: str
    customer_id: str
    connection_secret: str
    reference_id: str | None
    wallet_id: str
    wallet: ConnectionWallet
    balances: Balances
    has_lava_credit_balance: bool
    customer: Contact
    contact: Contact
    previous_usage_reset: Time
    next_usage_reset: Time
    subscription: SubscriptionSummary | None
    metadata: dict[str, Any] | None
    created_at: Time


def connection_object(row: Row, balance: Balance, secret: str, now: datetime) -> Connection:
    """`balance` as Redis has it now; `secret` is the connection's; `now` in the merchant's time."""
    who = contact(row)
    previous_reset, next_reset = usage_resets(row, now)
    return Connection(
        connection_id=row["connection_id"],
        customer_id=row["connection_id"],
        connection_secret=secret,
        reference_id=row["reference_id"],
        wallet_id=row["wallet_id"],
        wallet=ConnectionWallet(
            **msgspec.structs.asdict(who), balance=Money(balance.total_nano), autopay_enabled=False
        ),
        balances=pots(balance),
        has_lava_credit_balance=balance.prepaid_nano > 0,
        customer=who,
        contact=who,
        previous_usage_reset=iso(previous_reset),
        next_usage_reset=iso(next_reset),
        subscription=_subscription(row),
        metadata=row["metadata"],
        created_at=iso(row["created_at"]),
    )


def contact(row: Row) -> Contact:
    return Contact(row["phone"], row["email"], row["first_name"], row["last_name"])


def pots(balance: Balance) -> Balances:
    available = balance.available_nano
    return Balances(
        Money(balance.cycle_nano),
        Money(balance.bundle_nano),
        Money(balance.prepaid_nano),
        Money(balance.overage_nano),
        Money(balance.held_nano),
        None if available is None else Money(available),
    )


def _subscription(row: Row) -> SubscriptionSummary | None:
    if row["subscription_id"] is None:
        return None
    return SubscriptionSummary(
        row["subscription_id"], row["plan_id"], row["plan_id"], row["plan_name"], row["subscription_status"]
    )


def usage_resets(row: Row, now: datetime) -> tuple[datetime, datetime]:
    """When the usage counters were and will be reset: with the subscription's cycle, else monthly since creation."""
    if row["subscription_id"] is not None:
        return row["cycle_start_at"], row["cycle_end_at"]
    number = cycle_at(row["created_at"], "month", now)
    return boundary(row["created_at"], "month", number), boundary(row["created_at"], "month", number + 1)
