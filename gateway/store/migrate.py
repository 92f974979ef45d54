"""Forward-only migrations: every file of `migrations/` not yet recorded is applied, in order, in a transaction.

An advisory lock lets any number of processes call this at once.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncpg

from gateway.errors import ConfigurationError
from gateway.settings import Settings

_LOCK = 0x0B01  # any constant; the advisory lock's number
_CREATE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now()
)"""


async def run(postgres_url: str) -> list[str]:
    """Apply what is missing; return the names applied."""
    connection = await asyncpg.connect(postgres_url, timeout=10)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(_CREATE)
        done = {row["name"] for row in await connection.fetch("SELECT name FROM schema_migrations")}
        return [path.stem for path in _files() if path.stem not in done and await _apply(connection, path)]
    finally:
        await connection.close()


def _files() -> list[Path]:
    return sorted((Path(__file__).parent / "migrations").glob("*.sql"))


async def _apply(connection: asyncpg.Connection, path: Path) -> bool:
    sql = path.read_text(encoding="utf-8")  # noqa: ASYNC240 - at start, before anything is served
    async with connection.transaction():
        await connection.execute(sql)
        await connection.execute("INSERT INTO schema_migrations (name) VALUES ($1)", path.stem)
    return True


def main(settings: Settings) -> int:
    """`obol migrate`."""
    if not settings.postgres_url:
        raise ConfigurationError(
            "there is no database: set OBOL_POSTGRES_URL, or name the --data-dir of a running obol up"
        )
    try:
        applied = asyncio.run(run(settings.postgres_url))
    except (OSError, asyncpg.PostgresError) as error:
        raise ConfigurationError(f"PostgreSQL is not usable: {error}") from None
    sys.stdout.write("\n".join(f"applied {name}" for name in applied) + "\n" if applied else "nothing to apply\n")
    return 0
