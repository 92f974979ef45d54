"""What the kernel says of a process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int) -> int:
    """The memory that it has now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def forget_peak(pid: int) -> None:
    """`peak_bytes` is counted from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most memory that it had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def descriptors(pid: int) -> int:
    """Open files and sockets."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


async def settled_bytes(pid: int, looks: int = 5, apart_s: float = 0.05) -> int:
    """The least of a few looks: what stays, without what is only passing through."""
    seen = []
    for _ in range(looks):
        seen.append(resident_bytes(pid))
        await asyncio.sleep(apart_s)
    return min(seen)
