"""Child processes that never outlive their parent: what one is, how it is started, how its end is told."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.errors import ConfigurationError
from gateway.local.data_dir import locked

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_TAIL_LINES = 20
_TAIL_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Account:
    """The user a child runs as."""

    uid: int
    gid: int


def engine_account() -> Account | None:
    """Whom PostgreSQL runs as: ourselves (None), or `nobody` if we are root, whom it refuses."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise ConfigurationError(
            "PostgreSQL refuses to run as root and there is no user `nobody`: run as another user or set "
            "OBOL_POSTGRES_URL"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)


@dataclass(frozen=True, slots=True)
class Part:
    """A child process. `ready` is asked with its pid, from a thread, and may block for a second.

    `stop_signal` asks it to end, which may take `stop_timeout_s`, and asks again for haste where `hurry_timeout_s` says
    how long that may take; `kill_signal` ends it at once. `lock` is a file on which the child holds a flock, so that
    nobody uses its data while it, or what it forked, still lives. `descriptors` are open ones that it inherits.
    """

    name: str
    argv: tuple[str, ...]
    ready: Callable[[int], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path | None = None
    account: Account | None = None
    lock: Path | None = None
    descriptors: tuple[int, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    kill_signal: signal.Signals = signal.SIGKILL
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 30.0
    hurry_timeout_s: float | None = None


@contextmanager
def launching(part: Part, log: Path) -> Iterator[dict[str, Any]]:
    """The arguments with which subprocess.Popen or asyncio.create_subprocess_exec starts `part`.

    The call must be made from a thread that lives as long as the parent: the kernel sends the signal of death when
    the *thread* that forked ends. Raise Locked if another process holds the part's lock.
    """
    with ExitStack() as stack:
        output = stack.enter_context(log.open("ab"))
        locks = (stack.enter_context(locked(part.lock, 0)),) if part.lock else ()
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": output,
            "stderr": output,
            "env": dict(part.environment),
            "cwd": part.directory,
            "pass_fds": (*locks, *part.descriptors),
            # A session of its own: a Ctrl-C in the terminal reaches the supervisor alone, which stops in order.
            "start_new_session": True,
            "preexec_fn": dies_with_parent(part.stop_signal),
        }
        yield options | as_account(part.account)


def as_account(account: Account | None) -> dict[str, Any]:
    """The Popen arguments that switch to `account`, leaving every group of ours behind."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}


def dies_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """A Popen preexec_fn: the kernel sends the child `number` when its parent dies. None where there is no such call.

    It runs after the switch of user, which would clear the setting, and does nothing but two system calls.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def between_fork_and_exec() -> None:
        # If the parent died before prctl, no signal will come: then the new parent shows it.
        if prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(127)

    return between_fork_and_exec


def tail(log: Path, offset: int) -> str:
    """The last lines that `log` has after byte `offset`, indented."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(min(offset, end), end - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return "".join(f"\n    {line}" for line in lines[-_TAIL_LINES:])


def ending(code: int) -> str:
    """How a process ended, in words, from its return code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
