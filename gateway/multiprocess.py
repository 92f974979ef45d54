"""The files in which the processes of one machine share their metrics, with those of dead processes folded into one.

prometheus_client gives each process files of its own in PROMETHEUS_MULTIPROC_DIR and never removes them. Here the
counters and histograms of processes that have ended are added up in one file a type, so that a roll or a crash neither
sets a counter back nor lets the directory grow; their gauges, which tell of a present that is past, are removed.

The processes must see each other's process ids: share no directory between containers. A leaf.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

LOG = logging.getLogger("obol.metrics")
LOCK_WAIT_S = 2.0
_LOCK_POLL_S = 0.01
_OF_A_PROCESS = re.compile(r"(counter|histogram|summary|gauge_[a-z]+)_(\d+)\.db")


class SharedMetrics(Collector):
    """What all processes have counted. Raise TimeoutError when the directory stays locked for LOCK_WAIT_S."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Metric]:
        with _locked(self._directory):
            _fold_dead(self._directory)
            # A file is empty for the instant in which its process makes it.
            files = [str(path) for path in self._directory.glob("*.db") if path.stat().st_size]
            metrics: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        yield from metrics


def fold_dead(directory: Path) -> None:
    """Add up the files of processes that have ended. Blocks; raise TimeoutError like SharedMetrics."""
    with _locked(directory):
        _fold_dead(directory)


def _fold_dead(directory: Path) -> None:
    """The lock keeps readers out between the two steps, in which a value would be there twice."""
    dead = [(path, kind) for path, kind, pid in _of_processes(directory) if not _lives(pid)]
    for kind in {kind for _, kind in dead if not kind.startswith("gauge")}:
        _fold(directory / f"{kind}_ended.db", [path for path, each in dead if each == kind])
    for path, _ in dead:
        path.unlink()


def _of_processes(directory: Path) -> Iterator[tuple[Path, str, int]]:
    for path in directory.glob("*.db"):
        if found := _OF_A_PROCESS.fullmatch(path.name):
            yield path, found[1], int(found[2])


def _fold(into: Path, files: list[Path]) -> None:
    """Replace `into` by the sum of itself and `files`, at once: a kill leaves the old file or the new one."""
    totals: dict[str, float] = {}
    for path in (into, *files):
        for key, value in _values(path):
            totals[key] = totals.get(key, 0.0) + value
    partial = into.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    sums = MmapedDict(str(partial))  # type: ignore[no-untyped-call]
    for key, value in totals.items():
        sums.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    sums.close()  # type: ignore[no-untyped-call]
    partial.replace(into)


def _values(path: Path) -> list[tuple[str, float]]:
    """A file that a kill left half made counts as empty."""
    try:
        found = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
        return [(key, value) for key, value, _, _ in found]
    except FileNotFoundError:
        return []
    except (RuntimeError, struct.error, UnicodeDecodeError) as error:
        LOG.warning("metrics of an ended process are not readable", extra={"file": path.name, "why": str(error)})
        return []


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's process
    return True


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(descriptor, time.monotonic() + LOCK_WAIT_S)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, deadline_s: float) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise TimeoutError("the metrics of this machine's processes are locked") from None
        time.sleep(_LOCK_POLL_S)
