"""The request object's money, and when usage counters reset."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.connection_object import usage_resets
from gateway.api.operation import encode
from gateway.api.request_object import StoredRequest, request_object
from gateway.core.meter import Meter, from_definition
from gateway.core.usage import Usage
from gateway.ledger.row import RequestRow

PERCENT = from_definition(
    "prd_1",
    1,
    {"rate_type": "percentage", "tiers": [{"start": 0, "rate": "20"}, {"start": 1000, "rate": "10.5"}]},
)


def stored(meter: Meter | None, *, position: int = 0, charge_nano: int | None = None, **fields: Any) -> StoredRequest:
    row = RequestRow(
        merchant_id="mer_1", request_id="r", created_us=1_767_225_600_123_456, billing_mode="customer", **fields
    )
    if meter is not None and charge_nano is None:
        charge_nano = meter.charge(row.usage, row.cost_nano, position).amount_nano
    return StoredRequest(row, charge_nano or 0, position)


def shown_as(request: StoredRequest, meter: Meter | None) -> Any:
    return json.loads(encode(request_object(request, meter)))


@given(st.integers(0, 5_000), st.integers(0, 5_000), st.integers(0, 10**12))
def test_the_amounts_add_up(tokens: int, position: int, cost_nano: int) -> None:
    usage = Usage(input_tokens=tokens)
    shown = shown_as(
        stored(PERCENT, position=position, usage=usage, cost_nano=cost_nano, passed_on_nano=cost_nano), PERCENT
    )
    fee, charge = Decimal(shown["fee"]["amount"]), Decimal(shown["charge"]["amount"])
    assert sum(Decimal(line["cost"]) for line in shown["fee"]["breakdown"]) == fee
    assert charge == fee + Decimal(shown["cost"]) == Decimal(shown["total_wallet_cost"])
    assert Decimal(shown["total_request_cost"]) == charge + Decimal(shown["total_merchant_cost"])
    assert shown["model_usage"]["payer"] == "wallet"


def test_a_call_that_the_merchant_bears_shows_its_cost_and_no_fee() -> None:
    usage = Usage(input_tokens=5, cached_input_tokens=2, reasoning_tokens=1)
    shown = shown_as(stored(PERCENT, charge_nano=0, usage=usage, cost_nano=7_000), PERCENT)
    assert shown["fee"]["amount"] == shown["charge"]["amount"] == "0.0000000000"
    assert [line["cost"] for line in shown["fee"]["breakdown"]] == ["0.0000000000"]
    assert shown["total_merchant_cost"] == shown["total_request_cost"] == shown["cost"] == "0.0000070000"
    assert (shown["model_usage"]["cached_input_tokens"], shown["model_usage"]["reasoning_tokens"]) == (2, 1)


def test_times_have_milliseconds_and_a_z() -> None:
    shown = shown_as(stored(None), None)
    assert shown["timestamp"] == shown["created_at"] == "2026-01-01T00:00:00.123Z"
    assert shown["charge"]["breakdown"] == []


@pytest.mark.parametrize(
    ("created", "now", "previous", "following"),
    [
        ("2026-01-31T10:00", "2026-02-28T09:59", "2026-01-31T10:00", "2026-02-28T10:00"),
        ("2026-01-31T10:00", "2026-02-28T10:00", "2026-02-28T10:00", "2026-03-31T10:00"),
        ("2025-12-15T00:00", "2026-01-20T00:00", "2026-01-15T00:00", "2026-02-15T00:00"),
        ("2024-02-29T00:00", "2025-02-28T12:00", "2025-02-28T00:00", "2025-03-29T00:00"),
        ("2026-03-01T08:00", "2026-03-01T08:00", "2026-03-01T08:00", "2026-04-01T08:00"),
    ],
)
def test_without_a_subscription_counters_reset_monthly(created: str, now: str, previous: str, following: str) -> None:
    row = {"subscription_id": None, "created_at": _utc(created)}
    assert usage_resets(row, _utc(now)) == (_utc(previous), _utc(following))


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)
