"""`obol check`: are Redis, PostgreSQL and the configuration usable, and what may be lost with them?

Prints a line for each finding: `ok`, `note` (usable, but the operator should know) or `FAIL` (not usable). A Redis that
may evict keys is refused, because every key it holds is money. No line shows a secret.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError, ResponseError

from gateway import prices, providers
from gateway.billing.merchant_prices import unknown_names
from gateway.errors import ConfigurationError
from gateway.ledger.connection import Address
from gateway.ledger.server import Server
from gateway.settings import Settings
from gateway.store import migrate
from gateway.store.secrets import Derived

REDIS_OLDEST = (6, 2)
"""The first with XTRIM MINID."""
POSTGRES_OLDEST = 14
POSTGRES_TIMEOUT_S = 10.0


class Loss(NamedTuple):
    """What a power cut of Redis' machine may take, by appendfsync."""

    at_most_s: int
    text: str


LOSSES = {
    "always": Loss(0, "appendfsync always: an acknowledged settle survives a crash of the server and a power cut"),
    "everysec": Loss(
        2, "appendfsync everysec: a power cut may take what was written in the last second, 2 s at the worst"
    ),
    # Linux writes what is older than vm.dirty_expire_centisecs (30 s), and looks every 5 s.
    "no": Loss(
        35, "appendfsync no: a power cut may take what the kernel had not written yet, on Linux about 30 s, or 35 s"
    ),
}


class Finding(NamedTuple):
    """One line of the table."""

    state: Literal["ok", "note", "FAIL"]
    part: str
    text: str


def main(settings: Settings) -> int:
    """Print the table. Return 0 if everything is usable, 1 if not."""
    findings = asyncio.run(check(settings))
    width = max(len(finding.part) for finding in findings)
    for state, part, text in findings:
        sys.stdout.write(f"{state:<4}  {part:<{width}}  {text}\n")
    failures = sum(finding.state == "FAIL" for finding in findings)
    sys.stdout.write(f"\nnot usable: {failures} of {len(findings)} checks failed\n" if failures else "\nusable\n")
    return 1 if failures else 0


async def check(settings: Settings) -> list[Finding]:
    """All findings, in the order Redis, PostgreSQL, configuration."""
    parts = await asyncio.gather(_collect(_redis(settings)), _collect(_postgres(settings)))
    return [*parts[0], *parts[1], *await asyncio.to_thread(list, _configuration(settings))]


async def _collect(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in findings]


# Redis


async def _redis(settings: Settings) -> AsyncIterator[Finding]:
    if not settings.redis_url:
        yield Finding("FAIL", "Redis", "OBOL_REDIS_URL is not set")
        return
    try:
        where = Address(settings.redis_url)
    except (ConfigurationError, ValueError) as error:
        yield Finding("FAIL", "Redis", str(error))
        return
    timeout_s = settings.redis_timeout_ms / 1000
    client = redis.asyncio.Redis.from_url(
        settings.redis_url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, decode_responses=True
    )
    place = f"{where.host}:{where.port}"
    try:
        info = await client.info("all")
        await client.eval("return 1", 0)
        yield Finding("ok", "Redis", f"{_server(info)} at {place}, runs scripts")
        appendfsync, save = await _setting(client, "appendfsync"), await _setting(client, "save")
        for finding in (*_redis_kind(info), *_redis_memory(info), *_redis_disk(info, appendfsync, save)):
            yield finding
        for finding in _redis_bounds(Server.of(info, appendfsync), settings):
            yield finding
    except (RedisError, OSError, TimeoutError) as error:
        yield Finding("FAIL", "Redis", f"{place} is not usable: {error or type(error).__name__}")
    finally:
        await client.aclose()


def _server(info: Mapping[str, Any]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info['redis_version']}"


def _redis_kind(info: Mapping[str, Any]) -> Iterator[Finding]:
    version = tuple(int(number) for number in str(info["redis_version"]).split(".")[:2])
    if version < REDIS_OLDEST:
        yield Finding("FAIL", "Redis", f"it is older than {REDIS_OLDEST[0]}.{REDIS_OLDEST[1]}")
    if info["role"] != "master":
        yield Finding("FAIL", "Redis", f"it is a {info['role']}, and wallets are written: name its master")
    if info.get("cluster_enabled"):
        yield Finding("FAIL", "Redis", "it is a node of a Redis Cluster, which this version cannot use yet")


def _redis_memory(info: Mapping[str, Any]) -> Iterator[Finding]:
    policy, limit_bytes = info["maxmemory_policy"], int(info["maxmemory"])
    if policy != "noeviction":
        when = "it deletes wallets and holds when memory is short" if limit_bytes else "it would, were maxmemory set"
        yield Finding("FAIL", "Redis", f"maxmemory-policy is {policy}: {when}; set it to noeviction")
    elif limit_bytes:
        used = int(info["used_memory"])
        text = f"never evicts; {used / limit_bytes:.0%} of {limit_bytes:,} bytes used, calls answer 503 once it is full"
        yield Finding("ok", "Redis", text)
    else:
        yield Finding("ok", "Redis", "never evicts; no memory limit")


async def _setting(client: redis.asyncio.Redis, name: str) -> str | None:
    """Its value; None where the server does not tell (managed ones often do not)."""
    try:
        return (await client.config_get(name)).get(name)
    except ResponseError:
        return None


def _redis_disk(info: Mapping[str, Any], appendfsync: str | None, save: str | None = None) -> Iterator[Finding]:
    """What the server does with what it was told, before any gateway helps."""
    if not info["aof_enabled"]:
        yield _without_file(save)
        return
    if info["aof_last_write_status"] != "ok":
        yield Finding("FAIL", "Redis", "the last write of its append-only file failed: is its disk full?")
    if appendfsync is None:
        yield Finding(
            "note", "Redis", "appendonly is on; the server does not tell appendfsync, on which a loss depends"
        )
    else:
        text = LOSSES[appendfsync].text
        if appendfsync != "always":
            text += " of holds, settles and credits; a crash of the server alone takes nothing"
        yield Finding("ok" if appendfsync == "always" else "note", "Redis", text)


def _without_file(save: str | None) -> Finding:
    if save == "":
        text = "appendonly is off and there are no snapshots: a restart loses every wallet, hold and unflushed charge"
        return Finding("FAIL", "Redis", f"{text}; set appendonly to yes")
    text = "appendonly is off: a crash loses every hold, settle and credit since the last snapshot, or all of them"
    return Finding("note", "Redis", text)


def _redis_bounds(server: Server, settings: Settings) -> Iterator[Finding]:
    """What is really lost: gateways that live send again what they settled lately."""
    keep_s, unknown = settings.settle_keep_s, Loss(2, "")
    if server.append_only and server.fsync != "always":
        lost_s = LOSSES.get(server.fsync or "", unknown).at_most_s
        if keep_s > lost_s:
            text = (
                f"gateways keep settles for {keep_s} s and send them again: a charge is lost only if Redis' machine "
                f"and the gateway that made it fail within the same {lost_s} s"
            )
            yield Finding("ok", "Redis", text)
        else:
            text = f"settle_keep_s is {keep_s}, and {lost_s} s of settles may be lost: set it to {lost_s + 3} or more"
            yield Finding("note", "Redis", text)
    yield from _replication(server, settings)


def _replication(server: Server, settings: Settings) -> Iterator[Finding]:
    wanted, connected = settings.redis_wait_replicas, server.replicas
    if wanted > connected:
        text = f"redis_wait_replicas is {wanted}, and {connected} are connected: no settle counts as acknowledged"
        yield Finding("FAIL", "Redis", text)
    elif wanted:
        text = (
            f"a settle counts as acknowledged when {wanted} of {connected} replicas have it (waits "
            f"{settings.redis_wait_timeout_ms} ms at most): a failover to one of them loses none"
        )
        yield Finding("ok", "Redis", text)
    elif connected:
        text = (
            f"{connected} replicas, asynchronous: a failover loses what they had not got, of which gateways send again "
            f"the settles of {settings.settle_keep_s} s; redis_wait_replicas=1 makes each settle wait for one of them"
        )
        yield Finding("note", "Redis", text)


# PostgreSQL


async def _postgres(settings: Settings) -> AsyncIterator[Finding]:
    url = settings.postgres_url
    if not url:
        yield Finding("FAIL", "PostgreSQL", "OBOL_POSTGRES_URL is not set")
        return
    place = urlsplit(url).netloc.rpartition("@")[2] or "the local socket"
    try:
        connection = await asyncpg.connect(url, timeout=POSTGRES_TIMEOUT_S, command_timeout=POSTGRES_TIMEOUT_S)
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        yield Finding("FAIL", "PostgreSQL", f"{place} is not usable: {error or type(error).__name__}")
        return
    try:
        version = connection.get_server_version()
        state: Literal["ok", "FAIL"] = "ok" if version.major >= POSTGRES_OLDEST else "FAIL"
        wanted = "" if state == "ok" else f", and {POSTGRES_OLDEST} is the oldest that will do"
        yield Finding(state, "PostgreSQL", f"{version.major}.{version.minor} at {place}{wanted}")
        yield await _writable(connection)
        migrations = await _migrations(connection)
        yield migrations
        if migrations.state != "FAIL":
            async for finding in _shards(connection, settings):
                yield finding
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        yield Finding("FAIL", "PostgreSQL", f"{place} stopped answering: {error or type(error).__name__}")
    finally:
        await connection.close(timeout=POSTGRES_TIMEOUT_S)


async def _writable(connection: asyncpg.Connection) -> Finding:
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        return Finding("FAIL", "PostgreSQL", "it is a standby: name its primary")
    if await connection.fetchval("SELECT current_setting('transaction_read_only')") == "on":
        return Finding("FAIL", "PostgreSQL", "it is read-only")
    return Finding("ok", "PostgreSQL", "may be written")


async def _migrations(connection: asyncpg.Connection) -> Finding:
    files = sorted(path.stem for path in Path(migrate.__file__).with_name("migrations").glob("*.sql"))
    done: set[str] = set()
    if await connection.fetchval("SELECT to_regclass('schema_migrations') IS NOT NULL"):
        done = {row["name"] for row in await connection.fetch("SELECT name FROM schema_migrations")}
    if missing := [name for name in files if name not in done]:
        return Finding("FAIL", "PostgreSQL", f"not migrated, run obol migrate: {', '.join(missing)}")
    if newer := sorted(done - set(files)):
        return Finding("note", "PostgreSQL", f"a newer version of Obol has migrated it: {', '.join(newer)}")
    return Finding("ok", "PostgreSQL", f"migrated: {files[-1]}")


async def _shards(connection: asyncpg.Connection, settings: Settings) -> AsyncIterator[Finding]:
    """A wallet keeps its shard, so that number may not go down; going up has a price."""
    shards = settings.ledger_shards
    beyond = await connection.fetchrow("SELECT count(*), max(shard) FROM wallets WHERE shard >= $1", shards)
    if beyond["count"]:
        text = f"ledger_shards is {shards}, and {beyond['count']:,} wallets lie on shards beyond it"
        yield Finding(
            "FAIL", "PostgreSQL", f"{text}, whose charges would not be recorded: at least {beyond['max'] + 1}"
        )
    before = await connection.fetchval("SELECT count(*) FROM journal_cursors")
    if 0 < before < shards:
        days = settings.report_record_ttl_s / 86_400
        text = f"ledger_shards was {before} and is {shards}: idempotency keys of the last {days:.3g} days are forgotten"
        yield Finding("note", "PostgreSQL", text)


# Configuration


def _configuration(settings: Settings) -> Iterator[Finding]:
    yield _master_key(settings.master_key)
    try:
        table = providers.load()
        yield from _provider_keys(settings, {provider.name.lower(): provider.name for provider in table})
        book = prices.compile_book(datetime.now(UTC))
        yield Finding("ok", "configuration", f"price book {book.version}")
        for name in unknown_names(book, table):
            yield Finding(
                "note", "configuration", f"prices.toml has prices of {name!r}, which is no provider and no host"
            )
    except ConfigurationError as error:
        yield Finding("FAIL", "configuration", str(error))
    yield from _money_in(settings)
    if settings.test_mode:
        text = f"test mode: the traffic of {len(settings.upstream_map)} origins goes elsewhere (OBOL_UPSTREAM_MAP)"
        yield Finding("note", "configuration", text)


def _master_key(key: str) -> Finding:
    try:
        Derived(key)
    except ValueError as error:
        return Finding("FAIL", "configuration", str(error) if key else "OBOL_MASTER_KEY is not set")
    return Finding("ok", "configuration", "the master key is set")


def _provider_keys(settings: Settings, names: Mapping[str, str]) -> Iterator[Finding]:
    """`names`: the providers of the table by their name in lower case."""
    given = sorted(settings.provider_keys)
    known = [names[name] for name in given if name in names]
    for name in given:
        if name not in names:
            yield Finding("note", "configuration", f"OBOL_PROVIDER_KEY_{name.upper()} names no provider of the table")
    if known:
        yield Finding("ok", "configuration", f"keys for {', '.join(known)}")
    else:
        text = "no provider keys: only calls that bring their own key reach a real provider"
        yield Finding("note", "configuration", text)


# Cards and phone codes


def _money_in(settings: Settings) -> Iterator[Finding]:
    """Who takes money and sends codes in which mode."""
    test, live = "the sandbox, which moves no money", "not configured (OBOL_STRIPE_LIVE_KEY)"
    if settings.stripe_test_key:
        test = "Stripe in its test mode"
    if settings.stripe_live_key:
        live = "Stripe"
    yield Finding("ok", "cards", f"test merchants: {test}; live merchants: {live}")
    for mode in ("test", "live"):
        key, secret = (getattr(settings, f"stripe_{mode}_{name}") for name in ("key", "webhook_secret"))
        if key and not secret:
            name = f"OBOL_STRIPE_{mode.upper()}_WEBHOOK_SECRET"
            text = f"{name} is not set: refunds, disputes and late payments that Stripe tells of are not heard"
            yield Finding("note", "cards", text)
    codes = "Twilio Verify" if settings.twilio_account_sid else "not configured (OBOL_TWILIO_ACCOUNT_SID)"
    yield Finding("ok", "phone codes", f"test merchants: shown in the log; live merchants: {codes}")
