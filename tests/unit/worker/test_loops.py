"""How the worker's loops behave when a round fails, and what the reaper reads out of a key."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import ConfigurationError
from gateway.ledger.connection import Connection
from gateway.ledger.keys import Keys
from gateway.ledger.wallets import Wallets
from gateway.settings import Settings
from gateway.worker import main, metrics
from gateway.worker.main import Loop
from gateway.worker.reaper import Reaper


async def test_a_failing_round_ends_neither_the_loop_nor_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "BACKOFF_MAX_S", 0.01)
    stop = asyncio.Event()
    rounds: list[int] = []

    async def tick() -> bool:
        rounds.append(1)
        if len(rounds) < 4:
            raise RuntimeError("no")
        stop.set()
        return False

    before = metrics.TICK_ERRORS.labels("failing")._value.get()
    await asyncio.wait_for(Loop("failing", tick, 0.001).run(stop), 5)
    assert len(rounds) == 4
    assert metrics.TICK_ERRORS.labels("failing")._value.get() == before + 3


async def test_full_batches_follow_each_other_without_a_pause() -> None:
    stop = asyncio.Event()
    rounds: list[int] = []

    async def tick() -> bool:
        rounds.append(1)
        if len(rounds) == 50:
            stop.set()
        return True

    await asyncio.wait_for(Loop("full", tick, 3_600).run(stop), 5)
    assert len(rounds) == 50


async def test_a_round_that_hangs_is_cancelled_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "STOP_ROUND_S", 0.01)
    stop = asyncio.Event()

    async def hang() -> bool:
        stop.set()
        await asyncio.Event().wait()
        return False

    await asyncio.wait_for(main._run_loops([Loop("hanging", hang, 1)], stop), 5)


def test_it_does_not_start_without_engines() -> None:
    with pytest.raises(ConfigurationError, match="OBOL_REDIS_URL"):
        main.run(Settings(), None)


@pytest.mark.parametrize("request_id", ["r1", "a:b::c", ":", "", "ключ {0}:h:"])
def test_the_owner_of_a_hold_is_read_from_its_key(request_id: str) -> None:
    keys = Keys("some:prefix")
    connection = Connection("redis://127.0.0.1:1/0")
    reaper = Reaper(connection, keys, Wallets(connection, keys, record_ttl_s=1, report_ttl_s=1), shards=4)
    assert reaper.owner_of(3, keys.hold(3, "mer_1", request_id)) == ("mer_1", request_id)
    for strange in ("", "x", keys.holds(3), keys.hold(2, "mer_1", "r1")):
        with pytest.raises(ValueError, match="no key of a hold"):
            reaper.owner_of(3, strange)
