"""Numbers on a command line, refused with a clear message outside their limits."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def integer(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer from `low` to `high`."""

    def read(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
        return value

    read.__name__ = "integer"
    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`; NaN is none."""

    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    read.__name__ = "number"
    return read
