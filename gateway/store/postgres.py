"""The pool, and the named queries.

SQL stands in `queries/*.sql`, several statements a file, each under a line `-- name: <name>`;
`Queries` loads them once and gives each as an attribute-like lookup: `queries["meters.by_id"]`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import asyncpg
import msgspec

from gateway.errors import ObolError

_NAME = re.compile(r"^-- name: (\S+)$", re.MULTILINE)
ACQUIRE_TIMEOUT_S = 10
IDLE_IN_TRANSACTION_MS = 60_000
"""A process that stands still in a transaction does not keep a journal's cursor locked for longer."""
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
)


@cache
def load_queries(directory: Path | None = None) -> Mapping[str, str]:
    """Every named statement, as "<file>.<name>". Read once a process."""
    found: dict[str, str] = {}
    for path in sorted((directory or Path(__file__).parent / "queries").glob("*.sql")):
        parts = _NAME.split(path.read_text(encoding="utf-8"))
        for name, text in zip(parts[1::2], parts[2::2], strict=True):
            found[f"{path.stem}.{name}"] = text.strip()
    return MappingProxyType(found)


class Store:
    """One pool and the queries. Errors of an absent server become `store_unavailable` (503)."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._queries = load_queries()

    @classmethod
    async def connect(cls, url: str, *, pool_max: int = 10, timeout_s: float = 10, by_index: bool = False) -> Store:
        """`by_index`: for a queue, whose tables are empty one minute and full the next: a plan that was made for the
        empty table, and is kept, must not read the whole of the full one."""
        planner = {"enable_seqscan": "off"} if by_index else {}
        pool = await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=pool_max,
            init=_prepare_connection,
            command_timeout=60,
            timeout=timeout_s,
            server_settings={"idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS), **planner},
        )
        return cls(pool)

    async def close(self) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            connection = await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
        except (*_AWAY, asyncpg.InterfaceError) as error:  # also of a pool that is closing
            raise _unavailable() from error
        try:
            yield connection
        except _AWAY as error:
            raise _unavailable() from error
        except asyncpg.InterfaceError as error:
            if not _is_lost(connection):
                raise
            raise _unavailable() from error  # what follows the loss of a connection, such as its transaction's end
        finally:
            await self._pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def planned(self) -> AsyncIterator[asyncpg.Connection]:
        """A transaction whose statements are planned for the very values they are given: what filters match differs by
        orders of magnitude, and a plan kept for all of them suits none."""
        async with self.transaction() as connection:
            await connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
            yield connection

    def sql(self, name: str) -> str:
        return self._queries[name]

    async def rows(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            found: list[asyncpg.Record] = await connection.fetch(self._queries[name], *arguments)
            return found

    async def row(self, name: str, *arguments: Any) -> asyncpg.Record | None:
        async with self.connection() as connection:
            return await connection.fetchrow(self._queries[name], *arguments)

    async def execute(self, name: str, *arguments: Any) -> str:
        async with self.connection() as connection:
            status: str = await connection.execute(self._queries[name], *arguments)
            return status


def _is_lost(connection: asyncpg.Connection) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # the server ended its session, and the pool has taken it back already
        return True


def _unavailable() -> ObolError:
    return ObolError("store_unavailable", "the database is not reachable", retry_after_s=1)


async def _prepare_connection(connection: asyncpg.Connection) -> None:
    """jsonb travels as Python values, in both directions."""
    await connection.set_type_codec(
        "jsonb", encoder=_encode_json, decoder=msgspec.json.decode, schema="pg_catalog", format="text"
    )


def _encode_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
