"""What the two embedded engines have in common: an address on loopback, and running one without an event loop."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.errors import ConfigurationError
from gateway.local.data_dir import read_json, write_private
from gateway.local.process import Part, ending, launching, tail

LOOPBACK = "127.0.0.1"
# An engine whose parent was killed gets its signal at once; PostgreSQL's checkpoint and Valkey's fsync come first.
LOCK_WAIT_S = 60.0
PREPARE_ATTEMPTS = 3
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Address:
    """Where an embedded engine listens on loopback, and its password."""

    port: int
    password: str


class Engine(Protocol):
    """An embedded server. `prepare` blocks for up to LOCK_WAIT_S; `url` is known once it has returned."""

    def prepare(self) -> Part: ...

    @property
    def url(self) -> str: ...


def address(path: Path) -> Address:
    """The address kept in the file `path`: its port if that is still free, else a new one; the password for good."""
    kept = read_json(path) or {}
    password = kept.get("password") or secrets.token_urlsafe(24)
    port = kept.get("port")
    if not isinstance(port, int) or not port_is_free(port):
        port = free_port()
    if kept != {"port": port, "password": password}:
        write_private(path, json.dumps({"port": port, "password": password}) + "\n")
    return Address(port, password)


def free_port() -> int:
    """A TCP port of loopback on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on `port` of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except (OSError, OverflowError):
            return False
        return True


def bare_environment() -> dict[str, str]:
    """The environment of an engine: none of our secrets, and a locale that every machine has."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


@contextmanager
def running(engine: Engine, log: Path) -> Iterator[int]:
    """Run `engine` for the length of the block; yield its pid. For callers without an event loop, as tests are.

    Call it from a thread that outlives the block. Raise ConfigurationError if the engine does not start.
    """
    part, process = _start(engine, log)
    try:
        yield process.pid
    finally:
        _stop(part, process)


def _start(engine: Engine, log: Path) -> tuple[Part, subprocess.Popen[bytes]]:
    for attempt in range(1, PREPARE_ATTEMPTS + 1):
        part = engine.prepare()
        with launching(part, log) as options:
            process = subprocess.Popen(part.argv, **options)
        try:
            _wait_ready(part, process, log)
        except BaseException as error:
            _stop(part, process)
            # Another process may have taken the port between the choice and its use: choose again.
            if attempt == PREPARE_ATTEMPTS or not isinstance(error, ConfigurationError):
                raise
        else:
            return part, process
    raise AssertionError("the last attempt returned or raised")


def _wait_ready(part: Part, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + part.start_timeout_s
    while not part.ready(process.pid):
        if (code := process.poll()) is not None:
            raise ConfigurationError(f"{part.name} ended with {ending(code)} at its start:{tail(log, 0)}")
        if time.monotonic() > deadline_s:
            raise ConfigurationError(f"{part.name} is not ready after {part.start_timeout_s:g} s:{tail(log, 0)}")
        time.sleep(_POLL_S)


def _stop(part: Part, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(part.stop_signal)
    try:
        process.wait(part.stop_timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(part.kill_signal)
        process.wait()
