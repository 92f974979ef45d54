"""The request object: one stored request, explained. The same whether it comes from the ledger or from PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from gateway.api.meters import MeterTier
from gateway.api.operation import Money, Time
from gateway.api.responses import iso
from gateway.core.meter import Line, Meter, Payer, RateType, TokenBasis
from gateway.core.usage import Usage
from gateway.ledger.row import BillingMode, KeyType, RequestRow, Status

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class StoredRequest(msgspec.Struct, frozen=True):
    """A request row with what the ledger said when it settled."""

    row: RequestRow
    charge_nano: int
    position: int
    """Units of the meter that the customer had used before in the cycle."""

    @property
    def fee_nano(self) -> int:
        """The meter's part of the charge."""
        return self.charge_nano - self.row.passed_on_nano

    @property
    def created_at(self) -> datetime:
        return _EPOCH + timedelta(microseconds=self.row.created_us)

    @property
    def version(self) -> tuple[str, int] | None:
        """The meter version that the request was priced with."""
        if self.row.meter_id is None or self.row.meter_version is None:
            return None
        return self.row.meter_id, self.row.meter_version


_SAME_COLUMNS = (
    "merchant_id",
    "request_id",
    "billing_mode",
    "connection_id",
    "meter_id",
    "meter_version",
    "price_version",
    "provider",
    "provider_key_type",
    "model",
    "endpoint",
    "response_id",
    "service_tier",
    "status",
    "ending",
    "http_status",
    "streamed",
    "estimated",
    "input_cost_nano",
    "output_cost_nano",
    "cost_nano",
    "metadata",
    "duration_us",
    "first_byte_us",
)


def from_record(record: Mapping[str, Any], fingerprint: str | None = None) -> StoredRequest:
    """A row of `requests`; `fingerprint` stands in `request_index`."""
    row = RequestRow(
        created_us=(record["created_at"] - _EPOCH) // timedelta(microseconds=1),
        usage=msgspec.convert(record["usage"], Usage),
        passed_on_nano=record["charge_nano"] - record["fee_nano"],
        fingerprint=fingerprint,
        **{name: record[name] for name in _SAME_COLUMNS},
    )
    return StoredRequest(row, record["charge_nano"], record["tier_position"])


class ModelUsage(msgspec.Struct):
    """What was used, and what it cost at the provider's prices. Seconds may be fractions."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_characters: int
    output_characters: int
    total_characters: int
    input_seconds: float
    output_seconds: float
    total_seconds: float
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    input_cost: Money
    output_cost: Money
    total_cost: Money
    payer: Payer


class FeeLine(msgspec.Struct):
    """The part of a fee that fell into one tier. One of the three quantities is that of the meter."""

    tier: MeterTier
    tokens: int
    characters: int
    seconds: float
    cost: Money


class Charge(msgspec.Struct):
    """All that the customer pays."""

    amount: Money
    rate_type: RateType
    breakdown: list[FeeLine]


class Fee(Charge):
    """The meter's part of it."""

    token_basis: TokenBasis


class ServiceCharge(msgspec.Struct):
    """The installation takes none: its amount is zero."""

    amount: Money
    payer: Payer


class Request(msgspec.Struct, kw_only=True):
    """One request, in the fields of both vocabularies."""

    request_id: str
    status: Status
    connection_id: str | None
    customer_id: str | None
    product_id: str | None
    meter_id: str | None
    provider: str
    provider_key_type: KeyType
    model: str | None
    endpoint: str
    response_id: str | None
    metadata: dict[str, str]
    timestamp: Time
    created_at: Time
    model_usage: ModelUsage
    fee: Fee
    service_charge: ServiceCharge
    total_request_cost: Money
    total_wallet_cost: Money
    total_merchant_cost: Money
    cost: Money
    charge: Charge
    billing_mode: BillingMode
    price_version: str | None
    estimated: bool
    ending: str
    http_status: int | None
    streamed: bool


def request_object(stored: StoredRequest, meter: Meter | None) -> Request:
    """`meter` is the version the request was priced with, None without one."""
    row, created_at, fee_nano = stored.row, iso(stored.created_at), stored.fee_nano
    rate_type: RateType = meter.rate_type if meter else "fixed"
    basis: TokenBasis = meter.token_basis if meter else "input+output"
    breakdown = _breakdown(stored, meter) if meter else []
    return Request(
        request_id=row.request_id,
        status=row.status,
        connection_id=row.connection_id,
        customer_id=row.connection_id,
        product_id=row.meter_id,
        meter_id=row.meter_id,
        provider=row.provider,
        provider_key_type=row.provider_key_type,
        model=row.model,
        endpoint=row.endpoint,
        response_id=row.response_id,
        metadata=row.metadata,
        timestamp=created_at,
        created_at=created_at,
        model_usage=_model_usage(row, meter),
        fee=Fee(Money(fee_nano), rate_type, breakdown, basis),
        service_charge=ServiceCharge(Money(0), meter.service_charge_payer if meter else "merchant"),
        total_request_cost=Money(row.cost_nano + fee_nano),
        total_wallet_cost=Money(stored.charge_nano),
        total_merchant_cost=Money(row.cost_nano - row.passed_on_nano),
        cost=Money(row.cost_nano),
        charge=Charge(Money(stored.charge_nano), rate_type, breakdown),
        billing_mode=row.billing_mode,
        price_version=row.price_version,
        estimated=row.estimated,
        ending=row.ending,
        http_status=row.http_status,
        streamed=row.streamed,
    )


def _model_usage(row: RequestRow, meter: Meter | None) -> ModelUsage:
    usage = row.usage
    input_characters, output_characters = usage.input_characters or 0, usage.output_characters or 0
    input_us, output_us = usage.input_us or 0, usage.output_us or 0
    return ModelUsage(
        input_tokens=usage.input_tokens or 0,
        output_tokens=usage.output_tokens or 0,
        total_tokens=usage.total_tokens,
        input_characters=input_characters,
        output_characters=output_characters,
        total_characters=input_characters + output_characters,
        input_seconds=input_us / 1_000_000,
        output_seconds=output_us / 1_000_000,
        total_seconds=(input_us + output_us) / 1_000_000,
        cached_input_tokens=usage.cached_input_tokens or 0,
        cache_write_tokens=usage.cache_write_tokens or 0,
        reasoning_tokens=usage.reasoning_tokens or 0,
        input_cost=Money(row.input_cost_nano),
        output_cost=Money(row.output_cost_nano),
        total_cost=Money(row.cost_nano),
        payer=meter.base_cost_payer if meter else "merchant",
    )


def _breakdown(stored: StoredRequest, meter: Meter) -> list[FeeLine]:
    """The fee by tier, recomputed from the stored usage; the costs add up to the fee."""
    charge = meter.charge(stored.row.usage, stored.row.cost_nano, stored.position)
    lines = charge.lines
    if charge.fee_nano != stored.fee_nano:
        # Not billed to the customer, or debited before its usage was final: one line says what was charged.
        lines = (Line(lines[0].tier, charge.units, stored.fee_nano),)
    return [_line(meter, line) for line in lines]


def _line(meter: Meter, line: Line) -> FeeLine:
    unit = meter.tier_type
    return FeeLine(
        tier=MeterTier(**meter.show_tier(line.tier)),
        tokens=line.units if unit == "tokens_1m" else 0,
        characters=line.units if unit == "characters_1m" else 0,
        seconds=line.units / 1_000_000 if unit == "minutes" else 0,
        cost=Money(line.fee_nano),
    )
