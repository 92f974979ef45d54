"""One client process: `python -m loadtests.client` reads a Plan on stdin and writes a Window a second, both as JSON."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop

from loadtests.load import Load
from loadtests.plan import Plan
from loadtests.tally import Window


def main() -> int:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    encoder = msgspec.json.Encoder()

    def emit(window: Window) -> None:
        sys.stdout.buffer.write(encoder.encode(window) + b"\n")
        sys.stdout.buffer.flush()

    async def run() -> None:
        await Load(plan, emit).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
