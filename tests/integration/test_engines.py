"""The embedded engines: durable, private, restartable after kill -9, never two on one directory, as root and not."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis
import redis.asyncio
from scratch import scratch_directory

from gateway.errors import ConfigurationError
from gateway.local import postgres as postgres_module
from gateway.local import postgres_install
from gateway.local import valkey as valkey_module
from gateway.local.engines import running
from gateway.local.postgres import Postgres
from gateway.local.process import Account, engine_account
from gateway.local.valkey import Valkey

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root has to switch to another user")


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data directory that `nobody` may enter."""
    directory = scratch_directory("obol-test-")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def private_dir(tmp_path: Path) -> Iterator[Path]:
    """A data directory below one of mode 0700; the cluster that was made elsewhere for it is removed."""
    tmp_path.chmod(0o700)
    directory = tmp_path / "data"
    directory.mkdir()
    yield directory
    for link in tmp_path.glob("*/postgres"):
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)


def sql(url: str, statement: str) -> object:
    async def fetch() -> object:
        connection = await asyncpg.connect(url, timeout=10)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(fetch())


def arguments(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def wait_gone(pid: int, within_s: float = 10) -> None:
    deadline_s = time.monotonic() + within_s
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline_s, f"{pid} is still there"
        time.sleep(0.02)


def test_valkey_is_durable_and_private(data_dir: Path) -> None:
    engine = Valkey(data_dir)
    with running(engine, data_dir / "log") as pid:
        client = redis.Redis.from_url(engine.url)
        assert client.config_get("appendfsync") == {"appendfsync": "always"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        password, port = engine.url.split(":")[2].split("@")[0], int(engine.url.rsplit(":", 1)[1].split("/")[0])
        assert len(password) >= 32
        assert password not in arguments(pid)
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
    secret = [data_dir / "valkey.json", data_dir / "valkey" / "valkey.conf"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in secret] == [0o600, 0o600]


def test_valkey_keeps_acknowledged_writes_port_and_password_over_kill_9(data_dir: Path) -> None:
    first, second = Valkey(data_dir), Valkey(data_dir)
    with running(first, data_dir / "log") as pid:
        client = redis.Redis.from_url(first.url)
        for number in range(100):
            client.set(f"key-{number}", number)
        os.kill(pid, signal.SIGKILL)
    with running(second, data_dir / "log"):
        assert second.url == first.url
        assert redis.Redis.from_url(second.url).dbsize() == 100


def test_valkey_takes_another_port_if_its_own_is_taken(data_dir: Path) -> None:
    engine = Valkey(data_dir)
    engine.prepare()
    port = int(engine.url.rsplit(":", 1)[1].split("/")[0])
    with socket.create_server(("127.0.0.1", port)), running(engine, data_dir / "log"):
        assert f":{port}/" not in engine.url
        assert redis.Redis.from_url(engine.url).ping()


def test_two_engines_never_share_a_directory(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_module, "LOCK_WAIT_S", 0.2)
    monkeypatch.setattr(postgres_module, "LOCK_WAIT_S", 0.2)
    with running(Valkey(data_dir), data_dir / "log"), running(Postgres(data_dir, fsync=False), data_dir / "log"):
        with pytest.raises(ConfigurationError, match="another Valkey still uses"):
            Valkey(data_dir).prepare()
        with pytest.raises(ConfigurationError, match="another PostgreSQL still uses"):
            Postgres(data_dir).prepare()


def test_postgres_is_private_and_survives_kill_9(data_dir: Path) -> None:
    first, second = Postgres(data_dir), Postgres(data_dir)
    with running(first, data_dir / "log") as pid:
        sql(first.url, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        with pytest.raises(asyncpg.InvalidPasswordError):
            sql(first.url.replace("@", "x@"), "SELECT 1")
        password = first.url.split(":")[2].split("@")[0]
        assert password not in arguments(pid)
        os.kill(pid, signal.SIGKILL)
    with running(second, data_dir / "log"):
        assert second.url == first.url
        assert sql(second.url, "SELECT count(*) FROM t") == 1000
        assert sql(second.url, "SHOW fsync") == "on"
        assert sql(second.url, "SELECT datlocale FROM pg_database WHERE datname = 'obol'") == "C.UTF-8"
    assert (data_dir / "postgres" / "cluster").is_dir() and not (data_dir / "postgres").is_symlink()


def test_a_half_made_cluster_is_made_again(data_dir: Path) -> None:
    remains = data_dir / "postgres" / "cluster.new"
    remains.mkdir(parents=True)
    (data_dir / "postgres").chmod(0o711)
    (remains / "PG_VERSION").write_text("18\n")
    engine = Postgres(data_dir, fsync=False)
    with running(engine, data_dir / "log"):
        assert sql(engine.url, "SELECT 1") == 1
    assert not remains.exists()


@needs_root
def test_the_cluster_lies_elsewhere_if_nobody_may_not_enter(private_dir: Path) -> None:
    for expected in (None, 1):
        engine = Postgres(private_dir, fsync=False)
        with running(engine, private_dir / "log"):
            if expected is None:
                sql(engine.url, "CREATE TABLE t AS SELECT 1 AS n")
            assert sql(engine.url, "SELECT n FROM t") == 1
    home = (private_dir / "postgres").readlink()
    assert home.parent == Path("/var/tmp")
    assert (home.stat().st_uid, (home / "cluster").stat().st_uid) == (0, engine_account().uid)
    Postgres(private_dir).remove()
    assert not home.exists()
    assert not (private_dir / "postgres").is_symlink()


@needs_root
def test_a_copied_moved_or_robbed_data_directory(private_dir: Path) -> None:
    Postgres(private_dir, fsync=False).prepare()
    home = (private_dir / "postgres").readlink()
    copy = private_dir.with_name("copy")
    shutil.copytree(private_dir, copy, symlinks=True)
    with pytest.raises(ConfigurationError, match="is a copy of"):
        Postgres(copy).prepare()
    (copy / "postgres.id").write_text("other\n")
    with pytest.raises(ConfigurationError, match="belongs to the data directory"):
        Postgres(copy).prepare()
    with pytest.raises(ConfigurationError, match="belongs to the data directory"):
        Postgres(copy).remove()
    moved = private_dir.rename(private_dir.with_name("moved"))
    assert Postgres(moved, fsync=False).prepare().directory == home / "cluster"
    shutil.rmtree(home)
    with pytest.raises(ConfigurationError, match="is gone"):
        Postgres(moved).prepare()


@needs_root
def test_a_wheel_that_nobody_cannot_read_is_copied_once(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_install, "PUBLIC_DIR", data_dir)
    monkeypatch.setattr(postgres_install, "reachable", lambda _path, _account: False)
    account = engine_account()
    first = postgres_install.bin_dir("", account)
    assert first.is_relative_to(data_dir)
    inode = (first / "postgres").stat().st_ino
    assert (postgres_install.bin_dir("", account) / "postgres").stat().st_ino == inode
    monkeypatch.undo()
    engine = Postgres(data_dir, str(first), fsync=False)
    with running(engine, data_dir / "log") as pid:
        assert str(first) in arguments(pid)
    first.parents[2].chmod(0o777)
    monkeypatch.setattr(postgres_install, "PUBLIC_DIR", data_dir)
    monkeypatch.setattr(postgres_install, "reachable", lambda _path, _account: False)
    with pytest.raises(ConfigurationError, match="remove it"):
        postgres_install.bin_dir("", account)


def test_reachable_looks_at_every_directory_above(data_dir: Path) -> None:
    stranger = Account(uid=54_321, gid=54_321)
    inner = data_dir / "a" / "b"
    inner.mkdir(parents=True)
    program = inner / "program"
    program.touch(0o755)
    assert postgres_install.reachable(program, stranger)
    inner.parent.chmod(0o700)
    assert not postgres_install.reachable(program, stranger)
    inner.parent.chmod(0o755)
    program.chmod(0o744)
    assert not postgres_install.reachable(program, stranger)


def test_a_configured_bin_dir_without_the_programs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="OBOL_PG_BIN_DIR: there is no initdb"):
        postgres_install.bin_dir(str(tmp_path), None)


_ENGINES_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from gateway.local.engines import running
from gateway.local.postgres import Postgres
from gateway.local.valkey import Valkey
root = Path(sys.argv[1])
with running(Valkey(root), root / "log") as v, running(Postgres(root, fsync=False), root / "log") as p:
    print(v, p, flush=True)
    time.sleep(60)
"""


def _interpreter_for_nobody() -> str:
    """An interpreter of our version that any user may run."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        if Path(path).exists() and postgres_install.reachable(Path(path), Account(65_534, 65_534)):
            return path
    pytest.skip(f"there is no {name} that another user may run")


@pytest.mark.parametrize("as_root", [pytest.param(True, marks=needs_root), False])
def test_engines_end_when_their_parent_is_killed(data_dir: Path, as_root: bool) -> None:
    switch = {} if as_root or not ROOT else {"user": 65_534, "group": 65_534, "extra_groups": []}
    if switch and not all(each.stat().st_mode & 0o001 for each in Path(__file__).resolve().parents):
        pytest.skip("nobody may not read this checkout, so it cannot run from it")
    if switch:
        os.chown(data_dir, 65_534, 65_534)
    program = _interpreter_for_nobody() if switch else sys.executable
    paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), *sys.path)))
    parent = subprocess.Popen(
        [program, "-c", _ENGINES_UNTIL_KILLED, str(data_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": paths, "PATH": os.defpath},
        **switch,
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for pid in pids:
        wait_gone(pid)
    assert b"database system is shut down" in (data_dir / "log").read_bytes()
    assert b"ready to exit" in (data_dir / "log").read_bytes()


@pytest.mark.parametrize("run", ["first", "second"])
async def test_the_shared_fixtures_are_clean(redis_client: redis.asyncio.Redis, postgres: str, run: str) -> None:
    assert await redis_client.dbsize() == 0
    await redis_client.set("left", "over")
    connection = await asyncpg.connect(postgres)
    assert await connection.fetchval("SELECT count(*) > 0 FROM schema_migrations")
    await connection.execute("CREATE TABLE left_over ()")
    await connection.close()
