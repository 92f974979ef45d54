"""When cycles begin and end: the boundaries of a day, week, month or year that repeats from an anchor.

Every boundary is counted from the anchor and never from the one before it, so none drifts: a month that began on the
31st ends on the last day of a shorter one and on the 31st again after it, and a year that began on February 29 begins
on the 28th of other years. All in UTC, where no hour is left out or comes twice.
"""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from typing import Literal

Interval = Literal["day", "week", "month", "year"]
A_YEAR: dict[Interval, int] = {"day": 365, "week": 52, "month": 12, "year": 1}
"""How often a plan of this interval is paid in a year: what makes amounts of different intervals comparable."""

_DAYS: dict[Interval, int] = {"day": 1, "week": 7}
_MONTHS: dict[Interval, int] = {"month": 1, "year": 12}


def boundary(anchor: datetime, interval: Interval, number: int) -> datetime:
    """When cycle `number` begins and the one before it ends; cycle 0 begins at `anchor`. Negative numbers count back.

    Raise OverflowError or ValueError beyond the years 1 to 9999.
    """
    anchor = anchor.astimezone(UTC)
    if interval in _DAYS:
        return anchor + timedelta(days=_DAYS[interval] * number)
    years, month = divmod(anchor.month - 1 + _MONTHS[interval] * number, 12)
    year = anchor.year + years
    day = min(anchor.day, calendar.monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)


def cycle_at(anchor: datetime, interval: Interval, at: datetime) -> int:
    """The number of the cycle that `at` lies in: boundary(number) <= at < boundary(number + 1)."""
    anchor, at = anchor.astimezone(UTC), at.astimezone(UTC)
    if interval in _DAYS:
        return (at - anchor) // timedelta(days=_DAYS[interval])
    number = ((at.year - anchor.year) * 12 + at.month - anchor.month) // _MONTHS[interval]
    return number if boundary(anchor, interval, number) <= at else number - 1
