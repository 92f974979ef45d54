"""CPU and memory of processes on this machine, read from /proc (Linux). Elsewhere every reading is empty."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

PROC = Path("/proc")
LISTEN = "0A"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage(msgspec.Struct, frozen=True):
    """The sum over some processes: CPU since their start in microseconds, memory in bytes, who was read."""

    cpu_us: int = 0
    memory_bytes: int = 0
    pids: tuple[int, ...] = ()
    proportional: bool = True
    """`memory_bytes` is PSS (a page shared by n processes counts 1/n); False: RSS, where PSS may not be read."""


def listeners(port: int) -> tuple[int, ...]:
    """The processes that hold a socket listening on TCP `port`: all workers that share it. Those of other users are
    invisible to an ordinary user; then the answer is empty."""
    inodes = _listening_inodes(port)
    return tuple(sorted(pid for pid in _all_pids() if inodes & _socket_inodes(pid))) if inodes else ()


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("net/tcp", "net/tcp6"):
        for line in _read(PROC / table).splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()] if PROC.is_dir() else []


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    try:
        for entry in (PROC / str(pid) / "fd").iterdir():
            link = entry.readlink().name
            if link.startswith("socket:["):
                found.add(link[8:-1])
    except OSError:
        pass
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def descendants(pid: int) -> tuple[int, ...]:
    """`pid` and every process below it: an engine's own children, a server's workers."""
    parents = {child: int(fields[1]) for child in _all_pids() if (fields := _stat(child))}
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return tuple(sorted(family))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name: [0] state, [1] parent, [11] utime, [12] stime."""
    return _read(PROC / str(pid) / "stat").rpartition(")")[2].split()


def usage(pids: Iterable[int]) -> Usage:
    """The sum of those of `pids` that are alive."""
    cpu_us = memory_bytes = 0
    alive, proportional = [], True
    for pid in pids:
        fields = _stat(pid)
        if not fields:
            continue
        alive.append(pid)
        cpu_us += (int(fields[11]) + int(fields[12])) * 1_000_000 // _TICKS_PER_S
        pss = _pss_bytes(pid)
        proportional = proportional and pss is not None
        memory_bytes += _rss_bytes(pid) if pss is None else pss
    return Usage(cpu_us, memory_bytes, tuple(alive), proportional)


def _pss_bytes(pid: int) -> int | None:
    for line in _read(PROC / str(pid) / "smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def _rss_bytes(pid: int) -> int:
    fields = _read(PROC / str(pid) / "statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def machine_cpu() -> tuple[int, int]:
    """Clock ticks since boot of all cores together: (busy, all). (0, 0) where /proc has none."""
    line = _read(PROC / "stat").partition("\n")[0].split()[1:9]
    if not line:
        return (0, 0)
    ticks = [int(field) for field in line]
    return (sum(ticks) - ticks[3] - ticks[4], sum(ticks))
