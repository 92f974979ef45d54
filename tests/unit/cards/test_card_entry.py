"""What a card form takes, and which field it names when it does not."""

from __future__ import annotations

from datetime import date

import pytest

from gateway.cards import card_entry, sandbox_cards
from gateway.cards.contract import ProcessorRefused
from gateway.errors import ObolError

TODAY = date(2026, 11, 23)


def entered(number: str, expiry: str = "12/30", cvc: str = "123") -> card_entry.CardEntry:
    return card_entry.read(number, expiry, cvc, TODAY)


@pytest.mark.parametrize(
    ("number", "cvc", "brand"),
    [
        ("4242 4242 4242 4242", "123", "visa"),
        ("4000-0566-5566-5556", "123", "visa"),
        ("5555555555554444", "123", "mastercard"),
        ("2223003122003222", "123", "mastercard"),
        ("378282246310005", "1234", "amex"),
        ("6011111111111117", "123", "discover"),
        ("3056930009020004", "123", "diners"),
        ("36227206271667", "123", "diners"),
        ("3566002020360505", "123", "jcb"),
        ("6200000000000005", "123", "unionpay"),
        ("9999999999999995", "123", "unknown"),
    ],
)
def test_the_usual_cards_are_taken_under_their_brands(number: str, cvc: str, brand: str):
    entry = entered(number, cvc=cvc)
    assert entry.brand == brand
    assert sandbox_cards.card_of(sandbox_cards.method_ref(entry, "x1")).brand == brand


@pytest.mark.parametrize(
    ("number", "expiry", "cvc", "field", "words"),
    [
        ("4242424242424241", "12/30", "123", "number", "a digit is wrong"),
        ("4242 4242 4242", "12/30", "123", "number", "13 or 16 or 19 digits, not 12"),
        ("4242", "12/30", "123", "number", "4 digits, which no card has"),
        ("", "12/30", "123", "number", "digits"),
        ("4242 4242 4242 424x", "12/30", "123", "number", "digits"),
        ("٤٢٤٢٤٢٤٢٤٢٤٢٤٢٤٢", "12/30", "123", "number", "digits"),
        ("4242424242424242", "10/26", "123", "expiry", "has expired"),
        ("4242424242424242", "13/30", "123", "expiry", "from 01 to 12"),
        ("4242424242424242", "00/30", "123", "expiry", "from 01 to 12"),
        ("4242424242424242", "2030-12", "123", "expiry", "MM/YY"),
        ("4242424242424242", "", "123", "expiry", "MM/YY"),
        ("4242424242424242", "12/2077", "123", "expiry", "too far ahead"),
        ("4242424242424242", "12/30", "12", "cvc", "3 digits"),
        ("4242424242424242", "12/30", "1234", "cvc", "3 digits"),
        ("378282246310005", "12/30", "123", "cvc", "4 digits"),
        ("4242424242424242", "12/30", "", "cvc", "3 digits"),
    ],
)
def test_a_wrong_field_is_named(number: str, expiry: str, cvc: str, field: str, words: str):
    with pytest.raises(ObolError, match=words) as caught:
        entered(number, expiry, cvc)
    assert (caught.value.code, caught.value.param) == ("invalid_request", field)


@pytest.mark.parametrize("expiry", ["11/26", "11/2026", "1/27", " 12 / 30 ", "12-30"])
def test_a_card_is_good_to_the_end_of_its_month(expiry: str):
    assert (entered("4242424242424242", expiry).exp_year, 0) >= (2026, 0)


def test_a_reference_carries_the_behaviour_and_not_the_number():
    for number, name in sandbox_cards._OF_NUMBER.items():
        assert card_entry.luhn(number)
        entry = entered(number)
        ref = sandbox_cards.method_ref(entry, "0f0f")
        assert sandbox_cards.behaviour_of(ref) == sandbox_cards.BEHAVIOURS[name]
        card = sandbox_cards.card_of(ref)
        assert (card.last4, card.exp_month, card.exp_year) == (number[-4:], 12, 2030)
        assert number not in f"{ref}{card}{entry!r}"
    assert {*sandbox_cards._OF_NUMBER.values(), sandbox_cards.APPROVED} == sandbox_cards.BEHAVIOURS.keys()


@pytest.mark.parametrize(
    "ref", ["", "pm_1", "pm_sandbox_rich_visa_4242_122030_x", "pm_sandbox_approved_visa_4242_122030_"]
)
def test_a_reference_that_the_sandbox_did_not_make_is_refused(ref: str):
    with pytest.raises(ProcessorRefused, match="method_ref"):
        sandbox_cards.card_of(ref)
