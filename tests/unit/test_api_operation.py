"""What a body or a query becomes, and which field an error names."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import msgspec
import pytest

from gateway.api.operation import Money, Page, Text, agreed, convert, encode, required
from gateway.errors import ObolError


class Tier(msgspec.Struct):
    start: int
    rate: Money


class Made(msgspec.Struct):
    name: Text
    amount: Money
    interval: Literal["day", "month"] = "month"
    tiers: list[Tier] = []
    note: Text | None = None
    reference: Text | msgspec.UnsetType | None = msgspec.UNSET
    plan_id: str | None = None
    subscription_config_id: str | None = None


def made(**given: Any) -> Made:
    return convert({"name": "a", "amount": "1", **given}, Made)


@pytest.mark.parametrize(
    ("amount", "nano"),
    [("25.00", 25 * 10**9), (25, 25 * 10**9), (Decimal("0.25"), 250_000_000), ("0.000000001", 1), ("0", 0)],
)
def test_an_amount_is_read_exactly(amount: Any, nano: int) -> None:
    assert made(amount=amount).amount == Money(nano)


@pytest.mark.parametrize("amount", [True, "abc", "-1", "1e3", "0.0000000001", 10**8, Decimal("1E+400"), [], None])
def test_what_is_no_amount_names_the_field(amount: Any) -> None:
    with pytest.raises(ObolError) as refused:
        made(amount=amount)
    assert (refused.value.code, refused.value.param) == ("invalid_request", "amount")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"name": "x" * 256}, "name"),
        ({"name": "a\x00"}, "name"),
        ({"name": 3}, "name"),
        ({"note": "\ud800"}, "note"),
        ({"interval": "week"}, "interval"),
        ({"tiers": {}}, "tiers"),
        ({"tiers": [{"start": "a", "rate": "1"}]}, "tiers[0].start"),
        ({"tiers": [{"start": Decimal("0.5"), "rate": "1"}]}, "tiers[0].start"),
        ({"tiers": [{"start": 1}]}, "tiers[0].rate"),
    ],
)
def test_a_mistake_names_its_field(given: dict[str, Any], param: str) -> None:
    with pytest.raises(ObolError) as refused:
        made(**given)
    assert (refused.value.code, refused.value.param) == ("invalid_request", param)
    assert refused.value.message.startswith(param)


def test_a_field_that_is_missing_is_required() -> None:
    with pytest.raises(ObolError, match="amount is required"):
        convert({"name": "a"}, Made)


def test_what_is_nested_too_deeply_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(800):
        nested = [nested]
    with pytest.raises(ObolError, match=r"^note is nested more than 50 deep"):
        made(note=nested)


def test_what_no_field_knows_is_not_looked_at() -> None:
    assert made(unknown="a\x00").name == "a"


def test_a_value_out_of_a_list_tells_the_list() -> None:
    with pytest.raises(ObolError, match="it is one of day, month"):
        made(interval="week")


def test_null_is_absent_unless_the_field_takes_it() -> None:
    found = made(interval=None, tiers=None, reference=None)
    assert (found.interval, found.tiers, found.reference) == ("month", [], None)
    assert made().reference is msgspec.UNSET


def test_whole_numbers_may_be_written_with_a_point_and_unknown_fields_are_ignored() -> None:
    assert made(tiers=[{"start": Decimal("12.0"), "rate": 0}], unknown={"a": 1}).tiers[0].start == 12


def test_a_query_is_text() -> None:
    assert convert({"limit": "5", "u": "x"}, Page, text=True).limit == 5
    for limit in ("a", "0", "101", "5.5"):
        with pytest.raises(ObolError, match=r"^limit must be a whole number"):
            convert({"limit": limit}, Page, text=True)


def test_names_of_the_same_thing_must_agree() -> None:
    same = made(plan_id="p", subscription_config_id="p")
    assert required(same, "plan_id", "subscription_config_id").value == "p"
    assert agreed(made(plan_id=""), "plan_id", "subscription_config_id") is None
    with pytest.raises(ObolError, match="differs from plan_id"):
        agreed(made(plan_id="p", subscription_config_id="q"), "plan_id", "subscription_config_id")
    with pytest.raises(ObolError, match="plan_id is required"):
        required(made(), "plan_id", "subscription_config_id")


def test_an_amount_goes_out_with_ten_places() -> None:
    assert encode({"amount": Money(58_100_000)}) == b'{"amount":"0.0581000000"}'
