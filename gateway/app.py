"""The composition root of a gateway process: what it is made of, its routes, its start and its end."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import uvloop
from aiohttp import web

from gateway import log, providers
from gateway.api import routes as api_routes
from gateway.api.context import ApiContext
from gateway.background import Background
from gateway.billing.pricing import Pricing
from gateway.billing.principals import Principals
from gateway.counting import Counter
from gateway.errors import ConfigurationError, ObolError
from gateway.ledger import scripts
from gateway.ledger.changes import Changes
from gateway.ledger.connection import Connection, LedgerAway
from gateway.ledger.journal import Journal
from gateway.ledger.keys import Keys
from gateway.ledger.row import RequestIds
from gateway.ledger.wallets import Wallets
from gateway.metrics import Metrics
from gateway.observe import Probes
from gateway.pages import dashboard
from gateway.prices import PriceBook, compile_book
from gateway.proxy.forward import forward
from gateway.proxy.http_client import Timeouts
from gateway.proxy.parts import Parts
from gateway.proxy.renewal import keep_holds
from gateway.proxy.upstream import Origin, Upstream
from gateway.settings import Settings
from gateway.store.postgres import Store
from gateway.store.secrets import Derived

LOG = logging.getLogger("obol.app")
START_TIMEOUT_S = 30
PRICE_CHECK_INTERVAL_S = 60
GC_ALLOCATIONS = 5_000
LISTEN_BACKLOG = 4_096
FORWARD_PREFIXES = ("/v1/forward", "/forward")


def serve(settings: Settings, *, host: str, port: int, ready_file: Path | None = None) -> int:
    """Run one gateway process until SIGTERM or SIGINT. Raise ConfigurationError where it cannot start."""
    log.configure(settings.log_level)
    for name in ("redis_url", "postgres_url", "master_key"):
        if not getattr(settings, name):
            raise ConfigurationError(f"OBOL_{name.upper()} is not set: set it, or run obol up")
    uvloop.run(_serve(settings, host, port, ready_file))
    return 0


async def _serve(settings: Settings, host: str, port: int, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with assemble(settings) as (parts, context, probes):
        runner = web.AppRunner(
            application(context, probes),
            handle_signals=False,
            access_log=None,
            keepalive_timeout=75,
            auto_decompress=False,  # a body passes as it was sent
            shutdown_timeout=settings.shutdown_drain_s,
            max_line_size=settings.max_header_bytes,
            max_field_size=settings.max_header_bytes,
        )
        await runner.setup()
        try:
            route_calls(runner, parts)
            site = web.SockSite(runner, _listening_socket(host, port), backlog=LISTEN_BACKLOG)
            await site.start()
            bound = runner.addresses[0][1]
            _settle_memory()
            _tell_ready(ready_file, bound)
            LOG.info("serving", extra={"host": host, "port": bound})
            await stop.wait()
            LOG.info("draining", extra={"calls": len(parts.background)})
            parts.draining = True
        finally:
            await runner.cleanup()
            await _drain(parts)


async def _drain(parts: Parts) -> None:
    """No call is left unsettled: wait for every acknowledgement, and for what is tried again in the background."""
    waiting = [call.settling for call in parts.live if call.settling is not None]
    if waiting:
        await asyncio.wait(waiting, timeout=parts.settings.shutdown_drain_s)
        await asyncio.sleep(0)  # what failed has begun again in the background
    await parts.background.drain(parts.settings.shutdown_drain_s)


def _settle_memory() -> None:
    """What was loaded at start (prices, token ranks, code) stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 20)


def route_calls(runner: web.AppRunner, parts: Parts) -> None:
    """Calls of the gateway path go straight to `forward`; only the rest passes aiohttp's router and middlewares."""
    server = runner.server
    assert server is not None
    routed = server.request_handler

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path
        if path.startswith(FORWARD_PREFIXES) and path.partition("forward")[2][:1] in ("", "/", "?"):
            return await forward(parts, request)
        return await routed(request)

    server.request_handler = handler


def application(context: ApiContext, probes: Probes) -> web.Application:
    """Everything but the gateway path."""
    app = web.Application(middlewares=api_routes.middlewares(), client_max_size=context.settings.max_request_body_bytes)
    app.add_routes(probes.routes())
    app.add_routes(api_routes.routes(context))
    app.add_routes(dashboard.routes())
    return app


@asynccontextmanager
async def assemble(settings: Settings) -> AsyncIterator[tuple[Parts, ApiContext, Probes]]:
    """All parts, connected, and closed again in the opposite order."""
    async with AsyncExitStack() as stack:
        background, metrics, keys = Background(), Metrics(), Keys()
        ledger = Connection(
            settings.redis_url,
            scripts.load(),
            timeout_ms=settings.redis_timeout_ms,
            pending_max=settings.redis_pending_commands_max,
        )
        loops = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(lambda: [task.cancel() for task in running])
        running = [loops.create_task(ledger.run())]
        try:
            await ledger.wait_ready(START_TIMEOUT_S)
        except LedgerAway:
            raise ConfigurationError("Redis (OBOL_REDIS_URL) does not answer") from None
        store = await Store.connect(settings.postgres_url, pool_max=settings.postgres_pool_max)
        stack.push_async_callback(store.close)
        wallets = Wallets(
            ledger, keys, record_ttl_s=settings.settled_record_ttl_s, report_ttl_s=settings.report_record_ttl_s
        )
        changes = Changes(ledger, keys)
        principals = Principals(
            store,
            changes.announce,
            entries_max=settings.principal_cache_entries,
            ttl_s=settings.principal_cache_ttl_s,
        )
        running.append(loops.create_task(changes.listen(principals.cache.forget, principals.cache.hearing)))
        counter = Counter(max_text_bytes=settings.max_counted_text_bytes)
        stack.callback(counter.close)
        await counter.load("o200k_base")
        table = providers.load()
        upstream = _upstream(settings)
        stack.push_async_callback(upstream.close)
        parts = Parts(
            settings=settings,
            providers=table,
            principals=principals,
            pricing=await _pricing(settings, store),
            ledger=ledger,
            wallets=wallets,
            upstream=upstream,
            counter=counter,
            metrics=metrics,
            background=background,
            routes={},
            request_ids=RequestIds(),
            timeouts=Timeouts(settings.first_byte_timeout_s, settings.chunk_idle_timeout_s, settings.request_timeout_s),
            managed_keys=providers.managed_keys(table, settings.provider_keys),
            live=set(),
            origins={origin: _mapped(origin, to) for origin, to in settings.upstream_map.items()},
        )
        running += [
            loops.create_task(_keep_prices(parts, store)),
            loops.create_task(keep_holds(parts)),
            loops.create_task(upstream.run()),
        ]
        journal = Journal(ledger, keys)
        context = ApiContext(store, wallets, journal, principals, settings, Derived(settings.master_key))
        probes = Probes(parts, ledger, journal, keys, store)
        running.append(loops.create_task(probes.run()))
        stack.push_async_callback(ledger.close)
        stack.callback(metrics.flush)
        yield parts, context, probes


def _upstream(settings: Settings) -> Upstream:
    return Upstream(
        connections_max=settings.upstream_connections_max,
        connect_timeout_s=settings.upstream_connect_timeout_ms / 1000,
        idle_s=settings.upstream_idle_connection_s,
        tls=ssl.create_default_context(),
    )


def _timeouts(settings: Settings) -> Timeouts:
    return Timeouts(settings.first_byte_timeout_s, settings.chunk_idle_timeout_s, settings.request_timeout_s)


async def _pricing(settings: Settings, store: Store) -> Pricing:
    """Prices of now. The book is stored before any charge names it, so that every charge can be recomputed."""
    book = await asyncio.to_thread(compile_book, datetime.now(UTC))
    await _store_book(store, book)
    return Pricing(
        book,
        refuse_unknown=settings.unpriced_models == "refuse",
        default_max_output_tokens=settings.default_max_output_tokens,
    )


async def _store_book(store: Store, book: PriceBook) -> None:
    content = await asyncio.to_thread(gzip.compress, book.to_json(), mtime=0)
    await store.execute("prices.insert_book", book.version, content)


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
    return Origin(parts.scheme, parts.hostname or "", port, origin.partition("://")[2].rstrip("/"))


def _listening_socket(host: str, port: int) -> socket.socket:
    """All workers listen on the same port; the kernel spreads the connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listening.setblocking(False)
    return listening


def _tell_ready(path: Path | None, port: int) -> None:
    if path is not None:
        partial = path.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode({"pid": os.getpid(), "port": port}))
        partial.replace(path)
