"""The composition root of a gateway process: what it is made of, its routes, its start and its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import msgspec
import uvloop
from aiohttp import web

from gateway import failpoints, log, providers, sockets
from gateway.api import routes as api_routes
from gateway.api.context import ApiContext
from gateway.background import Background
from gateway.billing import checkout_parts
from gateway.billing.catalogue import Catalogue
from gateway.billing.continuity import Continuity, guarded
from gateway.billing.pricing import Pricing
from gateway.billing.principals import Principals
from gateway.billing.settled_before import SettledBefore
from gateway.billing.shards import refuse_fewer_shards
from gateway.billing.spend_keys import SpendCounters
from gateway.counting import Counter
from gateway.drain import StopSignals, drain
from gateway.errors import ConfigurationError, ObolError
from gateway.ledger.bound import JournalBound
from gateway.ledger.changes import Changes
from gateway.ledger.connection import Connection, LedgerAway
from gateway.ledger.journal import Journal
from gateway.ledger.kept import Kept
from gateway.ledger.keys import Keys
from gateway.ledger.recovery import Recovery
from gateway.ledger.row import RequestIds
from gateway.ledger.wallets import Wallets
from gateway.metrics import Metrics
from gateway.multiprocess import fold_dead
from gateway.observe import Probes
from gateway.pages import checkout, dashboard
from gateway.prices import compile_book
from gateway.proxy.forward import forward
from gateway.proxy.http_client import Timeouts
from gateway.proxy.limits import CallLimits
from gateway.proxy.listener import Listener, Server
from gateway.proxy.parts import Parts
from gateway.proxy.realtime.serve import Realtime, wants_websocket
from gateway.proxy.reconnection import hold_again, kept_settles
from gateway.proxy.renewal import keep_holds
from gateway.proxy.resolver import Resolver
from gateway.proxy.upstream import Origin, Upstream, tls_context
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.sealed import Sealed
from gateway.store.secrets import Derived
from gateway.webhooks.sender import resolver as webhook_resolver
from gateway.wire.dropin import route_of
from gateway.wire.rewrite import PREFIX as REWRITE_PREFIX

LOG = logging.getLogger("obol.app")
START_TIMEOUT_S = 30
PRICE_CHECK_INTERVAL_S = 60
GC_ALLOCATIONS = 5_000
LISTEN_BACKLOG = 4_096
CLEANUP_TIMEOUT_S = 1.0
"""For aiohttp's own end, which finds nothing under way unless this process has failed. (To it 0 means for ever.)"""
FORWARD_PREFIXES = ("/v1/forward", "/forward")
_Run = Callable[[Coroutine[Any, Any, None]], None]


def serve(
    settings: Settings, *, host: str, port: int, descriptor: int | None = None, ready_file: Path | None = None
) -> int:
    """Run one gateway process until it is told to end (`drain.py`). Raise ConfigurationError where it cannot start.

    `descriptor` is an inherited listening socket, which takes the place of `host` and `port`: whoever keeps it open
    while this process is replaced loses no connection.
    """
    log.configure(settings.log_level, settings.secrets())
    for name in ("redis_url", "postgres_url", "master_key"):
        if not getattr(settings, name):
            raise ConfigurationError(f"OBOL_{name.upper()} is not set: set it, or run obol up")
    listening = sockets.bound(host, port) if descriptor is None else sockets.inherited(descriptor)
    with listening:
        uvloop.run(_serve(settings, listening, ready_file))
    return 0


async def _serve(settings: Settings, listening: socket.socket, ready_file: Path | None) -> None:
    stop = StopSignals()
    await asyncio.to_thread(_fold_metrics)
    async with assemble(settings) as (parts, context, probes):
        runner = Listener(application(context, probes), settings, parts.metrics, shutdown_timeout_s=CLEANUP_TIMEOUT_S)
        await runner.setup()
        try:
            route_calls(runner, parts)
            site = web.SockSite(runner, listening, backlog=LISTEN_BACKLOG)
            await site.start()
            _settle_memory()
            address = runner.addresses[0]
            _tell_ready(ready_file, address[1])
            LOG.info("serving", extra={"host": address[0], "port": address[1]})
            await stop.drain.wait()
            await asyncio.sleep(0)  # accept who waits, if this socket is ours alone
            await site.stop()
            await drain(parts, cast(Server, runner.server), stop.cut)
        finally:
            await runner.cleanup()


def _fold_metrics() -> None:
    """Those who ended before us leave no files behind, also where nobody reads /metrics."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory and Path(directory).is_dir():
        with suppress(TimeoutError):
            fold_dead(Path(directory))


def _settle_memory() -> None:
    """What was loaded at start (prices, token ranks, code) stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 20)


def route_calls(runner: web.AppRunner, parts: Parts) -> None:
    """Calls of the gateway paths go straight to `forward`; only the rest passes aiohttp's router and middlewares."""
    server = runner.server
    assert server is not None
    routed, realtime = server.request_handler, Realtime(parts)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        if wants_websocket(request):
            return await realtime.serve(request)
        path = request.raw_path
        if path.startswith(FORWARD_PREFIXES) and path.partition("forward")[2][:1] in ("", "/", "?"):
            return await forward(parts, request)
        if path.startswith(REWRITE_PREFIX):
            return await forward(parts, request)
        if (route := route_of(path)) is not None:
            return await forward(parts, request, route)
        response = await routed(request)
        if parts.draining or request.content.exception() is not None:
            response.force_close()
        return response

    server.request_handler = handler


def application(context: ApiContext, probes: Probes) -> web.Application:
    """Everything but the gateway path."""
    app = web.Application(middlewares=api_routes.middlewares(), client_max_size=context.settings.max_request_body_bytes)
    app.add_routes(probes.routes())
    app.add_routes(api_routes.routes(context))
    app.add_routes(dashboard.routes())
    app.add_routes(checkout.routes(context))
    return app


class _Engines(NamedTuple):
    """PostgreSQL and Redis, and what is made of them alone."""

    store: Store
    ledger: Connection
    keys: Keys
    journal: Journal
    kept: Kept
    bound: JournalBound
    wallets: Wallets
    spend_counters: SpendCounters


@asynccontextmanager
async def assemble(settings: Settings) -> AsyncIterator[tuple[Parts, ApiContext, Probes]]:
    """All parts, connected, and closed again in the opposite order."""
    async with _configuration_error_bare(), AsyncExitStack() as stack:
        metrics, keys, sealed = Metrics(), Keys(), Sealed(settings.master_key)
        store = await Store.connect(settings.postgres_url, pool_max=settings.postgres_pool_max)
        stack.push_async_callback(store.close)
        run = await stack.enter_async_context(_loops())
        ledger = await _ready_ledger(settings, store, metrics, run)
        engines = _engines(settings, store, ledger, keys, metrics)
        changes = Changes(ledger, keys)
        principals = _principals(settings, store, changes, sealed)
        run(changes.listen(principals.cache.forget, principals.cache.hearing))
        parts = await _parts(settings, engines, principals, metrics, stack)
        _run_loops(parts, engines, run)
        context = _context(parts, engines, sealed)
        context.checkouts, context.processor_events = await stack.enter_async_context(
            checkout_parts.opened(store, engines.wallets, principals, settings, sealed, failpoints.reaching(parts.fail))
        )
        probes = Probes(parts, ledger, engines.journal, keys, store)
        run(probes.run())
        stack.push_async_callback(ledger.close)
        stack.callback(metrics.flush)
        yield parts, context, probes


@asynccontextmanager
async def _loops() -> AsyncIterator[_Run]:
    """Runs what it is given beside the caller, until the end of the block. One that fails ends the block."""
    async with asyncio.TaskGroup() as group:
        running: list[asyncio.Task[None]] = []
        try:
            yield lambda loop: running.append(group.create_task(loop))
        finally:
            for task in running:
                task.cancel()


async def _ready_ledger(settings: Settings, store: Store, metrics: Metrics, run: _Run) -> Connection:
    """A connection to a Redis that may be used, of an installation that this process fits."""
    ledger, continuity = guarded(settings, store, metrics.lost_entries.inc)
    run(ledger.run())
    await _engines_ready(ledger, continuity)
    await refuse_fewer_shards(store, settings.ledger_shards)
    return ledger


def _engines(settings: Settings, store: Store, ledger: Connection, keys: Keys, metrics: Metrics) -> _Engines:
    journal, kept = Journal(ledger, keys), kept_settles(settings, ledger, metrics)
    wallets = Wallets(
        ledger,
        keys,
        record_ttl_s=settings.settled_record_ttl_s,
        report_ttl_s=settings.report_record_ttl_s,
        kept=kept,
        recorded=SettledBefore(store, journal),
    )
    return _Engines(
        store,
        ledger,
        keys,
        journal,
        kept,
        JournalBound(journal, shards=settings.ledger_shards, entries_max=settings.journal_entries_max),
        wallets,
        SpendCounters(store, journal, Recovery(ledger, keys)),
    )


def _principals(settings: Settings, store: Store, changes: Changes, sealed: Sealed) -> Principals:
    return Principals(
        store,
        changes.announce,
        entries_max=settings.principal_cache_entries,
        ttl_s=settings.principal_cache_ttl_s,
        sealed=sealed,
    )


async def _parts(
    settings: Settings, engines: _Engines, principals: Principals, metrics: Metrics, stack: AsyncExitStack
) -> Parts:
    """What the gateway path works with. `stack` closes what has to be closed."""
    counter = Counter(max_text_bytes=settings.max_counted_text_bytes)
    stack.callback(counter.close)
    await counter.load("o200k_base")
    table = providers.load()
    managed_keys = providers.managed_keys(table, settings.provider_keys)
    fail = failpoints.of_settings(settings.fail_point_file, settings.data_dir)
    upstream = _upstream(settings, fail)
    stack.push_async_callback(upstream.close)
    return Parts(
        settings=settings,
        providers=table,
        principals=principals,
        pricing=await _pricing(settings, engines.store),
        catalogue=Catalogue(table, providers.callable_names(table, managed_keys, settings.upstream_map)),
        ledger=engines.ledger,
        wallets=engines.wallets,
        kept=engines.kept,
        spend_counters=engines.spend_counters,
        upstream=upstream,
        counter=counter,
        metrics=metrics,
        background=Background(),
        routes={},
        request_ids=RequestIds(),
        timeouts=_timeouts(settings),
        managed_keys=managed_keys,
        live=set(),
        limits=CallLimits(settings),
        fail=fail,
        journals=engines.bound,
        origins={origin: _mapped(origin, to) for origin, to in settings.upstream_map.items()},
    )


def _run_loops(parts: Parts, engines: _Engines, run: _Run) -> None:
    run(_keep_prices(parts, engines.store))
    run(keep_holds(parts))
    run(engines.bound.run())
    run(engines.kept.run(engines.wallets.resend))
    run(parts.upstream.run())
    engines.ledger.before_ready(partial(engines.kept.resend, engines.wallets.resend))
    engines.ledger.before_ready(partial(hold_again, parts))


def _context(parts: Parts, engines: _Engines, sealed: Sealed) -> ApiContext:
    settings = parts.settings
    return ApiContext(
        engines.store,
        engines.wallets,
        engines.journal,
        parts.principals,
        settings,
        Derived(settings.master_key),
        engines.bound,
        offers=lambda: parts.catalogue.offers(parts.pricing.book),
        book=lambda: parts.pricing.book,
        spend_counters=engines.spend_counters,
        sealed=sealed,
        provider_names=tuple(row.name for row in parts.providers),
        webhook_addresses=partial(webhook_resolver(settings).addresses, policy="own"),
    )


@asynccontextmanager
async def _configuration_error_bare() -> AsyncIterator[None]:
    """The error that the command line tells comes out of a task group wrapped."""
    try:
        yield
    except ExceptionGroup as group:
        if isinstance(group.exceptions[0], ConfigurationError):
            raise group.exceptions[0] from None
        raise


async def _engines_ready(ledger: Connection, continuity: Continuity) -> None:
    """Redis answers, and has what PostgreSQL recorded, which PostgreSQL must answer to tell. What is missing is logged
    meanwhile; whoever started this process starts it again."""
    try:
        await ledger.wait_ready(START_TIMEOUT_S)
    except LedgerAway:
        why = f"answers, but cannot be used: {continuity.refused}" if continuity.refused else "does not answer"
        raise ConfigurationError(f"Redis (OBOL_REDIS_URL) {why}") from None


def _upstream(settings: Settings, fail: failpoints.FailPoints | None) -> Upstream:
    return Upstream(
        connections_max=settings.upstream_connections_max,
        connect_timeout_s=settings.upstream_connect_timeout_ms / 1000,
        idle_s=settings.upstream_idle_connection_s,
        resolver=Resolver(cache_s=settings.upstream_dns_cache_s, private_hosts=frozenset(settings.private_upstreams)),
        tls=tls_context(settings.upstream_ca_file),
        fail=fail,
    )


def _timeouts(settings: Settings) -> Timeouts:
    return Timeouts(settings.first_byte_timeout_s, settings.chunk_idle_timeout_s, settings.request_timeout_s)


async def _pricing(settings: Settings, store: Store) -> Pricing:
    """Prices of now. The book is stored before any charge names it, so that every charge can be recomputed."""
    book = await asyncio.to_thread(compile_book, datetime.now(UTC))
    await store.execute("prices.insert_book", book.version, await asyncio.to_thread(book.stored))
    return Pricing(
        book,
        refuse_unknown=settings.unpriced_models == "refuse",
        default_max_output_tokens=settings.default_max_output_tokens,
    )


async def _keep_prices(parts: Parts, store: Store) -> None:
    """Compile the book again when one of its prices starts or ends."""
    while True:
        await asyncio.sleep(PRICE_CHECK_INTERVAL_S)
        until = parts.pricing.book.valid_until
        if until is None or datetime.now(UTC) < until:
            continue
        try:
            parts.pricing = await _pricing(parts.settings, store)
        except (ObolError, ConfigurationError) as error:
            LOG.warning("the price book is not renewed yet", extra={"why": str(error)})


def _mapped(origin: str, to: str) -> Origin:
    """The stand-in for an origin; the original host stays in `Host`."""
    parts = urlsplit(to)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return Origin(parts.scheme, parts.hostname or "", port, origin.partition("://")[2].rstrip("/"), "stand_in")


def _tell_ready(path: Path | None, port: int) -> None:
    if path is not None:
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode({"pid": os.getpid(), "port": port}))
        partial.replace(path)
