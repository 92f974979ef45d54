"""Real gateway processes (`obol serve`) on the engines of a test, with the test's fake provider behind them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from running import MASTER_KEY, upstream_map

from gateway.testing import FakeProvider

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20


@contextlib.asynccontextmanager
async def gateway_processes(
    count: int, valkey: str, postgres: str, provider: FakeProvider, directory: Path, **settings: Any
) -> AsyncIterator[list[str]]:
    """Their URLs. All are ready when the block begins, and have ended with exit code 0 when it is left."""
    environment = process_environment(valkey, postgres, provider, directory, **settings)
    ready_files = [directory / f"gateway-{number}.ready" for number in range(count)]
    running: list[Process] = []
    try:
        for ready in ready_files:
            command = (sys.executable, "-m", "gateway", "serve", "--port", "0", "--ready-file", str(ready))
            with ready.with_suffix(".log").open("wb") as log:
                running.append(await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log))
        ports = [await _port(process, ready) for process, ready in zip(running, ready_files, strict=True)]
        yield [f"http://127.0.0.1:{port}" for port in ports]
        codes = await _stop(running)
        assert codes == [0] * count, [ready.with_suffix(".log").read_text() for ready in ready_files]
    finally:
        for process in running:
            if process.returncode is None:
                process.kill()
                await process.wait()


def process_environment(
    valkey: str, postgres: str, provider: FakeProvider, directory: Path, **settings: Any
) -> dict[str, str]:
    """The variables of a process of ours on a test's engines; `settings` as OBOL_*."""
    (directory / "metrics").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OBOL_")}
    return kept | {
        "OBOL_REDIS_URL": valkey,
        "OBOL_POSTGRES_URL": postgres,
        "OBOL_MASTER_KEY": MASTER_KEY,
        "OBOL_TEST_MODE": "1",
        # The tests' Valkey does not sync, and their clients keep connections: a stop would wait for both.
        "OBOL_SETTLE_KEEP_S": "0",
        "OBOL_SHUTDOWN_IDLE_GRACE_S": "0",
        "OBOL_UPSTREAM_MAP": json.dumps(upstream_map(provider)),
        "OBOL_DATA_DIR": str(directory),
        "PROMETHEUS_MULTIPROC_DIR": str(directory / "metrics"),
        "PYTHONPATH": str(REPOSITORY),
        **{f"OBOL_{name.upper()}": str(value) for name, value in settings.items()},
    }


class GatewayProcess(NamedTuple):
    """A running `obol serve`."""

    process: Process
    url: str
    log: Path


@contextlib.asynccontextmanager
async def gateway_process(
    valkey: str,
    postgres: str,
    provider: FakeProvider,
    directory: Path,
    *,
    program: Sequence[str] = ("-m", "gateway"),
    **settings: Any,
) -> AsyncIterator[GatewayProcess]:
    """One `obol serve` that the test stops itself; killed at the end if it has not."""
    ready = directory / "gateway.ready"
    log_path = ready.with_suffix(".log")
    environment = process_environment(valkey, postgres, provider, directory, **settings)
    command = (sys.executable, *program, "serve", "--port", "0", "--ready-file", str(ready))
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=log, stderr=log)
    try:
        yield GatewayProcess(process, f"http://127.0.0.1:{await _port(process, ready)}", log_path)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _port(process: Process, ready: Path) -> int:
    async with asyncio.timeout(START_TIMEOUT_S):
        while not ready.exists():
            assert process.returncode is None, ready.with_suffix(".log").read_text()
            await asyncio.sleep(0.05)
    return int(json.loads(ready.read_text())["port"])


async def _stop(running: list[Process]) -> list[int]:
    for process in running:
        process.terminate()
    async with asyncio.timeout(STOP_TIMEOUT_S):
        return [await process.wait() for process in running]
