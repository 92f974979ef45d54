"""What the scripts are told of a spend key: its limits, and of which cycles the moment is. Amounts are nano-dollars.

Days, weeks (from Monday) and months are UTC's, in the merchant's time. They are numbers that count from 1970.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Literal, NamedTuple

import msgspec

from gateway.ledger.connection import Argument

Cycle = Literal["daily", "weekly", "monthly", "total"]
SPANS: dict[Cycle, str] = {"daily": "d", "weekly": "w", "monthly": "m", "total": "t"}
"""Names of the cycles in lua/includes/spend.lua."""
DAY_MS = 86_400_000
_MONDAY = 3
"""1970 began on a Thursday."""


class Limit(msgspec.Struct, frozen=True):
    """So much in each cycle: nano-dollars, or requests."""

    most: int
    cycle: Cycle


class SpendKey(msgspec.Struct, frozen=True, kw_only=True):
    """A spend key as the scripts need it."""

    spend_key_id: str
    spend_limit: Limit | None = None
    request_limit: Limit | None = None
    requests_per_minute: int = 0
    requests_burst: int = 1
    by_cost: bool = False
    """It spends what a call cost, for its wallet is not charged; else what is debited."""
    clock_offset_us: int = 0
    """How far the merchant's time is ahead."""

    def cycles(self, at_ms: int) -> str:
        """Numbers of the day, week and month of a moment, as the scripts take them."""
        return cycles(self.day(at_ms))

    def day(self, at_ms: int) -> int:
        """The day of a moment of this computer's clock, by the merchant's."""
        return (at_ms + self.clock_offset_us // 1_000) // DAY_MS

    def hold_arguments(self, at_ms: int, *, again: bool) -> Sequence[Argument]:
        """ARGV 8 to 17 of lua/hold.lua. A call that is held `again` was counted before."""
        requests = None if again else self.request_limit
        return (
            self.spend_key_id,
            self.cycles(at_ms),
            *_limit(self.spend_limit),
            *_limit(requests),
            0 if again else self.requests_per_minute,
            self.requests_burst,
            "0" if self.by_cost else "",
            "1" if again else "",
        )

    def extend_arguments(self, at_ms: int, cost_nano: int) -> Sequence[Argument]:
        """ARGV 8 to 11 of lua/extend.lua. `cost_nano`: of the call so far."""
        return *_limit(self.spend_limit), self.cycles(at_ms), cost_nano if self.by_cost else ""

    def settle_arguments(self, at_ms: int, cost_nano: int) -> Sequence[Argument]:
        """ARGV 11 to 13 of lua/settle.lua."""
        return self.spend_key_id, self.cycles(at_ms), cost_nano if self.by_cost else ""


class Spent(NamedTuple):
    """Nano-dollars, and the requests that ended."""

    nano: int = 0
    requests: int = 0


class Counters(msgspec.Struct, frozen=True):
    """What a spend key has spent, at one moment. `held_nano` and `calls` are open holds'."""

    spent: Mapping[Cycle, Spent]
    held_nano: int = 0
    calls: int = 0
    used_ms: int = 0
    """When a call was last made with it, in ms since 1970; 0 for never."""


COUNTER_FIELDS = ("open", "d", "sd", "nd", "w", "sw", "nw", "m", "sm", "nm", "t", "st", "nt", "held", "calls", "used")


def counters(reply: Sequence[bytes | None], now: str) -> Counters | None:
    """Of the hash's COUNTER_FIELDS, in the cycles `now`; None where they are not open."""
    if reply[0] is None:
        return None
    numbers = [int(each or 0) for each in reply[1:]]
    asked = [*map(int, now.split()), 0]
    spent = {
        cycle: Spent() if asked[at] > numbers[3 * at] else Spent(numbers[3 * at + 1], numbers[3 * at + 2])
        for at, cycle in enumerate(SPANS)
    }
    return Counters(spent, *numbers[12:])


def cycles(day: int) -> str:
    """The numbers of a day, its week and its month: "d w m"."""
    at = date.fromordinal(_EPOCH + day)
    return f"{day} {(day + _MONDAY) // 7} {at.year * 12 + at.month}"


def first_days(day: int) -> tuple[int, int, int]:
    """The first days of a day's cycles: itself, its Monday, the first of its month."""
    return day, day - (day + _MONDAY) % 7, day - date.fromordinal(_EPOCH + day).day + 1


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC).toordinal()


def _limit(limit: Limit | None) -> tuple[Argument, Argument]:
    return ("", "t") if limit is None else (limit.most, SPANS[limit.cycle])
