"""Boundaries of cycles: counted from the anchor, through month ends and leap days, without drift."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.cycle import Interval, boundary, cycle_at

ANCHORS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
KINDS = st.sampled_from(get_args(Interval))
NUMBERS = st.integers(-200, 200)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("anchor", "interval", "expected"),
    [
        ("2025-01-31T10:00", "month", ["2025-01-31", "2025-02-28", "2025-03-31", "2025-04-30", "2025-05-31"]),
        ("2024-01-31T10:00", "month", ["2024-01-31", "2024-02-29", "2024-03-31"]),
        ("2024-02-29T10:00", "year", ["2024-02-29", "2025-02-28", "2026-02-28", "2027-02-28", "2028-02-29"]),
        ("2024-12-30T23:59", "month", ["2024-12-30", "2025-01-30", "2025-02-28", "2025-03-30"]),
        ("2024-02-28T00:00", "day", ["2024-02-28", "2024-02-29", "2024-03-01"]),
        ("2024-12-30T00:00", "week", ["2024-12-30", "2025-01-06"]),
    ],
)
def test_known_boundaries(anchor: str, interval: str, expected: list[str]) -> None:
    start = at(anchor)
    found = [boundary(start, interval, number) for number in range(len(expected))]  # type: ignore[arg-type]
    assert [f"{each:%Y-%m-%d}" for each in found] == expected
    assert {each.time() for each in found} == {start.time()}


@settings(max_examples=60, deadline=None)
@given(ANCHORS, KINDS, NUMBERS)
def test_boundaries_rise_and_never_drift(anchor: datetime, interval, number: int) -> None:
    found = [boundary(anchor, interval, each) for each in range(number, number + 14)]
    assert all(before < after for before, after in pairwise(found))
    assert boundary(anchor, interval, 0) == anchor
    if interval in ("month", "year"):
        for each in found:
            assert each.day == min(anchor.day, calendar.monthrange(each.year, each.month)[1])
    else:
        assert {after - before for before, after in pairwise(found)} == {timedelta(days=7 if interval == "week" else 1)}


@settings(max_examples=60, deadline=None)
@given(ANCHORS, KINDS, ANCHORS)
def test_every_moment_lies_in_one_cycle(anchor: datetime, interval, moment: datetime) -> None:
    number = cycle_at(anchor, interval, moment)
    assert boundary(anchor, interval, number) <= moment < boundary(anchor, interval, number + 1)


def test_the_zone_of_the_anchor_does_not_matter() -> None:
    """In Auckland it is the 1st already: the day of the month is that of UTC, and clocks that change change nothing."""
    local = datetime(2025, 5, 1, 9, 0, tzinfo=timezone(timedelta(hours=13)))
    assert boundary(local, "month", 1) == at("2025-05-30T20:00")
