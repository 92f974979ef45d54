"""Fail points: kill a process of an `obol up` at a named moment of a call. For tests of a whole installation; off
unless the setting `fail_point_file` names a file, which test mode alone allows.

The file holds one line such as `held:37:valkey`: the process that reaches the point `held` for the 37th time since the
file was written kills Valkey, at exactly that moment. Before it does, the file becomes `<file>.fired`, a JSON object
with the point, the victim, its pid and the time. Where there is no file, nothing is counted and nobody is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.errors import ConfigurationError

OF_GATEWAY = ("held", "dispatched", "first_byte", "mid_stream", "last_byte", "settling", "settled")
"""In the order of a call: its hold is there; its request is on the wire; the head of the answer came; a later piece
came; the last one did; the settle is on the wire; it was acknowledged."""
OF_WORKER = ("journalled", "recorded", "flushed_not_acknowledged", "trimmed")
"""In the order of a batch: read from the journal; recorded, not committed; committed, still in the journal; done."""
OF_CHARGE = ("charge_written", "processor_called", "processor_answered", "webhook_told", "credit_granted")
"""In the order of a charge: its row is there; the processor is about to be called; its answer came, not recorded; it is
recorded, with the grant and what the merchant is told; the wallet has the credit."""
POINTS = OF_GATEWAY + OF_WORKER + OF_CHARGE
VICTIMS = ("gateway", "worker", "valkey", "postgres")


@dataclass(frozen=True, slots=True)
class Order:
    """Kill `victim` when `point` is reached for the `nth` time."""

    point: str
    nth: int
    victim: str

    @classmethod
    def parse(cls, text: str) -> Order:
        """Read `point:nth:victim`. Raise ConfigurationError naming the part that is wrong."""
        point, _, rest = text.strip().partition(":")
        nth, _, victim = rest.partition(":")
        if point not in POINTS:
            raise ConfigurationError(f"a fail point is one of {', '.join(POINTS)}, not {point!r}")
        if not nth.isascii() or not nth.isdigit() or int(nth) < 1:
            raise ConfigurationError(f"the count of a fail point is a number of at least 1, not {nth!r}")
        if victim not in VICTIMS:
            raise ConfigurationError(f"the victim of a fail point is one of {', '.join(VICTIMS)}, not {victim!r}")
        return cls(point, int(nth), victim)


class FailPoints:
    """The fail points of this process. `reached` costs one look at the file system."""

    def __init__(self, path: Path, data_dir: Path) -> None:
        """`data_dir`: of the `obol up` whose processes may be killed."""
        self._path = path
        self._state_path = data_dir / "up.json"
        self._armed: tuple[str, int] = ("", 0)
        self._count = 0

    def reached(self, point: str) -> None:
        """This process is at `point`. Raise ConfigurationError where the file does not hold an order."""
        try:
            armed = (self._path.read_text(encoding="ascii"), self._path.stat().st_mtime_ns)
        except FileNotFoundError:
            return
        if armed != self._armed:
            self._armed, self._count = armed, 0
        order = Order.parse(armed[0])
        if order.point != point:
            return
        self._count += 1
        if self._count >= order.nth:
            self._carry_out(order)

    def soon(self, point: str) -> None:
        """The same in the loop's next turn: what was written in this one is on the wire then."""
        asyncio.get_running_loop().call_soon(self.reached, point)

    def in_the_middle_of(self, feed: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """`feed`, which takes the pieces of an answer: the second one and each that follows is `mid_stream`."""
        begun = False

        def fed(piece: bytes) -> bytes:
            nonlocal begun
            if begun:
                self.reached("mid_stream")
            begun = True
            return feed(piece)

        return fed

    def _carry_out(self, order: Order) -> None:
        pid = self._pid_of(order.victim)
        if pid is None:  # it is being started again: the next who comes here tries
            return
        fired = self._path.with_name(self._path.name + ".fired")
        try:
            self._path.rename(fired)
        except FileNotFoundError:  # another process was first
            return
        said = {"point": order.point, "victim": order.victim, "pid": pid, "by": os.getpid(), "at_s": time.time()}
        fired.write_text(json.dumps(said), encoding="ascii")
        os.kill(pid, signal.SIGKILL)

    def _pid_of(self, victim: str) -> int | None:
        """A gateway that reached the point is its own victim."""
        state: dict[str, Any] = json.loads(self._state_path.read_text(encoding="utf-8"))
        if victim == "gateway":
            pids: list[int] = state["workers"]
            return os.getpid() if os.getpid() in pids else next(iter(pids), None)
        pid: int | None = state[f"{victim}_pid"]
        return pid


def reaching(fail: FailPoints | None) -> Callable[[str], None]:
    """What is called at each point, also where there are none."""
    return fail.reached if fail is not None else _nothing


def _nothing(point: str) -> None:
    """No fail points."""


def of_settings(path: str, data_dir: str) -> FailPoints | None:
    """None where the setting `fail_point_file` is empty."""
    return FailPoints(Path(path), Path(data_dir)) if path else None
