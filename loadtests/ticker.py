"""Regular wake-ups. The timers of uvloop and asyncio round to a millisecond, which would add half of one to every
latency of an open loop; Linux's timerfd does not."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK = os.O_NONBLOCK
_NS_PER_S = 1_000_000_000


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class Ticker:
    """Calls `callback` about every `interval_ns` until closed. A late wake-up makes one call, not many."""

    def __init__(self, interval_ns: int, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._interval_ns = interval_ns
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None
        self._fd = _timerfd()
        self.started_ns = time.perf_counter_ns()
        """The phase: wake-ups are due at this reading of the clock plus multiples of the interval."""
        if self._fd is None:
            self._again()
        else:
            _arm(self._fd, interval_ns)
            self._loop.add_reader(self._fd, self._readable, self._fd)

    def _readable(self, fd: int) -> None:
        try:
            os.read(fd, 8)
        except BlockingIOError:
            return
        self._callback()

    def _again(self) -> None:
        self._handle = self._loop.call_later(self._interval_ns / _NS_PER_S, self._again)
        self._callback()

    def close(self) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None
        if self._handle is not None:
            self._handle.cancel()


def _timerfd() -> int | None:
    """A timerfd, or None where the system has none."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "timerfd_create"):
        return None
    fd = int(library.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK))
    return fd if fd >= 0 else None


def _arm(fd: int, interval_ns: int) -> None:
    seconds, rest = divmod(interval_ns, _NS_PER_S)
    spec = _Itimerspec(seconds, rest, seconds, rest)
    status = ctypes.CDLL(None).timerfd_settime(fd, 0, ctypes.byref(spec), None)
    assert status == 0, "an interval between 1 ns and an hour is valid"
