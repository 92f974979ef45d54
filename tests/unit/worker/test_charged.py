"""Rows and sums of a batch, without any server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.core.usage import Usage
from gateway.ledger.journal import Entry
from gateway.ledger.row import RequestRow, encode
from gateway.worker.charged import HOUR_US, Sums, add_sums, charged, fold, hour_key

BODY = encode(
    RequestRow(
        merchant_id="mer_1",
        request_id="r1",
        created_us=5 * HOUR_US + 1,
        billing_mode="customer",
        usage=Usage(input_tokens=3, output_tokens=4),
        passed_on_nano=30,
    )
)
ENTRY = Entry(
    number=9, wallet_id="wal_1", seq=2, kind="call", reference="r1", at_ms=1,
    cycle_delta=-10, bundle_delta=-20, prepaid_delta=-30, overage_delta=40, position=7, body=BODY,
)  # fmt: skip


def entry(**changes: Any) -> Entry:
    return msgspec.structs.replace(ENTRY, **changes)


def test_a_charge_is_what_left_the_pots_and_what_they_could_not_cover() -> None:
    each = charged(ENTRY)
    assert ENTRY.debit_nano == each.charge_nano == 100
    assert each.fee_nano == 70
    assert each.sums == (1, 7, 0, 70, 100)
    assert each.hour_key == ("mer_1", 5 * HOUR_US, "", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"body": b"x"}, "malformed"), ({"body": b"{}"}, "missing required"), ({"reference": "r2"}, "'r1'")],
)
def test_a_body_that_is_no_row_of_its_entry_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        charged(entry(**changes))


def test_an_expired_row_is_an_estimate_with_an_error() -> None:
    row = charged(entry(kind="expired")).row
    assert (row.status, row.ending, row.estimated) == ("error", "expired", True)
    told = encode(msgspec.structs.replace(charged(ENTRY).row, ending="client_gone"))
    assert charged(entry(kind="expired", body=told)).row.ending == "client_gone"


def test_a_late_settlement_is_folded_into_the_expiry_before_it() -> None:
    late_body = encode(msgspec.structs.replace(charged(ENTRY).row, created_us=9 * HOUR_US))
    late = entry(kind="late", number=10, position=11, overage_delta=41, body=late_body)
    folded, repeated = fold([charged(entry(kind="expired")), charged(late)])
    (each,) = folded.values()
    assert repeated == []
    assert (each.charge_nano, each.created_us) == (201, 5 * HOUR_US + 1)
    assert (each.entry.kind, each.entry.number, each.entry.position) == ("expired", 10, 11)
    assert each.row.ending == "completed"


def test_a_repeated_request_is_not_folded() -> None:
    first, second = charged(ENTRY), charged(entry(number=10))
    assert fold([first, second]) == ({("mer_1", "r1"): first}, [second])


def test_sums_add_up_and_cancel_out() -> None:
    into: dict[tuple[str, int, str, str], Sums] = {}
    key = hour_key("mer_1", HOUR_US - 1, None, "meter_1")
    assert key == ("mer_1", 0, "", "meter_1")
    add_sums(into, key, (1, 2, 3, 4, 5))
    add_sums(into, key, (1, 1, 1, 1, 1))
    assert into == {key: (2, 3, 4, 5, 6)}
    add_sums(into, key, (-2, -3, -4, -5, -6))
    assert into == {key: (0, 0, 0, 0, 0)}
