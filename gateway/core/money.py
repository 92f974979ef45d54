"""Money as integers: amounts in nano-dollars (1e-9 USD), rates in pico-dollars (1e-12 USD) per unit.

No float ever touches an amount. Text comes in and goes out as decimal strings; the only rounding
is `divide_half_up`, applied once to the amount of one request.
"""

from __future__ import annotations

import re
from decimal import Decimal

NANO = 1_000_000_000
PICO = 1_000_000_000_000
PICO_PER_NANO = 1_000

# Lua numbers are doubles: below this every integer is exact. About 9.0 million USD in nano-dollars.
EXACT_LIMIT = 2**53

_DECIMAL = re.compile(r"-?\d{1,15}(\.\d{1,15})?\Z", re.ASCII)


def divide_half_up(numerator: int, denominator: int) -> int:
    """The quotient of a non-negative numerator, rounded half up."""
    return (2 * numerator + denominator) // (2 * denominator)


def parse_nano(text: str) -> int:
    """Nano-dollars of a decimal string in dollars, such as "25.00". ValueError if not one, or finer than 1e-9."""
    return _parse(text, NANO)


def parse_pico(text: str) -> int:
    """Pico-dollars of a decimal string in dollars. ValueError if not one, or finer than 1e-12."""
    return _parse(text, PICO)


def _parse(text: str, scale: int) -> int:
    if not _DECIMAL.match(text):
        raise ValueError(f"{text!r} is not a decimal amount such as 0.0125")
    scaled = Decimal(text) * scale
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{text!r} has more decimal places than 1/{scale} of a dollar")
    return int(scaled)


def format_nano(amount_nano: int) -> str:
    """Dollars with ten places, as the API shows money: 58100000 -> "0.0581000000"."""
    sign = "-" if amount_nano < 0 else ""
    whole, part = divmod(abs(amount_nano), NANO)
    return f"{sign}{whole}.{part:09d}0"


def format_pico(rate_pico: int) -> str:
    """Dollars without trailing zeros, as the API shows rates: 2000000000000 -> "2"."""
    sign = "-" if rate_pico < 0 else ""
    whole, part = divmod(abs(rate_pico), PICO)
    digits = f"{part:012d}".rstrip("0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"
