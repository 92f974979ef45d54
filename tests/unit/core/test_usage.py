"""The canonical usage: a zero is a report, None is none."""

from __future__ import annotations

import msgspec

from gateway.core.usage import ZERO, ExtraUsage, Usage


def test_nothing_reported_is_not_zero() -> None:
    assert Usage() == ZERO
    assert Usage(input_tokens=0) != Usage()
    assert Usage().total_tokens == 0
    assert Usage(input_tokens=3, output_tokens=4, cached_input_tokens=2, reasoning_tokens=1).total_tokens == 7


def test_usage_survives_storage_with_the_difference_between_zero_and_none() -> None:
    usage = Usage(
        input_tokens=0,
        cached_input_tokens=None,
        output_tokens=5,
        extra=(ExtraUsage(kind="advisor_message", model="claude-opus-4-8", input_tokens=3),),
    )
    stored = msgspec.json.encode(usage)
    assert b"cached_input_tokens" not in stored
    assert b'"input_tokens":0' in stored
    assert msgspec.json.decode(stored, type=Usage) == usage
