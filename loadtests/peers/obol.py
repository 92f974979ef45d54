"""Starts Obol as `obol up --demo` does, billing fully on, with one gateway worker, in a data directory of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loadtests.peers.servers import Server, stop
from loadtests.scenario import COMPLETIONS_URL, completions_path

START_TIMEOUT_S = 60.0
LOG_TAIL_LINES = 8
PROGRAM = (sys.executable, "-m", "gateway")


@contextlib.contextmanager
def obol(upstream: str, cores: Sequence[int], program: Sequence[str] = PROGRAM) -> Iterator[Server]:
    """The gateway worker is held to `cores`, as every proxy of the bench is; ledger, background worker and database
    go where the kernel puts them, as they would on a machine of their own. Raise SubprocessError with the end of its
    log when it does not start."""
    with tempfile.TemporaryDirectory(prefix="obol-bench-") as directory:
        data, log = Path(directory, "data"), Path(directory, "log")
        command = [*program, "up", "--demo", "--workers", "1"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--port", "0", "--data-dir", str(data)],
                stdout=output,
                stderr=output,
                env=_environment(upstream),
            )
        try:
            up = _ready(process, data, log)
            for worker in up["workers"]:
                _pin(worker, cores)
            yield _server(up, json.loads((data / "demo.json").read_text(encoding="utf-8")))
        finally:
            stop(process)
            _remove_cluster(data)


def _remove_cluster(data: Path) -> None:
    """As root, PostgreSQL's files lie outside the data directory, behind a link: they go with it."""
    link = data / "postgres"
    if link.is_symlink():
        shutil.rmtree(link.resolve(), ignore_errors=True)


def _environment(upstream: str) -> dict[str, str]:
    """No OBOL_ setting of the caller reaches it; OpenAI's origin is the fast provider."""
    parts = urlsplit(COMPLETIONS_URL)
    found = {name: value for name, value in os.environ.items() if not name.startswith("OBOL_")}
    found["OBOL_TEST_MODE"] = "1"
    found["OBOL_UPSTREAM_MAP"] = json.dumps({f"{parts.scheme}://{parts.netloc}": upstream})
    return found


def _ready(process: subprocess.Popen[bytes], data: Path, log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            up: dict[str, Any] = json.loads((data / "up.json").read_text(encoding="utf-8"))
            if (data / "demo.json").exists() and up["workers"] and _answers(up["base_url"]):
                return up
        time.sleep(0.1)
    tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])
    raise subprocess.SubprocessError(f"not ready within {START_TIMEOUT_S:g} s, or it ended:\n{tail}")


def _answers(base_url: str) -> bool:
    parts = urlsplit(base_url)
    with urllib.request.urlopen(f"{parts.scheme}://{parts.netloc}/readyz", timeout=2) as answer:
        return bool(answer.status == 200)


def _pin(pid: int, cores: Sequence[int]) -> None:
    """Move every thread of `pid`, where the system can."""
    if cores and hasattr(os, "sched_setaffinity"):
        for thread in Path("/proc", str(pid), "task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)


def _server(up: dict[str, Any], demo: dict[str, Any]) -> Server:
    parts = urlsplit(up["base_url"])
    companions = tuple(up[name] for name in ("valkey_pid", "worker_pid", "postgres_pid") if up.get(name))
    return Server(
        "Obol",
        f"{parts.scheme}://{parts.netloc}",
        up["workers"][0],
        completions_path(up["base_url"]),
        demo["forward_token"],
        companions,
    )
