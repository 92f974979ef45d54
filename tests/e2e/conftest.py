"""Vendors' own clients against a running gateway. `make e2e` installs them; elsewhere nothing is collected."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

CLIENTS = ("openai", "anthropic", "google-genai", "mistralai", "cohere", "groq", "pydantic-ai-slim", "langchain-openai")
JAVASCRIPT = Path(__file__).parent / "javascript"
INSTALLED = find_spec("cohere") is not None

pytest.register_assert_rewrite("billed", "demonstration", "installation", "lava_driver")

if INSTALLED:
    import certifi
    from demonstration import Demonstration, demonstration
    from installation import Customer, Installation, installation
    from lava_driver import LavaDriver, fake_browser, lava_driver
    from recorded_exchanges import DIRECTORY, exchanges

    from gateway.local.engines import running
    from gateway.local.postgres import Postgres
    from gateway.local.valkey import Valkey
    from gateway.testing import FakeProvider
else:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header(config: pytest.Config) -> str:
    if not INSTALLED:
        return "e2e: the clients are not installed here, nothing of tests/e2e is collected; run make e2e"
    return "e2e: " + ", ".join(f"{name} {version(name)}" for name in CLIENTS)


@pytest.fixture(scope="session", autouse=True)
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A client reads all certificates of the machine when it is made, which takes 60 ms; here none speaks TLS."""
    pem, end, _ = Path(certifi.where()).read_text(encoding="ascii").partition("-----END CERTIFICATE-----\n")
    file = tmp_path_factory.mktemp("certificates") / "one.pem"
    file.write_text(pem[pem.index("-----BEGIN") :] + end, encoding="ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="session")
def fake(engines_dir: Path, postgres_server: Postgres) -> Iterator[Installation]:
    """A gateway before the fake provider, which says what it is asked to say."""
    with (
        _on_engines(engines_dir / "fake", postgres_server) as (valkey, postgres),
        installation(valkey, postgres, FakeProvider) as installed,
    ):
        yield installed


@pytest.fixture(scope="session")
def replay(engines_dir: Path, postgres_server: Postgres) -> Iterator[Installation]:
    """A gateway before recorded exchanges."""
    hosts = {one.origin for one in exchanges()}
    with (
        _on_engines(engines_dir / "replay", postgres_server) as (valkey, postgres),
        installation(valkey, postgres, lambda: FakeProvider(replay=DIRECTORY), more_origins=hosts) as installed,
    ):
        yield installed


@pytest.fixture(scope="session")
def demo(engines_dir: Path) -> Iterator[Demonstration]:
    """A running `obol up --demo`."""
    with demonstration(engines_dir / "demo") as running:
        yield running


@pytest.fixture(scope="session")
def lava(node: tuple[str, Path], demo: Demonstration, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LavaDriver]:
    """The published versions of @lavapayments/nodejs, with the demo merchant's key."""
    address, environment = fake_browser(tmp_path_factory.mktemp("browser"))
    with lava_driver(*node, demo.base_url, demo.demo["secret_key"], address, environment) as driver:
        yield driver


@contextmanager
def _on_engines(directory: Path, server: Postgres) -> Iterator[tuple[str, str]]:
    """A Valkey and a database of one gateway's own: their URLs."""
    directory.mkdir(mode=0o711)
    database = f"{directory.name}_{secrets.token_hex(6)}"
    asyncio.run(_execute(server.url, f"CREATE DATABASE {database} TEMPLATE migrated"))
    engine = Valkey(directory, appendfsync="no")
    with running(engine, directory / "valkey.log"):
        yield engine.url, server.database_url(database)
    asyncio.run(_execute(server.url, f"DROP DATABASE {database} WITH (FORCE)"))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
def recorded_customer(replay: Installation) -> Customer:
    """A customer of the gateway before recorded exchanges."""
    return replay.customer()


@pytest.fixture(scope="session")
def node() -> tuple[str, Path]:
    """Node.js, and the directory whose `node_modules` has the packages. Skips where they are not installed."""
    program = shutil.which("node")
    if program is None or not (JAVASCRIPT / "node_modules").is_dir():
        pytest.skip("JavaScript clients: node or npm is not on this machine")
    return program, JAVASCRIPT


@pytest.fixture
def customer(fake: Installation) -> Customer:
    return fake.customer()
