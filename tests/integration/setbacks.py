"""A Valkey whose files a test can set back, and an installation on it that compares and restores as the worker does."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from running import RunningGateway
from scratch import scratch_directory
from worker_support import SHARDS, Installation

from gateway.billing.continuity import Continuity
from gateway.billing.restore import Restorer
from gateway.ledger import scripts
from gateway.ledger.connection import Connection
from gateway.ledger.keys import Keys
from gateway.ledger.wallets import Balance, WalletRef
from gateway.local.engines import running
from gateway.local.valkey import Valkey
from gateway.store.postgres import Store
from gateway.worker.flusher import Flusher
from gateway.worker.healer import Healer
from gateway.worker.main import Loop


class SettableValkey:
    """Starts, stops, and comes back with an older or shorter append-only file. Its port and password stay."""

    def __init__(self, directory: Path, *, appendfsync: str = "always") -> None:
        self.directory = directory
        self.engine = Valkey(directory, appendfsync=appendfsync)
        self._stack = contextlib.ExitStack()
        self.pid = 0

    @property
    def url(self) -> str:
        return self.engine.url

    @property
    def files(self) -> Path:
        return self.directory / "valkey" / "appendonlydir"

    def start(self) -> None:
        self.pid = self._stack.enter_context(running(self.engine, self.directory / "valkey.log"))

    def stop(self) -> None:
        self._stack.close()

    def copy(self, name: str = "copy") -> Path:
        """The files as they are now, also while the server runs: it writes whole commands, before it answers."""
        target = self.directory / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.files, target)
        return target

    def put_back(self, copy: Path) -> None:
        """The server must be stopped."""
        shutil.rmtree(self.files)
        shutil.copytree(copy, self.files)

    def cut(self, count_bytes: int) -> None:
        """Take bytes off the end of the append-only file. The server must be stopped."""
        latest = max(self.files.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
        with latest.open("r+b") as file:
            file.truncate(max(0, latest.stat().st_size - count_bytes))


@contextlib.contextmanager
def settable_valkey(appendfsync: str = "always") -> Iterator[SettableValkey]:
    directory = scratch_directory("obol-setback-")
    server = SettableValkey(directory, appendfsync=appendfsync)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


class Guarded(Installation):
    """An installation whose Redis is compared with its PostgreSQL before it is used."""

    continuity: Continuity
    lost: list[int]

    def restorer(self) -> Restorer:
        return Restorer(self.store, self.connection, self.keys, shards=SHARDS, call_ttl_s=900, report_ttl_s=172_800)

    def guarded_flusher(self) -> Flusher:
        return self.flusher(run_id=lambda: self.connection.server.run_id)

    def healer(self, flusher: Flusher | None = None) -> Healer:
        return Healer(self.connection, self.continuity, self.restorer(), flusher or self.guarded_flusher())

    async def restore_all(self) -> int:
        """Until nothing is queued or swept any more; return how many wallets were restored."""
        restorer, total = self.restorer(), 0
        while True:
            looked_at, restored, errors = await restorer.restore_once()
            total += restored
            if errors:
                raise ExceptionGroup("not all could be restored", errors)
            if not looked_at and await restorer.waiting() == (0, 0):
                return total

    async def balance(self, ref: WalletRef) -> Balance | None:
        return (await self.wallets.balances([ref]))[0]

    async def recorded(self, ref: WalletRef) -> tuple[int, ...]:
        """Sequence number and pots as PostgreSQL has them."""
        (row,) = await self.fetch(
            "SELECT last_seq, cycle_nano, bundle_nano, prepaid_nano, overage_nano FROM wallets WHERE wallet_id = $1",
            ref.wallet_id,
        )
        return tuple(row.values())

    async def live(self, ref: WalletRef) -> tuple[int, ...] | None:
        """The same as Redis has them."""
        found = await self.balance(ref)
        if found is None:
            return None
        return found.seq, found.cycle_nano, found.bundle_nano, found.prepaid_nano, found.overage_nano


@contextlib.asynccontextmanager
async def guarded(redis_url: str, postgres_url: str, *, seed: bool = True) -> AsyncIterator[Guarded]:
    """Connects as gateways and workers do."""
    store = await Store.connect(postgres_url)
    lost: list[int] = []
    continuity = Continuity(store, Keys(), shards=SHARDS, lost=lost.append)
    connection = Connection(
        redis_url,
        scripts.load(),
        timeout_ms=5_000,
        on_new_server=lambda run_id: continuity.accept(connection, run_id),
    )
    keeper = asyncio.create_task(connection.run())
    try:
        await connection.wait_ready(10)
        made = Guarded(store, connection)
        made.continuity, made.lost = continuity, lost
        if seed:
            await made.seed()
        yield made
    finally:
        await connection.close()
        keeper.cancel()
        await asyncio.wait([keeper])
        await store.close()


async def reconnected(connection: Connection, generation: int) -> None:
    """Wait for a connection made after `generation`."""
    async with asyncio.timeout(15):
        while connection.generation == generation or not connection.connected:
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def background_worker(gateway: RunningGateway) -> AsyncIterator[Flusher]:
    """The loops of the worker that matter here, on the gateway's own connections."""
    store, ledger, settings = gateway.context.store, gateway.parts.ledger, gateway.context.settings
    shards = settings.ledger_shards
    flusher = Flusher(
        store, gateway.context.journal, shards=shards, batch_entries=500, run_id=lambda: ledger.server.run_id
    )
    restorer = Restorer(store, ledger, Keys(), shards=shards, call_ttl_s=900, report_ttl_s=172_800)
    continuity = Continuity(store, Keys(), shards=shards, lost=lambda _: None)

    async def flush() -> bool:
        return await flusher.flush_once() > 0

    stop = asyncio.Event()
    loops = (
        Loop("flusher", flush, 0.02),
        Loop("healer", Healer(ledger, continuity, restorer, flusher).heal_once, 0.05),
    )
    async with asyncio.TaskGroup() as group:
        for loop in loops:
            group.create_task(loop.run(stop))
        try:
            yield flusher
        finally:
            stop.set()


async def flushed(gateway: RunningGateway) -> None:
    while await gateway.context.journal.lengths(range(gateway.context.settings.ledger_shards)):
        await asyncio.sleep(0.01)
