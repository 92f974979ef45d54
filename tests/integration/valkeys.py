"""Valkey servers of a test's own: started, stopped, frozen, killed, and put back to an earlier state of their file."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway.local.valkey import binary

START_TIMEOUT_S = 10.0


class ValkeyServer:
    """One server in a directory of its own. It keeps its port over restarts."""

    def __init__(self, directory: Path, *lines: str, durable: str | None = "everysec") -> None:
        """`lines` of configuration; `durable`: the value of appendfsync, None for no append-only file."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}/0"
        kept = ["appendonly no"] if durable is None else ["appendonly yes", f"appendfsync {durable}"]
        configuration = ["bind 127.0.0.1", f"port {self.port}", 'save ""', 'logfile ""', *kept, *lines, ""]
        (directory / "valkey.conf").write_text("\n".join(configuration))
        self.client = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        self._process = subprocess.Popen(
            (str(binary()), "valkey.conf"),
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            restore_signals=False,  # SIGXFSZ stays ignored: beyond `limit_files` a write fails, as on a full disk
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while wait:
            try:
                self.client.ping()
                return
            except (redis.ConnectionError, redis.BusyLoadingError):
                assert self._process.poll() is None, "the server has ended"
                assert time.monotonic() < deadline_s, "the server does not answer"
                time.sleep(0.01)

    def answer_to_a_write(self) -> str:
        """As it is, without a client library that tries again. Empty where nobody answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
                connection.sendall(b"SET filler x\r\n")
                return connection.recv(1_000).decode()
        except OSError:
            return ""

    def kill(self) -> None:
        """As `kill -9`: what it has acknowledged is in the kernel, and so on disk."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None
        self.client.connection_pool.disconnect()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def remember(self, containing: str) -> Path:
        """A copy of its append-only file, with `containing` in it: what is acknowledged is written soon."""
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while True:
            copy = self.directory / f"copy-{time.monotonic_ns()}"
            shutil.copytree(self.directory / "appendonlydir", copy)
            if any(containing.encode() in path.read_bytes() for path in copy.iterdir()):
                return copy
            assert time.monotonic() < deadline_s, f"{containing} is not written"
            time.sleep(0.02)

    def power_cut(self, survives: Path) -> None:
        """Its machine fails: what came after the copy `survives` had not reached the disk. It is down then."""
        self.kill()
        shutil.rmtree(self.directory / "appendonlydir")
        shutil.copytree(survives, self.directory / "appendonlydir")

    def configure(self, *lines: str) -> None:
        """Add lines to its configuration, from the next start on."""
        with (self.directory / "valkey.conf").open("a") as file:
            file.write("\n".join([*lines, ""]))

    def limit_files(self, size_bytes: int) -> None:
        """What it writes beyond that fails, as on a full disk. -1: no limit."""
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


@contextmanager
def valkey_server(directory: Path, *lines: str, durable: str | None = "everysec") -> Iterator[ValkeyServer]:
    server = ValkeyServer(directory, *lines, durable=durable)
    server.start()
    try:
        yield server
    finally:
        server.kill()
