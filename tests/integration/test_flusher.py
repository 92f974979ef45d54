"""The flusher carries each journal entry to PostgreSQL exactly once in effect, whatever happens to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest
import pytest_asyncio
from worker_support import CREATED_US, SHARDS, USAGE, Installation, created_at, installation, stored_usage

from gateway.core.usage import Usage
from gateway.errors import ObolError
from gateway.ledger.journal import Entry, Journal
from gateway.ledger.row import encode
from gateway.ledger.wallets import Price, now_ms
from gateway.local.engines import running
from gateway.local.postgres import Postgres
from gateway.store import migrate, partitions
from gateway.store.postgres import Store
from gateway.worker import metrics

SETTLED_NANO = 2_500_000  # 1,250 tokens at 2 USD a million


@pytest_asyncio.fixture
async def obol(valkey: str, redis_client: Any, postgres: str) -> AsyncIterator[Installation]:
    async with installation(valkey, postgres) as made:
        yield made


def alarms(kind: str) -> float:
    return metrics.FLUSH_ALARMS.labels(kind)._value.get()


async def test_records_ledger_wallet_row_and_sums(obol: Installation) -> None:
    ref = await obol.wallet("wal_1")
    await obol.report(ref, "r:1", metadata={"feature": "chat"}, fingerprint="f" * 64, service_tier="flex")
    assert await obol.flush() == 2

    (row,) = await obol.fetch("SELECT * FROM requests")
    assert row["created_at"] == created_at()
    assert (row["charge_nano"], row["fee_nano"], row["cost_nano"]) == (SETTLED_NANO, SETTLED_NANO, 0)
    assert (row["wallet_id"], row["connection_id"], row["service_tier"]) == ("wal_1", "con_wal_1", "flex")
    assert row["usage"] == stored_usage(USAGE) and row["metadata"] == {"feature": "chat"}
    assert await obol.value("SELECT fingerprint FROM request_index WHERE request_id = 'r:1'") == "f" * 64
    (wallet,) = await obol.fetch("SELECT * FROM wallets")
    assert (wallet["last_seq"], wallet["prepaid_nano"]) == (2, 10**9 - SETTLED_NANO)
    (hour,) = await obol.fetch("SELECT * FROM usage_hourly")
    assert hour["hour"] == created_at().replace(minute=0, second=0, microsecond=0)
    assert (hour["requests"], hour["tokens"], hour["charge_nano"]) == (1, 1_250, SETTLED_NANO)
    assert await obol.value("SELECT last_id FROM journal_cursors WHERE shard = 1") == 2
    assert await obol.journal.read(1, 0, 10) == []
    assert await obol.flusher().lag_s() == 0


async def test_a_credit_confirms_its_grant(obol: Installation) -> None:
    ref = await obol.wallet("wal_1", credit_nano=0)
    await obol.execute(
        "INSERT INTO grants (grant_id, wallet_id, pot, amount_nano, reason) VALUES ('g1', 'wal_1', 'cycle', 7, 'test')"
    )
    await obol.wallets.credit(ref, "g1", "cycle", 7, at_ms=1_700_000_000_123)
    await obol.flush()
    applied_at = await obol.value("SELECT applied_at FROM grants WHERE grant_id = 'g1'")
    assert applied_at == datetime(2023, 11, 14, 22, 13, 20, 123_000, UTC)


class Crash(Exception):
    """Stands for a kill: nobody handles it."""


class CrashingStore(Store):
    """Fails when a statement is asked for, or at the commit."""

    crash_at = ""

    def sql(self, name: str) -> str:
        if name == self.crash_at:
            raise Crash(name)
        return super().sql(name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        async with super().transaction() as connection:
            yield connection
            if self.crash_at == "commit":
                raise Crash("commit")


class CrashingJournal(Journal):
    crash_at = ""

    async def read(self, shard: int, after: int, count: int) -> list[Entry]:
        entries = await super().read(shard, after, count)
        if self.crash_at == "read":
            raise Crash("read")
        return entries

    async def trim(self, shard: int, through: int) -> None:
        if self.crash_at == "trim":
            raise Crash("trim")
        await super().trim(shard, through)


STEPS = (
    "lock_cursor",
    "ledger",
    "wallets",
    "meters",
    "credits",
    "index",
    "take_requests",
    "requests",
    "hourly",
    "rejects",
)


@pytest.mark.parametrize("step", ["read", *(f"flush.{name}" for name in STEPS), "flush.move_cursor", "commit", "trim"])
async def test_a_crash_at_any_step_loses_and_repeats_nothing(obol: Installation, postgres: str, step: str) -> None:
    ref = await obol.wallet("wal_1")
    await obol.hold(ref, "late", expires_ms=now_ms() - 1)
    await obol.wallets.expire(ref, "late", now_ms())
    await obol.flush()
    await obol.wallets.credit(ref, "g2", "cycle", 5, at_ms=now_ms())
    await obol.report(ref, "r1")
    await obol.report_body(ref, "bad", b"{}")
    await obol.settle(ref, "late")

    crashing = await CrashingStore.connect(postgres)
    journal = CrashingJournal(obol.connection, obol.keys)
    crashing.crash_at = journal.crash_at = step
    with pytest.raises(Crash):
        await obol.flusher(store=crashing, journal=journal).flush_shard(1)
    await crashing.close()
    committed = step == "trim"
    assert await obol.value("SELECT count(*) FROM ledger_entries") == (6 if committed else 2)

    await obol.flush()
    await obol.flush()
    assert await obol.value("SELECT array_agg(seq ORDER BY seq) FROM ledger_entries") == [1, 2, 3, 4, 5, 6]
    assert await obol.value("SELECT count(*) FROM requests") == 2
    assert await obol.value("SELECT count(*) FROM flush_rejects") == 1
    assert await obol.value("SELECT sum(charge_nano) FROM usage_hourly") == 2 * SETTLED_NANO
    balance = (await obol.wallets.balances([ref]))[0]
    (wallet,) = await obol.fetch("SELECT cycle_nano, prepaid_nano, last_seq FROM wallets")
    assert wallet == {"cycle_nano": balance.cycle_nano, "prepaid_nano": balance.prepaid_nano, "last_seq": 6}
    assert await obol.journal.read(1, 0, 10) == []


@pytest.mark.parametrize("pause_s", [0.0, 0.002, 0.005, 0.01, 0.02])
async def test_a_cancelled_flush_is_repeated(obol: Installation, pause_s: float) -> None:
    ref = await obol.wallet("wal_1")
    for number in range(80):
        await obol.report(ref, f"r{number}")
    task = asyncio.create_task(obol.flusher().flush_once())
    await asyncio.sleep(pause_s)
    task.cancel()
    await asyncio.wait([task])
    await obol.flush()
    assert await obol.value("SELECT count(*) FROM requests") == 80
    assert await obol.value("SELECT requests FROM usage_hourly") == 80
    assert await obol.value("SELECT prepaid_nano FROM wallets") == 10**9 - 80 * SETTLED_NANO


async def test_two_flushers_at_once(obol: Installation) -> None:
    refs = [await obol.wallet(f"wal_{shard}", shard) for shard in range(SHARDS)]
    flushers = [obol.flusher(batch_entries=7) for _ in range(3)]

    async def traffic() -> None:
        for number in range(60):
            await asyncio.gather(*(obol.report(ref, f"{ref.wallet_id}-{number}") for ref in refs))

    async def carry(flusher: Any, done: asyncio.Event) -> None:
        while not done.is_set():
            await flusher.flush_once()

    done = asyncio.Event()
    carriers = [asyncio.create_task(carry(flusher, done)) for flusher in flushers]
    before = sum(alarms(kind) for kind in ("conflict", "gap", "wallet_gap", "rewound", "cursor_ahead"))
    await traffic()
    await asyncio.sleep(0.1)
    done.set()
    await asyncio.gather(*carriers)
    await obol.flush()
    assert sum(alarms(kind) for kind in ("conflict", "gap", "wallet_gap", "rewound", "cursor_ahead")) == before
    assert await obol.value("SELECT count(*) FROM requests") == 60 * SHARDS
    assert await obol.value("SELECT sum(requests)::bigint FROM usage_hourly") == 60 * SHARDS
    wallets = await obol.fetch("SELECT prepaid_nano, last_seq FROM wallets")
    assert wallets == [{"prepaid_nano": 10**9 - 60 * SETTLED_NANO, "last_seq": 61}] * SHARDS


@pytest.mark.parametrize("flush_between", [True, False])
async def test_a_late_settlement_completes_the_expired_row(obol: Installation, flush_between: bool) -> None:
    ref = await obol.wallet("wal_1")
    await obol.hold(ref, "r1", expires_ms=now_ms() + 60_000)
    progress = encode(obol.row(ref, "r1", usage=Usage(output_tokens=400), ending="expired", status="error"))
    await obol.wallets.extend(
        ref, "r1", 5_000_000, expires_ms=now_ms() - 1, progress=(Price(flat_nano=800_000), progress)
    )
    assert await obol.wallets.expire(ref, "r1", now_ms()) == "expired"
    if flush_between:
        await obol.flush()
        (row,) = await obol.fetch("SELECT status, ending, charge_nano FROM requests")
        assert row == {"status": "error", "ending": "expired", "charge_nano": 800_000}
    await obol.settle(ref, "r1", created_us=CREATED_US + 3_600_000_000)
    await obol.flush()
    (row,) = await obol.fetch("SELECT * FROM requests")
    assert (row["status"], row["ending"], row["charge_nano"]) == ("completed", "completed", SETTLED_NANO)
    assert row["created_at"] == created_at()
    (hour,) = await obol.fetch("SELECT requests, tokens, charge_nano FROM usage_hourly WHERE requests <> 0")
    assert hour == {"requests": 1, "tokens": 1_250, "charge_nano": SETTLED_NANO}
    assert await obol.value("SELECT count(*) FROM request_index") == 1


async def test_an_expired_hold_without_progress_leaves_a_row(obol: Installation) -> None:
    ref = await obol.wallet("wal_1")
    body = encode(obol.row(ref, "r1", usage=Usage()))  # a descriptor that does not say how the call ended
    await obol.wallets.hold(ref, "r1", 1_000, expires_ms=now_ms() - 1, descriptor=body)
    await obol.wallets.expire(ref, "r1", now_ms())
    await obol.flush()
    (row,) = await obol.fetch("SELECT status, ending, estimated, charge_nano FROM requests")
    assert row == {"status": "error", "ending": "expired", "estimated": True, "charge_nano": 0}


BAD_ROWS = {
    "no JSON": b"\xff\xfe",
    "no row": b"{}",
    "another request": {"request_id": "other"},
    "a NUL in a name": {"model": "a\0b"},
    "a NUL in the metadata": {"metadata": {"k": "a\0b"}},
    "a number beyond bigint": {"cost_nano": 2**63},
    "a version beyond integer": {"meter_version": 2**31},
    "a time beyond the calendar": {"created_us": 2**62},
    "a time long before": {"created_us": -(2**62)},
    "tokens that overflow the sums": {"usage": Usage(input_tokens=2**62, output_tokens=2**62)},
}


@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS)
async def test_a_bad_row_is_set_aside_and_blocks_nothing(obol: Installation, bad: Any) -> None:
    ref = await obol.wallet("wal_1")
    before = metrics.FLUSH_REJECTS._value.get()
    body = bad if isinstance(bad, bytes) else encode(obol.row(ref, "bad", **bad))
    for number in range(5):
        await obol.report(ref, f"r{number}")
    await obol.report_body(ref, "bad", body)
    for number in range(5, 10):
        await obol.report(ref, f"r{number}")
    await obol.flush()
    assert await obol.value("SELECT count(*) FROM ledger_entries") == 12
    assert await obol.value("SELECT prepaid_nano FROM wallets") == 10**9 - 11 * SETTLED_NANO
    assert await obol.value("SELECT count(*) FROM requests") == 10
    assert await obol.value("SELECT count(*) FROM request_index") == 10
    assert await obol.value("SELECT sum(requests)::bigint FROM usage_hourly") == 10
    (reject,) = await obol.fetch("SELECT * FROM flush_rejects")
    assert (reject["shard"], reject["number"]) == (1, 7) and reject["reason"]
    assert msgspec.json.decode(reject["entry"], type=Entry).body == body
    assert metrics.FLUSH_REJECTS._value.get() == before + 1


async def test_a_second_debit_of_a_request_is_told(obol: Installation) -> None:
    before = alarms("duplicate_request")
    first, second = await obol.wallet("wal_1", 1), await obol.wallet("wal_2", 2)
    await obol.report(first, "same")
    await obol.flush()
    await obol.report(second, "same")
    await obol.flush()
    assert await obol.value("SELECT count(*) FROM requests") == 1
    assert await obol.value("SELECT requests FROM usage_hourly") == 1
    assert await obol.value("SELECT prepaid_nano FROM wallets WHERE wallet_id = 'wal_2'") == 10**9 - SETTLED_NANO
    assert await obol.value("SELECT reason FROM flush_rejects") == "this request has a row already"
    assert alarms("duplicate_request") == before + 1


async def test_a_contradicting_entry_is_not_written(obol: Installation) -> None:
    before = alarms("conflict")
    ref = await obol.wallet("wal_1")
    await obol.flush()
    await obol.report(ref, "r1")
    await obol.execute("INSERT INTO ledger_entries VALUES ('wal_1', 2, now(), 'credit', 'other', 1, 0, 0, 0)")
    await obol.flush()
    assert await obol.value("SELECT reference FROM ledger_entries WHERE seq = 2") == "other"
    assert await obol.value("SELECT count(*) FROM requests") == 0
    assert await obol.value("SELECT prepaid_nano FROM wallets") == 10**9
    assert await obol.value("SELECT count(*) FROM flush_rejects") == 1
    assert alarms("conflict") == before + 1


async def test_a_shard_whose_cursor_is_ahead_stops(obol: Installation, redis_client: Any) -> None:
    ref, other = await obol.wallet("wal_1", 1), await obol.wallet("wal_2", 2)
    for number in range(5):
        await obol.report(ref, f"r{number}")
    flusher, before = obol.flusher(), alarms("cursor_ahead")
    await flusher.flush_once()
    await redis_client.set(obol.keys.journal_counter(1), 3)
    await redis_client.delete(obol.keys.journal(1))
    await obol.report(ref, "after")  # entry 4 of a Redis that has forgotten 4 to 6
    await obol.report(other, "other")
    for _ in range(3):
        await flusher.flush_once()
    assert alarms("cursor_ahead") == before + 1
    assert [entry.reference for entry in await obol.journal.read(1, 0, 10)] == ["after"]
    assert await obol.value("SELECT last_id FROM journal_cursors WHERE shard = 1") == 6
    assert await obol.value("SELECT count(*) FROM requests WHERE request_id = 'other'") == 1


async def test_entries_below_the_cursor_that_nobody_recorded_stop_the_shard(
    obol: Installation, redis_client: Any
) -> None:
    ref = await obol.wallet("wal_1", 1)
    for number in range(5):
        await obol.report(ref, f"r{number}")
    flusher, before = obol.flusher(), alarms("rewound")
    await flusher.flush_once()
    await redis_client.set(obol.keys.journal_counter(1), 3)
    await redis_client.delete(obol.keys.journal(1))
    for number in range(5, 15):  # the counter passes the cursor before anybody looks
        await obol.report(ref, f"r{number}")
    await flusher.flush_once()
    assert alarms("rewound") == before + 1
    assert len(await obol.journal.read(1, 0, 100)) == 10
    assert await obol.value("SELECT count(*) FROM requests") == 5


async def test_a_gap_is_told_and_the_rest_carried(obol: Installation, redis_client: Any) -> None:
    ref, before = await obol.wallet("wal_1", 1), alarms("gap")
    await obol.report(ref, "r1")
    await obol.report(ref, "r2")
    await redis_client.xdel(obol.keys.journal(1), "2-0")
    await obol.flush()
    assert alarms("gap") == before + 1
    assert await obol.value("SELECT array_agg(request_id) FROM requests") == ["r2"]
    await redis_client.incr(obol.keys.journal_counter(1))
    missing = alarms("entries_missing")
    await obol.flush()
    assert alarms("entries_missing") == missing + 1


async def test_postgres_away_and_back(valkey: str, redis_client: Any, engines_dir: Path) -> None:
    directory = engines_dir / "away"
    directory.mkdir(mode=0o711)
    directory.chmod(0o711)
    engine = Postgres(directory, fsync=False)
    with running(engine, engines_dir / "away.log"):
        await migrate.run(engine.url)
        made = installation(valkey, engine.url)
        obol = await made.__aenter__()
        ref = await obol.wallet("wal_1")
        await obol.report(ref, "r1")
        await obol.flush()
    flusher = obol.flusher()
    for number in range(2, 30):
        await obol.report(ref, f"r{number}")
    with pytest.raises((ObolError, ExceptionGroup)):
        await flusher.flush_once()
    assert await flusher.lag_s() > 0
    with running(engine, engines_dir / "away.log"):
        assert await flusher.flush_once() == 28
        assert await obol.value("SELECT count(*) FROM requests") == 29
        assert await obol.value("SELECT last_seq FROM wallets") == 30
        await made.__aexit__(None, None, None)


async def test_partitions_are_made_ahead_once(obol: Installation) -> None:
    now = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)
    made = await asyncio.gather(partitions.ensure(obol.store, now), partitions.ensure(obol.store, now))
    assert sorted(made[0] + made[1]) == ["requests_2026_11", "requests_2026_12", "requests_2027_01"]
    ref = await obol.wallet("wal_1")
    november_us, march_us = (
        int(datetime(*day, tzinfo=UTC).timestamp()) * 10**6 for day in ((2026, 11, 30), (2027, 3, 1))
    )
    await obol.report(ref, "r1", created_us=november_us)
    await obol.report(ref, "r2", created_us=march_us)
    await obol.flush()
    found = await obol.fetch("SELECT tableoid::regclass::text AS place FROM requests ORDER BY created_at")
    assert [row["place"] for row in found] == ["requests_2026_11", "requests_default"]
    # March has a row in the default partition: it stays there, and the months beside it are made.
    made_later = await partitions.ensure(obol.store, datetime(2027, 3, 1, tzinfo=UTC))
    assert made_later == ["requests_2027_04", "requests_2027_05"]


async def test_the_process_flushes_at_sigterm(obol: Installation, valkey: str, postgres: str, tmp_path: Path) -> None:
    ref = await obol.wallet("wal_1")
    await obol.hold(ref, "dead", expires_ms=now_ms() - 1)
    ready = tmp_path / "ready.json"
    environment = os.environ | {
        "OBOL_REDIS_URL": valkey,
        "OBOL_POSTGRES_URL": postgres,
        "OBOL_LEDGER_SHARDS": str(SHARDS),
        "OBOL_DATA_DIR": str(tmp_path),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "worker", "--ready-file", str(ready),
        env=environment, cwd=Path(__file__).parents[2], stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        assert json.loads(ready.read_text()) == {"pid": process.pid, "metrics_port": None}
        while await obol.value("SELECT count(*) FROM requests") < 1 and time.monotonic() < deadline_s:
            await asyncio.sleep(0.02)
        assert await obol.value("SELECT ending FROM requests WHERE request_id = 'dead'") == "expired"
        for number in range(500):
            await obol.report(ref, f"r{number}")
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    assert await obol.value("SELECT count(*) FROM requests") == 501
    events = [json.loads(line)["event"] for line in errors.decode().splitlines()]
    assert "the worker runs" in events and "the worker has ended" in events
