"""Phone numbers as people type them, made E.164.

The country code is demanded: whose country it would be otherwise, nobody has said. A number's plan within its country
is not checked: that is a table of megabytes which ages, and the sender of the code knows better whether a phone is
there.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.errors import ObolError

DIGITS_MIN: Final = 7
DIGITS_MAX: Final = 15
_NORTH_AMERICAN_DIGITS: Final = 11
_SEPARATORS: Final = re.compile(r"[\s().\-/\u00a0\u2010-\u2015]+")
_COUNTRY: Final = re.compile(
    r"1|7|2[07]|2[1-69][0-9]|3(?:[0-469]|[578][0-9])|4(?:[013-9]|2[0-9])|5(?:[1-8]|[09][0-9])"
    r"|6(?:[0-6]|[789][0-9])|8(?:[1246]|[0578][0-9])|9(?:[0-58]|[679][0-9])"
)
"""Country codes of one and two digits, and the decades of those with three (ITU-T E.164, annexed list)."""


def read(text: str) -> str:
    """`text` as `+` and digits. Raise ObolError naming `phone`."""
    number = _SEPARATORS.sub("", text.replace("(0)", "", 1))
    if number.startswith("00"):
        number = "+" + number[2:]
    if not number.startswith("+"):
        raise _wrong("the phone number begins with + and the country code, such as +1 555 010 0000")
    digits = number[1:]
    if not (digits.isascii() and digits.isdigit()):
        raise _wrong("the phone number is + and digits, with or without spaces")
    if not DIGITS_MIN <= len(digits) <= DIGITS_MAX:
        raise _wrong(f"the phone number has {len(digits)} digits; with its country code it has {DIGITS_MIN} to 15")
    if _COUNTRY.match(digits) is None:
        raise _wrong(f"no country has the code that +{digits[:3]} begins with")
    if digits[0] == "1" and len(digits) != _NORTH_AMERICAN_DIGITS:
        raise _wrong("a number in +1 has ten digits after it")
    return "+" + digits


def _wrong(message: str) -> ObolError:
    return ObolError("invalid_request", message, param="phone")
