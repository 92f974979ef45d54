"""The range of a usage report and its days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.usage_range import UsageRange, read_range
from gateway.errors import ObolError

NOW = datetime(2026, 3, 5, 12, 30, 15, 123_456, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("2026-03-01", "", UsageRange(at("2026-03-01T00:00Z"), at("2026-03-05T12:30:15.124Z"), 0)),
        ("2026-03-01", "2026-03-01", UsageRange(at("2026-03-01T00:00Z"), at("2026-03-02T00:00Z"), 0)),
        (
            "2026-03-01T00:00:00+02:00",
            "2026-03-02",
            UsageRange(at("2026-02-28T22:00Z"), at("2026-03-02T22:00Z"), 120),
        ),
        (
            "2026-03-01T00:00:00 05:30",
            "2026-03-01 10:00",
            UsageRange(at("2026-02-28T18:30Z"), at("2026-03-01T04:30:00.001Z"), 330),
        ),
        (
            "2026-03-01T00:00:00.000Z",
            "2026-03-01T23:59:59.999Z",
            UsageRange(at("2026-03-01T00:00Z"), at("2026-03-02T00:00Z"), 0),
        ),
        (
            "2026-03-01T10:00:00-0700",
            "2026-03-01T18:00:00Z",
            UsageRange(at("2026-03-01T17:00Z"), at("2026-03-01T18:00:00.001Z"), -420),
        ),
    ],
)
def test_ranges(start: str, end: str, expected: UsageRange) -> None:
    assert read_range(start, end, NOW) == expected


@pytest.mark.parametrize(
    ("start", "end", "param"),
    [
        ("", "", "start"),
        ("yesterday", "", "start"),
        ("2026-02-30", "", "start"),
        ("20260201", "", "start"),
        ("0001-01-01T00:00:00+14:00", "", "start"),
        ("2026-01-01T00:00:00+23:00", "", "start"),
        ("2026-01-01T00:00:00+99:99", "", "start"),
        ("2026-01-01T25:00", "", "start"),
        ("2026-01-02", "2026-01-01", "end"),
        ("2026-03-06", "", "start"),  # in the future
        ("2026-01-01", "9999-12-31", "end"),
        ("2024-01-01", "2025-01-01", "end"),
        ("2026-01-01", "tomorrow", "end"),
    ],
)
def test_a_bad_moment_is_named(start: str, end: str, param: str) -> None:
    with pytest.raises(ObolError) as refused:
        read_range(start, end, NOW)
    assert (refused.value.status, refused.value.param) == (400, param)


@given(st.text(max_size=40), st.text(max_size=40))
def test_whatever_is_sent_is_read_or_refused(start: str, end: str) -> None:
    try:
        list(read_range(start, end, NOW).days())
    except ObolError as error:
        assert error.status == 400


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(2990, 1, 1)),
    st.integers(1, 366 * 86_400_000),
    st.integers(-14 * 60, 14 * 60),
)
def test_the_days_cover_the_range_without_gap_or_overlap(first: datetime, length_ms: int, offset_minutes: int) -> None:
    start = first.replace(tzinfo=UTC, microsecond=0)
    asked = UsageRange(start, start + timedelta(milliseconds=length_ms), offset_minutes)
    parts = [asked.of_day(day) for day in asked.days()]
    assert parts[0][0] == asked.start
    assert parts[-1][1] == asked.stop
    assert all(before[1] == after[0] for before, after in pairwise(parts))
    assert all(begin < stop for begin, stop in parts)
