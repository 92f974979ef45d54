"""The request rows of a batch of journal entries, and their sums by hour. Pure.

A row is decoded from an entry's body; what was debited comes from the entry's deltas. A request that expired and
was settled afterwards ("late") has two entries and one row, whose charge is the sum of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gateway.ledger import row as request_row
from gateway.ledger.journal import Entry
from gateway.ledger.row import RequestRow

HOUR_US = 3_600_000_000
CREATED_US_END = 253_402_300_800_000_000
"""The year 10000: PostgreSQL would store what lies beyond, and no reader could show it."""
CHARGING_KINDS = frozenset({"call", "report", "expired", "late"})

Key = tuple[str, str]
"""Merchant id and request id."""
HourKey = tuple[str, int, str, str]
"""Merchant id, start of the hour in microseconds since 1970, connection id or "", meter id or ""."""
Sums = tuple[int, int, int, int, int]
"""Requests, tokens, cost, fee and charge: the last three in nano-dollars."""


class Charged(msgspec.Struct, frozen=True):
    """One request and what its entry (or entries) debited, in nano-dollars."""

    entry: Entry
    row: RequestRow
    charge_nano: int
    created_us: int

    @property
    def key(self) -> Key:
        return self.row.merchant_id, self.row.request_id

    @property
    def fee_nano(self) -> int:
        return self.charge_nano - self.row.passed_on_nano

    @property
    def tokens(self) -> int:
        return self.row.usage.total_tokens

    @property
    def hour_key(self) -> HourKey:
        return hour_key(self.row.merchant_id, self.created_us, self.row.connection_id, self.row.meter_id)

    @property
    def sums(self) -> Sums:
        return 1, self.tokens, self.row.cost_nano, self.fee_nano, self.charge_nano

    def after(self, earlier_charge_nano: int, created_us: int) -> Charged:
        """This settlement on top of the row that the expiry of its hold had left."""
        return msgspec.structs.replace(self, charge_nano=self.charge_nano + earlier_charge_nano, created_us=created_us)


def charged(entry: Entry) -> Charged:
    """Raise ValueError (msgspec's are among them) where the body is no request row of this entry."""
    row = request_row.decode(entry.body)
    if row.request_id != entry.reference:
        raise ValueError(f"the body is of request {row.request_id!r}")
    if not 0 <= row.created_us < CREATED_US_END:
        raise ValueError(f"created_us is {row.created_us}")
    if entry.kind == "expired" and row.ending == "completed":
        # The hold's descriptor was written before the call could end: its defaults are not a result.
        row = msgspec.structs.replace(row, status="error", ending="expired", estimated=True)
    return Charged(entry, row, entry.debit_nano, row.created_us)


def fold(rows: Iterable[Charged]) -> tuple[dict[Key, Charged], list[Charged]]:
    """One row a request, in order; and those that name a request again without being its late settlement."""
    folded: dict[Key, Charged] = {}
    repeated: list[Charged] = []
    for each in rows:
        before = folded.get(each.key)
        if before is None:
            folded[each.key] = each
        elif each.entry.kind == "late":
            merged = each.after(before.charge_nano, before.created_us)
            folded[each.key] = msgspec.structs.replace(merged, entry=_final_entry(before.entry, each.entry))
        else:
            repeated.append(each)
    return folded, repeated


def _final_entry(first: Entry, late: Entry) -> Entry:
    """The late entry's position and number, under the kind that says whether the row is known already."""
    return msgspec.structs.replace(late, kind=first.kind)


def hour_key(merchant_id: str, created_us: int, connection_id: str | None, meter_id: str | None) -> HourKey:
    return merchant_id, created_us - created_us % HOUR_US, connection_id or "", meter_id or ""


def add_sums(into: dict[HourKey, Sums], key: HourKey, sums: Sequence[int]) -> None:
    before = into.get(key, (0, 0, 0, 0, 0))
    into[key] = tuple(map(sum, zip(before, sums, strict=True)))  # type: ignore[assignment]


def columns(each: Charged) -> tuple[Any, ...]:
    """The values of `requests`, in the order of the statement flush.requests."""
    row = each.row
    return (
        row.merchant_id,
        row.request_id,
        each.created_us,
        row.connection_id,
        each.entry.wallet_id,
        row.meter_id,
        row.meter_version,
        row.price_version,
        row.billing_mode,
        row.provider,
        row.provider_key_type,
        row.model,
        row.endpoint,
        row.response_id,
        row.service_tier,
        row.status,
        row.ending,
        row.http_status,
        row.streamed,
        row.estimated,
        request_row.ENCODER.encode(row.usage).decode(),
        row.input_cost_nano,
        row.output_cost_nano,
        row.cost_nano,
        each.fee_nano,
        each.charge_nano,
        each.entry.position,
        request_row.ENCODER.encode(row.metadata).decode(),
        row.duration_us,
        row.first_byte_us,
        row.spend_key_id,
    )
