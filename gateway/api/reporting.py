"""Usage reported after the fact: charged once for each (merchant, request id), whatever is sent again.

claim (one payload an id) -> PostgreSQL (ids older than the claim) -> report (the debit, idempotent by itself).
A crash between two steps is repaired by sending the request again: the claim says `same` and the rest is done then.
"""

from __future__ import annotations

import hashlib
import time
from typing import Annotated, Any

import hiredis
import msgspec

from gateway.api import stored
from gateway.api.context import ApiContext
from gateway.api.filters import CUSTOMER_FIELDS, METER_FIELDS, CustomerAndMeter
from gateway.api.operation import Text, agreed
from gateway.api.reading import Named, invalid, microseconds
from gateway.api.request_object import StoredRequest
from gateway.billing.principals import Customer, Merchant
from gateway.core.meter import UNITS_MAX, Charge, Meter
from gateway.core.money import EXACT_LIMIT, format_nano
from gateway.core.usage import Usage
from gateway.errors import ObolError, naming
from gateway.ledger import row as rows
from gateway.ledger.journal import Entry
from gateway.ledger.keys import shard_of
from gateway.ledger.row import RequestRow
from gateway.ledger.wallets import Price, WalletRef, now_ms
from gateway.wire import metadata

ENDPOINT_MAX_CHARACTERS = 2_048
_USAGE_FIELDS = ("input_tokens", "output_tokens", "input_characters", "output_characters", "input_us", "output_us")
_UNITS_OF = {"tokens_1m": "tokens", "characters_1m": "characters", "minutes": "seconds", "requests": "requests"}


Count = Annotated[int, msgspec.Meta(ge=0, le=EXACT_LIMIT)]
Seconds = Annotated[
    Any,
    msgspec.Meta(
        description="From 0; kept to the microsecond.", extra_json_schema={"type": ["number", "null"], "minimum": 0}
    ),
]
Metadata = Annotated[
    Any,
    msgspec.Meta(
        description=f"At most {metadata.MAX_PAIRS} pairs of text; keys of letters, digits and underscores.",
        extra_json_schema={"type": ["object", "null"], "additionalProperties": {"type": "string"}},
    ),
]


class NewReport(CustomerAndMeter, kw_only=True):
    """Usage that happened elsewhere, under an id of the caller's own: the same id is charged once."""

    request_id: Text
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_characters: Count | None = None
    output_characters: Count | None = None
    input_seconds: Seconds = None
    output_seconds: Seconds = None
    metadata: Metadata = None
    provider: Text | None = None
    model: Text | None = None
    endpoint: Annotated[str, msgspec.Meta(min_length=1, max_length=ENDPOINT_MAX_CHARACTERS)] | None = None


class Report(msgspec.Struct, frozen=True):
    """A checked payload; customer and meter are still to be looked up."""

    request_id: str
    customer: Named
    meter: Named
    usage: Usage
    metadata: dict[str, str]
    provider: str | None
    endpoint: str | None
    model: str | None

    def fingerprint(self, connection_id: str, meter_id: str) -> str:
        """The same for payloads that mean the same, however they name the customer and the meter."""
        usage = self.usage
        counts = [getattr(usage, name) or 0 for name in _USAGE_FIELDS]
        informative = [self.provider, self.endpoint, self.model]
        meaning = [connection_id, meter_id, counts, sorted(self.metadata.items()), informative]
        return hashlib.sha256(msgspec.json.encode(meaning)).hexdigest()


def read(body: NewReport) -> Report:
    """Check the payload of POST /v1/requests. Raise ObolError naming the field."""
    pairs = body.metadata
    if pairs is not None and not isinstance(pairs, dict):
        raise ObolError("metadata_invalid", "metadata must be an object of strings", param="metadata")
    return Report(
        request_id=body.request_id,
        customer=_required(agreed(body, *CUSTOMER_FIELDS), "connection_id"),
        meter=_required(agreed(body, *METER_FIELDS), "meter_slug"),
        usage=Usage(
            input_tokens=body.input_tokens,
            output_tokens=body.output_tokens,
            input_characters=body.input_characters,
            output_characters=body.output_characters,
            input_us=microseconds(body.input_seconds, "input_seconds"),
            output_us=microseconds(body.output_seconds, "output_seconds"),
        ),
        metadata=metadata.validate(pairs or {}),
        provider=body.provider,
        endpoint=body.endpoint,
        model=body.model,
    )


def _required(named: Named | None, field: str) -> Named:
    if named is None:
        raise invalid(field, "is required (or another name of it)")
    return named


async def record(context: ApiContext, merchant: Merchant, report: Report) -> StoredRequest:
    """Charge the report, or find what was charged under its id. Raise ObolError `request_id_conflict` and others."""
    if context.journals.full:
        raise context.journals.refusal()
    if rows.is_own_request_id(report.request_id):  # a gateway call's, perhaps still under way
        raise _conflict(report.request_id)
    customer = await _customer(context, merchant, report.customer)
    meter = await _meter(context, merchant, report.meter)
    charge = _priced(meter, report.usage)
    fingerprint = report.fingerprint(customer.connection_id, meter.meter_id)
    await _claim(context, merchant, report.request_id, fingerprint)
    # Looked up for a claim that is ours from before, too: it may have been made and then never come to this line.
    found = await stored.find(context, merchant.merchant_id, report.request_id)
    if found is None:
        row = _row(merchant, customer, meter, report, fingerprint)
        found = await _debit(context, customer.wallet, row, meter, charge)
    if found.row.fingerprint != fingerprint:
        raise _conflict(report.request_id)
    return found


async def _customer(context: ApiContext, merchant: Merchant, named: Named) -> Customer:
    with naming(named.field):
        return await context.principals.customer(merchant, named.value)


async def _meter(context: ApiContext, merchant: Merchant, named: Named) -> Meter:
    with naming(named.field):
        return await context.principals.meter(merchant, named.value)


def _priced(meter: Meter, usage: Usage) -> Charge:
    """What the meter asks, position apart. Beyond these limits the ledger's arithmetic would not be exact."""
    charge, unit = meter.charge(usage, 0), _UNITS_OF[meter.tier_type]
    if charge.units > UNITS_MAX:
        raise invalid(f"input_{unit}", f"and output_{unit} are together more than one request may have")
    if meter.ceiling(charge.units, 0) >= EXACT_LIMIT:
        raise ObolError("invalid_request", f"the charge is beyond {format_nano(EXACT_LIMIT)}", param=f"input_{unit}")
    return charge


async def _claim(context: ApiContext, merchant: Merchant, request_id: str, fingerprint: str) -> None:
    name = f"id:{request_id}"
    shard = shard_of(f"{merchant.merchant_id}:{name}", context.settings.ledger_shards)
    claim = await context.wallets.claim(shard, merchant.merchant_id, name, fingerprint, request_id)
    if claim.kind == "conflict":
        raise _conflict(request_id)


def _conflict(request_id: str) -> ObolError:
    return ObolError(
        "request_id_conflict",
        f"{request_id!r} was used before with another payload; nothing changed",
        param="request_id",
    )


def _row(merchant: Merchant, customer: Customer, meter: Meter, report: Report, fingerprint: str) -> RequestRow:
    return RequestRow(
        merchant_id=merchant.merchant_id,
        request_id=report.request_id,
        created_us=time.time_ns() // 1_000 + merchant.clock_offset_us,
        billing_mode="report",
        connection_id=customer.connection_id,
        meter_id=meter.meter_id,
        meter_version=meter.version,
        provider=report.provider or "other",
        model=report.model,
        endpoint=report.endpoint or "",
        usage=report.usage,
        metadata=report.metadata,
        fingerprint=fingerprint,
    )


async def _debit(
    context: ApiContext, wallet: WalletRef, row: RequestRow, meter: Meter, charge: Charge
) -> StoredRequest:
    price = Price.of(meter, charge.units, charge.amount_nano, 0)
    try:
        settled = await context.wallets.report(wallet, row.request_id, price, at_ms=now_ms(), body=rows.encode(row))
    except hiredis.ReplyError as error:
        if "beyond 2^53" in str(error):
            raise ObolError("invalid_request", "the charge takes the wallet beyond what it can count") from None
        raise
    if settled.kind == "unknown":
        raise ObolError("wallet_unavailable", "the customer's wallet is being rebuilt", retry_after_s=1)
    if settled.kind == "settled":
        return StoredRequest(row, settled.amount_nano, settled.position)
    return await _first(context, wallet, row, settled.journal_number)


async def _first(context: ApiContext, wallet: WalletRef, row: RequestRow, number: int) -> StoredRequest:
    """What was charged first under this id: in the journal until PostgreSQL has it."""
    for entry in await context.journal.read(wallet.shard, number - 1, 1):
        if entry.number == number and entry.reference == row.request_id:
            return _of_entry(entry)
    found = await stored.find(context, row.merchant_id, row.request_id)
    if found is None:
        raise ObolError("store_unavailable", "the request is charged, but cannot be shown yet", retry_after_s=1)
    return found


def _of_entry(entry: Entry) -> StoredRequest:
    charge_nano = entry.overage_delta - entry.cycle_delta - entry.bundle_delta - entry.prepaid_delta
    return StoredRequest(rows.decode(entry.body), charge_nano, entry.position)
