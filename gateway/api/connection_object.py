"""The connection object, also called customer, and its subscription: one shape for both vocabularies."""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.api.responses import iso
from gateway.core.money import format_nano
from gateway.ledger.wallets import Balance

Row = Mapping[str, Any]
"""A row of the queries `connections.find` and `connections.page`."""


def connection_object(row: Row, balance: Balance, secret: str, now: datetime) -> dict[str, Any]:
    """`balance` as Redis has it now; `secret` is the connection's."""
    contact = {name: row[name] for name in ("phone", "email", "first_name", "last_name")}
    previous_reset, next_reset = usage_resets(row, now)
    return {
        "connection_id": row["connection_id"],
        "customer_id": row["connection_id"],
        "connection_secret": secret,
        "reference_id": row["reference_id"],
        "wallet_id": row["wallet_id"],
        "wallet": {"balance": format_nano(balance.total_nano), **contact, "autopay_enabled": False},
        "balances": _balances(balance),
        "has_lava_credit_balance": balance.prepaid_nano > 0,
        "customer": contact,
        "contact": contact,
        "previous_usage_reset": iso(previous_reset),
        "next_usage_reset": iso(next_reset),
        "subscription": _subscription_summary(row),
        "metadata": row["metadata"],
        "created_at": iso(row["created_at"]),
    }


def _balances(balance: Balance) -> dict[str, str | None]:
    available = balance.available_nano
    return {
        "cycle": format_nano(balance.cycle_nano),
        "bundle": format_nano(balance.bundle_nano),
        "prepaid": format_nano(balance.prepaid_nano),
        "overage": format_nano(balance.overage_nano),
        "held": format_nano(balance.held_nano),
        "available": None if available is None else format_nano(available),
    }


def _subscription_summary(row: Row) -> dict[str, Any] | None:
    if row["subscription_id"] is None:
        return None
    return {
        "subscription_id": row["subscription_id"],
        "plan_id": row["plan_id"],
        "subscription_config_id": row["plan_id"],
        "name": row["plan_name"],
        "status": row["status"],
    }


def subscription_object(row: Row, balance: Balance) -> dict[str, Any] | None:
    """The active subscription with its plan and what is left of its credits; None without one."""
    summary = _subscription_summary(row)
    if summary is None:
        return None
    return {
        **summary,
        "auto_top_up_bundle_id": None,
        "started_at": iso(row["started_at"]),
        "cancelled_at": iso(row["cancelled_at"]) if row["cancelled_at"] else None,
        "cycle_start_at": iso(row["cycle_start_at"]),
        "cycle_end_at": iso(row["cycle_end_at"]),
        "plan": {
            "name": row["plan_name"],
            "period_amount": format_nano(row["period_amount_nano"]),
            "included_credit": format_nano(row["included_credit_nano"]),
            "billing_interval": row["billing_interval"],
            "rollover_type": row["rollover_type"],
            "bundle_rollover_type": row["bundle_rollover_type"],
        },
        "credits": {
            "total_remaining": format_nano(balance.cycle_nano + balance.bundle_nano),
            "cycle_remaining": format_nano(balance.cycle_nano),
            "bundle_remaining": format_nano(balance.bundle_nano),
        },
        "pending_change": None,
    }


def usage_resets(row: Row, now: datetime) -> tuple[datetime, datetime]:
    """When the usage counters were and will be reset: with the subscription's cycle, else monthly since creation."""
    if row["subscription_id"] is not None:
        return row["cycle_start_at"], row["cycle_end_at"]
    anchor = row["created_at"].astimezone(UTC)
    months = (now.year - anchor.year) * 12 + now.month - anchor.month
    if _months_after(anchor, months) > now:
        months -= 1
    return _months_after(anchor, months), _months_after(anchor, months + 1)


def _months_after(anchor: datetime, months: int) -> datetime:
    """The same day and time `months` later, on the month's last day where it is shorter."""
    years, month = divmod(anchor.month - 1 + months, 12)
    year, month = anchor.year + years, month + 1
    return anchor.replace(year=year, month=month, day=min(anchor.day, calendar.monthrange(year, month)[1]))
