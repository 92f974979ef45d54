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
from gateway.errors import ConfigurationError
from gateway.ledger.connection import Address
from gateway.settings import Settings
from gateway.store import migrate
from gateway.store.secrets import Derived

REDIS_OLDEST = (6, 2)
"""The first with XTRIM MINID."""
POSTGRES_OLDEST = 14
POSTGRES_TIMEOUT_S = 10.0

LOSS = {
    "always": "appendfsync always: a settle that was acknowledged survives a crash of the server and of its machine",
    "everysec": "appendfsync everysec: a crash of its machine may lose the holds, settles and credits of the last "
    "second (two at the worst); a crash of the server alone loses none",
    "no": "appendfsync no: a crash of its machine may lose what the kernel had not written yet, on Linux up to "
    "about 30 s of holds, settles and credits; a crash of the server alone loses none",
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
    parts = await asyncio.gather(_collect(_redis(settings)), _collect(_postgres(settings.postgres_url)))
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
        for finding in (*_redis_kind(info), *_redis_memory(info), *_redis_disk(info, await _appendfsync(client))):
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


async def _appendfsync(client: redis.asyncio.Redis) -> str | None:
    """The value of the setting; None where the server does not tell (managed ones often do not)."""
    try:
        return (await client.config_get("appendfsync")).get("appendfsync")
    except ResponseError:
        return None


def _redis_disk(info: Mapping[str, Any], appendfsync: str | None) -> Iterator[Finding]:
    if not info["aof_enabled"]:
        text = "appendonly is off: a crash loses every hold, settle and credit since the last snapshot, or all of them"
        yield Finding("note", "Redis", text)
        return
    if info["aof_last_write_status"] != "ok":
        yield Finding("FAIL", "Redis", "the last write of its append-only file failed: is its disk full?")
    if appendfsync is None:
        yield Finding(
            "note", "Redis", "appendonly is on; the server does not tell appendfsync, on which a loss depends"
        )
    else:
        yield Finding("ok" if appendfsync == "always" else "note", "Redis", LOSS[appendfsync])


# PostgreSQL


async def _postgres(url: str) -> AsyncIterator[Finding]:
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
        yield await _migrations(connection)
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


# Configuration


def _configuration(settings: Settings) -> Iterator[Finding]:
    yield _master_key(settings.master_key)
    try:
        table = providers.load()
        yield from _provider_keys(settings, {provider.name.lower(): provider.name for provider in table})
        book = prices.compile_book(datetime.now(UTC))
        yield Finding("ok", "configuration", f"price book {book.version}")
    except ConfigurationError as error:
        yield Finding("FAIL", "configuration", str(error))
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
