"""Metrics of dead processes: added up, not counted twice, their gauges forgotten, whatever a kill left behind."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway import multiprocess
from gateway.multiprocess import SharedMetrics, fold_dead

_PROCESS = """
import sys
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
r = CollectorRegistry()
Counter("calls", "Calls.", ("kind",), registry=r).labels(sys.argv[1]).inc(int(sys.argv[2]))
Histogram("seconds", "Time.", buckets=(1, 10), registry=r).observe(5)
Gauge("live", "Now.", multiprocess_mode="livesum", registry=r).set(7)
Gauge("latest", "Now.", multiprocess_mode="mostrecent", registry=r).set(7)
print("counted", flush=True)
if len(sys.argv) > 3:
    sys.stdin.read()
"""


def process(directory: Path, kind: str, count: int, *more: str) -> subprocess.Popen[bytes]:
    """A process that counts; with `more` it lives until its standard input is closed."""
    started = subprocess.Popen(
        [sys.executable, "-c", _PROCESS, kind, str(count), *more],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == b"counted\n"
    if not more:
        started.wait()
    return started


def told(directory: Path) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(SharedMetrics(directory))
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_what_the_dead_counted_stays_and_their_files_do_not_pile_up(tmp_path: Path) -> None:
    living = process(tmp_path, "a", 1, "stay")
    try:
        for number in range(3):
            process(tmp_path, "a" if number else "b", 10)
            expected = {'calls_total{kind="a"}': 1.0 + 10 * number, 'calls_total{kind="b"}': 10.0}
            for _ in range(2):  # whoever reads twice is told the same
                found = told(tmp_path)
                assert {name: found[name] for name in expected} == expected
                assert found['seconds_bucket{le="1.0"}'] == 0
                assert found["seconds_count"] == found['seconds_bucket{le="10.0"}'] == 2 + number
                assert found["seconds_sum"] == 5 * (2 + number)
                assert (found["live"], found["latest"]) == (7, 7)
            files = sorted(path.name for path in tmp_path.glob("*.db"))
            kinds = ("counter", "gauge_livesum", "gauge_mostrecent", "histogram")
            assert files == sorted(
                ["counter_ended.db", "histogram_ended.db", *(f"{kind}_{living.pid}.db" for kind in kinds)]
            )
    finally:
        living.communicate()
    assert "live" not in told(tmp_path)
    assert told(tmp_path)['calls_total{kind="a"}'] == 21
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["counter_ended.db", "histogram_ended.db"]


def test_files_that_a_kill_left_half_made_harm_nobody(tmp_path: Path) -> None:
    ended = process(tmp_path, "a", 10)
    good = tmp_path / f"counter_{ended.pid}.db"
    other = subprocess.Popen(["true"])
    other.wait()
    (tmp_path / f"counter_{other.pid}.db").write_bytes(b"")
    (tmp_path / f"histogram_{other.pid}.db").write_bytes(good.read_bytes()[:50])
    (tmp_path / f"counter_{os.getpid()}.db").write_bytes(b"")  # of a living process, not yet sized
    (tmp_path / "counter_ended.partial").write_bytes(b"rubbish")
    assert told(tmp_path)['calls_total{kind="a"}'] == 10
    assert not (tmp_path / f"counter_{other.pid}.db").exists()


def test_a_directory_that_stays_locked_is_an_error_and_not_a_wrong_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocess, "LOCK_WAIT_S", 0.05)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="are locked"):
            told(tmp_path)
        with pytest.raises(TimeoutError):
            fold_dead(tmp_path)
    assert told(tmp_path) == {}
