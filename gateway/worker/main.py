"""`obol worker`: connects, runs the loops until SIGTERM, then flushes what is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from gateway import failpoints, log
from gateway.billing.charges import Charges
from gateway.billing.continuity import Continuity, guarded
from gateway.billing.shards import refuse_fewer_shards
from gateway.billing.turns import Turns
from gateway.cards import choice
from gateway.errors import ConfigurationError, ObolError
from gateway.ledger.changes import Changes
from gateway.ledger.connection import Connection, LedgerAway
from gateway.ledger.keys import Keys
from gateway.ledger.wallets import Wallets
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.webhooks.deliverer import delivering
from gateway.worker import metrics
from gateway.worker.charger import Charger
from gateway.worker.collector import Collector
from gateway.worker.flusher import Flusher
from gateway.worker.rounds import Rounds

_LOG = logging.getLogger("obol.worker")
BACKOFF_MAX_S = 5.0
STOP_ROUND_S = 10.0
FINAL_FLUSH_S = 10.0
_GRANTS_INTERVAL_S = 1.0
_CYCLES_INTERVAL_S = 0.5
_LAG_INTERVAL_S = 1.0
_HEAL_INTERVAL_S = 0.1
_PARTITIONS_INTERVAL_S = 3_600.0
_WEBHOOKS_INTERVAL_S = 0.2
_CHARGES_INTERVAL_S = 0.5
_WEBHOOK_LOG_INTERVAL_S = 30.0
_CONNECT_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Loop:
    """`tick` returns whether there is more to do at once; else it is called again after `interval_s`."""

    name: str
    tick: Callable[[], Awaitable[bool]]
    interval_s: float

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set. A tick that raises is logged and counted, and tried again after a growing pause."""
        failures = 0
        while not stop.is_set():
            more = await self.once()
            failures = failures + 1 if more is None else 0
            if not more:
                await _wait(
                    stop, min(self.interval_s * 2 ** min(failures, 16), BACKOFF_MAX_S) if failures else self.interval_s
                )

    async def once(self) -> bool | None:
        """One tick; None if it raised."""
        try:
            return await self.tick()
        except Exception as error:
            metrics.TICK_ERRORS.labels(self.name).inc()
            expected = isinstance(error, LedgerAway | ObolError)
            fields = {"loop": self.name, "reason": str(error)}
            _LOG.error("a round failed", extra=fields, exc_info=None if expected else error)
            return None


def run(settings: Settings, ready_file: Path | None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. Raise ConfigurationError where an engine is not named."""
    log.configure(settings.log_level, settings.secrets())
    for name in ("redis_url", "postgres_url"):
        if not getattr(settings, name):
            raise ConfigurationError(f"the worker needs OBOL_{name.upper()}, or the --data-dir of a running obol up")
    return uvloop.run(_main(settings, ready_file))


async def _main(settings: Settings, ready_file: Path | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _engines(settings) as (store, connection, continuity), contextlib.AsyncExitStack() as stack:
        await _until_answering(store, connection, stop)
        if not stop.is_set():
            await refuse_fewer_shards(store, settings.ledger_shards)
        rounds = Rounds(settings, store, connection, continuity)
        loops = (*_loops(rounds, settings), *await _webhook_loops(settings, rounds.wallets, stack))
        loops = (*loops, *await _card_loops(settings, store, connection, rounds.wallets, stack))
        if ready_file is not None and not stop.is_set():
            await asyncio.to_thread(_write_ready, ready_file)
        _LOG.info("the worker runs", extra={"pid": os.getpid()})
        # A month whose first row lands in the default partition stays there: make the partitions before any flush.
        await loops[0].once()
        await _run_loops(loops, stop)
        await _flush_the_rest(rounds.flusher)
    _LOG.info("the worker has ended", extra={"pid": os.getpid()})
    return 0


@asynccontextmanager
async def _engines(settings: Settings) -> AsyncIterator[tuple[Store, Connection, Continuity]]:
    store = await Store.connect(settings.postgres_url, pool_max=settings.postgres_pool_max)
    connection, continuity = guarded(settings, store, metrics.LOST_ENTRIES.inc)
    async with asyncio.TaskGroup() as group:
        keeper = group.create_task(connection.run(), name="redis connection")
        try:
            yield store, connection, continuity
        finally:
            await connection.close()
            keeper.cancel()
            await store.close()


async def _until_answering(store: Store, connection: Connection, stop: asyncio.Event) -> None:
    """Wait, with a growing pause, until both engines answer or `stop` is set."""
    pause_s = _CONNECT_PAUSE_S
    while not stop.is_set():
        try:
            await connection.wait_ready(BACKOFF_MAX_S)
            await store.row("worker.ping")
            return
        except (LedgerAway, ObolError) as error:
            _LOG.warning("an engine does not answer yet", extra={"reason": str(error)})
        await _wait(stop, pause_s)
        pause_s = min(2 * pause_s, BACKOFF_MAX_S)


def _loops(rounds: Rounds, settings: Settings) -> tuple[Loop, ...]:
    return (
        Loop("partitions", rounds.make_partitions, _PARTITIONS_INTERVAL_S),
        Loop("flusher", rounds.flush, settings.flush_interval_ms / 1000),
        Loop("healer", rounds.heal, _HEAL_INTERVAL_S),
        Loop("reaper", rounds.reap, settings.reap_interval_ms / 1000),
        Loop("grants", rounds.apply_grants, _GRANTS_INTERVAL_S),
        Loop("cycles", rounds.turn_cycles, _CYCLES_INTERVAL_S),
        Loop("turns", rounds.apply_turns, _GRANTS_INTERVAL_S),
        Loop("lag", rounds.measure_lag, _LAG_INTERVAL_S),
    )


async def _webhook_loops(settings: Settings, wallets: Wallets, stack: contextlib.AsyncExitStack) -> tuple[Loop, ...]:
    if not settings.master_key:
        _LOG.warning("webhooks are not delivered: their secrets follow from OBOL_MASTER_KEY, which is not set")
        return ()
    deliverer = await stack.enter_async_context(delivering(settings, wallets))
    return (
        Loop("webhooks", deliverer.deliver_due, _WEBHOOKS_INTERVAL_S),
        Loop("webhook log", deliverer.tidy, _WEBHOOK_LOG_INTERVAL_S),
    )


async def _card_loops(
    settings: Settings, store: Store, connection: Connection, wallets: Wallets, stack: contextlib.AsyncExitStack
) -> tuple[Loop, ...]:
    cards = await stack.enter_async_context(choice.opened(settings, store))
    fail = failpoints.of_settings(settings.fail_point_file, settings.data_dir)
    charges = Charges(
        store,
        wallets,
        overage_cap_nano=settings.overage_cap_nano,
        retry_days=settings.charge_retry_days,
        changed=Changes(connection, Keys()).announce,
    )
    charger = Charger(store, charges, cards.named, settings, fail)
    stack.push_async_callback(charger.stop)
    collector = Collector(store, Turns(store, wallets), cards.named, settings, fail)
    return (
        Loop("collector", collector.collect_once, _CHARGES_INTERVAL_S),
        Loop("charger", charger.charge_due, _CHARGES_INTERVAL_S),
        Loop("charges", charger.measure, _LAG_INTERVAL_S),
    )


async def _run_loops(loops: Sequence[Loop], stop: asyncio.Event) -> None:
    """All of them until `stop`; a round that is still at work STOP_ROUND_S later is cancelled, which loses nothing."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run(stop), name=each.name) for each in loops]
        await stop.wait()
        _, late = await asyncio.wait(tasks, timeout=STOP_ROUND_S)
        for task in late:
            _LOG.warning("a round is cancelled", extra={"loop": task.get_name()})
            task.cancel()


async def _flush_the_rest(flusher: Flusher) -> None:
    """Empty the journals, in at most FINAL_FLUSH_S. What stays is in Redis for the next worker."""
    started_s = time.monotonic()
    total = 0
    try:
        async with asyncio.timeout(FINAL_FLUSH_S):
            while carried := await flusher.flush_once():
                total += carried
    except Exception as error:
        _LOG.error("the last flush did not end well", extra={"reason": str(error) or type(error).__name__})
    _LOG.info("the last flush", extra={"entries": total, "duration_s": round(time.monotonic() - started_s, 3)})


async def _wait(stop: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), timeout_s)


def _write_ready(path: Path) -> None:
    """Whole or not at all: who waits for the file never reads half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"pid": os.getpid(), "metrics_port": None}) + "\n", encoding="utf-8")
    partial.replace(path)
