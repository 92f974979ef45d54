"""What an operator sees: `/metrics`, `/healthz`, `/readyz`."""

from __future__ import annotations

import asyncio
import logging

import hiredis
from aiohttp import web

from gateway.errors import ObolError
from gateway.ledger.connection import Connection, LedgerAway
from gateway.ledger.journal import Journal
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Recovery
from gateway.ledger.wallets import now_ms
from gateway.metrics import LedgerGauges, exposition
from gateway.proxy.parts import Parts
from gateway.store.postgres import Store

LOG = logging.getLogger("obol.observe")
SAMPLE_INTERVAL_S = 0.5
MAX_LOOP_DELAY_LOGGED_S = 0.25
PROBE_TIMEOUT_S = 2.0


class Probes:
    """Answers for one process; the ledger's gauges are read when asked for and are the same on every worker."""

    def __init__(self, parts: Parts, ledger: Connection, journal: Journal, keys: Keys, store: Store) -> None:
        self._parts = parts
        self._ledger = ledger
        self._journal = journal
        self._keys = keys
        self._recovery = Recovery(ledger, keys)
        self._store = store
        self._gauges = LedgerGauges()
        self._cache_seen = (0, 0)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/metrics", self.metrics),
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
        ]

    async def run(self) -> None:
        """Sample what no event announces."""
        loop = asyncio.get_running_loop()
        while True:
            asked_at = loop.time()
            await asyncio.sleep(SAMPLE_INTERVAL_S)
            late_s = loop.time() - asked_at - SAMPLE_INTERVAL_S
            if late_s > MAX_LOOP_DELAY_LOGGED_S:
                LOG.warning("the event loop was blocked", extra={"seconds": round(late_s, 3)})
            self._sample()

    def _sample(self) -> None:
        metrics, cache = self._parts.metrics, self._parts.principals.cache
        hits, misses = self._cache_seen
        metrics.cache.labels("hit").inc(cache.hits - hits)
        metrics.cache.labels("miss").inc(cache.misses - misses)
        self._cache_seen = (cache.hits, cache.misses)
        metrics.connections.set(self._parts.upstream.open_connections)
        metrics.active.set(len(self._parts.live))
        metrics.flush()

    async def healthz(self, _request: web.Request) -> web.Response:
        """The process lives."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _request: web.Request) -> web.Response:
        """Calls can be served: Redis answers and the journals have room. With PostgreSQL away, or the journals half
        full, they still are, and an operator has something to do: "degraded"."""
        ledger, store = await asyncio.gather(self._ledger_answers(), self._store_answers())
        journals = self._parts.journals
        ready = ledger and not journals.full and not self._parts.draining
        sound = store and journals.state == "ok"
        state = {
            "status": "not ready" if not ready else "ready" if sound else "degraded",
            "ledger": "ok" if ledger else "away",
            "store": "ok" if store else "away",
            "journals": journals.state,
            "draining": self._parts.draining,
        }
        return web.json_response(state, status=200 if ready else 503)

    async def metrics(self, _request: web.Request) -> web.Response:
        self._sample()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._read_ledger()
            self._gauges.ledger_up = True
        except (LedgerAway, TimeoutError, hiredis.ReplyError):
            self._gauges.ledger_up = False
        text = await asyncio.to_thread(exposition, self._parts.metrics, self._gauges)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _read_ledger(self) -> None:
        shards = range(self._parts.settings.ledger_shards)
        holds = await asyncio.gather(*(self._ledger.command("ZCARD", self._keys.holds(shard)) for shard in shards))
        now = now_ms()
        journals = await asyncio.gather(*(self._journal.length_and_age_ms(shard, now) for shard in shards))
        self._gauges.holds_open = sum(holds)
        self._gauges.journal_entries = sum(length for length, _ in journals)
        self._gauges.journal_age_s = max(age for _, age in journals) / 1000
        self._gauges.journal_entries_max = self._parts.journals.entries_max
        pending = (await self._recovery.pending(shards)).values()
        self._gauges.wallets_restoring = sum(queued for queued, _ in pending)
        self._gauges.shards_swept = sum(sweep is not None for _, sweep in pending)

    async def _ledger_answers(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._ledger.command("PING")
        except (LedgerAway, TimeoutError, hiredis.ReplyError):
            return False
        return True

    async def _store_answers(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._store.execute("prices.ping")
        except (ObolError, TimeoutError):
            return False
        return True
