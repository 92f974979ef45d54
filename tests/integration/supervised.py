"""A real `obol up` on the engines of a test, and traffic through it that notices whatever goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import urllib.request
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from processes import REPOSITORY, process_environment
from tests_support import CHAT, chat

from gateway.testing import FakeProvider, steering_header

START_TIMEOUT_S = 60
ROLL_TIMEOUT_S = 60
STOP_TIMEOUT_S = 60


class Supervised:
    """A running `obol up`."""

    def __init__(self, process: Process, data_dir: Path, environment: dict[str, str]) -> None:
        self.process = process
        self.data_dir = data_dir
        self.environment = environment
        self.said = ""
        self._listening = asyncio.ensure_future(self._listen())

    @property
    def state(self) -> dict[str, Any]:
        return dict(json.loads((self.data_dir / "up.json").read_text()))

    @property
    def url(self) -> str:
        return str(self.state["base_url"]).removesuffix("/v1/")

    def is_ready(self) -> bool:
        return (self.data_dir / "up.json").exists() and self.state["pid"] == self.process.pid

    async def _listen(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.said += line.decode()

    async def until(self, holds: Callable[[], bool], within_s: float) -> None:
        async with asyncio.timeout(within_s):
            while not holds():
                assert self.process.returncode is None, self.said
                await asyncio.sleep(0.05)

    async def roll(self) -> None:
        """Replace every gateway and the background worker; return when that is said."""
        before = self.said.count("have been replaced")
        self.process.send_signal(signal.SIGHUP)
        await self.until(lambda: self.said.count("have been replaced") > before, ROLL_TIMEOUT_S)

    async def stop(self) -> int:
        """SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_TIMEOUT_S):
            code = await self.process.wait()
            await self._listening
        return code

    async def audit(self) -> tuple[int, str]:
        """Exit code and words of `obol audit`."""
        command = (sys.executable, "-m", "gateway", "audit", "--data-dir", str(self.data_dir))
        process = await asyncio.create_subprocess_exec(*command, env=self.environment, stdout=PIPE, stderr=PIPE)
        out, err = await process.communicate()
        return int(process.returncode or 0), out.decode() + err.decode()

    async def metric(self, name: str) -> float:
        """The sum of a metric over its labels, as any gateway tells it."""
        text = await asyncio.to_thread(_fetched, f"{self.url}/metrics")
        lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def obol_up(
    valkey: str, postgres: str, provider: FakeProvider, directory: Path, **settings: Any
) -> contextlib.AbstractAsyncContextManager[Supervised]:
    """`obol up` on engines of a test."""
    return _obol_up(process_environment(valkey, postgres, provider, directory, **settings), directory)


def obol_up_alone(directory: Path, **settings: Any) -> contextlib.AbstractAsyncContextManager[Supervised]:
    """`obol up --demo` with engines of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OBOL_")}
    environment |= {f"OBOL_{name.upper()}": str(value) for name, value in settings.items()}
    return _obol_up(environment | {"PYTHONPATH": str(REPOSITORY)}, directory, "--demo")


@contextlib.asynccontextmanager
async def _obol_up(environment: dict[str, str], directory: Path, *more: str) -> AsyncIterator[Supervised]:
    """Ready when the block begins; killed at its end if the test has not stopped it."""
    data_dir = directory / "data"
    options = ("--port", "0", "--workers", "2", "--data-dir", str(data_dir), *more)
    command = (sys.executable, "-m", "gateway", "up", *options)
    with (directory / "up.out").open("wb") as out:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=out, stderr=PIPE)
    up = Supervised(process, data_dir, environment)
    try:
        await up.until(up.is_ready, START_TIMEOUT_S)
        yield up
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Traffic:
    """Long streams, short calls on connections that are kept, short calls on new ones. `failures` says what failed."""

    def __init__(self, url: str, credential: str, seed: int) -> None:
        self._authority = {"Authorization": f"Bearer {credential}"}
        self._forward = f"{url}/v1/forward?u={CHAT}"
        self._random = random.Random(seed)
        self._ending = asyncio.Event()
        self.failures: list[str] = []
        self.made: Counter[str] = Counter()
        self.answered: list[str] = []
        """The request ids of the calls whose answer came whole."""
        self.streams_open = 0
        self._streams: list[asyncio.Task[None]] = []
        self._short: list[asyncio.Task[None]] = []

    @property
    def calls(self) -> int:
        return self.made.total()

    def begin(self, *, streams: int, chunks: int, chunk_delay_ms: int, spread_s: float, kept: int, fresh: int) -> None:
        """Start `streams` within `spread_s`, and as many loops of short calls as `kept` and `fresh` say."""
        steer = steering_header(
            prompt_tokens=10, completion_tokens=chunks, chunks=chunks, chunk_delay_ms=chunk_delay_ms
        )
        self._streams += [self._task(self._stream(steer, spread_s, chunks)) for _ in range(streams)]
        self._short += [self._task(self._kept(self._random.uniform(0, 1))) for _ in range(kept)]
        self._short += [self._task(self._fresh()) for _ in range(fresh)]

    async def end(self) -> None:
        """Wait for the end of all streams, then end the short calls."""
        await asyncio.gather(*self._streams)
        self._ending.set()
        await asyncio.gather(*self._short)

    def _task(self, work: Awaitable[None]) -> asyncio.Task[None]:
        return asyncio.ensure_future(work)  # type: ignore[return-value]

    async def _attempt(self, kind: str, work: Awaitable[None]) -> None:
        self.made[kind] += 1
        try:
            await work
        except (aiohttp.ClientError, AssertionError, TimeoutError, OSError) as error:
            self.failures.append(f"{kind}: {type(error).__name__}: {error}")

    async def _stream(self, steer: dict[str, str], spread_s: float, chunks: int) -> None:
        await asyncio.sleep(self._random.uniform(0, spread_s))
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
            await self._attempt("stream", self._whole_stream(session, steer, chunks))

    async def _whole_stream(self, session: aiohttp.ClientSession, steer: dict[str, str], chunks: int) -> None:
        headers = self._authority | steer
        async with session.post(self._forward, headers=headers, json=chat(stream=True)) as answer:
            self.streams_open += 1
            try:
                body = await answer.read()
            finally:
                self.streams_open -= 1
            assert answer.status == 200, body
            assert body.rstrip().endswith(b"data: [DONE]"), "a stream was cut"
            assert body.count(b'"delta"') >= chunks
            self.answered.append(answer.headers["x-lava-request-id"])

    async def _short_call(self, session: aiohttp.ClientSession) -> None:
        async with session.post(self._forward, headers=self._authority, json=chat()) as answer:
            body = await answer.read()
            assert answer.status == 200, body
            self.answered.append(answer.headers["x-lava-request-id"])

    async def _kept(self, pause_s: float) -> None:
        """One connection, used again and again."""
        connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=60)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
            while not self._ending.is_set():
                await self._attempt("kept", self._short_call(session))
                await asyncio.sleep(pause_s)

    async def _fresh(self) -> None:
        while not self._ending.is_set():
            connector = aiohttp.TCPConnector(force_close=True)
            async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=30)) as session:
                await self._attempt("fresh", self._short_call(session))
            await asyncio.sleep(0.02)
