"""Check 6: PostgreSQL is down for a while under load; when it is back, the flusher is killed at each of its steps."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from installation import Installation, installation, until_postgres_answers
from load import Load
from verdict import judge

from gateway.failpoints import OF_WORKER

OUTAGE_S = int(os.environ.get("OBOL_FAULTS_OUTAGE_S", "20"))
FIRE_TIMEOUT_S = 15

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(OUTAGE_S + 180)]


@contextmanager
def unattended(pid: int) -> Iterator[None]:
    """The supervisor does nothing meanwhile: who dies stays dead."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def entries(made: Installation) -> tuple[int, int]:
    """How many entries the journals have had, and how many the ledger has."""
    counters = await asyncio.gather(*(made.redis.get(made.keys.journal_counter(shard)) for shard in made.shards))
    (recorded,) = await made.fetch("SELECT count(*) AS entries FROM ledger_entries")
    return sum(int(counter or 0) for counter in counters), recorded["entries"]


async def waiting(made: Installation) -> int:
    return sum(await asyncio.gather(*(made.redis.xlen(made.keys.journal(shard)) for shard in made.shards)))


async def test_nothing_is_lost_or_recorded_twice(seed: int, record_property: Callable[[str, object], None]) -> None:
    began_s, name = time.monotonic(), "outage"
    async with installation() as made:
        load = Load(made, name, random.Random(f"{seed} {name}"))
        await load.begin()
        await asyncio.sleep(2)
        killed_pid = made.up.state["postgres_pid"]
        with unattended(made.up.process.pid):
            os.kill(killed_pid, signal.SIGKILL)
            answered = await _answers_during(load, OUTAGE_S)
            backlog, in_flight = await waiting(made), load.in_flight
        back_at_s = time.time()
        recovered_at_s = await made.recovered({killed_pid})
        for step in OF_WORKER:
            made.arm(f"{step}:1:worker")
            async with asyncio.timeout(FIRE_TIMEOUT_S):
                while (fired := made.fired()) is None:
                    await asyncio.sleep(0.01)
            await made.recovered({fired["pid"]})
        await load.end()
        await until_postgres_answers(made)
        await made.calm()
        verdict = await judge(made, load, f"{name}-")
        journalled, recorded = await entries(made)
        for column, value in {
            "scenario": f"PostgreSQL {OUTAGE_S} s away",
            "in flight": in_flight,
            "calls": verdict.calls,
            "refused": verdict.refused,
            "rows": verdict.rows,
            "expired": verdict.expired,
            "reports": verdict.reports,
            "recovered in s": f"{recovered_at_s - back_at_s:.1f}",
            "took s": f"{time.monotonic() - began_s:.1f}",
        }.items():
            record_property(column, value)
        assert not verdict.wrong, "\n".join([f"--seed {seed}", *verdict.wrong[:20], str(load.outcomes)])
        assert journalled == recorded
        assert answered > 20 * OUTAGE_S, "traffic did not go on without PostgreSQL"
        assert backlog > answered // 2, "nothing waited for PostgreSQL"


async def _answers_during(load: Load, duration_s: float) -> int:
    """Gateway calls answered whole within it."""
    since_s = time.time()
    await asyncio.sleep(duration_s)
    attempts = (attempt for call in load.calls if call.kind != "report" for attempt in call.attempts)
    return sum(attempt.status == 200 and attempt.ended_at_s >= since_s for attempt in attempts)
