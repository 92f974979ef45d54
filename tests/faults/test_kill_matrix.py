"""Whoever is killed, at whatever moment: nothing is lost, nothing is charged twice, and it recovers by itself."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from installation import Installation, installation, until_postgres_answers
from load import Load
from verdict import NEVER, judge

from gateway.failpoints import OF_GATEWAY, OF_WORKER, VICTIMS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120),
]

IN_FLIGHT_MIN = 50
WARM_S = 0.5
AFTER_S = 0.75
FIRE_TIMEOUT_S = 15
UNSETTLED_S = 0.5
POINTS = (*OF_GATEWAY, "journalled", "flushed_not_acknowledged")
BETWEEN = [(point, "worker") for point in OF_WORKER if point not in POINTS]
"""The flusher's other steps (check 6). The engines' deaths there are no different from those at its neighbours."""
TOGETHER = [
    ("settling", "gateway+valkey"),
    ("recorded", "valkey+postgres"),
    ("mid_stream", "valkey+worker+postgres+gateway+gateway"),
]
"""The first is killed at the point, the others at once after it."""
KILLS = [*((point, victim) for point in POINTS for victim in VICTIMS), *BETWEEN, *TOGETHER]


class Site:
    """The installation of the scenarios of a process: kept as long as they recover from what is done to it."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._installation: Installation | None = None

    async def get(self) -> Installation:
        if self._installation is None or self._installation.spoiled:
            await self._stack.aclose()
            self._installation = await self._stack.enter_async_context(installation())
        return self._installation


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        yield Site(stack)


def _nth(point: str, rng: random.Random) -> int:
    """Batches are few, and a gateway sees half of the calls."""
    return rng.randint(1, 4 if point in OF_WORKER else 20)


@pytest.mark.parametrize(("point", "victim"), KILLS, ids=["-".join(kill) for kill in KILLS])
async def test_kill(
    site: Site, point: str, victim: str, seed: int, record_property: Callable[[str, object], None]
) -> None:
    began_s, name = time.monotonic(), f"{point}-{victim}"
    rng = random.Random(f"{seed} {name}")
    made = await site.get()
    made.spoiled = True
    made.provider.clear()
    load = Load(made, name, rng)
    await load.begin()
    try:
        first, *others = victim.split("+")
        order = f"{point}:{_nth(point, rng)}:{first}"
        in_flight, killed_at_s, recovered_at_s = await _kill(made, load, order, others)
        await asyncio.sleep(AFTER_S)
        await load.end()
    except BaseException:
        await load.abandon()
        raise
    await until_postgres_answers(made)
    await made.calm()
    # Redis and a gateway at once: the settles that were on their way between them, of calls whose clients had the end.
    together = {"valkey", "gateway"} <= {first, *others}
    unsettled = (killed_at_s - UNSETTLED_S, killed_at_s + UNSETTLED_S) if together else NEVER
    verdict = await judge(made, load, f"{name}-", unsettled=unsettled)
    figures = {
        "scenario": name,
        "in flight": in_flight,
        "calls": verdict.calls,
        "refused": verdict.refused,
        "rows": verdict.rows,
        "expired": verdict.expired,
        "reports": verdict.reports,
        "recovered in s": f"{recovered_at_s - killed_at_s:.1f}",
        "took s": f"{time.monotonic() - began_s:.1f}",
    }
    for column, value in figures.items():
        record_property(column, value)
    assert not verdict.wrong, "\n".join([f"--seed {seed}", *verdict.wrong[:20], str(load.outcomes)])
    assert in_flight >= IN_FLIGHT_MIN
    assert not await made.overdue_holds()
    made.spoiled = False


async def _kill(made: Installation, load: Load, order: str, others: list[str]) -> tuple[int, float, float]:
    """Calls in flight at the kill, when that was, and when all ran again."""
    await asyncio.sleep(WARM_S)
    async with asyncio.timeout(FIRE_TIMEOUT_S):
        while load.in_flight < IN_FLIGHT_MIN:
            await asyncio.sleep(0.01)
        in_flight = load.in_flight
        made.arm(order)
        while (fired := made.fired()) is None:
            in_flight = load.in_flight
            await asyncio.sleep(0.005)
    killed = {fired["pid"], *made.kill(others, fired["pid"])}
    return in_flight, fired["at_s"], await made.recovered(killed)
