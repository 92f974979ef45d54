"""The data directory of `obol up`: where each file lies, who may read it, and which supervisor owns it.

    up.lock         flock held by the running supervisor: it, not a pid, tells a live one from a stale one
    up.json         what runs where, for other programs; kept true while the supervisor lives
    env.json        the OBOL_* variables its children got, for `obol check` and the like
    master.key      the key that seals stored secrets
    valkey.json     port and password of the embedded Valkey;  valkey/    its files
    postgres.json   port and password of the embedded PostgreSQL;  postgres/  its cluster (or a link to it)
    run/ logs/ metrics/   ready files, output of the children, Prometheus' files

Every file that holds a secret has mode 0600 and is replaced atomically.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway.errors import ConfigurationError

_LOCK_POLL_S = 0.02
# A command that looks whether a supervisor runs holds the lock for an instant; a new supervisor waits that out.
_SUPERVISOR_LOCK_WAIT_S = 0.5


class Locked(Exception):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, wait_s: float) -> Iterator[int]:
    """Hold an exclusive flock on `path` (created if absent); yield its descriptor. Raise Locked after `wait_s`.

    Leaving the block closes the descriptor and does not unlock, so a child that inherited it keeps the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(descriptor, path, time.monotonic() + wait_s)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: Path, deadline_s: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise Locked(str(path)) from None
            time.sleep(_LOCK_POLL_S)


def write_private(path: Path, text: str) -> None:
    """Replace `path` by a file of mode 0600 that holds `text`: readers see the old or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, None if there is no such file. Raise ConfigurationError if it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} is not readable: {error}") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} does not hold a JSON object")
    return value


class DataDir:
    """One data directory. Making the object touches nothing; `create` makes the directories."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.up_json = self.root / "up.json"
        self.env_json = self.root / "env.json"
        self.master_key_file = self.root / "master.key"
        self.run = self.root / "run"
        self.logs = self.root / "logs"
        self.metrics = self.root / "metrics"
        self._lock = self.root / "up.lock"

    def create(self) -> None:
        """Make what is missing. Raise ConfigurationError where that is not allowed."""
        try:
            # For root, PostgreSQL runs as another user, who has to pass through; each secret has mode 0600 itself.
            self.root.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
            for directory in (self.run, self.logs, self.metrics):
                directory.mkdir(exist_ok=True, mode=0o700)
            write_private(self.root / ".writable", "")
            (self.root / ".writable").unlink()
        except OSError as error:
            raise ConfigurationError(f"the data directory {self.root} is not usable: {error.strerror}") from None

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Be the one supervisor of this directory. Raise ConfigurationError if another is."""
        try:
            with locked(self._lock, _SUPERVISOR_LOCK_WAIT_S):
                self._clear()
                yield
        except Locked:
            state = read_json(self.up_json) or {}
            who = f" (pid {state['pid']}, {state['base_url']})" if "pid" in state and "base_url" in state else ""
            raise ConfigurationError(f"the data directory {self.root} is in use by another obol up{who}") from None

    def _clear(self) -> None:
        """Remove what a supervisor that was killed left behind."""
        for path in (self.up_json, self.env_json):
            path.unlink(missing_ok=True)
        for directory in (self.run, self.metrics):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700, exist_ok=True)

    def master_key(self) -> str:
        """32 random bytes in hexadecimal, made once."""
        if not self.master_key_file.exists():
            write_private(self.master_key_file, secrets.token_hex(32) + "\n")
        return self.master_key_file.read_text(encoding="ascii").strip()

    def publish(self, state: Mapping[str, Any]) -> None:
        """Write up.json."""
        write_private(self.up_json, json.dumps(state, indent=2) + "\n")

    def publish_environment(self, environment: Mapping[str, str]) -> None:
        """Write env.json."""
        write_private(self.env_json, json.dumps(dict(environment), indent=2) + "\n")

    def withdraw(self) -> None:
        """Remove up.json and env.json: nothing runs any more."""
        for path in (self.up_json, self.env_json):
            path.unlink(missing_ok=True)

    def running_environment(self) -> dict[str, str]:
        """The OBOL_* variables of the children of a live `obol up`; empty if none runs here.

        Those that `obol up` got itself, provider keys among them, are read from the process: no file holds them.
        """
        try:
            if not self._lock.exists():
                return {}
            with locked(self._lock, 0):
                return {}
        except Locked:
            published = {name: str(value) for name, value in (read_json(self.env_json) or {}).items()}
            return _variables_of((read_json(self.up_json) or {}).get("pid")) | published
        except OSError as error:
            raise ConfigurationError(f"the data directory {self.root} is not readable: {error.strerror}") from None


def _variables_of(pid: Any) -> dict[str, str]:
    """The OBOL_* variables a process was started with; none where the system does not tell them, or not to us."""
    try:
        process = Path(f"/proc/{int(pid)}")
        words = (process / "environ").read_bytes().split(b"\0")
        directory = (process / "cwd").readlink()
    except (OSError, TypeError, ValueError):
        return {}
    pairs = (word.decode("utf-8", "surrogateescape").partition("=") for word in words if word.startswith(b"OBOL_"))
    found = {name: value for name, _, value in pairs if value}
    if "OBOL_CONFIG" in found:
        found["OBOL_CONFIG"] = str(directory / found["OBOL_CONFIG"])
    return found
