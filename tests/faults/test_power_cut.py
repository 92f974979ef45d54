"""A power cut of Redis' machine, rehearsed: its append-only file comes back cut at any byte, or a minute old."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from installation import Installation, installation
from load import Load, Made
from setbacks import Guarded, SettableValkey, guarded, settable_valkey
from verdict import ended_within, judge
from worker_support import SHARDS

from gateway.core.meter import from_definition
from gateway.ledger.recovery import Recovery
from gateway.ledger.wallets import WalletRef, now_ms

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]

GRADUATED_DEFINITION = {"tiers": [{"start": 0, "rate": "5"}, {"start": 4_000, "rate": "3"}]}
GRADUATED = from_definition("meter_g", 1, GRADUATED_DEFINITION)
POTS = ("cycle", "bundle", "prepaid", "overage")
LATER_MS = 10**15
WALLETS = 6
OPERATIONS = 120
EVERY_BYTE = 300
FURTHER_BYTES = 12_000
STEP_BYTES = 97
STATES_MIN = 15
State = tuple[tuple[int, ...], ...]
"""Of every wallet: sequence number, held amount, calls, pots."""

OLD_S = int(os.environ.get("OBOL_FAULTS_OLD_S", "8"))
"""How old the file is that comes back: a minute, shortened."""
UNRECORDED_S = 5.0
"""What was answered this long around the cut may not have reached PostgreSQL before it. The embedded Valkey does not
forget what it acknowledged, so gateways keep no settles for it; an older file put in its place takes these with it."""


@dataclass
class Story:
    """What happened to some wallets before the power cut, as each looked after each of its entries."""

    obol: Guarded
    rng: random.Random
    refs: list[WalletRef] = field(default_factory=list)
    open: list[tuple[WalletRef, str]] = field(default_factory=list)
    settled: dict[str, str] = field(default_factory=dict)
    """The last call of each wallet that was settled."""
    history: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)

    async def tell(self) -> None:
        obol = self.obol
        await obol.add_meter(GRADUATED, GRADUATED_DEFINITION)
        for number in range(WALLETS):
            ref = await obol.wallet(f"wal_{number}", number % SHARDS, credit_nano=30_000_000)
            self.refs.append(ref)
            self.history[ref.wallet_id] = {}
            await self._remember(ref)
        for number in range(OPERATIONS):
            ref = self.rng.choice(self.refs)
            await self._something(ref, f"request-{number}")
            await self._remember(ref)
            if self.rng.random() < 0.1:
                await obol.flush()
        for ref, name in self.open[: WALLETS // 2]:
            await obol.settle(ref, name)
            self.settled[ref.wallet_id] = name
            await self._remember(ref)

    async def _something(self, ref: WalletRef, name: str) -> None:
        obol, kind = self.obol, self.rng.choice(("hold", "hold", "settle", "settle", "report", "credit", "release"))
        if kind == "report":
            await obol.report(ref, name, GRADUATED)
        elif kind == "credit":
            await obol.wallets.credit(ref, name, self.rng.choice(POTS[:3]), 4_000_000, at_ms=now_ms())
        elif kind == "hold" or not self.open:
            held = await obol.wallets.hold(ref, name, 3_000_000, expires_ms=LATER_MS, descriptor=b"{}")
            if held.kind == "held":
                self.open.append((ref, name))
        else:
            ref, name = self.open.pop(self.rng.randrange(len(self.open)))
            if kind == "release":
                await obol.wallets.release(ref, name)
                return
            await obol.settle(ref, name)
            self.settled[ref.wallet_id] = name
            await self._remember(ref)

    async def _remember(self, ref: WalletRef) -> None:
        found = await self.obol.live(ref)
        assert found is not None
        self.history[ref.wallet_id][found[0]] = found[1:]

    async def record_all(self) -> None:
        """PostgreSQL gets everything; the journals keep it, as where the flusher died before it trimmed them."""
        journal = self.obol.journal

        async def trims_nothing(shard: int, through: int) -> None:
            return None

        trims, journal.trim = journal.trim, trims_nothing  # type: ignore[method-assign]
        try:
            flusher = self.obol.flusher()
            for shard in range(SHARDS):
                await flusher.flush_shard(shard)
        finally:
            journal.trim = trims  # type: ignore[method-assign]


@pytest.mark.timeout(600)
async def test_the_file_is_cut_at_each_of_its_last_bytes(postgres: str, seed: int) -> None:
    with settable_valkey() as server:
        async with guarded(server.url, postgres) as obol:
            story = Story(obol, random.Random(f"{seed} power cut"))
            await story.tell()
            await story.record_all()
            recorded = {ref.wallet_id: await obol.recorded(ref) for ref in story.refs}
            copy = server.copy()
        states: dict[State, set[str]] = {}
        for cut_bytes in [*range(1, EVERY_BYTE), *range(EVERY_BYTE, FURTHER_BYTES, STEP_BYTES)]:
            os.kill(server.pid, signal.SIGKILL)  # a stop by SIGTERM waits for a tick of Valkey's clock
            server.stop()
            server.put_back(copy)
            server.cut(cut_bytes)
            server.start()
            state = whole(server, story)
            if state in states:  # the cut went through the same command: the server dropped what was left of it
                continue
            ids = [ref.wallet_id for ref in story.refs]
            states[state] = {name for name, (seq, *_) in zip(ids, state, strict=True) if seq < recorded[name][0]}
            await restored(server, postgres, story, states[state])
        assert len(states) >= STATES_MIN
        assert len(set.union(*states.values())) >= WALLETS // 2, "the cuts took too little"


def whole(server: SettableValkey, story: Story) -> State:
    """No script is there by half: each wallet is as it was after one of its entries, with what its holds say.

    Return how the server shows the wallets.
    """
    state = []
    with redis.Redis.from_url(server.url) as client:
        sums: dict[bytes, list[int]] = {}
        for shard in range(SHARDS):
            for key in client.zrange(story.obol.keys.holds(shard), 0, -1):
                wallet, amount = client.hmget(key, "w", "a")
                sums.setdefault(wallet, []).append(int(amount))
            last = client.xrevrange(story.obol.keys.journal(shard), count=1)
            counter = int(client.get(story.obol.keys.journal_counter(shard)) or 0)
            assert not last or int(last[0][0].split(b"-")[0]) == counter
        for ref in story.refs:
            key = story.obol.keys.wallet(ref.shard, ref.wallet_id)
            seq, held, calls, *pots = (int(text or 0) for text in client.hmget(key, "seq", "held", "calls", *POTS))
            assert tuple(pots) == story.history[ref.wallet_id][seq]
            assert (held, calls) == (sum(sums.get(key.encode(), [])), len(sums.get(key.encode(), [])))
            state.append((seq, held, calls, *pots))
    return tuple(state)


async def restored(server: SettableValkey, postgres: str, story: Story, behind: set[str]) -> None:
    """What fell behind is refused, until it is as PostgreSQL says; what did not is in use at once."""
    async with guarded(server.url, postgres, seed=False) as obol:
        for ref in story.refs:
            found = await obol.wallets.hold(ref, "asked", 1, expires_ms=LATER_MS, descriptor=b"{}")
            assert (found.kind == "unknown") == (ref.wallet_id in behind), (ref, found)
        assert await obol.restore_all() == len(behind)
        await agree(obol, story.refs)
        for ref in story.refs:
            if (name := story.settled.get(ref.wallet_id)) is not None:
                assert (await obol.settle(ref, name)).kind == "duplicate"
        await agree(obol, story.refs)


async def agree(obol: Guarded, refs: list[WalletRef]) -> None:
    """No balance has risen: Redis shows what PostgreSQL says, tier counters too, and there is nothing to record."""
    assert await obol.flush() == 0
    recovery = Recovery(obol.connection, obol.keys)
    for ref in refs:
        assert await obol.live(ref) == await obol.recorded(ref), ref
        stored = await obol.fetch("SELECT meter_id, units FROM wallet_meters WHERE wallet_id = $1", ref.wallet_id)
        assert await recovery.units(ref) == {row["meter_id"]: row["units"] for row in stored}, ref


def copied(files: Path) -> dict[str, bytes]:
    """The append-only directory as it is now; a file that a rewrite takes away meanwhile has the copy made again."""
    while True:
        try:
            return {path.name: path.read_bytes() for path in files.iterdir()}
        except FileNotFoundError:
            continue


def put_back(files: Path, copy: dict[str, bytes]) -> None:
    for path in files.iterdir():
        path.unlink()
    for name, content in copy.items():
        (files / name).write_bytes(content)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Balances:
    """What each customer's wallet shows, over and over. `rises`: above what PostgreSQL had, or what it was before."""

    def __init__(self, made: Installation, load: Load) -> None:
        self._made = made
        self._load = load
        self._recorded: dict[str, int] = {}
        self.rises: list[str] = []
        self.readings = 0

    async def cut(self) -> None:
        """Redis is down: PostgreSQL says what any wallet may show at most from now on."""
        for row in await self._made.fetch(
            "SELECT wallet_id, cycle_nano + bundle_nano + prepaid_nano - overage_nano AS total FROM wallets"
        ):
            self._recorded[row["wallet_id"]] = row["total"]

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _watch(self) -> None:
        while True:
            for customer in self._load.customers:
                await self._look(customer.made.wallet)
            await asyncio.sleep(0.02)

    async def _look(self, ref: WalletRef) -> None:
        found = (await self._made.wallets.balances([ref]))[0]
        most = self._recorded.get(ref.wallet_id)
        if found is None or most is None:
            return
        self.readings += 1
        if found.total_nano > most:
            self.rises.append(f"{ref.wallet_id} shows {found.total_nano}, PostgreSQL had {most} at the cut")
        self._recorded[ref.wallet_id] = found.total_nano


@pytest.mark.timeout(OLD_S + 180)
async def test_an_older_file_comes_back_under_load(seed: int, record_property: Callable[[str, object], None]) -> None:
    """The wallets concerned answer 503 until they are rebuilt; then all that was recorded is there, once."""
    began_s, name = time.monotonic(), "older-file"
    rng = random.Random(f"{seed} {name}")
    async with installation() as made:
        load = Load(made, name, rng, kinds={"plain": 4, "stream": 6})
        await load.begin()
        balances = Balances(made, load)
        await asyncio.sleep(1)
        files = made.up.data_dir / "valkey" / "appendonlydir"
        copy = await asyncio.to_thread(copied, files)
        await asyncio.sleep(OLD_S)
        in_flight = load.in_flight
        with stopped(made.up.process.pid):  # nobody starts Valkey before its files are changed
            # The worker, too: until it runs again the gateways notice, and nobody restores.
            killed_at_s, killed = time.time(), made.kill(["valkey", "worker"])
            await asyncio.sleep(0.2)
            await balances.cut()
            latest = b"".join((await asyncio.to_thread(copied, files)).values())
            await asyncio.to_thread(put_back, files, copy)
        recovered_at_s = await made.recovered(killed)
        async with balances.watched():
            await asyncio.sleep(3)
            await load.end()
            await made.calm()

        def forgotten(call: Made) -> bool:
            """Its end stands in the file that was replaced, so recently that the flusher may not have had it."""
            of = made.merchant.merchant_id
            records = [f"r:{of}:{attempt.request_id}".encode() for attempt in call.attempts if attempt.request_id]
            recent = ended_within(call, (killed_at_s - UNRECORDED_S, killed_at_s + UNRECORDED_S))
            return recent and (not records or any(record in latest for record in records))

        verdict = await judge(made, load, f"{name}-", forgotten=forgotten)
        for column, value in {
            "scenario": f"a file {OLD_S} s old",
            "in flight": in_flight,
            "calls": verdict.calls,
            "refused": verdict.refused,
            "rows": verdict.rows,
            "expired": verdict.expired,
            "reports": verdict.reports,
            "recovered in s": f"{recovered_at_s - killed_at_s:.1f}",
            "took s": f"{time.monotonic() - began_s:.1f}",
        }.items():
            record_property(column, value)
        assert not verdict.wrong, "\n".join([f"--seed {seed}", *verdict.wrong[:20], str(load.outcomes)])
        assert any(code == "wallet_unavailable" for _, _, code in load.outcomes), load.outcomes
        assert balances.readings > 50 and not balances.rises
        assert await made.up.metric("obol_ledger_lost_entries_total") > 0
        assert await made.up.metric("obol_wallets_restored_total") > 0
