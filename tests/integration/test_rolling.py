"""Check 18: `obol up` replaces all its processes, or stops, under load: no call is cut, refused, lost or unsettled."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio
from running import RunningGateway, running_gateway
from supervised import Supervised, Traffic, obol_up, obol_up_alone

from gateway import share
from gateway.testing import FakeProvider

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]


async def settled(local: RunningGateway, up: Supervised, traffic: Traffic, customer) -> None:
    """Every call has its row and nothing else is there; nothing is reserved; the ledgers agree."""
    assert traffic.failures == []
    rows = await local.rows()
    assert len(rows) == traffic.calls == local.provider.request_count
    assert {row["ending"] for row in rows} == {"completed"}
    balance = await local.balance(customer)
    assert balance.held_nano == 0
    assert balance.cycle_nano == 1000 * 10**9 - sum(row["charge_nano"] for row in rows)
    code, words = await up.audit()
    assert code == 0, words


async def counted(up: Supervised, traffic: Traffic) -> None:
    """What the replaced processes counted is not lost, and they leave neither gauges nor files behind."""
    await asyncio.sleep(0.6)  # a gateway writes its counts twice a second
    assert await up.metric("obol_requests_total") == traffic.calls
    assert await up.metric("obol_calls_active") == 0
    assert await up.metric("obol_draining") == 0
    now = up.state
    assert pids_of_metrics(up) <= {*now["workers"], now["worker_pid"]}


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids_of_metrics(up: Supervised) -> set[int]:
    names = [path.name for path in (up.data_dir / "metrics").glob("*.db")]
    return {int(found[1]) for name in names if (found := re.search(r"_(\d+)\.db$", name))}


def drains(up: Supervised) -> list[tuple[int, int, int]]:
    """Of every gateway that was told to stop and has ended: requests under way then, cut, unsettled."""
    lines = [line for log in up.data_dir.glob("logs/gateway-*.log") for line in log.read_text().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    begun = [event["requests"] for event in events if event["event"] == "draining"]
    ended = [(event["cut"], event["unsettled"]) for event in events if event["event"] == "drained"]
    return [(requests, *end) for requests, end in zip(begun, ended, strict=True)]


async def test_a_roll_and_a_stop_under_load_fail_no_call(valkey, redis_client, postgres, tmp_path):
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider) as local,
        obol_up(valkey, postgres, provider, tmp_path, shutdown_idle_grace_s=2, roll_wait_s=1) as up,
    ):
        customer = await local.customer(1000 * 10**9)
        traffic = Traffic(up.url, local.token_for(customer), seed=18)
        traffic.begin(streams=4, chunks=30, chunk_delay_ms=300, spread_s=0, kept=4, fresh=1)
        await up.until(lambda: traffic.streams_open == 4, 30)
        first = up.state
        rolling = asyncio.create_task(up.roll())
        while not rolling.done():  # about forty are open whenever a gateway has to stop, however long that takes
            traffic.begin(streams=4, chunks=15, chunk_delay_ms=300, spread_s=0.5, kept=0, fresh=0)
            await asyncio.wait([rolling], timeout=0.5)
        await rolling
        second = up.state
        assert not {*first["workers"], first["worker_pid"]} & {*second["workers"], second["worker_pid"]}
        assert set(second["draining"]) <= {*first["workers"], first["worker_pid"]}
        await traffic.end()
        await up.until(lambda: not any(map(lives, first["workers"])), 30)
        await up.until(lambda: up.state["draining"] == [], 5)
        await settled(local, up, traffic, customer)
        under_way = sum(requests for requests, _, _ in drains(up))
        assert under_way >= 5, "no stream was open when its gateway had to stop"  # the more, the quicker the machine
        assert await up.metric("obol_drain_requests_total") >= under_way
        await counted(up, traffic)

        # A stop drains, settles, and flushes the journals before PostgreSQL goes.
        traffic.begin(streams=10, chunks=5, chunk_delay_ms=200, spread_s=0, kept=0, fresh=0)
        await up.until(lambda: traffic.streams_open == 10, 10)
        assert await up.stop() == 0
        await traffic.end()
        assert traffic.failures == []
        assert [end[1:] for end in drains(up)] == [(0, 0)] * 4
        async with redis.asyncio.Redis.from_url(valkey) as client:
            journals = [name async for name in client.scan_iter("obol:{*}:journal")]
            assert journals
            assert {await client.xlen(name) for name in journals} == {0}
        async with local.context.store.connection() as db:
            assert await db.fetchval("SELECT count(*) FROM requests") == traffic.calls


async def test_a_successor_that_does_not_start_leaves_the_old_one_in_place(valkey, redis_client, postgres, tmp_path):
    config = tmp_path / "obol.toml"
    shutil.copy(share.directory("config") / "obol.toml", config)
    good = config.read_text()
    async with FakeProvider() as provider, obol_up(valkey, postgres, provider, tmp_path, config=config) as up:
        before = up.state
        config.write_text("no_such_setting = 1\n" + good)
        up.process.send_signal(signal.SIGHUP)
        await up.until(lambda: "the roll stops here" in up.said, 30)
        assert "no_such_setting" in up.said
        after = up.state
        assert (after["workers"], after["worker_pid"]) == (before["workers"], before["worker_pid"])
        assert after["draining"] == []
        assert await up.metric("obol_ledger_up") == 1
        config.write_text(good)
        await up.roll()
        assert not {*before["workers"], before["worker_pid"]} & {*up.state["workers"], up.state["worker_pid"]}
        assert await up.stop() == 0


@pytest.mark.timeout(300)
async def test_two_rolls_under_500_long_streams_fail_no_call(valkey, redis_client, postgres, tmp_path):
    async with (
        FakeProvider() as provider,
        running_gateway(valkey, postgres, provider) as local,
        obol_up(valkey, postgres, provider, tmp_path, shutdown_idle_grace_s=3, roll_wait_s=1) as up,
    ):
        customer = await local.customer(1000 * 10**9)
        traffic = Traffic(up.url, local.token_for(customer), seed=500)
        traffic.begin(streams=500, chunks=40, chunk_delay_ms=1000, spread_s=8, kept=20, fresh=2)
        await up.until(lambda: traffic.streams_open >= 450, 60)
        first = up.state
        await up.roll()
        assert traffic.streams_open > 0
        await up.roll()
        second = up.state
        assert not {*first["workers"], first["worker_pid"]} & {*second["workers"], second["worker_pid"]}
        await traffic.end()
        await up.until(lambda: up.state["draining"] == [], 60)
        await settled(local, up, traffic, customer)
        assert sum(requests for requests, _, _ in drains(up)) >= 450
        assert {end[1:] for end in drains(up)} == {(0, 0)}
        await counted(up, traffic)
        assert await up.stop() == 0


@pytest.fixture
def passable() -> Iterator[Path]:
    """A directory that the user `nobody` may pass through."""
    directory = Path(tempfile.mkdtemp(prefix="obol-test-", dir="/var/tmp"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


async def test_killing_obol_up_under_load_leaves_the_data_whole(passable):
    settings = {"hold_ttl_s": 5, "shutdown_drain_s": 20}
    async with obol_up_alone(passable, **settings) as up:
        credential = json.loads((up.data_dir / "demo.json").read_text())["forward_token"]
        traffic = Traffic(up.url, credential, seed=9)
        traffic.begin(streams=40, chunks=20, chunk_delay_ms=300, spread_s=8, kept=4, fresh=1)
        await up.until(lambda: len(traffic.answered) > 100 and traffic.streams_open > 10, 30)
        state = up.state
        children = [*state["workers"], *(state[name] for name in state if name.endswith("_pid") and state[name])]
        up.process.kill()
        await up.process.wait()
        await traffic.end()
        assert traffic.failures, "nothing was under way"
    async with obol_up_alone(passable, **settings) as up:  # whoever still drains, settles with the new engines
        async with asyncio.timeout(60):
            while (
                any(map(lives, children))
                or await up.metric("obol_holds_open")
                or await up.metric("obol_journal_entries")
            ):
                await asyncio.sleep(0.2)
        code, words = await up.audit()
        assert code == 0, words
        postgres = await asyncpg.connect(up.state["postgres_url"])
        rows = await postgres.fetch("SELECT request_id, ending FROM requests")
        await postgres.close()
        endings = {row["request_id"]: row["ending"] for row in rows}
        assert len(endings) == len(rows)
        assert set(traffic.answered) <= endings.keys(), "a call was answered and is not on record"
        assert len(rows) <= traffic.calls
        assert await up.stop() == 0
