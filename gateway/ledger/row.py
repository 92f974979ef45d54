"""The request row as the gateway knows it: the body of a journal entry, and what a hold describes for the reaper.

The amount debited is not in it. It stands in the entry's deltas, because only the settle script knows it:
charge = overage_delta - cycle_delta - bundle_delta - prepaid_delta, fee = charge - passed_on_nano.
"""

from __future__ import annotations

import re
import secrets
from typing import Literal

import msgspec

from gateway.core.usage import ZERO, Usage

BillingMode = Literal["customer", "meter_only", "merchant", "billing_disabled", "report"]
KeyType = Literal["managed", "unmanaged", "stored"]
Status = Literal["completed", "error"]


_OWN_ID = re.compile(r"req_[0-9a-f]{29}", re.ASCII)


class RequestIds:
    """Makes the ids of one process's calls: 52 bits of microseconds, 32 random bits of the process, 32 bits that count.

    They sort by time and never repeat; they are no secret, so no call pays for fresh random bytes.
    """

    def __init__(self) -> None:
        self._process = secrets.token_hex(4)
        self._count = secrets.randbits(32)

    def new(self, created_us: int) -> str:
        self._count = (self._count + 1) & 0xFFFFFFFF
        return f"req_{created_us:013x}{self._process}{self._count:08x}"


def is_own_request_id(request_id: str) -> bool:
    """The gateway makes ids of this form; nobody else may, or one id could stand for two debits."""
    return _OWN_ID.fullmatch(request_id) is not None


class RequestRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One row of `requests`, short of what the ledger entry says. Times in microseconds, money in nano-dollars."""

    merchant_id: str
    request_id: str
    created_us: int
    """Microseconds since 1970, UTC."""
    billing_mode: BillingMode
    connection_id: str | None = None
    meter_id: str | None = None
    meter_version: int | None = None
    price_version: str | None = None
    provider: str = "other"
    provider_key_type: KeyType = "managed"
    model: str | None = None
    endpoint: str = ""
    response_id: str | None = None
    service_tier: str | None = None
    status: Status = "completed"
    ending: str = "completed"
    http_status: int | None = None
    streamed: bool = False
    estimated: bool = False
    usage: Usage = ZERO
    input_cost_nano: int = 0
    output_cost_nano: int = 0
    cost_nano: int = 0
    passed_on_nano: int = 0
    """The part of the provider's cost that the customer pays: all of it, or none."""
    metadata: dict[str, str] = {}
    fingerprint: str | None = None
    """Of a reported request's payload: a different payload under the same id is a conflict."""
    duration_us: int | None = None
    first_byte_us: int | None = None
    spend_key_id: str | None = None
    """Of the spend key that the call was made with."""


ENCODER = msgspec.json.Encoder()
DECODER = msgspec.json.Decoder(RequestRow)


def encode(row: RequestRow) -> bytes:
    return ENCODER.encode(row)


def decode(body: bytes) -> RequestRow:
    """Raise msgspec.ValidationError where the body is no request row."""
    return DECODER.decode(body)
