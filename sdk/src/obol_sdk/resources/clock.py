"""The test clock."""

from __future__ import annotations

from datetime import datetime

from obol_sdk import models
from obol_sdk.call import Call, Resource, World, call, get, moment, present


class Clock(Resource[World]):
    """The clock of a test-mode merchant, by which its cycles turn. It goes forward only."""

    @call
    def retrieve(self) -> Call[models.ClockReading]:
        return get("test_clock", models.ClockReading)

    @call
    def advance(self, *, to: datetime | str | None = None, seconds: int | None = None) -> Call[models.ClockReading]:
        """To a moment, or by so many seconds. Cycles that end by then are turned until `status` is `ready`."""
        fields = present(now=None if to is None else moment(to), advance_seconds=seconds)
        return Call("POST", "test_clock", models.ClockReading, body=fields)
