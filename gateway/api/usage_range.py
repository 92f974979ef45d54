"""The time range of a usage report, and its days in the zone that the start's UTC offset names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import NamedTuple

from gateway.api.reading import invalid

DAYS_MAX = 366
YEARS = range(1970, 3000)
OFFSET_MAX_MINUTES = 14 * 60
MILLISECOND = timedelta(milliseconds=1)
_DAY = timedelta(days=1)

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)(Z|[+ -]\d\d:?[0-5]\d)?", re.ASCII)
_EXPECTED = "must be an ISO-8601 date or time such as 2026-01-31 or 2026-01-31T00:00:00+02:00"


class UsageRange(NamedTuple):
    """From `start` to before `stop`, both UTC; days begin `offset_minutes` east of UTC."""

    start: datetime
    stop: datetime
    offset_minutes: int

    @property
    def _zone(self) -> timezone:
        return timezone(timedelta(minutes=self.offset_minutes))

    def days(self) -> Iterator[date]:
        """The days that the range touches."""
        day, last = self.start.astimezone(self._zone).date(), (self.stop - MILLISECOND).astimezone(self._zone).date()
        while day <= last:
            yield day
            day += _DAY

    def of_day(self, day: date) -> tuple[datetime, datetime]:
        """The part of the range that lies in `day`."""
        midnight = datetime.combine(day, time(), self._zone)
        return max(self.start, midnight), min(self.stop, midnight + _DAY)


def read_range(start: str, end: str, now: datetime) -> UsageRange:
    """Read `start` (required) and `end` (default `now`, inclusive to the millisecond; a date means its whole day).

    A time without an offset is UTC; an `end` without one is in the zone of `start`. Raise ObolError `invalid_request`.
    """
    if not start:
        raise invalid("start", "is required")
    begin = _moment(start, UTC, "start")
    stop = _stop(end, begin.tzinfo, now)
    if not end and stop <= begin:
        raise invalid("start", "is in the future")
    if stop <= begin:
        raise invalid("end", "is before start")
    if stop - begin > DAYS_MAX * _DAY:
        raise invalid("end", f"is more than {DAYS_MAX} days after start")
    return UsageRange(begin.astimezone(UTC), stop.astimezone(UTC), _offset_minutes(begin))


def _stop(end: str, zone: tzinfo | None, now: datetime) -> datetime:
    """The first millisecond that is no longer in the range."""
    if not end:
        return _floor_millisecond(now) + MILLISECOND
    return _moment(end, zone, "end") + (_DAY if _DATE.fullmatch(end) else MILLISECOND)


def _floor_millisecond(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond // 1_000 * 1_000)


def _offset_minutes(begin: datetime) -> int:
    offset = begin.utcoffset() or timedelta()
    return round(offset / timedelta(minutes=1))


def _moment(given: str, zone: tzinfo | None, field: str) -> datetime:
    """`given` to the millisecond, with its own offset, else in `zone`. An offset's + may have arrived as a space."""
    matched = _TIME.fullmatch(f"{given}T00:00" if _DATE.fullmatch(given) else given)
    if matched is None:
        raise invalid(field, _EXPECTED)
    clock, offset = matched[1].replace(" ", "T"), (matched[2] or "").replace(" ", "+")
    try:
        moment = _floor_millisecond(datetime.fromisoformat(clock + offset))
    except ValueError:
        raise invalid(field, _EXPECTED) from None
    if moment.year not in YEARS:
        raise invalid(field, f"is not in the years {YEARS[0]} to {YEARS[-1]}")
    if abs(_offset_minutes(moment)) > OFFSET_MAX_MINUTES:
        raise invalid(field, f"has a UTC offset beyond {OFFSET_MAX_MINUTES // 60} hours")
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)
