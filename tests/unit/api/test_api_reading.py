"""Bodies and fields: what is accepted, and that errors name the field."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from gateway.api import reading, reporting
from gateway.api.operation import convert
from gateway.errors import ObolError

GOOD = {"request_id": '"r-1"', "connection_id": '"user-1"', "meter_slug": '"tokens"'}


def body(**fields: str) -> dict[str, Any]:
    """The payload of a report, its fields as JSON text; an empty text leaves the field out."""
    given = {name: text for name, text in {**GOOD, **fields}.items() if text}
    return reading.parse(("{" + ",".join(f'"{name}":{text}' for name, text in given.items()) + "}").encode())


def report(**fields: str) -> reporting.Report:
    return reporting.read(convert(body(**fields), reporting.NewReport))


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("input_tokens", "-1"),
        ("input_tokens", "1.5"),
        ("input_tokens", "true"),
        ("input_tokens", '"7"'),
        ("input_tokens", "[]"),
        ("input_tokens", "9007199254740993"),
        ("output_tokens", "1e999999999"),
        ("output_tokens", "1e-999999999"),
        ("input_seconds", "-0.1"),
        ("input_seconds", "true"),
        ("output_seconds", "1e400"),
        ("request_id", ""),
        ("request_id", '""'),
        ("request_id", "7"),
        ("request_id", '"a\\u0000b"'),
        ("request_id", '"\\ud800"'),
        ("request_id", f'"{"x" * 256}"'),
        ("connection_id", ""),
        ("connection_id", "null"),
        ("connection_id", "[]"),
        ("connection_secret", '"another"'),
        ("meter_slug", ""),
        ("meter_slug", "{}"),
        ("meter_secret", '"another"'),
        ("model", '"\\n"'),
        ("endpoint", "5"),
        ("metadata", "[]"),
        ("metadata", '{"a b": "v"}'),
        ("metadata", '{"k": 1}'),
    ],
)
def test_a_bad_field_is_named(field: str, text: str) -> None:
    with pytest.raises(ObolError) as refused:
        report(**{field: text})
    assert refused.value.status == 400
    assert field.split("_")[0] in str(refused.value.param)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("12.0", 12), ("1e3", 1000), ("9007199254740992", 2**53), ("null", None), ("-0.0", 0)],
)
def test_counts(text: str, number: int | None) -> None:
    assert report(input_tokens=text).usage.input_tokens == number


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("0.30000000000000004", 300_000),
        ("12.345", 12_345_000),
        ("1e2", 100_000_000),
        ("0.0000005", 1),
        ("0.00000049999999999999999999999999999999999999999999999999999", 0),
        ("1e-999999", 0),
        ("9007199254", 9_007_199_254_000_000),
        ("0." + "3" * 10_000, 333_333),
    ],
)
def test_seconds_are_rounded_once_from_their_decimal_text(text: str, microseconds: int) -> None:
    assert reading.microseconds(body(input_seconds=text)["input_seconds"], "input_seconds") == microseconds


def test_fractions_never_become_floats() -> None:
    assert reading.parse(b'{"a": 0.1, "b": [1e2]}') == {"a": Decimal("0.1"), "b": [Decimal("1e2")]}


def test_names_of_the_same_thing_may_repeat_but_not_differ() -> None:
    assert report(customer_id='"user-1"', reference_id='""', product_id="null").customer.value == "user-1"


def test_the_fingerprint_is_of_the_meaning() -> None:
    plain = report(input_tokens="5", metadata='{"a":"1","b":"2"}')
    same = report(input_tokens="5.0", output_seconds="0.0", metadata='{"b":"2","a":"1"}')
    assert plain.fingerprint("c", "m") == same.fingerprint("c", "m")
    others = [plain.fingerprint("d", "m"), plain.fingerprint("c", "n")]
    others += [
        report(input_tokens="5", metadata='{"a":"1","b":"2"}', **extra).fingerprint("c", "m")
        for extra in ({"output_tokens": "1"}, {"input_seconds": "0.000001"}, {"model": '"m"'}, {"provider": '"m"'})
    ]
    assert len({plain.fingerprint("c", "m"), *others}) == 7


@pytest.mark.parametrize("each", [b"0", b"[]", b"1.5", b'{"a":0}'])
def test_a_body_of_very_many_values_is_refused_before_it_is_read(each: bytes) -> None:
    body = b'{"y":[' + b",".join([each] * 20_000) + b"]}"
    with pytest.raises(ObolError, match="more than 10000 values"):
        reading.parse(body)
