from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.histogram import SUB_BUCKETS, Histogram, bucket_of, bucket_top

DURATIONS = st.lists(st.integers(0, 10**13), min_size=1, max_size=300)


def histogram(values: list[int]) -> Histogram:
    result = Histogram()
    for value in values:
        result.record(value)
    return result


def exact(values: list[int], percent: float) -> int:
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


@given(DURATIONS, st.sampled_from([0.1, 1, 25, 50, 90, 99, 99.9, 100]))
def test_a_percentile_is_the_sorted_lists_within_one_bucket(values: list[int], percent: float) -> None:
    found, expected = histogram(values).percentile(percent), exact(values, percent)
    assert expected <= found <= expected * (1 + 1 / SUB_BUCKETS) + 1


@given(st.integers(0, 10**15))
def test_a_value_lies_in_its_bucket_and_above_the_one_before(value: int) -> None:
    index = bucket_of(value)
    assert value <= bucket_top(index)
    assert index == 0 or bucket_top(index - 1) < value


@given(DURATIONS, DURATIONS)
def test_merging_equals_recording_together(left: list[int], right: list[int]) -> None:
    merged = histogram(left)
    merged.merge(histogram(right))
    assert merged == histogram(left + right)


def test_it_survives_json_between_processes() -> None:
    sent = histogram([1, 300, 10**9])
    assert msgspec.json.decode(msgspec.json.encode(sent), type=Histogram) == sent


def test_an_empty_one_answers_zero_and_merging_it_changes_nothing() -> None:
    values = histogram([5])
    values.merge(Histogram())
    assert (Histogram().percentile(99), Histogram().mean) == (0, 0.0)
    assert (values.smallest, values.largest, values.total) == (5, 5, 1)


@pytest.mark.parametrize(
    ("values", "interval", "total", "median"),
    [([10, 10, 10], 10, 3, 10), ([100], 10, 10, 50), ([100], 0, 1, 100)],
)
def test_the_correction_adds_what_a_stalled_caller_did_not_ask(
    values: list[int], interval: int, total: int, median: int
) -> None:
    corrected = histogram(values).corrected(interval)
    assert (corrected.total, corrected.percentile(50)) == (total, median)
