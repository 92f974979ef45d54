"""A histogram of durations in log buckets of integers, as HdrHistogram does it: bounded error, cheap, mergeable.

128 buckets a power of two: a value is known to 1 part in 128 (0.8 %). Values are nanoseconds.
"""

from __future__ import annotations

import math

import msgspec

SUB_BUCKET_BITS = 7
SUB_BUCKETS = 1 << SUB_BUCKET_BITS
CORRECTION_STEPS_MAX = 100_000
"""The most values that one stall adds in `corrected`: bounds the work, not a figure anybody meets."""


def bucket_of(value: int) -> int:
    """The bucket's index for `value` >= 0. Below 256 each value has a bucket of its own."""
    shift = value.bit_length() - SUB_BUCKET_BITS - 1
    if shift <= 0:
        return value
    return (shift << SUB_BUCKET_BITS) + (value >> shift)


def bucket_top(index: int) -> int:
    """The largest value in the bucket `index`."""
    if index < 2 * SUB_BUCKETS:
        return index
    shift = (index >> SUB_BUCKET_BITS) - 1
    return ((index - (shift << SUB_BUCKET_BITS) + 1) << shift) - 1


class Histogram(msgspec.Struct):
    """Counts by bucket, with the exact smallest, largest and sum."""

    counts: dict[int, int] = {}
    total: int = 0
    sum: int = 0
    smallest: int = 0
    largest: int = 0

    def record(self, value: int, times: int = 1) -> None:
        """Add `value` (negative ones count as 0: a clock reading may precede its cause by nothing)."""
        value = max(value, 0)
        index = bucket_of(value)
        self.counts[index] = self.counts.get(index, 0) + times
        self.smallest = value if self.total == 0 else min(self.smallest, value)
        self.largest = max(self.largest, value)
        self.total += times
        self.sum += value * times

    def merge(self, other: Histogram) -> None:
        if other.total == 0:
            return
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count
        self.smallest = other.smallest if self.total == 0 else min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)
        self.total += other.total
        self.sum += other.sum

    def percentile(self, percent: float) -> int:
        """The value that `percent` of all values do not exceed, at most one bucket too high; 0 when empty."""
        if self.total == 0:
            return 0
        rank = max(1, math.ceil(self.total * percent / 100))
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= rank:
                return max(self.smallest, min(bucket_top(index), self.largest))
        return self.largest

    @property
    def mean(self) -> float:
        return self.sum / self.total if self.total else 0.0

    def corrected(self, interval: int) -> Histogram:
        """A copy as if each caller had kept sending every `interval`: v adds v - interval, v - 2 interval ...

        This is HdrHistogram's correction for coordinated omission, for callers that stopped asking while they waited.
        """
        result = Histogram(counts=dict(self.counts), total=self.total, sum=self.sum)
        result.smallest, result.largest = self.smallest, self.largest
        if interval <= 0:
            return result
        for index, count in self.counts.items():
            value = min(bucket_top(index), self.largest)
            steps = min((value - interval) // interval, CORRECTION_STEPS_MAX)
            for step in range(1, steps + 1):
                result.record(value - step * interval, count)
        return result
