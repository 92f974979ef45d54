"""JSON text exactly as JavaScript's `JSON.stringify(JSON.parse(text))` writes it. Pure.

Receivers verify a webhook's signature over the body that they parsed and wrote again, so it must come out the same:
no spaces, keys that are array indices first and in their order, numbers as doubles in JavaScript's notation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

_INDEX_LIMIT = 2**32 - 1
_POINT_MAX = 21
_POINT_MIN = -6


def stringify(value: Any) -> str:
    """`value`: what a JSON parser gives (dict, list, str, int, float, bool, None); else ValueError."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case int() | float():
            return _number(value)
        case dict():
            return "{" + ",".join(f"{stringify(key)}:{stringify(value[key])}" for key in _in_order(value)) + "}"
        case list() | tuple():
            return "[" + ",".join(map(stringify, value)) + "]"
    raise ValueError(f"{type(value).__name__} is not JSON")


def _in_order(keys: Iterable[str]) -> list[str]:
    names = list(keys)
    indices = sorted((name for name in names if _is_index(name)), key=int)
    return indices + [name for name in names if not _is_index(name)] if indices else names


def _is_index(name: str) -> bool:
    if not (name.isascii() and name.isdigit() and len(name) <= 10):
        return False
    return (name == "0" or name[0] != "0") and int(name) < _INDEX_LIMIT


def _number(value: float) -> str:
    """ECMAScript's Number::toString: the shortest digits that read back as the same double, placed by its rules."""
    try:
        number = float(value)
    except OverflowError:
        return "null"  # what JavaScript reads as Infinity, it writes as null
    if not math.isfinite(number):
        return "null"
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    mantissa, _, exponent = f"{abs(number)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(digits) - len(fraction) + int(exponent or 0)
    digits = digits.rstrip("0")
    return sign + _placed(digits, point)


def _placed(digits: str, point: int) -> str:
    """`digits` with the decimal point behind the `point`th of them."""
    if len(digits) <= point <= _POINT_MAX:
        return digits + "0" * (point - len(digits))
    if 0 < point <= _POINT_MAX:
        return f"{digits[:point]}.{digits[point:]}"
    if _POINT_MIN < point <= 0:
        return "0." + "0" * -point + digits
    exponent = f"e{point - 1:+d}"
    return digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "") + exponent
