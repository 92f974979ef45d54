"""What tests share: a real Valkey and a real PostgreSQL for each pytest process, and clean data in them for each test.

The servers are the embedded ones of gateway/local, started when the first test asks for one. None of the fixtures
but `redis_client` needs an event loop.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
import redis.asyncio
from scratch import scratch_directory

from gateway.local.engines import running
from gateway.local.postgres import Postgres
from gateway.local.valkey import Valkey
from gateway.store import migrate

_TEMPLATE = "migrated"


@pytest.fixture(scope="session")
def engines_dir() -> Iterator[Path]:
    """A directory that the user `nobody` may pass through, which pytest's own temporary directories forbid."""
    directory = scratch_directory("obol-test-")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey(engines_dir: Path) -> Iterator[str]:
    """The redis:// URL of a Valkey of this pytest process. It does not sync its file: tests want speed."""
    engine = Valkey(engines_dir, appendfsync="no")
    with running(engine, engines_dir / "valkey.log"):
        yield engine.url


@pytest_asyncio.fixture
async def redis_client(valkey: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of an empty Valkey. Functions are removed as well as keys."""
    client = redis.asyncio.Redis.from_url(valkey)
    await client.flushall()
    await client.function_flush("SYNC")
    await client.script_flush("SYNC")
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def postgres_server(engines_dir: Path) -> Iterator[Postgres]:
    """A PostgreSQL of this pytest process, with a database `migrated` that has the schema and nothing else."""
    engine = Postgres(engines_dir, fsync=False)
    with running(engine, engines_dir / "postgres.log"):
        _execute(engine.url, f"CREATE DATABASE {_TEMPLATE}")
        with _runner() as runner:
            runner.run(migrate.run(engine.database_url(_TEMPLATE)))
        yield engine


@pytest.fixture
def postgres(postgres_server: Postgres) -> Iterator[str]:
    """The postgresql:// URL of a database of this test's own, with the schema and no rows."""
    name = f"test_{secrets.token_hex(6)}"
    # Copying its files takes a third of the time of writing them to the log, which nobody needs here.
    _execute(postgres_server.url, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} STRATEGY file_copy")
    yield postgres_server.database_url(name)
    _execute(postgres_server.url, f"DROP DATABASE {name} WITH (FORCE)")


def _runner() -> asyncio.Runner:
    """A loop for a synchronous fixture, which leaves the loop of the tests alone."""
    return asyncio.Runner(loop_factory=asyncio.new_event_loop)


def _execute(url: str, statement: str) -> None:
    async def execute() -> None:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with _runner() as runner:
        runner.run(execute())
