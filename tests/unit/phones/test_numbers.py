"""Phone numbers as people type them."""

from __future__ import annotations

import pytest

from gateway.errors import ObolError
from gateway.phones import numbers
from gateway.phones.contract import masked


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("+1 555 010 0000", "+15550100000"),
        ("+1 (555) 010-0000", "+15550100000"),
        (" +49 30/123456 ", "+4930123456"),
        ("0044 20 7946 0958", "+442079460958"),
        ("+44 (0)20 7946 0958", "+442079460958"),
        ("+352.621.123.456", "+352621123456"),
        ("+7\u00a0912\u2011345\u20116789", "+79123456789"),
        ("+290 12345", "+29012345"),
    ],
)
def test_a_number_becomes_e164(text: str, number: str):
    assert numbers.read(text) == number
    assert numbers.read(number) == number


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("555 010 0000", "country code"),
        ("", "country code"),
        ("+", "digits"),
        ("+1 555 010 000", "ten digits"),
        ("+1 555 010 0000 ext 5", "digits"),
        ("+1 555 010 00000", "ten digits"),
        ("+44 1234567890123456", "18 digits"),
        ("+44 12", "4 digits"),
        ("+89 123456789", "no country"),
        ("+0 1234567890", "no country"),
        ("+28 12345678", "no country"),
        ("++15550100000", "digits"),
        ("+١٥٥٥٠١٠٠٠٠٠", "digits"),
        ("+1555010000\n1;drop", "digits"),
    ],
)
def test_what_is_no_number_is_refused_naming_the_field(text: str, words: str):
    with pytest.raises(ObolError, match=words) as caught:
        numbers.read(text)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "phone")


def test_a_masked_number_shows_its_country_and_two_digits():
    assert masked("+15550100042") == "+15*******42"
