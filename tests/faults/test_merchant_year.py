"""A merchant's year on the test clock: 1,000 customers on mixed plans, with real workers, one of which is killed.

At every month's end all of `obol audit` agrees, and each wallet holds what a book kept beside it says: the sum of all
pots is that of all grants and of the credit of turns, less what expired and what was charged.
"""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from merchant_year import Year
from processes import process_environment
from subscribers import CAP_NANO, MERCHANT, Shop, shop
from worker_support import SHARDS

from gateway.testing import FakeProvider

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(600)]

CUSTOMERS = 1_000
MONTHS = 12
STEPS_A_MONTH = (15, 16)
KILLED_IN_MONTH = 5
READY_WITHIN_S = 120


class Workers:
    """`obol worker` processes on a test's engines."""

    def __init__(self, command: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        self._command, self._environment, self._log = command, environment, log
        self.process: Process

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._command, env=self._environment, stdout=log, stderr=log
            )

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def working(valkey: str, postgres: str, directory: Path) -> AsyncIterator[Workers]:
    async with FakeProvider() as provider:
        environment = process_environment(
            valkey, postgres, provider, directory, ledger_shards=SHARDS, overage_cap_nano=CAP_NANO
        )
        workers = Workers((sys.executable, "-m", "gateway", "worker"), environment, directory / "worker.log")
        await workers.start()
        try:
            yield workers
        finally:
            await workers.kill()


async def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for an awaitable condition."""
    deadline_s = time.monotonic() + READY_WITHIN_S
    while not await condition():
        assert time.monotonic() < deadline_s, f"not within {READY_WITHIN_S} s: {what}"
        await asyncio.sleep(0.05)


async def killed_while_turning(market: Shop, workers: Workers) -> None:
    """Kill the worker once it has turned a part of what is due, and start another."""
    due = (await market.clocks.read(MERCHANT)).turns_due

    async def partly() -> bool:
        return (await market.clocks.read(MERCHANT)).turns_due != due

    await until(partly, "the worker turns something")
    await workers.kill()
    left = (await market.clocks.read(MERCHANT)).turns_due
    assert left, "nothing was left to turn or to record: the kill came too late"
    await workers.start()


async def test_a_year_with_a_thousand_customers(
    valkey: str, redis_client: Any, postgres: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    began_s = time.monotonic()
    async with shop(valkey, postgres) as market, working(valkey, postgres, tmp_path) as workers:
        month = 0
        killed = False

        async def ready() -> bool:
            return (await market.clocks.read(MERCHANT)).status == "ready"

        async def turned() -> None:
            nonlocal killed
            if month == KILLED_IN_MONTH and not killed:
                killed = True
                await killed_while_turning(market, workers)
            await until(ready, "every cycle is turned and recorded")

        year = Year(market, 5, turned)
        await year.begin(CUSTOMERS)
        for month in range(1, MONTHS + 1):
            for days in STEPS_A_MONTH:
                await year.step(days)
                print(f"{time.monotonic() - began_s:6.1f} s  month {month}  {year.turns} turns")
            await year.check_sums()
            assert await market.audit(recompute=month == MONTHS) == "", f"month {month}"
        assert killed and min(year.changes[kind] for kind in ("upgrade", "downgrade", "cancel", "bundle")) > 50
    record_property("scenario", f"a year of {CUSTOMERS} customers")
    record_property("calls", year.changes["use"])
    record_property("rows", year.turns)
    record_property("took s", round(time.monotonic() - began_s))
    print(f"\n{year.turns} turns, {year.changes}, {time.monotonic() - began_s:.0f} s")
