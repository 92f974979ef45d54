"""A card as a person types it: cleaned, and checked before any processor is asked.

Only the sandbox's own form uses this. With a real processor, card numbers go from the browser to it and never come
here.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

import msgspec

from gateway.errors import ObolError

_NUMBER_DIGITS: Final = (12, 19)
_YEARS_AHEAD_MAX: Final = 50
_BRANDS: Final = (
    ("amex", re.compile(r"3[47]"), (15,)),
    ("diners", re.compile(r"3(?:0[0-5]|[689])"), (14, 16)),
    ("jcb", re.compile(r"35(?:2[89]|[3-8])"), (16,)),
    ("visa", re.compile(r"4"), (13, 16, 19)),
    ("mastercard", re.compile(r"5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), (16,)),
    ("discover", re.compile(r"6(?:011|4[4-9]|5)"), (16,)),
    ("unionpay", re.compile(r"62"), (16, 17, 18, 19)),
)
"""Brand, how its numbers begin, how many digits they have."""


class CardEntry(msgspec.Struct, frozen=True):
    """A checked entry. It holds the whole number: it is used at once and kept nowhere."""

    number: str
    brand: str
    exp_month: int
    exp_year: int

    def __repr__(self) -> str:
        return f"CardEntry({self.brand} {self.number[-4:]})"


def read(number: str, expiry: str, cvc: str, today: date) -> CardEntry:
    """`expiry`: `MM/YY` or `MM/YYYY`. Raise ObolError naming the field: `number`, `expiry` or `cvc`."""
    digits = re.sub(r"[ -]", "", number)
    brand = _brand(digits)
    month, year = _expiry(expiry, today)
    _check_cvc(cvc.strip(), brand)
    return CardEntry(digits, brand, month, year)


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it (ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def _brand(digits: str) -> str:
    if not (digits.isascii() and digits.isdigit()):
        raise _wrong("number", "the card number is digits, with or without spaces")
    if not _NUMBER_DIGITS[0] <= len(digits) <= _NUMBER_DIGITS[1]:
        raise _wrong("number", f"the card number has {len(digits)} digits, which no card has")
    known = next(((brand, lengths) for brand, begins, lengths in _BRANDS if begins.match(digits)), None)
    brand, lengths = known or ("unknown", (len(digits),))
    if len(digits) not in lengths:
        allowed = " or ".join(map(str, lengths))
        raise _wrong("number", f"this card's number has {allowed} digits, not {len(digits)}")
    if not luhn(digits):
        raise _wrong("number", "the card number is not valid: a digit is wrong or two are swapped")
    return brand


def _expiry(text: str, today: date) -> tuple[int, int]:
    """Month and year. A card is good to the end of its month."""
    found = re.fullmatch(r"\s*([0-9]{1,2})\s*[/-]\s*([0-9]{2}|[0-9]{4})\s*", text)
    if found is None:
        raise _wrong("expiry", "the expiry date is MM/YY")
    month, year = int(found[1]), int(found[2])
    year += 2000 if year < 100 else 0
    if not 1 <= month <= 12:
        raise _wrong("expiry", "the month of the expiry date is from 01 to 12")
    if (year, month) < (today.year, today.month):
        raise _wrong("expiry", "the card has expired")
    if year > today.year + _YEARS_AHEAD_MAX:
        raise _wrong("expiry", "the expiry date is too far ahead")
    return month, year


def _check_cvc(cvc: str, brand: str) -> None:
    digits = 4 if brand == "amex" else 3
    if not (cvc.isascii() and cvc.isdigit() and len(cvc) == digits):
        raise _wrong("cvc", f"the security code of this card has {digits} digits")


def _wrong(field: str, message: str) -> ObolError:
    return ObolError("invalid_request", message, param=field)
