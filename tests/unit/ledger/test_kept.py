"""What is kept, for how long and how much of it; in what order it is sent again; what waits for replicas."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace

import hiredis
import pytest

from gateway.ledger import kept as kept_module
from gateway.ledger import replicas as replicas_module
from gateway.ledger.connection import LedgerAway
from gateway.ledger.kept import OVERHEAD_BYTES, Counts, Kept, Settle, Untold
from gateway.ledger.replicas import Replicas

KEEP_S = 5


class Tally:
    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: int = 1) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value


class Told:
    def __init__(self) -> None:
        self.entries, self.bytes, self.dropped = Tally(), Tally(), Tally()
        self.resent: dict[str, Tally] = {}

    def counts(self) -> Counts:
        return Counts(self.entries, self.bytes, self.dropped, lambda outcome: self.resent.setdefault(outcome, Tally()))


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1_000.0
        for module in (kept_module, replicas_module):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now_s)


class FakeConnection:
    """Answers PING at once while its server is alive, and WAIT when the test says so."""

    def __init__(self, *, may_lose: bool = True, replicas: int = 1) -> None:
        self.server = SimpleNamespace(may_lose=may_lose, replicas=replicas)
        self.connected = True
        self.died_s: float | None = None
        self.waits: list[asyncio.Future] = []

    @property
    def alive_s(self) -> float:
        return kept_module.time.monotonic() if self.died_s is None else self.died_s

    def call(self, *arguments):
        if arguments == (b"PING",):
            ponged = asyncio.get_running_loop().create_future()
            ponged.set_result(b"PONG")
            if not self.connected:
                raise LedgerAway("away")
            return ponged if self.died_s is None else asyncio.get_running_loop().create_future()
        assert arguments == (b"WAIT", 1, 100)
        self.waits.append(asyncio.get_running_loop().create_future())
        return self.waits[-1]


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def settle(request_id: str = "req_1", body: bytes = b"{}", at_ms: int = 1, ttl_s: int = 900) -> Settle:
    return Settle(3, "mer_1", ["k"], ("wal_1", request_id, at_ms, 5, b"", b"", 0, body, ttl_s, "call"))


def keeping(connection=None, told: Told | None = None, **changes) -> Kept:
    given = {"keep_s": KEEP_S, "entries_max": 100, "bytes_max": 10**9, "counts": (told or Told()).counts()} | changes
    return Kept(connection or FakeConnection(), **given)


async def acknowledge(kept: Kept, *names: str) -> None:
    for name in names:
        await kept.acknowledged(settle(name))


async def resent_by(kept: Kept, outcomes=None) -> list[str]:
    """Which requests are sent again; `outcomes`: by request id, else duplicate."""
    sent: list[str] = []

    async def send(again: Settle) -> str:
        sent.append(again.request_id)
        outcome = (outcomes or {}).get(again.request_id, "duplicate")
        if isinstance(outcome, Exception):
            raise outcome
        if outcome in ("settled", "duplicate"):
            await kept.acknowledged(again)
        return outcome

    await kept.resend(send)
    return sent


async def test_it_is_kept_for_so_long_and_forgotten_then(clock):
    kept = keeping()
    await acknowledge(kept, "a")
    clock.now_s += KEEP_S - 1
    await acknowledge(kept, "b")
    assert kept.entries == 2
    clock.now_s += 1
    await acknowledge(kept, "c")
    assert await resent_by(kept) == ["b", "c"]


@pytest.mark.parametrize("connected", [True, False])
async def test_nothing_is_forgotten_while_the_server_is_not_seen_alive(clock, connected):
    """It may have died, or hung and died, before anything of it was on disk."""
    connection = FakeConnection()
    kept = keeping(connection)
    await acknowledge(kept, "a")
    clock.now_s += 1
    connection.died_s, connection.connected = clock.now_s, connected
    clock.now_s += 100 * KEEP_S
    await acknowledge(kept, "b")
    assert await resent_by(kept) == ["a", "b"]


@pytest.mark.parametrize("changes", [{"connection": FakeConnection(may_lose=False)}, {"keep_s": 0}])
async def test_nothing_is_kept_where_nothing_is_lost_or_asked_for(changes):
    kept = keeping(**changes)
    await acknowledge(kept, "a")
    reply = asyncio.get_running_loop().create_future()
    assert kept.watch(settle("b"), reply) is reply
    reply.set_result([b"settled", 1])
    await asyncio.sleep(0)
    assert (kept.entries, kept.bytes) == (0, 0)


@pytest.mark.parametrize(
    ("reply", "entries"),
    [
        ([b"settled", 1], 1),
        ([b"duplicate", 1], 1),
        ([b"gone"], 0),
        ([b"unknown"], 0),
        (hiredis.ReplyError("OOM"), 0),
    ],
)
async def test_only_what_redis_acknowledged_is_kept(reply, entries):
    kept = keeping()
    issued = asyncio.get_running_loop().create_future()
    assert kept.watch(settle(), issued) is issued
    issued.set_result(reply)
    await asyncio.sleep(0)
    assert kept.entries == entries


async def test_a_reply_that_never_came_is_not_kept():
    kept = keeping()
    loop = asyncio.get_running_loop()
    lost, cancelled = loop.create_future(), loop.create_future()
    for future in (lost, cancelled):
        kept.watch(settle(), future)
    lost.set_exception(LedgerAway("lost"))
    cancelled.cancel()
    await asyncio.sleep(0)
    assert kept.entries == 0


@pytest.mark.parametrize("bound", [{"entries_max": 3}, {"bytes_max": 3 * (OVERHEAD_BYTES + 2)}])
async def test_beyond_its_bounds_the_oldest_are_dropped_and_counted(bound):
    told = Told()
    kept = keeping(told=told, **bound)
    await acknowledge(kept, *"abcde")
    assert (kept.entries, told.dropped.value) == (3, 2)
    assert kept.bytes == 3 * (OVERHEAD_BYTES + 2)
    assert await resent_by(kept) == ["c", "d", "e"]
    assert (kept.entries, told.dropped.value) == (3, 2)  # what was sent again is kept again
    assert await resent_by(kept) == ["c", "d", "e"]


async def test_what_waits_for_its_wallet_is_within_the_bounds_too():
    told = Told()
    kept = keeping(told=told, entries_max=3)
    await acknowledge(kept, *"abc")
    stuck = dict.fromkeys("abcdef", "unknown")
    await resent_by(kept, stuck)
    await acknowledge(kept, *"def")
    assert (await resent_by(kept, stuck), told.dropped.value) == (["d", "e", "f"], 3)


async def test_what_could_not_be_sent_is_kept_in_order(monkeypatch):
    monkeypatch.setattr(kept_module, "IN_FLIGHT_MAX", 2)
    told = Told()
    kept = keeping(told=told)
    await acknowledge(kept, *"abcde")
    with pytest.raises(LedgerAway):
        await resent_by(kept, {"c": LedgerAway("lost")})
    assert kept.entries == 5
    assert sorted(await resent_by(kept)) == ["a", "b", "c", "d", "e"]
    assert told.resent["duplicate"].value == 3 + 5


async def test_a_resend_that_is_cancelled_loses_nothing():
    kept = keeping()
    await acknowledge(kept, *"abc")
    entered = asyncio.Event()

    async def send(_: Settle) -> str:
        entered.set()
        await asyncio.sleep(60)
        return "duplicate"

    task = asyncio.create_task(kept.resend(send))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await resent_by(kept) == ["a", "b", "c"]


async def test_what_is_dropped_while_others_are_being_sent_is_neither_of_them():
    told = Told()
    kept = keeping(told=told, entries_max=3)
    await acknowledge(kept, *"abc")
    await resent_by(kept, dict.fromkeys("abc", "unknown"))
    answers, sent = asyncio.Event(), []

    async def send(again: Settle) -> str:
        sent.append(again.request_id)
        await answers.wait()
        return "settled"

    batch = asyncio.create_task(kept._send_unsent(send))
    await settle_down()
    assert sent == ["a", "b", "c"]
    await acknowledge(kept, "d", "e")
    resending = asyncio.create_task(kept.resend(send))
    await settle_down()
    answers.set()
    await asyncio.gather(batch, resending)
    assert (sorted(sent), kept.entries, told.dropped.value) == (["a", "b", "c", "d", "e"], 0, 0)


async def test_what_cannot_be_settled_yet_is_tried_again_and_holds_up_nobody(monkeypatch):
    monkeypatch.setattr(kept_module, "ROUND_S", 0.001)
    told = Told()
    kept = keeping(told=told)
    await acknowledge(kept, *"abcd")
    outcomes = {"b": "unknown", "c": Untold("not flushed"), "d": hiredis.ReplyError("ERR amount")}
    assert await resent_by(kept, outcomes) == ["a", "b", "c", "d"]
    assert kept.entries == 3  # a again, b and c still; d never will
    again: Counter[str] = Counter()

    async def send(settle: Settle) -> str:
        again[settle.request_id] += 1
        return "settled" if again[settle.request_id] > 2 else "unknown"

    task = asyncio.create_task(kept.run(send))
    async with asyncio.timeout(5):
        while again != {"b": 3, "c": 3}:
            await asyncio.sleep(0.001)
    task.cancel()
    assert {outcome: tally.value for outcome, tally in told.resent.items()} == {
        "duplicate": 1,
        "failed": 1,
        "settled": 2,
    }
    assert told.entries.value >= 1


async def test_a_process_that_ends_waits_until_its_settles_are_safe():
    kept = keeping(keep_s=1)
    kept._keep_s = 0.1  # type: ignore[assignment]
    started = asyncio.get_running_loop().time()
    await kept.outlive()
    assert asyncio.get_running_loop().time() - started < 0.05
    await acknowledge(kept, "a")
    await kept.outlive()
    assert kept.entries == 0
    assert asyncio.get_running_loop().time() - started >= 0.09


@pytest.mark.parametrize("connected", [True, False])
async def test_a_process_that_ends_waits_for_a_dead_server_for_so_long_only(monkeypatch, caplog, connected):
    monkeypatch.setattr(kept_module, "LAST_LOOK_S", 0.1)
    connection = FakeConnection()
    kept = keeping(connection, keep_s=1)
    kept._keep_s = 0.1  # type: ignore[assignment]
    await acknowledge(kept, "a")
    connection.died_s, connection.connected = connection.alive_s, connected
    async with asyncio.timeout(1):
        await kept.outlive()
    assert kept.entries == 1
    assert "settles are left" in caplog.text


def test_a_settle_is_old_when_its_record_may_have_expired():
    assert not settle(at_ms=0, ttl_s=10).may_be_forgotten(9_000)
    assert settle(at_ms=0, ttl_s=10).may_be_forgotten(9_001)


# Replicas


def waiting(connection: FakeConnection, told: Tally) -> Replicas:
    return Replicas(connection, wanted=1, timeout_ms=100, shortfalls=told)


async def settle_down() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_settle_counts_once_its_replicas_have_it():
    connection, shortfalls = FakeConnection(), Tally()
    kept = keeping(connection, replicas=waiting(connection, shortfalls))
    reply = asyncio.get_running_loop().create_future()
    acknowledged = kept.watch(settle(), reply)
    reply.set_result([b"settled", 1])
    await settle_down()
    assert not acknowledged.done()
    connection.waits[0].set_result(1)
    await settle_down()
    assert acknowledged.result() == [b"settled", 1]
    assert shortfalls.value == 0


async def test_one_wait_at_a_time_covers_all_before_it():
    connection, shortfalls = FakeConnection(), Tally()
    replicas = waiting(connection, shortfalls)
    first = replicas.confirm()
    later = [replicas.confirm() for _ in range(10)]
    assert len(connection.waits) == 1
    connection.waits[0].set_result(1)
    await settle_down()
    assert first.result() is True
    assert len(connection.waits) == 2
    connection.waits[1].set_result(0)
    await settle_down()
    assert [each.result() for each in later] == [False] * 10
    assert shortfalls.value == 1


@pytest.mark.parametrize("outcome", [0, hiredis.ReplyError("UNBLOCKED"), LedgerAway("lost")])
async def test_a_shortfall_is_counted_and_its_settle_stays_kept(clock, outcome):
    connection, shortfalls = FakeConnection(), Tally()
    replicas = waiting(connection, shortfalls)
    kept = keeping(connection, replicas=replicas)
    reply = asyncio.get_running_loop().create_future()
    acknowledged = kept.watch(settle("a"), reply)
    reply.set_result([b"settled", 1])
    await settle_down()
    if isinstance(outcome, LedgerAway):
        connection.waits[0].set_exception(outcome)
    else:
        connection.waits[0].set_result(outcome)
    await settle_down()
    assert acknowledged.done()
    assert shortfalls.value == 1
    clock.now_s += 10 * KEEP_S
    kept._forget()
    assert kept.entries == 1
    confirmed = replicas.confirm()
    connection.waits[1].set_result(1)
    assert await confirmed
    clock.now_s += KEEP_S - 1
    kept._forget()
    assert kept.entries == 1  # for so long past its acknowledgement
    clock.now_s += 1
    kept._forget()
    assert kept.entries == 0


async def test_without_enough_replicas_nothing_is_held_up():
    connection, shortfalls = FakeConnection(replicas=0), Tally()
    replicas = waiting(connection, shortfalls)
    assert await replicas.confirm() is False
    assert (connection.waits, shortfalls.value) == ([], 1)


async def test_what_no_replica_has_confirmed_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(kept_module, "ROUND_S", 0.001)
    connection = FakeConnection()
    kept = keeping(connection, replicas=waiting(connection, Tally()))
    task = asyncio.create_task(kept.acknowledged(settle()))
    await settle_down()
    connection.waits[0].set_result(0)
    await task
    rounds = asyncio.create_task(kept.run(lambda again: task))
    async with asyncio.timeout(5):
        while len(connection.waits) < 2:
            await asyncio.sleep(0.001)
        connection.waits[1].set_result(1)
        await asyncio.sleep(0.02)
    rounds.cancel()
    assert len(connection.waits) == 2


async def test_a_settle_that_failed_is_told_when_its_wait_is_over():
    connection = FakeConnection()
    replicas = waiting(connection, Tally())
    loop = asyncio.get_running_loop()
    lost, cancelled = loop.create_future(), loop.create_future()
    outcomes = [replicas.behind(lost), replicas.behind(cancelled)]
    lost.set_exception(LedgerAway("lost"))
    cancelled.cancel()
    connection.waits[0].set_exception(LedgerAway("lost"))
    await settle_down()
    connection.waits[1].set_exception(LedgerAway("lost"))
    await settle_down()
    with pytest.raises(LedgerAway):
        outcomes[0].result()
    assert outcomes[1].cancelled()
