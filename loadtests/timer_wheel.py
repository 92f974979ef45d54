"""Many periodic deadlines on one timer: the streams of the fake provider share it, so that 1,000 of them at 5 ms cost
one wake-up a millisecond."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TICK_S = 0.001


class TimerWheel:
    """Calls due callbacks in ticks of 1 ms. Runs only while something is due."""

    def __init__(self) -> None:
        self._slots: dict[int, list[Callable[[], None]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tick = 0

    def after(self, delay_ms: int, callback: Callable[[], None]) -> None:
        """Call `callback` once, `delay_ms` >= 1 from now."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._tick = round(loop.time() / TICK_S)
            self._timer = loop.call_at((self._tick + 1) * TICK_S, self._turn)
        self._slots.setdefault(self._tick + max(1, delay_ms), []).append(callback)

    def _turn(self) -> None:
        """Run every tick that has passed. What a callback asks for counts from its own tick: paces do not drift."""
        loop = asyncio.get_running_loop()
        now = int(loop.time() / TICK_S)
        while self._tick < now and self._slots:
            self._tick += 1
            for callback in self._slots.pop(self._tick, ()):
                callback()
        self._tick = max(self._tick, now)
        self._timer = loop.call_at((self._tick + 1) * TICK_S, self._turn) if self._slots else None
