"""`obol serve` that writes down how long its event loop was held up: `measured_serve.py PAUSES_FILE serve ...`.

A line for each pause of a millisecond or more: the time of day in seconds, and the processor time, in milliseconds,
that the loop's thread took between two looks that should have been a millisecond apart. Processor time, because on a
busy machine a process waits for reasons that are not its own.
"""

from __future__ import annotations

import asyncio
import sys
import time
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import gateway.app
from gateway.__main__ import main

TICK_S = 0.001
NOTED_MS = 1.0


async def watch(pauses: TextIOWrapper) -> None:
    """For ever."""
    last = time.thread_time()
    while True:
        await asyncio.sleep(TICK_S)
        now = time.thread_time()
        pause_ms = (now - last) * 1_000
        if pause_ms >= NOTED_MS:
            pauses.write(f"{time.time():.6f} {pause_ms:.3f}\n")
            pauses.flush()
        last = time.thread_time()


def watched(serve: Any, pauses: TextIOWrapper) -> Any:
    async def serving(*arguments: Any, **named: Any) -> None:
        watching = asyncio.create_task(watch(pauses))
        try:
            await serve(*arguments, **named)
        finally:
            watching.cancel()

    return serving


if __name__ == "__main__":
    with Path(sys.argv[1]).open("a", encoding="utf-8") as file:
        gateway.app._serve = watched(gateway.app._serve, file)
        sys.exit(main(sys.argv[2:]))
